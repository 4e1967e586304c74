"""Measure training speed on the demo base: `python tests/bench/speed.py`. Prints ratios side by side in one run.

Every variant takes turns with the others, several times over, because other programs disturb the machine.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from finetune import flow, lora, registry, settings
from finetune.inputs import FinetuneType
from finetune.memory import Fit

ROUNDS, STEPS = 5, 6
VARIANTS = {
    "lora r16, batch 4": (FinetuneType.LORA, 16, 4, 4),
    "lora r32, batch 4": (FinetuneType.LORA, 32, 4, 4),
    "lora r32, batch 1": (FinetuneType.LORA, 32, 1, 4),
    "lora r32, batch 2 at 48 px (speed)": (FinetuneType.LORA, 32, 2, 3),
    "full, batch 4": (FinetuneType.FULL, 32, 4, 4),
}


def prepare(kind: FinetuneType, rank: int, batch: int, side: int):
    """A function that does one training step of a variant."""
    base = registry.base_model("demo")
    family = registry.families()[base.family]
    model = family.load(base, Path(base.source), "cpu", Fit())
    trainee = lora.prepare(model.transformer, family.lora_targets, kind, rank, seed=0)
    optimiser = torch.optim.AdamW(trainee.parameters.values(), lr=1e-5)
    text = {name: rows.expand(batch, -1, -1) for name, rows in model.encode_prompts(["a red apple"]).items()}
    latents = torch.randn(batch, model.latent_channels, side, side)

    def step() -> None:
        noise, t = torch.randn_like(latents), torch.rand(batch)
        flow.loss(model.predict_velocity(flow.noise_latents(latents, noise, t), t, text), latents, noise).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def main() -> None:
    """Print milliseconds a step, and each variant against the first."""
    torch.set_num_threads(settings.read().threads)
    steps = {name: prepare(*variant) for name, variant in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            step()
            started = time.perf_counter()
            for _ in range(STEPS):
                step()
            seconds[name].append((time.perf_counter() - started) / STEPS)
    first = statistics.median(next(iter(seconds.values())))
    print(f"{torch.get_num_threads()} threads")
    for name, times in seconds.items():
        middle = statistics.median(times)
        spread = f"{min(times) * 1000:.0f} to {max(times) * 1000:.0f}"
        print(f"{name:36} {middle * 1000:6.0f} ms a step ({spread}), {middle / first:5.2f} x the first")


if __name__ == "__main__":
    main()
