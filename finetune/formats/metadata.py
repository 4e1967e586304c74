"""What a LoRA file says about itself, so that a program that opens it years later can say so too.

`modelspec.*` is the Stability AI model metadata standard, `ss_*` what kohya's scripts write and many programs show,
`lora_adapter_metadata` what diffusers reads, `finetune` every value of the run. All values are strings. Only what is
known is written: no author, since nobody is asked for one; no prediction type, since the standard has no word for a
velocity; no range of times, since all are trained.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune import __version__
from finetune.families import BaseModel
from finetune.formats import changes
from finetune.formats.changes import PAIR
from finetune.recipe import TrainConfig

STANDARD = "1.0.1"
VALUES_IN_JSON = ("lora_adapter_metadata", "ss_tag_frequency", "finetune")


@dataclass(frozen=True)
class About:
    """What a file says of the run beyond its settings."""

    dataset_hash: str
    """The same for the same pictures and captions."""
    pictures: int
    steps: int
    """Steps that were trained; fewer than asked for if the run was stopped."""
    base_revision: str = ""
    """The commit of the base model on the Hub; empty for a folder."""
    description: str = ""
    dataset_name: str = ""
    """Under which its owner keeps the dataset; empty if they do not."""


def hub_id(base: BaseModel) -> str:
    """The base model's id on the Hub; empty when it comes from a folder."""
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", base.source) and not Path(base.source).exists()
    return base.source if is_id else ""


def public_name(base: BaseModel) -> str:
    """The base model's id; of one in a folder only the folder's name, since a path tells of its owner's computer."""
    return Path(base.id).name if Path(base.id).is_absolute() else base.id


def write(
    tensors: Mapping[str, Tensor],
    output_name: str,
    implementation: str,
    config: TrainConfig,
    base: BaseModel,
    about: About,
) -> dict[str, str]:
    """Everything that holds for a file, whatever its keys are called."""
    digest = _digest(tensors)
    known = {
        "format": "pt",
        **{f"modelspec.{key}": value for key, value in _standard(config, base, about).items()},
        "modelspec.implementation": implementation,
        "modelspec.hash_sha256": f"0x{digest}",
        **{f"ss_{key}": str(value) for key, value in _as_kohya(tensors, config, base, about).items()},
        "ss_output_name": output_name,
        "sshs_model_hash": digest,
        "base_model": public_name(base),
        "base_model_source": hub_id(base),
        "base_model_revision": about.base_revision,
        "license": base.licence,
        "license_link": base.licence_url,
        "dataset_hash": about.dataset_hash,
        "dataset_name": about.dataset_name,
        "software": f"Finetune {__version__}",
        "finetune": json.dumps(config.as_dict() | {"base_model": public_name(base)}),
    }
    return {key: value for key, value in known.items() if value}


def adapter(state: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """What diffusers reads of a file with its own keys, for layers of one rank."""
    (rank,) = {tensor.shape[0] for key, tensor in state.items() if key.endswith(PAIR[0])}
    layers = sorted({key.rsplit(".", 2)[0] for key in state})
    values = {"r": rank, "lora_alpha": rank, "target_modules": layers}
    return {"lora_adapter_metadata": json.dumps({prefix + key: value for key, value in values.items()})}


def read(path: Path) -> dict[str, Any]:
    """Read a file's metadata, with its JSON values as values. Raises: ModelError when it is no safetensors file."""
    metadata: dict[str, Any] = {}
    with changes.opened(path) as file:
        metadata.update(file.metadata() or {})
    for key in VALUES_IN_JSON:
        if key in metadata:
            metadata[key] = json.loads(metadata[key])
    return metadata


def _standard(config: TrainConfig, base: BaseModel, about: About) -> dict[str, str]:
    """Source: Stability AI ModelSpec 1.0, and kohya's sai_model_spec.py for version 1.0.1."""
    side = max(config.resolutions_px)
    licence = f"{base.licence} ({base.licence_url})" if base.licence and base.licence_url else base.licence
    return {
        "sai_model_spec": STANDARD,
        "architecture": f"{base.modelspec or base.family}/lora",
        "title": config.name,
        "description": about.description,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "resolution": f"{side}x{side}",
        "license": licence,
        "trigger_phrase": config.trigger_word,
        "usage_hint": f"Write “{config.trigger_word}” in the prompt.",
        "tags": f"lora, {base.family}, {config.mode}",
    }


def _as_kohya(tensors: Mapping[str, Tensor], config: TrainConfig, base: BaseModel, about: About) -> dict[str, object]:
    ranks = {tensor.shape[0] for key, tensor in tensors.items() if key.endswith(PAIR[0])}
    rank = ranks.pop() if len(ranks) == 1 else "Dynamic"  # the word of kohya's resizing script for several
    return {
        "network_module": "peft.tuners.lora",
        "network_dim": rank,
        "network_alpha": rank,
        "base_model_version": public_name(base),
        "sd_model_name": hub_id(base) or public_name(base),
        "num_train_images": about.pictures,
        "steps": about.steps,
        "max_train_steps": config.iterations,
        "learning_rate": config.learning_rate,
        "lr_warmup_steps": config.warmup_steps,
        "total_batch_size": config.batch_size,
        "seed": config.seed,
        # The trigger word is in every caption. Programs offer what they find here as words for the prompt.
        "tag_frequency": json.dumps({config.name: {config.trigger_word: about.pictures}}),
    }


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of all bytes of a file behind its header, before it is written.

    safetensors puts tensors of one type in the order of their names.
    """
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        raise ValueError("tensors of several types are written in another order")
    hashed = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        hashed.update(tensor.contiguous().view(torch.uint8).numpy())
    return hashed.hexdigest()
