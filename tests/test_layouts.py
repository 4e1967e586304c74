"""What folders of base models say of themselves."""

from dataclasses import replace
from pathlib import Path

import pytest

from finetune import layouts, registry, settings
from finetune.errors import ModelError


def test_broken_index_is_an_error_in_words(tmp_path):
    """A file that is no JSON is named, with what to do."""
    (tmp_path / "model_index.json").write_text("{")

    with pytest.raises(ModelError, match="model_index.json") as caught:
        layouts.index(tmp_path)
    assert caught.value.hint


def test_architecture_is_what_differs_from_the_class():
    """Of a transformer's config only other values than the defaults are told, and only known ones."""
    told = layouts.architecture(settings.DEMO_BASE, {"num_layers": 2, "num_single_layers": 48})

    assert told == {"num_single_layers": 4}


def test_size_of_weights_is_read_from_the_folder(tmp_path):
    """All weights below a folder count, and nothing else."""
    (tmp_path / "a").mkdir()
    for name in ("a/1.safetensors", "2.safetensors", "other.bin"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(layouts.GIB // 4)

    assert layouts.weights_gib(tmp_path) == 0.5


@pytest.mark.parametrize("id", registry.families())
def test_usage_of_a_local_folder_hides_where_it_is(id):
    """Lines that go into a published model card name no folder of this machine."""
    family = registry.families()[id]
    base = replace(family.bases[0], id="/home/anna/model", source="/home/anna/model")

    text = family.usage(base, "x.safetensors", "a pear")

    assert "anna" not in text
    assert "path/to/base-model" in text


@pytest.mark.parametrize("id", ["flux1", "flux2-klein"])
def test_usage_draws(id, tmp_path):
    """The lines that a user gets run as they are, on a folder with a LoRA beside it."""
    from PIL import Image

    family = registry.families()[id]
    model = family.tiny()
    base = replace(model.save(tmp_path), id=str(tmp_path), resolution_px=32)
    names = _a_lora(model, family, tmp_path / "x.safetensors", base)
    text = family.usage(base, "x.safetensors", "a pear").replace("path/to/base-model", str(tmp_path))
    text = text.replace("path/to/folder", str(tmp_path)).replace("picture.png", str(tmp_path / "picture.png"))

    exec(text, {})

    assert names
    assert Image.open(tmp_path / "picture.png").size == (32, 32)


def _a_lora(model, family, path: Path, base):
    import fakes

    from finetune import formats, lora

    lora.add(model.transformer, family.lora_targets, rank=16, seed=0)
    state = lora.state(model.transformer)
    formats.save(state, path.parent, path.stem, fakes.config(), base, formats.About("0" * 32, pictures=4, steps=10))
    return state


def test_usage_of_flux3_draws(tmp_path):
    """The lines for FLUX.3 run too, once the processor, which needs torchvision here, is put in."""
    import fakes

    family = registry.families()["flux3"]
    model = family.tiny()
    base = replace(model.save(tmp_path), id=str(tmp_path), resolution_px=32)
    _a_lora(model, family, tmp_path / "x.safetensors", base)
    text = family.usage(base, "x.safetensors", "a pear").replace("path/to/base-model", str(tmp_path))
    text = text.replace("path/to/folder", str(tmp_path)).replace("picture.png", str(tmp_path / "picture.png"))
    text = text.replace("pipeline.load_lora", "pipeline.update_components(tokenizer=processor)\npipeline.load_lora")
    text = text.replace("    prompt=", "    text_encoder_out_layers=(1, 2),\n    prompt=")

    exec(text, {"processor": fakes.text_processor(model.part("tokenizer"))})

    assert (tmp_path / "picture.png").is_file()
