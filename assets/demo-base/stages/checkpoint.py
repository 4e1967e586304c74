"""Keep a stage's progress on disk, so that a stopped build goes on where it was."""

import os
import time
from pathlib import Path

import torch


def save(path: Path, **state: object) -> None:
    """Write the state in one move, so that a stop in the middle leaves the previous one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def load(path: Path) -> dict | None:
    """Read what `save` wrote, or None if there is nothing yet."""
    return torch.load(path, weights_only=False) if path.exists() else None


class Progress:
    """Prints a line now and then: step, loss, speed and time left."""

    def __init__(self, name: str, steps: int, first: int = 0, every: int = 50) -> None:
        self.name, self.steps, self.first, self.every = name, steps, first, every
        self.started = time.monotonic()
        self.mean = 0.0

    def step(self, step: int, loss: float) -> None:
        self.mean = loss if step == self.first else 0.98 * self.mean + 0.02 * loss
        if (step + 1) % self.every == 0 or step + 1 == self.steps:
            seconds = (time.monotonic() - self.started) / (step + 1 - self.first)
            left = seconds * (self.steps - step - 1) / 60
            print(f"{self.name} {step + 1}/{self.steps} loss {self.mean:.4f} {left:.0f} min left", flush=True)
