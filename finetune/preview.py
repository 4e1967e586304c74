"""Pictures drawn during training and for “try it”: the model in memory as it is, with nothing loaded anew.

The arithmetic is that of diffusers' own pipelines, so a picture is the same there with the same prompt and seed.
"""

from collections.abc import Sequence

import numpy
import torch
from PIL import Image, ImageChops
from torch import Tensor

from finetune.families import Encoding, Model, Sampler


@torch.no_grad()
def draw(
    model: Model, encoding: Encoding, empty: Encoding, seeds: Sequence[int], size: tuple[int, int], sampler: Sampler
) -> list[Image.Image]:
    """Draw one picture for each row of an encoding, each from its own seed.

    Units: size is (width, height) in pixels. Raises: ValueError when it is no multiple of the model's patches.
    """
    if size[0] % model.patch_px or size[1] % model.patch_px:
        raise ValueError(f"{size} must be multiples of {model.patch_px}")
    count, width, height = len(seeds), size[0] // model.patch_px, size[1] // model.patch_px
    shape = (1, model.latent_channels, height, width)
    latents = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    is_guided = sampler.guidance_scale > 1
    if is_guided:
        encoding = {name: torch.cat([empty[name].expand_as(rows), rows]) for name, rows in encoding.items()}
    times = model.sampling_times((height, width), sampler.steps)
    for now, after in zip(times, times[1:], strict=False):
        seen = torch.cat([latents, latents]) if is_guided else latents
        velocity = model.predict_velocity(seen, now.expand(len(seen)), encoding).to(latents)
        if is_guided:
            without, velocity = velocity.split(count)
            velocity = without + sampler.guidance_scale * (velocity - without)
        latents = latents + (after - now) * velocity
    return [_picture(model.decode_latents(row)[0]) for row in latents.split(1)]  # one by one: decoding is hungry


def difference(first: Image.Image, second: Image.Image) -> int:
    """The largest difference of two pictures of one size in any colour. Units: 0 to 255."""
    if first.size != second.size:
        raise ValueError(f"pictures of different sizes: {first.size} and {second.size}")
    return max(high for _, high in ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getextrema())


def _picture(pixels: Tensor) -> Image.Image:
    levels = (pixels.float().cpu() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0) * 255
    return Image.fromarray(levels.round().numpy().astype(numpy.uint8))
