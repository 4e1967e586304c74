"""Make a network take less memory, as a Fit says: recomputed activations, quantised weights, weights that wait in the
processor's memory."""

from typing import TYPE_CHECKING, Any

from finetune.memory import Fit

if TYPE_CHECKING:
    from torch import nn


def loading(fit: Fit, device: str) -> dict[str, Any]:
    """What to tell diffusers' `from_pretrained` so that it quantises weights as it reads them; empty if not."""
    return {}


def apply(transformer: "nn.Module", fit: Fit, device: str) -> None:
    """Let a loaded network, with its LoRA layers if it has any, recompute activations and fetch weights."""
