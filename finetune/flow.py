"""Flow-matching maths: time, noise, target, loss. Pure functions of their arguments.

All that is random derives from a seed and a step, never from a generator's state, so a resumed run goes on exactly as
it would have. Time and noise are made on the CPU in float32: a GPU's generator would give other numbers.
Source: Liu et al. 2022, "Flow Straight and Fast" (arXiv 2209.03003), with time reversed.
"""

import hashlib

import torch
from torch import Tensor

GOLDEN_RATIO = 0.6180339887498949  # multiples of it, modulo 1, fill [0, 1) most evenly


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A generator for one purpose, such as ("noise", step); other purposes are independent of it."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw_times(seed: int, step: int, batch: int, shift: float) -> Tensor:
    """Draw a flow time for each picture of a batch, spread evenly over the batch and over the steps.

    Each picture gets its own slice of [0, 1), and the place inside the slice moves on by the golden ratio every step:
    few hundred steps then see all times about equally often, which plain random times do not.
    Shapes: (B,), 0 = clean image, 1 = pure noise.
    """
    start = torch.rand(1, generator=generator(seed, "time")).double()
    within = (start + step * GOLDEN_RATIO) % 1
    slices = torch.randperm(batch, generator=generator(seed, "slices", step))
    return shift_times(((slices + within) / batch).float(), shift)


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Move times towards noise (shift > 1) or towards the image (shift < 1); 0 and 1 stay."""
    return shift * t / (1 + (shift - 1) * t)


def draw_noise(seed: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """Draw the noise of a step."""
    return torch.randn(shape, generator=generator(seed, "noise", step))


def noise_latents(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Move each latent along the straight path from image to noise.

    Shapes: latents and noise (B, C, H, W); t (B,), 0 = clean image, 1 = pure noise.
    """
    t = t.view(-1, 1, 1, 1)
    return (1 - t) * latents + t * noise


def velocity(latents: Tensor, noise: Tensor) -> Tensor:
    """The direction of the path from image to noise: what the network learns to predict."""
    return noise - latents


def loss(predicted: Tensor, latents: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of a predicted velocity, in float32 whatever the network computes in."""
    return (predicted.float() - velocity(latents.float(), noise.float())).square().mean()
