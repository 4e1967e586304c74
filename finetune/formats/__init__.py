"""LoRA files that load everywhere: two for each run, and the proof that both make the same change.

`NAME.safetensors` has diffusers' names, keys `transformer.LAYER.lora_A.weight` and `transformer.LAYER.lora_B.weight`.
- Read by diffusers for every family, and by ComfyUI for FLUX.1 only.
- Proven in each run by diffusers' own pipeline, which draws a sample with it; in tests by each family's LoRA loader.

`NAME-comfyui.safetensors` has the names of the published checkpoint, keys `diffusion_model.LAYER.lora_A.weight` and
`diffusion_model.LAYER.lora_B.weight`.
- Read by ComfyUI for every model whose modules bear the published names, and by diffusers for FLUX.2 and FLUX.3, but
  not for FLUX.1: there it takes no key of it.
- Proven in each run by a reader that looks for modules, as ComfyUI's key map does, and compares every layer with the
  first file; in tests by changing a published checkpoint with it, which diffusers' own converter then turns into our
  layers, and by the LoRA loaders of FLUX.2 and FLUX.3.

No key holds an alpha, because programs disagree about it (some ignore it, some refuse the file): the scale is 1, which
all take for granted where alpha is missing. The second file has no `lora_adapter_metadata`: its ranks differ from layer
to layer, and diffusers reads them from the tensors.

Source: `loaders/lora_pipeline.py` of diffusers 0.42.1; of ComfyUI, `model_lora_keys_unet` in `comfy/lora.py`, which
maps `diffusion_model.LAYER` to the weight of that name for every model, and `comfy/weight_adapter/lora.py`, which takes
lora_A and lora_B and scales by 1 without alpha. Its modules bear the published names for FLUX.1 and FLUX.2; its code
for FLUX.3 was not at hand.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from finetune import registry
from finetune.errors import ModelError, TrainingError
from finetune.families import BaseModel
from finetune.formats import card, changes, metadata, published
from finetune.formats.changes import BROKEN, PAIR, Shape
from finetune.formats.metadata import About, hub_id
from finetune.recipe import TrainConfig

PREFIX = "transformer."
LARGEST_DIFFERENCE = 1e-6
"""Between the changes that two files make to a layer, as a share of its size. A single value of a 16-bit file that is
off by its last bit makes more than that: measured 3.5e-5 in a layer of 12288 x 3072 at rank 16."""
COMFYUI = "https://github.com/comfyanonymous/ComfyUI"

__all__ = ["About", "Files", "Proof", "check", "compare", "hub_id", "model_card", "read_metadata", "rounded", "save"]
read_metadata = metadata.read


class Files(NamedTuple):
    """The two LoRA files of a run."""

    diffusers: Path
    comfyui: Path


@dataclass(frozen=True)
class Proof:
    """What was found when both files of a run were read back."""

    layers: int
    """Of the network."""
    published_layers: int
    keys: int
    """In both files; not one is left over."""
    largest_difference: float
    """Between the two changes of a layer, as a share of its size."""

    def in_words(self) -> str:
        """One sentence for people."""
        apart = f"largest difference {self.largest_difference:.0e}" if self.largest_difference else "no difference"
        return (
            f"Both files were read back, all {self.keys} keys: they make the same change in each of {self.layers} "
            f"layers ({self.published_layers} under their published names; {apart})."
        )


def rounded(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """What a file of this type will hold.

    bfloat16 halves a file and changes no picture visibly; float32 suits a base that runs in float32.
    """
    return {key: tensor.detach().cpu().to(dtype).contiguous() for key, tensor in sorted(state.items())}


def save(
    state: Mapping[str, Tensor],
    folder: Path,
    name: str,
    config: TrainConfig,
    base: BaseModel,
    about: About,
    dtype: torch.dtype = torch.float32,
) -> Files:
    """Write a LoRA as both files, each in one move.

    Raises: TrainingError when the disk does not take them; ValueError when the LoRA is not of the base model's layers.
    """
    state = rounded(state, dtype)
    files = Files(folder / f"{name}.safetensors", folder / f"{name}-comfyui.safetensors")
    ours = {PREFIX + key: tensor for key, tensor in state.items()}
    fused = published.fuse(state, _published_names(base))
    theirs = {published.PREFIX + key: tensor for key, tensor in fused.items()}

    said = metadata.write(ours, files.diffusers.stem, "diffusers", config, base, about)
    _write(ours, files.diffusers, said | metadata.adapter(state, PREFIX))
    _write(theirs, files.comfyui, metadata.write(theirs, files.comfyui.stem, COMFYUI, config, base, about))
    return files


def check(path: Path) -> None:
    """Make sure that a file with diffusers' keys holds a LoRA that does something.

    Raises: ModelError saying what is wrong with it.
    """
    with changes.read(path, PREFIX) as file:
        for _ in file.walk():
            pass


def compare(files: Files, base: BaseModel, transformer: nn.Module) -> Proof:
    """Read both files back and make sure that they change all layers of the network, and in the same way.

    The network gives the sizes of its layers, and may hold a LoRA. Raises: ModelError saying what is wrong with which
    file.
    """
    names = _published_names(base)
    shapes = _shapes(transformer, [part for parts in names.values() for part in parts])
    check(files.diffusers)
    largest, keys = 0.0, 0
    with changes.read(files.diffusers, PREFIX) as ours:
        ours.match(shapes)
        for layer, fused in published.read(files.comfyui, published.shapes(names, shapes)):
            first = 0
            for part in names[layer]:
                change = ours[part]
                largest = max(largest, change.distance(fused.rows(first, change.shape[0])))
                first += change.shape[0]
            keys += len(PAIR)
        keys += ours.keys
    if not largest <= LARGEST_DIFFERENCE:
        raise ModelError(
            f"“{files.comfyui.name}” does not make the change that “{files.diffusers.name}” makes (difference "
            f"{largest:.1e}).",
            BROKEN,
        )
    return Proof(len(shapes), len(names), keys, largest)


def model_card(
    files: Files,
    config: TrainConfig,
    base: BaseModel,
    about: About,
    proof: Proof,
    samples: Sequence[tuple[str, str]],
) -> str:
    """Write the README.md that goes to the Hub with both files.

    Samples are prompts and pictures, as paths relative to the card.
    """
    prompt = samples[0][0] if samples else config.sample_prompts[0]
    return card.write(
        card.Facts(
            title=config.name,
            trigger_word=config.trigger_word,
            base_title=base.title,
            base_hub_id=hub_id(base),
            licence=base.licence,
            licence_url=base.licence_url,
            is_commercial=base.is_commercial,
            tags=("flux", base.family),
            files=(files.diffusers.name, files.comfyui.name),
            samples=tuple(samples),
            usage=registry.families()[base.family].usage(base, files.diffusers.name, prompt),
            settings=_settings(config, base, about),
            pictures=about.pictures,
            dataset_hash=about.dataset_hash,
            dataset_name=about.dataset_name,
            checked=proof.in_words(),
            distilled=base.distilled,
        )
    )


def _settings(config: TrainConfig, base: BaseModel, about: About) -> dict[str, str]:
    """What people compare finetunes by; the files hold every value."""
    revision = {"Revision of the base model": about.base_revision} if about.base_revision else {}
    return {
        "Base model": metadata.public_name(base),
        **revision,
        "Mode": config.mode,
        "Type": config.finetune_type,
        "Rank": str(config.lora_rank),
        "Steps": str(about.steps),
        "Learning rate": f"{config.learning_rate:g}",
        "Batch": str(config.batch_size),
        "Sides of the squares trained at, in pixels": ", ".join(map(str, config.resolutions_px)),
        "Seed": str(config.seed),
        "Samples": f"{base.sampler.steps} steps, guidance {base.sampler.guidance_scale:g}",
    }


def _published_names(base: BaseModel) -> published.Names:
    return registry.families()[base.family].published_names(base)


def _shapes(transformer: nn.Module, layers: list[str]) -> dict[str, Shape]:
    """Sizes as the layers themselves give them: a quantised weight is stored in another shape."""
    modules = {layer: transformer.get_submodule(layer) for layer in layers}
    return {layer: (module.out_features, module.in_features) for layer, module in modules.items()}


def _write(tensors: dict[str, Tensor], path: Path, said: dict[str, str]) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, metadata=said)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"“{path}” cannot be written: {error}.", "Make room on the disk and resume: the training itself is kept."
        ) from error
