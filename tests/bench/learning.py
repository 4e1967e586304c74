"""Measure what a LoRA for the demo base has learned: `python tests/bench/learning.py LORA --cache FOLDER`.

Mean flow loss on a fixed grid of noise and t, base against finetuned, on Twemoji pictures that were not in the example
ZIP (with the trigger word), and on the base's own pictures (without it: drift). Needs npm for the pictures.
"""

import argparse
import random
import statistics
import sys
from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "assets" / "example"), str(ROOT / "assets" / "demo-base")]

import build as example  # noqa: E402
from stages import measure, pictures  # noqa: E402

from finetune import captions, flow, registry, settings  # noqa: E402
from finetune.inputs import Mode  # noqa: E402
from finetune.memory import Fit  # noqa: E402

TIMES = [(i + 0.5) / 8 for i in range(8)]


@torch.no_grad()
def losses(model, latents: torch.Tensor, encoding: dict, draws: int) -> list[float]:
    """Mean loss of each picture over `draws` noises at each of eight times."""
    found = []
    for number, image in enumerate(latents):
        rows = []
        for draw in range(draws):
            noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1000 * number + draw))
            batch, noises = image.expand(len(TIMES), -1, -1, -1), noise.expand(len(TIMES), -1, -1, -1)
            t = torch.tensor(TIMES)
            text = {name: rows_[number : number + 1].expand(len(TIMES), -1, -1) for name, rows_ in encoding.items()}
            predicted = model.predict_velocity(flow.noise_latents(batch, noises, t), t, text)
            rows.append(flow.loss(predicted, batch, noises).item())
        found.append(statistics.mean(rows))
    return found


def compare(name: str, before: list[float], after: list[float]) -> None:
    """Print means, the relative change and the spread of the paired differences over pictures."""
    changes = [b - a for a, b in zip(before, after, strict=True)]
    error = statistics.stdev(changes) / len(changes) ** 0.5
    base, tuned = statistics.mean(before), statistics.mean(after)
    better = sum(change < 0 for change in changes)
    print(
        f"{name}: base {base:.4f}, finetuned {tuned:.4f} ({(tuned / base - 1):+.1%}; difference {tuned - base:+.4f} "
        f"± {1.96 * error:.4f} at 95 %), lower for {better} of {len(changes)} pictures"
    )


def main() -> None:
    """Measure and, if asked, draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lora", type=Path)
    parser.add_argument("--trigger", default="TOK")
    parser.add_argument("--mode", type=Mode, default=Mode.STYLE)
    parser.add_argument("--cache", type=Path, default=Path("demo-base-build/cache"))
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--sheet", type=Path, help="write a picture: base above, finetuned below, truth last")
    asked = parser.parse_args()
    torch.set_num_threads(settings.read().threads)

    unseen = [p for p in pictures.find(asked.cache, "twemoji") if p.code not in example.TRAINED_CODES]
    unseen = random.Random(0).sample(unseen, asked.count)
    known = [p for style in pictures.LEARNED_STYLES for p in pictures.find(asked.cache, style)]
    known = random.Random(1).sample(known, asked.count)
    told = [captions.with_trigger(p.thing, asked.mode, asked.trigger) for p in unseen]

    base = registry.base_model("demo")
    model = registry.families()[base.family].load(base, Path(base.source), "cpu", Fit())
    sets = {
        "unseen pictures, with the trigger word": (unseen, told),
        "the base's own pictures, without it": (known, [pictures.plain_caption(p) for p in known]),
    }
    encoded = {
        name: (model.encode_images(pictures.load_pixels(shown)), model.encode_prompts(words))
        for name, (shown, words) in sets.items()
    }
    before = {name: losses(model, *data, asked.draws) for name, data in encoded.items()}
    pipe = Flux2KleinPipeline.from_pretrained(base.source)
    drawn_before = measure.draw(pipe, told[:12]) if asked.sheet else []
    model.transformer.load_lora_adapter(str(asked.lora), prefix="transformer")
    for name, data in encoded.items():
        compare(name, before[name], losses(model, *data, asked.draws))
    if asked.sheet:
        pipe.load_lora_weights(str(asked.lora))
        truth = [Image.open(p.path).convert("RGBA") for p in unseen[:12]]
        write_sheet(asked.sheet, [drawn_before, measure.draw(pipe, told[:12]), truth])


def write_sheet(path: Path, rows: list[list[Image.Image]], cell: int = 96) -> None:
    """Paste rows of pictures onto one white sheet."""
    sheet = Image.new("RGB", (len(rows[0]) * (cell + 6), len(rows) * (cell + 6)), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            image = image.convert("RGBA").resize((cell, cell), Image.Resampling.LANCZOS)
            sheet.paste(image, (x * (cell + 6), y * (cell + 6)), image)
    sheet.save(path)


if __name__ == "__main__":
    main()
