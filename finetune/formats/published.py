"""LoRA files with the layer names of the published checkpoints, which ComfyUI and others read.

A published checkpoint may keep one layer where diffusers has several: `qkv` for `to_q`, `to_k` and `to_v`. There the
LoRAs are stacked: inputs below each other, outputs along a diagonal of blocks. Not a value is lost or rounded; the
rank grows by the number of parts and the file by the zeros beside the blocks (FLUX.1 at rank 16 in 16 bits: 221 MiB
instead of 125).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from finetune.formats import changes
from finetune.formats.changes import PAIR, Change, Shape

PREFIX = "diffusion_model."
Names = Mapping[str, Sequence[str]]
"""Published layers, and for each the names of our layers that it consists of, stacked along the rows in this order."""


def fuse(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Turn the LoRA of our layers into one of the published layers that makes exactly the same change.

    Raises: ValueError when a layer has no published name, or a published layer lacks a part.
    """
    ours = {key.removesuffix(f".{PAIR[0]}") for key in state if key.endswith(PAIR[0])}
    if differing := ours ^ {part for parts in names.values() for part in parts}:
        raise ValueError(f"LoRA and published names do not cover the same layers: {sorted(differing)[:3]}")
    fused = {}
    for layer, parts in names.items():
        inputs, outputs = ([state[f"{part}.{end}"] for part in parts] for end in PAIR)
        # Parts that share their inputs, as those of a LoRA that was trained fused, need no diagonal.
        is_shared = all(torch.equal(inputs[0], other) for other in inputs[1:])
        fused[f"{layer}.{PAIR[0]}"] = inputs[0] if is_shared else torch.cat(inputs)
        fused[f"{layer}.{PAIR[1]}"] = torch.cat(outputs) if is_shared else torch.block_diag(*outputs)
    return fused


def shapes(names: Names, ours: Mapping[str, Shape]) -> dict[str, Shape]:
    """The published layers with their sizes, from the sizes of ours. Raises: ValueError when parts do not stack."""
    found = {}
    for layer, parts in names.items():
        columns = {ours[part][1] for part in parts}
        if len(columns) != 1:
            raise ValueError(f"the parts of {layer} have different inputs: {columns}")
        found[layer] = sum(ours[part][0] for part in parts), columns.pop()
    return found


def read(path: Path, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Change]]:
    """Read what a file does to each published layer, as ComfyUI finds it: by the names of the modules.

    Raises: ModelError for a key that belongs to none of the layers, a layer that is missing or of another size, values
    that are not numbers, and, at the end, for a file without effect.
    """
    with changes.read(path, PREFIX) as file:
        file.match(shapes)
        yield from file.walk()
