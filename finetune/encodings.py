"""Encode every picture and caption once, and keep the result in the run folder.

Kept by content: a file's name is the hash of the picture (or text), of how it is cut and of the base model's files. So
a resumed run, or a second one on the same pictures, reads what is there, and no picture can meet another one's latents.
Also owned here: which pictures each step sees, because that depends on the sizes of their latents.
"""

import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune import flow
from finetune.families import Encoding, Model

Progress = Callable[[str, int, int], None]
"""Told what is being done in plain words, how many are done, and of how many."""

ENLARGED_AT_MOST = 1.25  # a picture skips resolutions that would enlarge its sides more than this, if it can


@dataclass(frozen=True)
class Encoded:
    """All that training reads: latents and encoded captions, in the order of the pictures."""

    latents: tuple[tuple[Tensor, ...], ...]
    """By picture, one (C, h, w) for each resolution."""
    captions: tuple[Encoding, ...]
    """By picture, of one row; rows of different lengths come of families that do not pad."""
    prompts: tuple[Encoding, ...]
    empty: Encoding

    def plan(self, seed: int, batch: int) -> Iterator[tuple[Tensor, Encoding]]:
        """Give the latents and captions of step after step, without end."""
        items = [(picture, latents) for picture, row in enumerate(self.latents) for latents in row]
        sizes = [(latents.shape, shapes(self.captions[picture])) for picture, latents in items]
        for chosen in plan(sizes, seed, batch):
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


def stack(rows: Sequence[Encoding]) -> Encoding:
    """Join encodings of equal lengths to one with all their rows."""
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def shapes(encoding: Encoding) -> tuple[tuple[int, ...], ...]:
    """The shapes of an encoding's tensors; rows can be stacked where they are equal."""
    return tuple(tuple(tensor.shape) for _, tensor in sorted(encoding.items()))


def plan(sizes: Sequence[Hashable], seed: int, batch: int) -> Iterator[list[int]]:
    """Choose the items of step after step, all of one size in a step.

    Every item comes equally often: within a size, all come in a new order before any comes again; sizes take turns by
    how many items they have. A size with fewer items than a batch repeats them with other noise; nothing is dropped.
    """
    groups: dict[Hashable, list[int]] = {}
    for number, size in enumerate(sizes):
        groups.setdefault(size, []).append(number)
    streams = {size: _shuffled_again_and_again(numbers, seed) for size, numbers in groups.items()}
    owed = dict.fromkeys(groups, 0.0)
    while True:
        for size, numbers in groups.items():
            owed[size] += len(numbers) / len(sizes)
        next_size = max(owed, key=lambda size: owed[size])
        owed[next_size] -= 1
        yield list(islice(streams[next_size], batch))


def _shuffled_again_and_again(numbers: list[int], seed: int) -> Iterator[int]:
    for epoch in count():
        order = torch.randperm(len(numbers), generator=flow.generator(seed, "order", numbers[0], epoch))
        yield from (numbers[place] for place in order.tolist())


def fit(width: int, height: int, resolution_px: int, multiple: int) -> tuple[int, int]:
    """Find the size at which a picture is trained: its shape as well as may be, an area of at most resolution squared.

    Of all sizes in multiples, the one that keeps most: the share of the picture that is not cut off, times the area.
    """
    aspect, area = width / height, resolution_px**2

    def kept(size: tuple[int, int]) -> float:
        ratio = size[0] / size[1] / aspect
        return min(ratio, 1 / ratio) * size[0] * size[1]

    sides = range(multiple, area // multiple + 1, multiple)
    sizes = [(area // side // multiple * multiple, side) for side in sides]
    sizes += [(max(multiple, round(side * aspect / multiple) * multiple), side) for side in sides]
    return max((size for size in sizes if 0 < size[0] * size[1] <= area), key=kept)


def resolution_for(width: int, height: int, resolution_px: int, resolutions_px: Sequence[int]) -> int:
    """The resolution at which a picture takes part: a lower one where it would be enlarged too much."""
    lower = [side for side in sorted(resolutions_px) if side <= resolution_px]
    sensible = [side for side in lower if side <= ENLARGED_AT_MOST * (width * height) ** 0.5]
    return max(sensible, default=lower[0])


def load_pixels(path: Path, size: tuple[int, int]) -> Tensor:
    """Read a picture, scaled and cut from the middle to a size. Shapes: (1, 3, H, W) in [-1, 1]."""
    with Image.open(path) as image:
        fitted = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(numpy.asarray(fitted, dtype=numpy.float32))
    return (pixels / 127.5 - 1).permute(2, 0, 1)[None]


def _encode_picture(
    model: Model, maker: str, path: Path, resolutions_px: Sequence[int], folder: Path
) -> tuple[Tensor, ...]:
    content = hashlib.blake2b(path.read_bytes()).hexdigest()
    with Image.open(path) as image:
        width, height = image.size
    found = []
    for resolution_px in resolutions_px:
        size = fit(width, height, resolution_for(width, height, resolution_px, resolutions_px), model.patch_px)
        kept = folder / f"{_key(model, maker, 'picture', content, size)}.safetensors"
        latents = _remembered(kept, lambda size=size: {"latents": model.encode_images(load_pixels(path, size))})
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
