"""Small real objects for tests: a tiny model, pictures, settings, a run."""

from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from finetune import encodings, registry, runs
from finetune.encodings import Encoded
from finetune.families import Model
from finetune.inputs import FinetuneType, Mode
from finetune.recipe import TrainConfig

FAMILY = "flux2-klein"


def tiny_model() -> Model:
    """A family's toy model, always with the same weights."""
    return registry.families()[FAMILY].tiny()


def config(**changes: Any) -> TrainConfig:
    """Settings of a very short run."""
    values = {
        "name": "my-first-finetune",
        "base_model": "tiny",
        "mode": Mode.STYLE,
        "trigger_word": "TOK",
        "finetune_type": FinetuneType.LORA,
        "lora_rank": 16,
        "iterations": 10,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "batch_size": 2,
        "resolutions_px": (32,),
        "time_shift": 3.0,
        "seed": 7,
        "sample_every": 0,
        "sample_prompts": ("a pear in the style of TOK",),
        "checkpoint_every": 4,
        "device": "cpu",
    }
    return TrainConfig(**{**values, **changes})


def pictures(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    """Write pictures of soft colours, each its own."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (width, height) in enumerate(sizes):
        rng = numpy.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=numpy.uint8))
        paths.append(folder / f"{number + 1:04}.png")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def encoded(model: Model, folder: Path) -> Encoded:
    """Four small pictures with captions and a prompt, encoded."""
    paths = pictures(folder / "images", [(32, 32)] * 4)
    captions = [f"a {thing} in the style of TOK" for thing in ("pear", "plum", "fig", "lime")]
    return encodings.encode(model, paths, captions, list(config().sample_prompts), (32,), folder / "encodings", ignore)


def run(folder: Path) -> runs.Run:
    """A run without pictures."""
    return runs.create(folder / "runs")


def ignore(*told: Any) -> None:
    """Hear what is told, and do nothing."""
