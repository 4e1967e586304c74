"""LoRA files: what is written, what is read back, what is refused."""

import fakes
import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune import formats
from finetune.errors import ModelError
from finetune.families.flux2 import DEMO


def _state(value=1.0):
    return {"block.0.to_q.lora_A.weight": torch.full((16, 8), value), "block.0.to_q.lora_B.weight": torch.ones(4, 16)}


def test_file_holds_the_tensors_under_diffusers_names(tmp_path):
    """Keys begin with “transformer.” and values are those that were given."""
    path = tmp_path / "deep" / "x.safetensors"

    formats.save(_state(0.5), path, fakes.config(), DEMO)

    tensors = load_file(path)
    assert set(tensors) == {f"transformer.{key}" for key in _state()}
    assert torch.equal(tensors["transformer.block.0.to_q.lora_A.weight"], torch.full((16, 8), 0.5))
    assert [entry.name for entry in path.parent.iterdir()] == ["x.safetensors"]


def test_metadata_tells_what_the_lora_is(tmp_path):
    """Trigger word, base model, rank and all settings are in the file."""
    path = tmp_path / "x.safetensors"

    formats.save(_state(), path, fakes.config(), DEMO, description="sixteen pictures")

    metadata = formats.read_metadata(path)
    assert metadata["modelspec.trigger_phrase"] == "TOK"
    assert metadata["modelspec.title"] == "my-first-finetune"
    assert metadata["modelspec.description"] == "sixteen pictures"
    assert metadata["ss_base_model_version"] == "demo"
    assert metadata["finetune"]["iterations"] == 10
    assert metadata["lora_adapter_metadata"]["transformer.lora_alpha"] == 16


def test_good_file_passes(tmp_path):
    """A whole LoRA is not complained about."""
    formats.save(_state(), tmp_path / "x.safetensors", fakes.config(), DEMO)

    formats.check(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.block.0.to_q.lora_A.weight": None}, "not a whole LoRA"),
        ({"transformer.block.0.to_q.alpha": torch.ones(1)}, "not a whole LoRA"),
        ({"transformer.block.0.to_q.lora_A.weight": torch.full((16, 8), float("nan"))}, "not numbers"),
        ({"transformer.block.0.to_q.lora_B.weight": torch.zeros(4, 16)}, "changes nothing"),
    ],
)
def test_broken_lora_is_refused(tmp_path, change, message):
    """A missing half, a foreign key, a value that is no number and a LoRA without effect are errors."""
    tensors = {f"transformer.{key}": tensor for key, tensor in _state().items()} | change
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
