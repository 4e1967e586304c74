"""What resume needs: trained weights, optimiser state and step. Nothing else, because all chance derives from the step.

The two newest are kept: when a computer went down while one was being written, the other is still good.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

KEPT = 2


def save(folder: Path, step: int, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
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


def load(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
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


def _put_back(kept: dict, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
    weights = kept["weights"]
    if {name: weight.shape for name, weight in weights.items()} != {n: p.shape for n, p in parameters.items()}:
        raise ValueError("other weights than those that are trained")
    optimiser.load_state_dict(kept["optimiser"])
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def _newest_first(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("step*.pt") if re.fullmatch(r"step\d+\.pt", p.name)), reverse=True)
