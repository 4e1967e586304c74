"""What resume needs: trained weights, optimiser state and step. Nothing else, because all chance derives from the step.

The two newest are kept: when a computer went down while one was being written, the other is still good.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

KEPT = 2
BEST_BYTES = 4 * 2**30
"""Weights beyond this are not written again and again for the sake of the best: that would take too long."""
CLEARLY = 0.002
"""How much lower a loss must be to count as better."""


class Stateful(Protocol):
    """What moves the weights: `Optimiser`, or any optimiser of torch."""

    def state_dict(self) -> dict[str, Any]:
        """What resume needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""


def save(folder: Path, step: int, parameters: Mapping[str, nn.Parameter], optimiser: Stateful) -> None:
    """Write a checkpoint in one move, and delete all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach() for name, weight in parameters.items()}
    part = folder / "checkpoint.part"
    with open(part, "wb") as file:
        torch.save({"step": step, "weights": weights, "optimiser": optimiser.state_dict()}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, folder / f"step{step:06d}.pt")
    for path in _newest_first(folder)[KEPT:]:
        path.unlink()


class Best:
    """The weights that did best on pictures that are not trained, kept beside the checkpoints."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "best.pt"

    def offer(self, step: int, loss: float, parameters: Mapping[str, nn.Parameter]) -> None:
        """Keep these weights if none did better; what is too large, or held in too few bits, is not kept."""
        held = sum(weight.numel() * weight.element_size() for weight in parameters.values())
        if held > BEST_BYTES or any(weight.dtype != torch.float32 for weight in parameters.values()):
            return
        if (known := self._read()) and known["loss"] <= loss:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        weights = {name: weight.detach() for name, weight in parameters.items()}
        torch.save({"step": step, "loss": loss, "weights": weights}, part)
        os.replace(part, self._path)

    def restore(self, loss: float, parameters: Mapping[str, nn.Parameter]) -> int:
        """Put the best weights back if they did clearly better than this loss; returns their step, else 0."""
        known = self._read()
        if not known or not known["step"] or known["loss"] >= loss * (1 - CLEARLY):
            return 0
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(known["weights"][name])
        return known["step"]

    def _read(self) -> dict[str, Any]:
        return torch.load(self._path, map_location="cpu", weights_only=True, mmap=True) if self._path.exists() else {}


def load(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimiser: Stateful,
    warn: Callable[[str], None],
) -> int:
    """Put the newest good checkpoint back and give its step; 0 if there is none. A broken one is only warned of."""
    for path in _newest_first(folder):
        try:
            kept = _read(path)
            _put_back(kept, parameters, optimiser)
        except (OSError, EOFError, RuntimeError, ValueError, LookupError, pickle.UnpicklingError, zipfile.BadZipFile):
            warn(f"The checkpoint “{path.name}” is broken; going on from the one before it.")
        else:
            return kept["step"]
    return 0


def _read(path: Path) -> dict:
    with zipfile.ZipFile(path) as file:  # torch itself does not compare the checksums
        if broken := file.testzip():
            raise ValueError(f"the checksum of {broken} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


def _put_back(kept: dict, parameters: Mapping[str, nn.Parameter], optimiser: Stateful) -> None:
    weights = kept["weights"]
    if {name: weight.shape for name, weight in weights.items()} != {n: p.shape for n, p in parameters.items()}:
        raise ValueError("other weights than those that are trained")
    optimiser.load_state_dict(kept["optimiser"])
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def _newest_first(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("step*.pt") if re.fullmatch(r"step\d+\.pt", p.name)), reverse=True)
