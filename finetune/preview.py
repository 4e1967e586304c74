"""Pictures drawn during training and for “try it”: the model in memory as it is, with nothing loaded anew.

The arithmetic is that of diffusers' own pipelines, so a picture is the same there with the same prompt and seed.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy
import torch
from PIL import Image, ImageChops
from torch import Tensor

from finetune import encodings
from finetune.families import Encoding, Model, Sampler

PIXELS_AT_ONCE = 2**18


@torch.no_grad()
def draw(
    model: Model, prompts: Sequence[Encoding], empty: Encoding, seed: int, size: tuple[int, int], sampler: Sampler
) -> list[Image.Image]:
    """Draw one picture for each prompt, all from one seed; small pictures of prompts of one length together.

    Units: size is (width, height) in pixels. Raises: ValueError when it is no multiple of the model's patches.
    """
    if size[0] % model.patch_px or size[1] % model.patch_px:
        raise ValueError(f"{size} must be multiples of {model.patch_px}")
    at_once = max(1, PIXELS_AT_ONCE // (size[0] * size[1]))
    drawn = []
    for _, alike in groupby(prompts, key=encodings.shapes):
        rows = list(alike)
        for start in range(0, len(rows), at_once):
            drawn += _draw_together(model, encodings.stack(rows[start : start + at_once]), empty, seed, size, sampler)
    return drawn


def _draw_together(
    model: Model, encoding: Encoding, empty: Encoding, seed: int, size: tuple[int, int], sampler: Sampler
) -> list[Image.Image]:
    width, height = size[0] // model.patch_px, size[1] // model.patch_px
    count = len(next(iter(encoding.values())))
    latents = model.draw_noise(seed, (height, width)).expand(count, -1, -1, -1)
    times = model.sampling_times((height, width), sampler.steps)
    for now, after in zip(times, times[1:], strict=False):
        velocity = _guided(model, latents, now.expand(count), encoding, empty, sampler.guidance_scale)
        latents = latents + (after - now) * velocity.to(latents)
    return [_picture(model.decode_latents(row)[0]) for row in latents.split(1)]  # one by one: decoding is hungry


def _guided(model: Model, noisy: Tensor, t: Tensor, encoding: Encoding, empty: Encoding, guidance: float) -> Tensor:
    """The velocity away from noise, driven on from what the empty prompt gives unless the network does so itself."""
    if model.is_guidance_embedded or guidance <= 1:
        return model.predict_velocity(noisy, t, encoding, guidance)
    rows = {name: tensor.expand(len(noisy), *tensor.shape[1:]) for name, tensor in empty.items()}
    if all(rows[name].shape == tensor.shape for name, tensor in encoding.items()):
        both = {name: torch.cat([rows[name], tensor]) for name, tensor in encoding.items()}
        without, velocity = model.predict_velocity(torch.cat([noisy, noisy]), torch.cat([t, t]), both).chunk(2)
    else:
        without, velocity = (model.predict_velocity(noisy, t, rows_) for rows_ in (rows, encoding))
    return without + guidance * (velocity - without)


def difference(first: Image.Image, second: Image.Image) -> int:
    """The largest difference of two pictures of one size in any colour. Units: 0 to 255."""
    if first.size != second.size:
        raise ValueError(f"pictures of different sizes: {first.size} and {second.size}")
    return max(high for _, high in ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getextrema())


def _picture(pixels: Tensor) -> Image.Image:
    levels = (pixels.float().cpu() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0) * 255
    return Image.fromarray(levels.round().numpy().astype(numpy.uint8))
