"""What a LoRA file does to each layer: every key counted, every value checked, whoever wrote the file.

Separate from what writes files, so that nothing is proven by the code that made it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.errors import ModelError

PAIR = ("lora_A.weight", "lora_B.weight")
BROKEN = "Start the run again; if this happens again, the disk may be full or broken."

Shape = tuple[int, int]
"""Rows and columns of a layer's weight: its outputs and inputs."""


@dataclass(frozen=True, eq=False)
class Change:
    """What is added to the weight of one layer: b @ a, scaled by 1.

    Shapes: a (rank, columns), b (rows, rank).
    """

    a: Tensor
    b: Tensor

    @property
    def shape(self) -> Shape:
        """Of the weight that changes."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def has_effect(self) -> bool:
        """Whether anything is added at all."""
        return bool(self.a.any()) and bool(self.b.any())

    def weight(self) -> Tensor:
        """What is added, value by value, in float32. Of a large layer that is a gigabyte."""
        return self.b.float() @ self.a.float()

    def rows(self, first: int, count: int) -> "Change":
        """The same for some rows only."""
        return Change(self.a, self.b[first : first + count])

    def distance(self, other: "Change") -> float:
        """How far another change is from this one, as a share of this one's size; 0 for the same.

        Size is the root of the sum of all squared values. It is found from the factors alone, so that no layer is too
        large: of b @ a it is the sum over (b.T @ b) * (a @ a.T). In float64 that is sure to about 1e-8.
        """
        apart = _size(torch.cat([self.a, -other.a]).double(), torch.cat([self.b, other.b], dim=1).double())
        size = _size(self.a.double(), self.b.double())
        return apart / size if size else apart


def _size(a: Tensor, b: Tensor) -> float:
    return ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt().item()


class Changes:
    """An open LoRA file: the layers that it changes, and how. Values are read layer by layer."""

    def __init__(self, file: safe_open, path: Path, prefix: str) -> None:
        self._file, self._path, self._prefix = file, path, prefix
        keys = set(file.keys())
        layers = {key.removesuffix(f".{end}") for key in keys for end in PAIR if key.endswith(f".{end}")}
        wanted = {f"{layer}.{end}" for layer in layers if layer.startswith(prefix) for end in PAIR}
        if keys != wanted or not layers:
            odd = sorted(keys ^ wanted)[:3]
            raise ModelError(f"“{path.name}” is not a whole LoRA ({', '.join(odd) or 'it is empty'}).", BROKEN)
        self.layers = tuple(sorted(layer.removeprefix(prefix) for layer in layers))
        self.keys = len(keys)

    def __getitem__(self, layer: str) -> Change:
        """The change of a layer. Raises: ModelError when it holds values that are not numbers, or does not fit."""
        a, b = (self._file.get_tensor(f"{self._prefix}{layer}.{end}") for end in PAIR)
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            raise ModelError(f"In “{self._path.name}” the two halves of {layer} do not belong together.", BROKEN)
        if not (a.isfinite().all() and b.isfinite().all()):
            raise ModelError(
                f"“{self._path.name}” holds values that are not numbers, in {layer}.",
                "Train again with a lower learning rate.",
            )
        return Change(a, b)

    def walk(self) -> Iterator[tuple[str, Change]]:
        """Every layer with its change. Raises: ModelError, at the end also when nothing was changed by any of them."""
        has_effect = False
        for layer in self.layers:
            change = self[layer]
            has_effect |= change.has_effect
            yield layer, change
        if not has_effect:
            raise ModelError(
                f"“{self._path.name}” changes nothing: all its values are zero.", "Train longer or at a higher rate."
            )

    def match(self, shapes: Mapping[str, Shape]) -> None:
        """Make sure that the file changes exactly these layers, each of its size. Raises: ModelError."""
        if differing := set(shapes) ^ set(self.layers):
            names = ", ".join(sorted(differing)[:3])
            raise ModelError(
                f"“{self._path.name}” does not have the layers of its base model: {len(differing)} are missing or "
                f"unknown ({names}).",
                BROKEN,
            )
        for layer, shape in shapes.items():
            a, b = (self._file.get_slice(f"{self._prefix}{layer}.{end}").get_shape() for end in PAIR)
            if (b[0], a[-1]) != shape:
                raise ModelError(
                    f"In “{self._path.name}” {layer} is of {b[0]} x {a[-1]} values; its base model has {shape[0]} x "
                    f"{shape[1]}.",
                    BROKEN,
                )


@contextmanager
def read(path: Path, prefix: str) -> Iterator[Changes]:
    """Open a LoRA file whose keys all begin with the prefix. Raises: ModelError when it is not a whole LoRA."""
    with opened(path) as file:
        yield Changes(file, path, prefix)


def opened(path: Path) -> Any:
    """Open a safetensors file. Raises: ModelError."""
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"“{path.name}” cannot be read as a LoRA file ({error}).", BROKEN) from error
