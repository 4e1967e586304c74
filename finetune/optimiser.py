"""Move trained weights: one call a step, whatever the precision and the optimiser that memory allows."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finetune.memory import Fit

BETAS = (0.9, 0.99)  # a few hundred steps are too few for the usual 0.999
GRADIENT_NORM = 1.0


class Optimiser:
    """Moves a trainee's parameters down the gradient of a loss."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], weight_decay: float, fit: Fit) -> None:
        self._parameters = list(parameters.values())
        self._inner = torch.optim.AdamW(self._parameters, betas=BETAS, weight_decay=weight_decay)

    def move(self, losses: Iterable[Tensor], rate: float) -> float:
        """Take one step down the sum of losses, each given when the one before it was dealt with; returns the sum.

        Where the sum or its gradient is not finite, nothing moves, and what is returned is not a number.
        """
        total = 0.0
        for loss in losses:
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, GRADIENT_NORM)
        for group in self._inner.param_groups:
            group["lr"] = rate
        if is_finite := math.isfinite(total) and math.isfinite(norm.item()):
            self._inner.step()
        self._inner.zero_grad()
        return total if is_finite else math.nan

    def state_dict(self) -> dict[str, Any]:
        """What resume needs."""
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._inner.load_state_dict(state)
