"""Base models: families of them, one file each.

A family holds all that differs between base models: loading, packing, position ids, guidance, which layers take LoRA,
the pipeline that reads the result. The trainer sees latents go in and a velocity of the same shape come out.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

Encoding = dict[str, "Tensor"]
"""Encoded prompts: tensors by the name that the family gives them, one row per prompt in each."""


@dataclass(frozen=True)
class Sampler:
    """How pictures are drawn with a base model."""

    steps: int
    guidance_scale: float


@dataclass(frozen=True)
class BaseModel:
    """One base model: a record of its family."""

    id: str
    title: str
    family: str
    source: str
    """A folder, or an id on the Hub."""
    licence: str
    licence_url: str
    resolution_px: int
    sampler: Sampler
    captioner: str
    text_tokens: int = 512
    text_layers: tuple[int, ...] = ()
    time_shift: float = 3.0
    """How far training favours noisy times: t' = s t / (1 + (s - 1) t)."""
    sample_things: tuple[str, ...] = ("a lighthouse by the sea", "a cat on a windowsill")
    """What samples of a style show, since it is the style and not the things that is learned."""
    is_commercial: bool = True
    is_gated: bool = False


class Model(Protocol):
    """A base model in memory. Parts are loaded when first needed and freed with `release`."""

    base: BaseModel
    patch_px: int
    """Side of the square of pixels that one latent stands for; pictures are multiples of it."""
    latent_channels: int

    @property
    def transformer(self) -> "nn.Module":
        """The network that LoRA is added to."""

    def encode_images(self, pixels: "Tensor") -> "Tensor":
        """Shapes: (B, 3, H, W) in [-1, 1] to latents (B, C, h, w)."""

    def decode_latents(self, latents: "Tensor") -> "Tensor":
        """Shapes: latents (B, C, h, w) to (B, 3, H, W) in [-1, 1]."""

    def encode_prompts(self, prompts: Sequence[str]) -> Encoding:
        """Encode prompts, one row each."""

    def cut_off(self, prompt: str) -> str:
        """The end of a prompt that the text encoder does not read; empty if it reads all."""

    def predict_velocity(self, noisy: "Tensor", t: "Tensor", encoding: Encoding) -> "Tensor":
        """Shapes: noisy (B, C, h, w), t (B,) in [0, 1]; returns the shape of noisy."""

    def sampling_times(self, latent_size: tuple[int, int], steps: int) -> "Tensor":
        """The flow times that the family's own pipeline visits, from 1 down to 0. Shapes: (steps + 1,)."""

    def fingerprint(self, part: str) -> str:
        """What "text_encoder" (with its tokenizer) or "vae" is made of: another value once its files are exchanged."""

    def release(self, *parts: str) -> None:
        """Free "text_encoder", "vae" or "transformer"."""


class Family(Protocol):
    """What a file in this folder offers as FAMILY. Listing it must not import torch."""

    id: str
    title: str
    bases: tuple[BaseModel, ...]
    lora_targets: str
    """An anchored pattern of the names of the Linear layers that receive LoRA."""

    def load(self, base: BaseModel, device: str) -> Model:
        """Open a base model; weights follow when they are needed. Raises: ModelError, AccessError."""

    def tiny(self) -> Model:
        """The same classes at toy size with random weights, for tests."""

    def draw_with_file(
        self, base: BaseModel, lora: Path, prompt: str, seed: int, size: tuple[int, int], device: str
    ) -> "Image":
        """Draw one picture through the public diffusers pipeline with a LoRA file loaded into it.

        Units: size is (width, height) in pixels.
        """

    def usage(self, base: BaseModel, lora_name: str, prompt: str) -> str:
        """A few lines of Python that draw with the LoRA in diffusers."""


SAMPLED_BYTES = 32 * 2**20


def fingerprint(*folders: Path) -> str:
    """Tell the files of folders from other ones by their names, sizes and content; empty if there is no file.

    Of a file that is larger than 32 MiB, blocks from all over it are read: training moves every weight, so that is as
    sure as reading all of it, and quick. Times of files are left out, because a copy has others.
    """
    hashed = hashlib.blake2b(digest_size=16)
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    for path in files:
        hashed.update(f"{path.name} {path.stat().st_size}\n".encode())
        _add_sample(path, hashed)
    return hashed.hexdigest() if files else ""


def _add_sample(path: Path, hashed: "hashlib._Hash") -> None:
    block = 2**20
    size = path.stat().st_size
    with open(path, "rb") as file:
        for start in range(0, size, max(block, size * block // SAMPLED_BYTES)):
            file.seek(start)
            hashed.update(file.read(block))
