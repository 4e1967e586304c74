"""LoRA files for diffusers, their metadata, and the check of what was written.

A file names what it was made with, so that a program that opens it years later can say so too: `modelspec.*` is the
Stability AI model metadata standard, `ss_*` what kohya's scripts write, `lora_adapter_metadata` what diffusers reads,
`finetune` every value of the run.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from finetune import __version__
from finetune.errors import ModelError
from finetune.families import BaseModel
from finetune.recipe import TrainConfig

PREFIX = "transformer."
PAIR = ("lora_A.weight", "lora_B.weight")
BROKEN = "Start the run again; if this happens again, the disk may be full or broken."


def save(state: dict[str, Tensor], path: Path, config: TrainConfig, base: BaseModel, description: str = "") -> None:
    """Write a LoRA in one move, with the key names that diffusers reads.

    It is kept in float32: a LoRA for the demo base has 5 MB.
    """
    tensors = {PREFIX + key: tensor.float().contiguous() for key, tensor in sorted(state.items())}
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, part, metadata=_metadata(state, config, base, description))
    os.replace(part, path)


def _metadata(state: dict[str, Tensor], config: TrainConfig, base: BaseModel, description: str) -> dict[str, str]:
    layers = sorted({key.rsplit(".", 2)[0] for key in state})
    adapter = {"r": config.lora_rank, "lora_alpha": config.lora_rank, "target_modules": layers}
    return {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({PREFIX + key: value for key, value in adapter.items()}),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{base.family}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": config.name,
        "modelspec.description": description,
        "modelspec.trigger_phrase": config.trigger_word,
        "modelspec.resolution": f"{max(config.resolutions_px)}x{max(config.resolutions_px)}",
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.lora_rank),
        "ss_network_alpha": str(float(config.lora_rank)),
        "ss_base_model_version": base.id,
        "software": f"Finetune {__version__}",
        "finetune": json.dumps(config.as_dict()),
    }


def read_metadata(path: Path) -> dict[str, Any]:
    """Read a file's metadata, with its JSON values as values. Raises: ModelError when it is no safetensors file."""
    metadata: dict[str, Any] = {}
    with _open(path) as file:
        metadata.update(file.metadata() or {})
    for key in ("lora_adapter_metadata", "finetune"):
        if key in metadata:
            metadata[key] = json.loads(metadata[key])
    return metadata


def check(path: Path) -> None:
    """Make sure that a file holds a LoRA that does something. Raises: ModelError saying what is wrong with it."""
    with _open(path) as file:
        keys = set(file.keys())
        layers = {key.removesuffix(end) for key in keys for end in PAIR if key.endswith(end)}
        wanted = {layer + end for layer in layers for end in PAIR}
        if keys != wanted or not layers:
            odd = sorted(keys ^ wanted)[:3]
            raise ModelError(f"“{path.name}” is not a whole LoRA ({', '.join(odd) or 'it is empty'}).", BROKEN)
        has_effect = False
        for layer in layers:
            a, b = (file.get_tensor(layer + end) for end in PAIR)
            if not (a.isfinite().all() and b.isfinite().all()):
                raise ModelError(
                    f"“{path.name}” holds values that are not numbers, in {layer.removeprefix(PREFIX)[:-1]}.",
                    "Train again with a lower learning rate.",
                )
            has_effect |= bool(torch.any(a)) and bool(torch.any(b))
    if not has_effect:
        raise ModelError(
            f"“{path.name}” changes nothing: all its values are zero.", "Train longer or at a higher rate."
        )


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"“{path.name}” cannot be read as a LoRA file ({error}).", BROKEN) from error
