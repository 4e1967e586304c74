"""Muon in float32: momentum whose direction is made orthogonal, for the weight matrices of the blocks.

`torch.optim.Muon` works in bfloat16, which a CPU emulates about a hundred times slower than float32.
Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

import math

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration, from the same source


class Muon(torch.optim.Optimizer):
    """Takes matrices and convolutions; `parts` says into how many stacked matrices a fused weight falls."""

    def __init__(self, groups: list[dict], lr: float, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": (1,)})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor, float]]] = {}
        for group in self.param_groups:
            for weight in group["params"]:
                mean = self.state[weight].setdefault(
                    "momentum", torch.zeros_like(weight, memory_format=torch.contiguous_format)
                )
                grad = weight.grad.contiguous()
                mean.lerp_(grad, 1 - group["momentum"])
                update = grad.lerp(mean, group["momentum"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                sizes = [len(weight) * part // sum(group["parts"]) for part in group["parts"]]
                pairs = zip(update.flatten(1).split(sizes), weight.flatten(1).split(sizes), strict=True)
                for rows, target in pairs:
                    by_shape.setdefault(rows.shape, []).append((rows, target, group["lr"]))
        for entries in by_shape.values():
            directions = orthogonal(torch.stack([rows for rows, _, _ in entries]))
            for direction, (_, target, rate) in zip(directions, entries, strict=True):
                # 0.2 * sqrt(longer side) gives the update the size of Adam's (Liu et al. 2025, arXiv 2502.16982)
                target.sub_(direction, alpha=rate * 0.2 * max(target.shape) ** 0.5)


def orthogonal(stack: Tensor, steps: int = 4) -> Tensor:
    """Replace the singular values of each matrix by about 1. Shapes: (N, rows, columns)."""
    a, b, c = COEFFICIENTS
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def optimisers(network: nn.Module, inner: str, rate: float, decay: float = 0.01) -> list[torch.optim.Optimizer]:
    """Muon for the matrices and kernels of the layers whose name contains `inner`, AdamW for everything else.

    Fused weights of FLUX.2 are made orthogonal part by part.
    """
    groups, rest = [], []
    for name, weight in network.named_parameters():
        if inner not in name or weight.ndim < 2 or not weight.requires_grad:
            rest.append(weight)
        else:
            parts = (1, 1, 1, 3, 3) if "to_qkv_mlp_proj" in name else (1, 1) if "linear_in" in name else (1,)
            groups.append({"params": [weight], "parts": parts})
    return [Muon(groups, rate, weight_decay=decay), torch.optim.AdamW(rest, rate, betas=(0.9, 0.99), weight_decay=0.0)]


def set_rate(optimisers: list[torch.optim.Optimizer], rate: float) -> None:
    """Set the learning rate of all groups."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate


def move(optimisers: list[torch.optim.Optimizer]) -> None:
    """Do one step of each and forget the gradients."""
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad()


def schedule(step: int, steps: int, warm: int, hold: float) -> float:
    """Share of the full rate: up in a line over `warm` steps, level until `hold` of all, then down along a cosine."""
    falling = max(0.0, (step / steps - hold) / (1 - hold))
    return min(1.0, (step + 1) / warm) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * falling)))


def states(optimisers: list[torch.optim.Optimizer]) -> list[dict]:
    """What `restore` needs to go on."""
    return [optimiser.state_dict() for optimiser in optimisers]


def restore(optimisers: list[torch.optim.Optimizer], kept: list[dict]) -> None:
    """Go on from what `states` gave."""
    for optimiser, state in zip(optimisers, kept, strict=True):
        optimiser.load_state_dict(state)
