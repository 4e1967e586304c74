"""Parts of base models: loaded when needed, freed, told apart; text encoders that are shortened or do not fit."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import accelerate
import fakes
import pytest
import torch
from safetensors.torch import save_file

from finetune import layouts, lora, parts, preview, registry
from finetune.errors import ModelError
from finetune.memory import Fit

FAMILIES = registry.families()
with_layers = pytest.mark.parametrize("id", [id for id, family in FAMILIES.items() if family.tiny().base.text_layers])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A toy FLUX.2 klein as a folder, as base models are kept."""
    return fakes.tiny_model().save(tmp_path_factory.mktemp("base"))


def loaded(base):
    """A base model read from its folder."""
    return FAMILIES[base.family].load(base, Path(base.source), "cpu", Fit())


def test_missing_weights_are_an_error_in_words(saved, tmp_path):
    """A base model without its files says so and what to do."""
    model = loaded(replace(saved, source=str(tmp_path / "nothing")))

    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        _ = model.transformer
    assert caught.value.hint


def test_released_part_is_loaded_again_when_needed(saved):
    """Freeing a part makes room, and costs a reload and nothing else."""
    model = loaded(saved)
    before = model.encode_prompts(["a pear"])

    model.release("text", "vae")

    assert torch.allclose(model.encode_prompts(["a pear"])["text"], before["text"], atol=1e-6)


@with_layers
def test_text_encoder_without_its_upper_layers_says_the_same(id, tmp_path):
    """Layers above the last one that is read are not loaded, and the states do not change."""
    whole = fakes.tiny_model(id)
    whole.base = replace(whole.base, text_layers=(1, 2))
    model = loaded(whole.save(tmp_path))

    states = model.encode_prompts(["a pear"])["text"]

    layers = [it.part("text_encoder").config.get_text_config().num_hidden_layers for it in (model, whole)]
    assert layers[0] == 3 < layers[1]
    assert torch.equal(states, whole.encode_prompts(["a pear"])["text"])


def test_text_layer_that_the_encoder_does_not_have_is_told(saved):
    """A text encoder that is too small for the layers that are read is an error in words."""
    model = loaded(replace(saved, text_layers=(9, 18, 27)))

    with pytest.raises(ModelError, match="4 layers, but layer 27"):
        model.encode_prompts(["a pear"])


@pytest.mark.parametrize(("free_gib", "fits"), [(10, True), (8, False)])
def test_text_encoder_that_does_not_fit_lies_in_the_processors_memory_in_part(free_gib, fits, monkeypatch):
    """On a GPU a text encoder of 7.5 GiB is spread when it needs more than 90 % of what is free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_gib * layouts.GIB, 24 * layouts.GIB))

    told = parts.text_placement(7.5, "cuda:1")

    assert parts.text_placement(7.5, "cpu") == {}
    assert told.get("device_map") == (None if fits else "auto")
    assert fits or told["max_memory"][1] == int(7.2 * layouts.GIB)


def test_text_encoder_whose_layers_come_one_by_one_says_the_same(saved):
    """Weights that wait elsewhere, as accelerate keeps what does not fit, give the same states."""
    model = loaded(saved)
    accelerate.cpu_offload(model.part("text_encoder"), torch.device("cpu"))

    states = model.encode_prompts(["a pear"])["text"]

    assert torch.allclose(states, fakes.tiny_model().encode_prompts(["a pear"])["text"], atol=1e-6)


def test_chat_template_in_a_file_of_its_own_is_read(tmp_path):
    """The layout of older processors, with the template beside the tokenizer, gives the same states."""
    base = fakes.tiny_model("flux3").save(tmp_path)
    template = tmp_path / "tokenizer" / "chat_template.jinja"
    template.with_suffix(".json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()

    states = loaded(base).encode_prompts(["a pear"])["text"]

    assert torch.equal(states, fakes.tiny_model("flux3").encode_prompts(["a pear"])["text"])


def with_lora(base):
    """A model with a LoRA in memory that changes its pictures, and encodings of a prompt and of none."""
    model = loaded(base)
    for weight in lora.add(model.transformer, FAMILIES[base.family].lora_targets, rank=4, seed=0).values():
        weight.data += 0.2
    return model, model.encode_prompts(["a pear"]), model.encode_prompts([""])


def fused(model, folder):
    """A LoRA file with a published layer's name, which diffusers takes apart into three."""
    width = model.transformer.inner_dim
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    drawn = torch.Generator().manual_seed(0)
    factors = {"lora_A": torch.randn(4, width, generator=drawn), "lora_B": torch.randn(3 * width, 4, generator=drawn)}
    save_file({f"{name}.{factor}.weight": value for factor, value in factors.items()}, folder / "x.safetensors")
    return folder / "x.safetensors"


def test_file_is_drawn_in_place_of_the_lora_in_memory(saved, tmp_path):
    """A file with published names draws its own picture; afterwards the LoRA in memory is as it was, without a word."""
    model, pear, empty = with_lora(saved)
    before = preview.draw(model, [pear], empty, 5, (32, 32), saved.sampler)[0]
    learning = {name for name, weight in model.transformer.named_parameters() if weight.requires_grad}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = model.draw_with_file(fused(model, tmp_path), pear, empty, 5, (32, 32))

    assert preview.difference(drawn, before) > 8
    assert preview.difference(preview.draw(model, [pear], empty, 5, (32, 32), saved.sampler)[0], before) == 0
    assert {name for name, weight in model.transformer.named_parameters() if weight.requires_grad} == learning != set()


def test_lora_in_memory_that_is_off_stays_off(saved, tmp_path):
    """Drawing with a file while the base alone is looked at does not switch the LoRA in memory on."""
    model, pear, empty = with_lora(saved)
    model.transformer.disable_adapters()
    before = preview.draw(model, [pear], empty, 5, (32, 32), saved.sampler)[0]

    model.draw_with_file(fused(model, tmp_path), pear, empty, 5, (32, 32))

    assert preview.difference(preview.draw(model, [pear], empty, 5, (32, 32), saved.sampler)[0], before) == 0


def test_model_without_a_lora_has_none_after_a_file_was_drawn(saved, tmp_path):
    """Drawing with a file leaves the base as it was."""
    model = loaded(saved)
    pear, empty = model.encode_prompts(["a pear"]), model.encode_prompts([""])
    before = preview.draw(model, [pear], empty, 5, (32, 32), saved.sampler)[0]

    drawn = [model.draw_with_file(fused(model, tmp_path), pear, empty, 5, (32, 32)) for _ in range(2)]

    assert preview.difference(*drawn) == 0 < preview.difference(drawn[0], before)
    assert preview.difference(preview.draw(model, [pear], empty, 5, (32, 32), saved.sampler)[0], before) == 0


def test_original_weight_is_that_of_the_file(saved):
    """Training does not touch what is told as the base's weight; a weight that it does not have is an error."""
    model, name = loaded(saved), "transformer_blocks.0.attn.to_q.weight"
    expected = model.transformer.get_parameter(name).clone()
    model.transformer.get_parameter(name).zero_()

    assert torch.equal(model.original(name), expected)
    with pytest.raises(ModelError, match="nothing.weight"):
        model.original("nothing.weight")


def test_fingerprint_survives_a_copy_and_sees_a_new_name(saved, tmp_path):
    """A copied folder is the same, although its times are not; a renamed file is another one."""
    first, second = tmp_path / "a", tmp_path / "b"
    shutil.copytree(Path(saved.source, "vae"), first)
    shutil.copytree(first, second, copy_function=shutil.copyfile)
    assert parts.fingerprint(first) == parts.fingerprint(second) != ""

    (second / "config.json").rename(second / "other.json")

    assert parts.fingerprint(first) != parts.fingerprint(second)


def test_fingerprint_of_a_large_file_reads_blocks_from_all_over_it(tmp_path):
    """Other weights anywhere in a file of 100 MiB are seen, though not each byte is read."""
    path, size = tmp_path / "x.safetensors", 100 * 2**20
    with open(path, "wb") as file:
        file.truncate(size)
    seen = {parts.fingerprint(tmp_path)}

    for start in range(0, size, 10 * 2**20):
        with open(path, "r+b") as file:
            file.seek(start)
            file.write(bytes([1]) * 10 * 2**20)
        seen.add(parts.fingerprint(tmp_path))

    assert len(seen) == 11
