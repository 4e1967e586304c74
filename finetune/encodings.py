"""Encode every picture and caption once, and keep the result in the run folder.

Kept by content: a file's name is the hash of the picture (or text), of how it is cut and of the base model's files. So
a resumed run, or a second one on the same pictures, reads what is there, and no picture can meet another one's latents.
Also owned here: which pictures each step sees, because that depends on the sizes of their latents.
"""

import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from math import gcd
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune import crops, flow
from finetune.families import Encoding, Model

Progress = Callable[[str, int, int], None]
"""Told what is being done in plain words, how many are done, and of how many."""


@dataclass(frozen=True)
class Encoded:
    """All that training reads: latents and encoded captions, in the order of the pictures."""

    latents: tuple[tuple[Tensor, ...], ...]
    """By picture, one (C, h, w) for each resolution, so that all pictures come equally often. A picture that is smaller
    than two resolutions has the same latents for both."""
    captions: tuple[Encoding, ...]
    """By picture, of one row; rows of different lengths come of families that do not pad."""
    prompts: tuple[Encoding, ...]
    empty: Encoding
    repeats: tuple[int, ...] = ()
    """By picture, how often it comes compared with the others; without, all come equally often."""

    def plan(self, seed: int, batch: int) -> Iterator[tuple[Tensor, Encoding]]:
        """Give the latents and captions of step after step, without end."""
        items = [(picture, latents) for picture, row in enumerate(self.latents) for latents in row]
        sizes = [(latents.shape, shapes(self.captions[picture])) for picture, latents in items]
        repeats = [self.repeats[picture] for picture, _ in items] if self.repeats else ()
        for chosen in plan(sizes, seed, batch, repeats):
            yield (
                torch.stack([items[number][1] for number in chosen]),
                stack([self.captions[items[number][0]] for number in chosen]),
            )


def encode(
    model: Model,
    pictures: Sequence[Path],
    captions: Sequence[str],
    prompts: Sequence[str],
    resolutions_px: Sequence[int],
    folder: Path,
    progress: Progress,
) -> Encoded:
    """Encode pictures at every resolution, their captions and the sample prompts; free the text encoder."""
    if len(pictures) != len(captions):
        raise ValueError(f"{len(pictures)} pictures but {len(captions)} captions")
    folder.mkdir(parents=True, exist_ok=True)
    latents, maker = [], model.fingerprint("vae")
    for number, path in enumerate(pictures, start=1):
        latents.append(_encode_picture(model, maker, path, resolutions_px, folder))
        progress("Encoding pictures", number, len(pictures))
    texts = list(dict.fromkeys([*captions, *prompts, ""]))
    encoded, maker = [], model.fingerprint("text")
    for number, text in enumerate(texts, start=1):
        encoded.append(_encode_text(model, maker, text, folder))
        progress("Encoding captions", number, len(texts))
    model.release("text")
    row = dict(zip(texts, encoded, strict=True))
    return Encoded(
        tuple(latents),
        captions=tuple(row[text] for text in captions),
        prompts=tuple(row[text] for text in prompts),
        empty=row[""],
    )


def encode_mirrored(
    model: Model, pictures: Sequence[Path], encoded: Encoded, resolutions_px: Sequence[int], folder: Path
) -> Encoded:
    """Encode mirrored copies of pictures, small, with the captions of the pictures: something to measure on.

    Training never sees them, and so no picture must be withheld from it: of a handful, each one counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    maker, smallest = model.fingerprint("vae"), (min(resolutions_px),)
    latents = tuple(_encode_picture(model, maker, path, smallest, folder, is_mirrored=True) for path in pictures)
    return replace(encoded, latents=latents)


def stack(rows: Sequence[Encoding]) -> Encoding:
    """Join encodings of equal lengths to one with all their rows."""
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def shapes(encoding: Encoding) -> tuple[tuple[int, ...], ...]:
    """The shapes of an encoding's tensors; rows can be stacked where they are equal."""
    return tuple(tuple(tensor.shape) for _, tensor in sorted(encoding.items()))


def plan(sizes: Sequence[Hashable], seed: int, batch: int, repeats: Sequence[int] = ()) -> Iterator[list[int]]:
    """Choose the items of step after step, all of one size in a step.

    Every item comes as often as its repeats say, compared with the others: within a size, all come in a new order, each
    that often, before that begins anew; sizes take turns by how many come from them. A size with fewer items than a
    batch repeats them with other noise; nothing is dropped.
    """
    groups: dict[Hashable, list[int]] = {}
    repeats = repeats or [1] * len(sizes)
    common = gcd(*repeats)
    for number, (size, often) in enumerate(zip(sizes, repeats, strict=True)):
        groups.setdefault(size, []).extend([number] * (often // common))
    total = sum(repeats) // common
    streams = {size: _shuffled_again_and_again(numbers, seed) for size, numbers in groups.items()}
    owed = dict.fromkeys(groups, 0.0)
    while True:
        for size, numbers in groups.items():
            owed[size] += len(numbers) / total
        next_size = max(owed, key=lambda size: owed[size])
        owed[next_size] -= 1
        yield list(islice(streams[next_size], batch))


def _shuffled_again_and_again(numbers: list[int], seed: int) -> Iterator[int]:
    for epoch in count():
        order = torch.randperm(len(numbers), generator=flow.generator(seed, "order", numbers[0], epoch))
        yield from (numbers[place] for place in order.tolist())


def load_pixels(path: Path, size: tuple[int, int]) -> Tensor:
    """Read a picture, scaled and cut from the middle to a size. Shapes: (1, 3, H, W) in [-1, 1]."""
    with Image.open(path) as image:
        fitted = crops.cut(image.convert("RGB"), size)
    pixels = torch.from_numpy(numpy.asarray(fitted, dtype=numpy.float32))
    return (pixels / 127.5 - 1).permute(2, 0, 1)[None]


def _encode_picture(
    model: Model, maker: str, path: Path, resolutions_px: Sequence[int], folder: Path, is_mirrored: bool = False
) -> tuple[Tensor, ...]:
    content = hashlib.blake2b(path.read_bytes()).hexdigest()
    with Image.open(path) as image:
        width, height = image.size
    found = []
    for resolution_px in resolutions_px:
        size = crops.fit(width, height, resolution_px, model.patch_px)
        key = _key(model, maker, "mirrored" if is_mirrored else "picture", content, size)

        def latents_of(size: tuple[int, int] = size) -> Encoding:
            pixels = load_pixels(path, size)
            return {"latents": model.encode_images(pixels.flip(-1) if is_mirrored else pixels)}

        latents = _remembered(folder / f"{key}.safetensors", latents_of)
        found.append(latents["latents"][0])
    return tuple(found)


def _encode_text(model: Model, maker: str, text: str, folder: Path) -> Encoding:
    kept = folder / f"{_key(model, maker, 'text', text)}.safetensors"
    return _remembered(kept, lambda: model.encode_prompts([text]))


def _key(model: Model, maker: str, *content: object) -> str:
    """A name for what a part of a model, known by its fingerprint, makes of some content."""
    base = model.base
    made_by = (base.id, base.source, maker, base.text_tokens, base.text_layers)
    return hashlib.blake2b(repr((*made_by, *content)).encode(), digest_size=16).hexdigest()


def _remembered(path: Path, encode: Callable[[], Encoding]) -> Encoding:
    """Read what was kept, or encode and keep it. A broken file is made again."""
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError):
        tensors = {name: tensor.cpu().contiguous() for name, tensor in encode().items()}
    part = path.with_name(f"{path.name}.part")
    save_file(tensors, part)
    os.replace(part, path)
    return tensors
