"""Pictures drawn during training and for whoever orders one: the model in memory as it is, with nothing loaded anew.

The arithmetic is that of diffusers' own pipelines, so a picture is the same there with the same prompt and seed.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy
import torch
from PIL import Image, ImageChops, ImageStat
from torch import Tensor

from finetune import encodings, parts
from finetune.families import Encoding, Model, Sampler

PIXELS_AT_ONCE = 2**18


@torch.no_grad()
def draw(
    model: Model,
    prompts: Sequence[Encoding],
    empty: Encoding,
    seed: int,
    size: tuple[int, int],
    sampler: Sampler,
    after_step: Callable[[], None] = lambda: None,
) -> list[Image.Image]:
    """Draw one picture for each prompt, all from one seed; small pictures of prompts of one length together.

    `after_step` is called after each step of the sampler. Units: size is (width, height) in pixels.
    Raises: ValueError when it is no multiple of the model's patches.
    """
    if size[0] % model.patch_px or size[1] % model.patch_px:
        raise ValueError(f"{size} must be multiples of {model.patch_px}")
    at_once = max(1, PIXELS_AT_ONCE // (size[0] * size[1]))
    drawn = []
    for _, alike in groupby(prompts, key=encodings.shapes):
        rows = list(alike)
        for start in range(0, len(rows), at_once):
            together = encodings.stack(rows[start : start + at_once])
            drawn += _draw_together(model, together, empty, seed, size, sampler, after_step)
    return drawn


def _draw_together(
    model: Model,
    encoding: Encoding,
    empty: Encoding,
    seed: int,
    size: tuple[int, int],
    sampler: Sampler,
    after_step: Callable[[], None],
) -> list[Image.Image]:
    width, height = size[0] // model.patch_px, size[1] // model.patch_px
    count = len(next(iter(encoding.values())))
    latents = model.draw_noise(seed, (height, width)).to(model.device).expand(count, -1, -1, -1)
    times = model.sampling_times((height, width), sampler.steps).to(model.device)
    predict = _guided(model, encoding, empty, sampler)
    for now, after in zip(times, times[1:], strict=False):
        with parts.autocast(model.device):  # the network may hold trained weights in more bits than its own
            velocity = predict(latents, now.expand(count))
        latents = latents + (after - now) * velocity.to(latents)
        after_step()
    return [_picture(model.decode_latents(row)[0]) for row in latents.split(1)]  # one by one: decoding is hungry


def _guided(model: Model, encoding: Encoding, empty: Encoding, sampler: Sampler) -> Callable[[Tensor, Tensor], Tensor]:
    """A function that gives the velocity of latents at a time, driven on from what the empty prompt gives unless the
    network does so itself. What the prompts need is done once, not in every step."""
    count = len(next(iter(encoding.values())))
    encoding = {name: tensor.to(model.device) for name, tensor in encoding.items()}
    guidance = sampler.guidance_scale
    if sampler.is_guidance_embedded or guidance <= 1:
        return lambda noisy, t: model.predict_velocity(noisy, t, encoding, guidance)
    rows = {name: tensor.to(model.device).expand(count, *tensor.shape[1:]) for name, tensor in empty.items()}
    if is_one_length := all(rows[name].shape == tensor.shape for name, tensor in encoding.items()):
        both = {name: torch.cat([rows[name], tensor]) for name, tensor in encoding.items()}

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        if is_one_length:
            without, velocity = model.predict_velocity(torch.cat([noisy, noisy]), torch.cat([t, t]), both).chunk(2)
        else:
            without, velocity = (model.predict_velocity(noisy, t, given) for given in (rows, encoding))
        return without + guidance * (velocity - without)

    return predict


def difference(first: Image.Image, second: Image.Image) -> int:
    """The largest difference of two pictures of one size in any colour. Units: 0 to 255."""
    return differences(first, second)[0]


def differences(first: Image.Image, second: Image.Image) -> tuple[int, float]:
    """The largest and the mean difference of two pictures of one size over all colours. Units: 0 to 255."""
    if first.size != second.size:
        raise ValueError(f"pictures of different sizes: {first.size} and {second.size}")
    found = ImageStat.Stat(ImageChops.difference(first.convert("RGB"), second.convert("RGB")))
    return max(high for _, high in found.extrema), sum(found.mean) / len(found.mean)


def _picture(pixels: Tensor) -> Image.Image:
    levels = (pixels.float().cpu() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0) * 255
    return Image.fromarray(levels.round().numpy().astype(numpy.uint8))
