"""How well a LoRA does what it is meant to: losses on what was not trained, and what the extraction kept."""

import math
from statistics import mean

import torch

from finetune import encodings, flow
from finetune.encodings import Encoded
from finetune.families import Model


@torch.no_grad()
def grid_loss(model: Model, encoded: Encoded, seed: int, draws: int = 8, pictures: int = 16) -> float:
    """Mean loss of some of the pictures over the same noise and times whenever it is measured.

    Times lie evenly over [0, 1], not shifted, so that the figure does not depend on how the model was trained.
    """
    losses = []
    for picture in range(0, len(encoded.latents), math.ceil(len(encoded.latents) / pictures)):
        batch = encoded.latents[picture][-1].expand(draws, -1, -1, -1)
        noise = torch.randn(batch.shape, generator=flow.generator(seed, "grid", picture))
        t = (torch.arange(draws) + 0.5) / draws
        captions = encodings.stack([encoded.captions[picture]] * draws)
        predicted = model.predict_velocity(flow.noise_latents(batch, noise, t), t, captions).cpu()
        losses.append(flow.loss(predicted, batch, noise).item())
    return mean(losses)


def recovered(base_loss: float, full_loss: float, lora_loss: float) -> float:
    """The share of what a full finetune gained that the LoRA extracted from it keeps; 1 when nothing was gained."""
    gained = base_loss - full_loss
    return (base_loss - lora_loss) / gained if gained > 0 else 1.0
