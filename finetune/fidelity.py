"""How well a LoRA does what it is meant to: losses on what was not trained, and what the extraction kept.

All losses are measured on a grid: the same noise and times whenever it is asked for, so that what differs is the
network alone. Besides the training pictures, mirrored copies of them are measured, which training never sees: so no
picture has to be withheld from it. Of a subject that is its own mirror image, the copy only adds other noise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from finetune import encodings, flow, parts
from finetune.encodings import Encoded
from finetune.families import Model

ENOUGH = 0.9
"""Of what a full finetune gained, a LoRA that recovers less is healed."""
PICTURES = 16
QUICK = 8
QUICK_DRAWS = 4

Curve = tuple[float, ...]
"""Mean loss at each time of the grid, from little noise to much."""


@dataclass(frozen=True)
class Kept:
    """What a LoRA holds of one layer's change. Inputs are weighted by how large they are in use."""

    error: float
    """Of the weight, relative to the change: 0 is perfect, 1 is nothing."""
    weighted_error: float
    """Of what the layer puts out, inputs being independent."""
    energy: float
    """Share of the weighted change's squared singular values."""


@dataclass(frozen=True)
class Comparison:
    """Losses on one set of pictures: of the base, the full finetune and the LoRA, as extracted and after healing."""

    base: Curve
    full: Curve
    extracted: Curve
    healed: Curve = ()
    """Empty where there was no need to heal."""

    @property
    def recovered(self) -> float:
        """What the extracted LoRA recovers."""
        return recovered(mean(self.base), mean(self.full), mean(self.extracted))

    @property
    def recovered_by_healing(self) -> float:
        """What the healed LoRA recovers, if there is one, or else the extracted one."""
        return recovered(mean(self.base), mean(self.full), mean(self.healed)) if self.healed else self.recovered

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no infinity: null stands for what is no number."""
        curves = {name: [_plain(loss) for loss in curve] for name, curve in asdict(self).items() if curve}
        return {
            "loss": {name: _plain(mean(getattr(self, name))) for name in curves},
            "loss_by_time": curves,
            "recovered": _plain(self.recovered),
            "recovered_by_healing": _plain(self.recovered_by_healing) if self.healed else None,
        }


@dataclass(frozen=True)
class Fidelity:
    """What became of a full finetune on its way into a LoRA."""

    rank: int
    held_out: Comparison
    """On mirrored copies of the pictures."""
    trained: Comparison
    """On the pictures themselves."""
    layers: Mapping[str, Kept]
    """What the extraction kept of each layer, before healing."""
    healing_steps: int = 0
    is_healed: bool = False
    """Whether the LoRA is the healed one: healing counts only if it recovers more of what was not trained."""

    @property
    def recovered(self) -> float:
        """What the LoRA that is handed out recovers, on pictures that were not trained."""
        return self.held_out.recovered_by_healing if self.is_healed else self.held_out.recovered

    @property
    def loss_after(self) -> float:
        """Of the LoRA that is handed out, on the training pictures."""
        return mean(self.trained.healed if self.is_healed else self.trained.extracted)

    @property
    def captured_energy(self) -> float:
        """Mean share of the weighted change that the extraction kept in a layer."""
        return mean(kept.energy for kept in self.layers.values())

    def summary(self) -> dict[str, float]:
        """The figures that are shown first."""
        figures = {"loss_before": mean(self.trained.base), "loss_after": self.loss_after, "recovered": self.recovered}
        healed = {"recovered_before_healing": self.held_out.recovered} if self.is_healed else {}
        return {**figures, **healed, "captured_energy": self.captured_energy}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "rank": self.rank,
            "recovered": _plain(self.recovered),
            "captured_energy": self.captured_energy,
            "healing_steps": self.healing_steps,
            "is_healed": self.is_healed,
            "held_out": self.held_out.as_dict(),
            "trained": self.trained.as_dict(),
            "layers": {name: asdict(kept) for name, kept in self.layers.items()},
        }


def hold_out(
    model: Model, pictures: Sequence[Path], encoded: Encoded, resolutions_px: Sequence[int], folder: Path
) -> Encoded:
    """Make what is measured but not trained: mirrored copies of some of the pictures, with their captions."""
    chosen = _chosen(len(pictures))
    captions = tuple(encoded.captions[number] for number in chosen)
    some = Encoded((), captions, encoded.prompts, encoded.empty)
    return encodings.encode_mirrored(model, [pictures[number] for number in chosen], some, resolutions_px, folder)


def grid_loss(model: Model, encoded: Encoded, seed: int, at_once: int = 8) -> float:
    """Mean loss of some of the pictures over the same noise and times whenever it is measured."""
    return mean(grid(model, encoded, seed, at_once))


def quick_loss(model: Model, held_out: Encoded, seed: int, at_once: int = 8) -> float:
    """A loss on few pictures at few times, quick enough to be measured again and again during training."""
    some = replace(held_out, latents=held_out.latents[:QUICK], captions=held_out.captions[:QUICK])
    return mean(grid(model, some, seed, at_once, draws=QUICK_DRAWS))


def learned(model: Model, encoded: Encoded, seed: int, at_once: int = 8) -> dict[str, float]:
    """What a trained LoRA has learned of its pictures: the loss without it and with it."""
    after = grid_loss(model, encoded, seed, at_once)
    model.transformer.disable_adapters()
    before = grid_loss(model, encoded, seed, at_once)
    model.transformer.enable_adapters()
    return {"loss_before": before, "loss_after": after}


@torch.no_grad()
def grid(model: Model, encoded: Encoded, seed: int, at_once: int = 8, draws: int = 8) -> Curve:
    """Mean loss of some of the pictures at each of a row of times, with noise that is always the same.

    Times lie evenly over [0, 1], not shifted, so that the figure does not depend on how the model was trained. Of
    several resolutions, the smallest is measured: it is the quickest.
    """
    t, losses = (torch.arange(draws) + 0.5) / draws, []
    for picture in _chosen(len(encoded.latents)):
        latents = encoded.latents[picture][0].expand(draws, -1, -1, -1)
        noise = torch.randn(latents.shape, generator=flow.generator(seed, "grid", picture))
        captions = encodings.stack([encoded.captions[picture]] * draws)
        predicted = predict(model, flow.noise_latents(latents, noise, t), t, captions, at_once)
        losses.append((predicted - flow.velocity(latents, noise)).square().flatten(1).mean(1))
    return tuple(torch.stack(losses).mean(0).tolist())


def predict(
    model: Model, noisy: torch.Tensor, t: torch.Tensor, captions: encodings.Encoding, at_once: int
) -> torch.Tensor:
    """Predict the velocities of a batch, a few pictures at once; in float32, on the processor."""
    found = []
    for part in torch.arange(len(noisy)).split(at_once):
        with parts.autocast(model.device):
            rows = {name: tensor[part] for name, tensor in captions.items()}
            found.append(model.predict_velocity(noisy[part], t[part], rows).float().cpu())
    return torch.cat(found)


def recovered(base_loss: float, full_loss: float, lora_loss: float) -> float:
    """The share of what a full finetune gained that the LoRA extracted from it keeps; 1 when nothing was gained."""
    gained = base_loss - full_loss
    return (base_loss - lora_loss) / gained if gained > 0 else 1.0


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _chosen(count: int) -> range:
    """At most 16 of some pictures, from all over them."""
    return range(0, count, max(1, math.ceil(count / PICTURES)))
