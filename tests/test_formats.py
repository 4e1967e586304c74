"""LoRA files: what is written, what is read back, what is refused."""

import hashlib
import json
from dataclasses import replace

import fakes
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from finetune import formats, lora, registry
from finetune.errors import ModelError, TrainingError
from finetune.families.flux2 import DEMO

FAMILIES = registry.families().values()
ABOUT = formats.About(
    dataset_hash="5eed", pictures=4, steps=9, base_revision="c0ffee", description="four pears", dataset_name="pears"
)


@pytest.fixture(scope="module")
def tiny():
    """A toy model with a LoRA that does something."""
    return _with_lora(registry.families()[fakes.FAMILY])


def _with_lora(family):
    model = family.tiny()
    draw = torch.Generator().manual_seed(0)
    for weight in lora.add(model.transformer, family.lora_targets, rank=2, seed=0).values():
        weight.data = torch.randn(weight.shape, generator=draw)
    return model


def _save(model, folder, dtype=torch.float32, base=None):
    state = lora.state(model.transformer)
    return formats.save(state, folder, "x", fakes.config(), base or model.base, ABOUT, dtype)


def test_files_hold_the_tensors_under_both_names(tiny, tmp_path):
    """Two files and no leftovers: keys of one begin with “transformer.”, of the other with “diffusion_model.”."""
    files = _save(tiny, tmp_path / "deep")

    tensors = load_file(files.diffusers)
    state = lora.state(tiny.transformer)
    assert set(tensors) == {f"transformer.{key}" for key in state}
    assert all(torch.equal(tensors[f"transformer.{key}"], tensor) for key, tensor in state.items())
    assert all(key.startswith("diffusion_model.") and ".lora_" in key for key in load_file(files.comfyui))
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"x.safetensors", "x-comfyui.safetensors"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_hold_exactly_what_rounding_gives(tiny, tmp_path, dtype):
    """Whoever loads the rounded values into the network draws what the file draws."""
    files = _save(tiny, tmp_path, dtype)

    rounded = formats.rounded(lora.state(tiny.transformer), dtype)
    tensors = load_file(files.diffusers)
    assert {tensor.dtype for tensor in [*tensors.values(), *load_file(files.comfyui).values()]} == {dtype}
    assert all(torch.equal(tensors[f"transformer.{key}"], tensor) for key, tensor in rounded.items())


def test_disk_that_takes_no_file_is_an_error_in_words(tiny, tmp_path):
    """Where nothing can be written, the run says so and what to do."""
    (tmp_path / "results").write_text("a file where the folder should be")

    with pytest.raises(TrainingError, match="cannot be written") as caught:
        _save(tiny, tmp_path / "results")
    assert caught.value.hint


@pytest.mark.parametrize("which", formats.Files._fields)
def test_metadata_tells_what_the_lora_is(tiny, tmp_path, which):
    """Trigger word, base model and its revision, licence, pictures and all settings are in both files, as text."""
    base = replace(tiny.base, source="someone/pears", modelspec="Flux.2-klein-4b")

    metadata = formats.read_metadata(getattr(_save(tiny, tmp_path, base=base), which))

    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"] == "Flux.2-klein-4b/lora"
    assert metadata["modelspec.trigger_phrase"] == "TOK"
    assert metadata["modelspec.title"] == "my-first-finetune"
    assert metadata["modelspec.description"] == "four pears"
    assert metadata["modelspec.resolution"] == "32x32"
    assert metadata["modelspec.license"] == f"{base.licence} ({base.licence_url})"
    assert metadata["base_model"] == metadata["ss_base_model_version"] == "tiny"
    assert (metadata["base_model_source"], metadata["base_model_revision"]) == ("someone/pears", "c0ffee")
    assert (metadata["dataset_hash"], metadata["dataset_name"]) == ("5eed", "pears")
    assert (metadata["ss_num_train_images"], metadata["ss_steps"], metadata["ss_max_train_steps"]) == ("4", "9", "10")
    assert metadata["ss_tag_frequency"] == {"my-first-finetune": {"TOK": 4}}
    assert metadata["finetune"] == json.loads(json.dumps(fakes.config().as_dict()))


def test_each_file_tells_its_own_names_and_ranks(tiny, tmp_path):
    """What diffusers reads as one rank for all layers is only in its own file: in the other one ranks differ."""
    ours, theirs = (formats.read_metadata(path) for path in _save(tiny, tmp_path))

    assert (
        ours["lora_adapter_metadata"]["transformer.lora_alpha"] == ours["lora_adapter_metadata"]["transformer.r"] == 2
    )
    assert "lora_adapter_metadata" not in theirs
    assert (ours["ss_network_dim"], theirs["ss_network_dim"]) == ("2", "Dynamic")
    assert (ours["modelspec.implementation"], theirs["modelspec.implementation"]) == ("diffusers", formats.COMFYUI)
    assert (ours["ss_output_name"], theirs["ss_output_name"]) == ("x", "x-comfyui")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hash_is_that_of_all_bytes_behind_the_header(tiny, tmp_path, dtype):
    """A program that reads the file can verify its content, as the metadata standard says."""
    for path in _save(tiny, tmp_path, dtype):
        content = path.read_bytes()
        behind = content[8 + int.from_bytes(content[:8], "little") :]

        metadata = formats.read_metadata(path)

        assert metadata["modelspec.hash_sha256"] == f"0x{hashlib.sha256(behind).hexdigest()}"
        assert metadata["sshs_model_hash"] == hashlib.sha256(behind).hexdigest()


def test_what_is_not_known_is_not_written(tiny, tmp_path):
    """A base from a folder has no source or revision, and nobody is its author; its path stays private."""
    base = replace(tiny.base, id=str(tmp_path / "my-base"), source=str(tmp_path / "my-base"))
    about = formats.About(dataset_hash="5eed", pictures=4, steps=9)
    config = fakes.config(base_model=base.id)

    files = formats.save(lora.state(tiny.transformer), tmp_path, "x", config, base, about)

    metadata = formats.read_metadata(files.diffusers)
    assert not {"base_model_source", "base_model_revision", "modelspec.author", "modelspec.description"} & set(metadata)
    assert metadata["base_model"] == metadata["finetune"]["base_model"] == "my-base"
    assert str(tmp_path) not in str(metadata)


@pytest.mark.parametrize(
    ("source", "id"),
    [
        ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev"),
        ("/models/flux", ""),
        (DEMO.source, ""),
        ("", ""),
    ],
)
def test_base_on_the_hub_is_told_from_a_folder(source, id):
    """Only an id on the Hub is given as the base's source."""
    assert formats.hub_id(replace(DEMO, source=source)) == id


def test_good_file_passes(tiny, tmp_path):
    """A whole LoRA is not complained about."""
    formats.check(_save(tiny, tmp_path).diffusers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.block.0.to_q.lora_A.weight": None}, "not a whole LoRA"),
        ({"transformer.block.0.to_q.alpha": torch.ones(1)}, "not a whole LoRA"),
        ({"block.0.to_k.lora_A.weight": torch.ones(16, 8)}, "not a whole LoRA"),
        ({"transformer.block.0.to_q.lora_A.weight": torch.full((16, 8), float("nan"))}, "not numbers"),
        ({"transformer.block.0.to_q.lora_B.weight": torch.zeros(4, 16)}, "changes nothing"),
    ],
)
def test_broken_lora_is_refused(tmp_path, change, message):
    """A missing half, a foreign key, a value that is no number and a LoRA without effect are errors."""
    layer = "transformer.block.0.to_q"
    tensors = {f"{layer}.lora_A.weight": torch.ones(16, 8), f"{layer}.lora_B.weight": torch.ones(4, 16)} | change
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, tmp_path / "x.safetensors")

    with pytest.raises(ModelError, match=message):
        formats.check(tmp_path / "x.safetensors")


def test_other_file_is_refused(tmp_path):
    """A file that is no safetensors file, and one that is not there, are errors in words."""
    (tmp_path / "x.safetensors").write_bytes(b"not at all")

    with pytest.raises(ModelError, match="cannot be read"):
        formats.check(tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="cannot be read"):
        formats.read_metadata(tmp_path / "y.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.id)
def test_both_files_make_the_same_change(family, dtype, tmp_path):
    """For every family all layers and all keys of both files are counted and agree."""
    model = _with_lora(family)
    names = family.published_names(model.base)

    proof = formats.compare(_save(model, tmp_path, dtype), model.base, model.transformer)

    assert proof.layers == len(lora.layers(family.tiny().transformer, family.lora_targets))
    assert (proof.published_layers, proof.keys) == (len(names), 2 * (proof.layers + len(names)))
    assert proof.largest_difference < 1e-6
    assert f"all {proof.keys} keys" in proof.in_words()
    assert "no difference" in replace(proof, largest_difference=0.0).in_words()


def _edit(path, edit):
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def _change_one_value(tensors):
    tensors["diffusion_model.single_blocks.1.linear2.lora_B.weight"][-1, 0] *= 1.001


def _swap_queries_and_keys(tensors):
    outputs = tensors["diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight"]
    queries, keys, values = outputs.chunk(3)
    outputs.copy_(torch.cat([keys, queries, values]))


@pytest.mark.parametrize(
    ("which", "edit", "message"),
    [
        ("comfyui", _swap_queries_and_keys, "does not make the change"),
        ("comfyui", _change_one_value, "does not make the change"),
        ("diffusers", lambda tensors: next(iter(tensors.values())).mul_(1.001), "does not make the change"),
        ("comfyui", lambda tensors: tensors.clear(), "it is empty"),
        ("diffusers", lambda tensors: [tensors.pop(key) for key in list(tensors) if ".0.attn.to_q." in key], "missing"),
    ],
)
def test_files_that_differ_are_refused(tiny, tmp_path, which, edit, message):
    """Stacked parts in another order, one value that is off by a thousandth, and layers that are missing are seen."""
    files = _save(tiny, tmp_path)

    _edit(getattr(files, which), edit)

    with pytest.raises(ModelError, match=message):
        formats.compare(files, tiny.base, tiny.transformer)


def test_files_of_another_base_are_refused(tiny, tmp_path):
    """Files whose layers have other sizes than the network's do not pass."""
    files = _save(tiny, tmp_path)
    other = registry.families()[fakes.FAMILY].tiny().transformer
    other.get_submodule("transformer_blocks.0.attn.to_q").out_features = 99

    with pytest.raises(ModelError, match="its base model has 99 x"):
        formats.compare(files, tiny.base, other)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.id)
def test_model_card_of_every_base_is_whole(family, tmp_path):
    """Each base model's card has its licence, its id on the Hub, and code that names the file and the prompt."""
    files = formats.Files(tmp_path / "x.safetensors", tmp_path / "x-comfyui.safetensors")
    proof = formats.Proof(layers=10, published_layers=8, keys=36, largest_difference=2e-8)

    for base in family.bases:
        card = ModelCard(formats.model_card(files, fakes.config(), base, ABOUT, proof, [("a pear", "images/0.png")]))

        assert (card.data.license == "apache-2.0") is (base.licence == "Apache 2.0")
        assert card.data.license == "apache-2.0" or card.data.license_link == base.licence_url
        assert card.data.base_model == (None if base.id == "demo" else base.source)
        assert "x.safetensors" in card.text and "'a pear'" in card.text
        assert "all 36 keys" in card.text and "| Steps | 9 |" in card.text
        assert str(DEMO.source) not in card.content
