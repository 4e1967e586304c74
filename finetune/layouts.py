"""What the folder of a base model says of itself, as a record, and how its source is shown to others.

Read without any heavy library, so that listing and planning are instant.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.errors import ModelError
from finetune.families import BaseModel, Family

INDEXES = ("model_index.json", "modular_model_index.json")
GIB = 2**30


def index(folder: Path) -> dict[str, Any]:
    """The index of a published folder. Raises: ModelError when there is none, or it is broken."""
    for name in INDEXES:
        if (folder / name).is_file():
            return read_json(folder / name)
    raise ModelError(
        f"“{folder}” has no {' or '.join(INDEXES)}.",
        "Choose the folder of a whole model in the layout of diffusers, not of a single file.",
    )


def architecture(folder: Path, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a transformer's config that differ from its class's defaults. Raises: ModelError."""
    config = read_json(folder / "transformer" / "config.json")
    values = {name: _frozen(config[name]) for name in defaults if name in config}
    return {name: value for name, value in values.items() if value != defaults[name]}


def weights_gib(folder: Path) -> float:
    """The size of the weights below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / GIB


def described(
    folder: Path, family: Family, known: Sequence[BaseModel], defaults: Mapping[str, Any], text_parts: Sequence[str]
) -> BaseModel:
    """A record of the base model in a folder: what the folder does not say is as in the known one of its architecture,
    or as in the first. Raises: ModelError, also when it is of another family."""
    kind = index(folder).get("_class_name")
    if kind not in family.pipeline_classes:
        raise ModelError(f"“{folder.name}” is made for {kind}, which is not {family.title}.")
    values = architecture(folder, defaults)
    same = [base for base in known if dict(base.architecture) == values]
    return replace(
        (same or known)[0],
        id=str(folder),
        title=folder.name,
        source=str(folder),
        licence="unknown: see its model card",
        licence_url="",
        is_commercial=False,
        is_gated=False,
        architecture=values,
        text_encoder_gib=sum(weights_gib(folder / part) for part in text_parts),
        download_gib=0.0,
        **({} if same else {"distilled": "", "modelspec": ""}),
    )


def refusal(folder: Path, reason: str, instead: BaseModel) -> ModelError:
    """Why the model in a folder cannot be trained on, and what to take."""
    return ModelError(f"“{folder.name}” cannot be trained on: {reason}.", f"Choose “{instead.title}” instead.")


def usage(template: str, base: BaseModel, lora_name: str, prompt: str, faster: str = "") -> str:
    """Fill in a family's lines of Python: on a GPU in 16 bits where the base is a large one, and with no path of this
    machine. `faster` says how the base's distilled sibling draws, if it has one."""
    needs_gpu = base.text_encoder_gib > 1
    precision, device = ("bfloat16", "cuda") if needs_gpu else ("float32", "cpu")
    lines = template.format(
        base=base,
        source=_shown(base),
        dtype=", torch_dtype=torch.bfloat16" if needs_gpu else "",
        place='.to("cuda")' if needs_gpu else "",
        precision=f"torch.{precision}",
        device=device,
        lora=lora_name,
        prompt=prompt,
        sampler=base.sampler,
        side=base.resolution_px,
    )
    return lines + (f"{faster.format(distilled=base.distilled)}\n" if faster and base.distilled else "")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file. Raises: ModelError when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"“{path}” cannot be read: {error}", "Check that its files are complete, or fetch them again."
        ) from error


def _shown(base: BaseModel) -> str:
    """A base's source as others may read it."""
    if not Path(base.source).is_absolute():
        return base.source
    return "path/to/base-model" if base.id == base.source else "path/to/assets/demo-base"


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
