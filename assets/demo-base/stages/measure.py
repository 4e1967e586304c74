"""Measure the finished base: does it draw what the caption says, and how does it look?"""

from collections import Counter
from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline
from PIL import Image, ImageDraw

from stages import captioner as reader
from stages import pictures, text

STEPS, GUIDANCE = 24, 5.0
SHEET_THINGS = (
    *("red apple", "dog face", "cat face", "lion", "frog", "rose", "pizza", "cactus"),
    *("strawberry", "tropical fish", "hamburger", "watermelon", "penguin", "octopus", "tulip", "mushroom"),
    *("banana", "pig face", "panda", "fox", "carrot", "doughnut", "ice cream", "hot beverage"),
    *("evergreen tree", "sunflower", "butterfly", "turtle", "grapes", "tangerine", "cherries", "ladybug"),
)


@torch.no_grad()
def draw(pipe: Flux2KleinPipeline, prompts: list[str], seed: int = 0, side_px: int = 64) -> list[Image.Image]:
    """Draw prompts, each from a seed of its own."""
    pipe.set_progress_bar_config(disable=True)
    images = []
    for start in range(0, len(prompts), 50):
        batch = prompts[start : start + 50]
        images += pipe(
            prompt=batch,
            height=side_px,
            width=side_px,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))],
            max_sequence_length=text.TOKENS,
            text_encoder_out_layers=text.LAYERS,
        ).images
    return images


def named_right(pipe: Flux2KleinPipeline, captioner, cache: Path, count: int = 200) -> dict[str, float]:
    """Share of drawings, and of the originals, for which the captioner names exactly the prompt's object.

    `count` pictures are chosen from the training set at random (fixed seed), half of each style or nearly so.
    """
    learned = [p for style in pictures.LEARNED_STYLES for p in pictures.find(cache, style)]
    chosen = reader.shuffled(learned, seed=7)[:count]
    drawn = draw(pipe, [pictures.plain_caption(picture) for picture in chosen], seed=1000)
    shares = {}
    for name, pixels in (("drawn", to_pixels(drawn)), ("original", pictures.load_pixels(chosen))):
        told = reader.read(captioner, pipe.tokenizer, pixels)
        shares[name] = sum(reader.thing(t) == p.thing for t, p in zip(told, chosen, strict=True)) / count
        styled = sum(t.startswith(f"a {p.style} ") for t, p in zip(told, chosen, strict=True))
        shares[f"{name}_style"] = styled / count
        wrong = [(p.label, t) for t, p in zip(told, chosen, strict=True) if reader.thing(t) != p.thing]
        print(f"{name}: {shares[name]:.1%} right, style {styled / count:.1%}; wrong: {wrong[:12]}", flush=True)
    return shares


def to_pixels(images: list[Image.Image]) -> torch.Tensor:
    """Shapes: (N, 3, H, W) in [-1, 1]."""
    rows = [torch.frombuffer(bytearray(im.tobytes()), dtype=torch.uint8).view(im.height, im.width, 3) for im in images]
    return torch.stack(rows).permute(0, 3, 1, 2).float() / 127.5 - 1


def contact_sheet(pipe: Flux2KleinPipeline, cache: Path, path: Path) -> None:
    """Draw 32 things in both styles: a pair of rows holds eight things, 3d above flat."""
    known = Counter(p.label for p in pictures.find(cache, "flat"))
    things = [thing if thing in known else thing.replace("ladybug", "lady beetle") for thing in SHEET_THINGS]
    cell = 96
    sheet = Image.new("RGB", (8 * (cell + 8), 8 * (cell + 8) + 4 * 18), "white")
    pen = ImageDraw.Draw(sheet)
    for row, style in enumerate(pictures.LEARNED_STYLES):
        prompts = [f"a {style} emoji of {pictures.with_article(thing)}" for thing in things]
        for i, image in enumerate(draw(pipe, prompts, seed=100)):
            x, y = (i % 8) * (cell + 8) + 4, (i // 8) * (2 * (cell + 8) + 18) + row * (cell + 8)
            sheet.paste(image.resize((cell, cell), Image.LANCZOS), (x, y))
            pen.text((x + 2, (i // 8 + 1) * (2 * (cell + 8) + 18) - 18), things[i], fill="black")
    sheet.save(path)
