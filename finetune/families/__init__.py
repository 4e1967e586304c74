"""Base models: families of them, one file each.

A family holds all that differs between base models: loading, packing, position ids, guidance, which layers take LoRA,
the names of layers in published files, the pipeline that reads the result. The trainer sees latents go in and a
velocity of the same shape come out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from finetune.memory import Fit, Size

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
    is_guidance_embedded: bool = False
    """Whether guidance is an input of the network, because it was distilled into it; else pictures are drawn with
    classifier-free guidance against the empty prompt, in two passes for each step."""

    @property
    def passes(self) -> int:
        """Through the network, for one picture."""
        return self.steps * (1 if self.is_guidance_embedded or self.guidance_scale <= 1 else 2)


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
    architecture: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The values of the transformer's config that differ from its class's defaults."""
    text_encoder_gib: float = 0.0
    """Its text encoders in memory, in 16 bits."""
    download_gib: float = 0.0
    """All files that are fetched from the Hub; 0 for a folder."""
    captioner: str = ""
    """Describes pictures without a caption: the best one that suits; where memory is short, a smaller one does. Empty
    where there is none: they get the mode's plain caption."""
    text_tokens: int = 512
    text_layers: tuple[int, ...] = ()
    time_shift: float = 3.0
    """How far training favours noisy times: t' = s t / (1 + (s - 1) t)."""
    sample_things: tuple[str, ...] = ("a lighthouse by the sea", "a cat on a windowsill")
    """What samples of a style show, since it is the style and not the things that is learned."""
    is_commercial: bool = True
    """Whether the licence allows commercial use."""
    is_gated: bool = False
    """Whether the licence must be accepted on the Hub before the files can be fetched."""
    distilled: str = ""
    """A model on the Hub of the same layers that draws with the LoRA in few steps; empty if there is none."""
    note: str = ""
    """What to say beside its title where a base model is chosen."""
    modelspec: str = ""
    """Its name as `modelspec.architecture`, without the ending “/lora”."""


@dataclass(frozen=True)
class Refused:
    """A published model of a family that cannot be trained on."""

    source: str
    reason: str
    instead: str
    """The id of the base model to take."""


class Model(Protocol):
    """A base model in memory. Parts are loaded when first needed and freed with `release`."""

    base: BaseModel
    device: str
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
        """Encode prompts, one row each. Rows have one length only if the family pads all prompts to it."""

    def cut_off(self, prompt: str) -> str:
        """The end of a prompt that the text encoder does not read; empty if it reads all."""

    def predict_velocity(self, noisy: "Tensor", t: "Tensor", encoding: Encoding, guidance: float = 1.0) -> "Tensor":
        """Shapes: noisy (B, C, h, w), t (B,) in [0, 1]; returns the shape of noisy.

        `guidance` is 1 while training and the sampler's scale while drawing; without an input for it, it is ignored.
        """

    def draw_noise(self, seed: int, latent_size: tuple[int, int]) -> "Tensor":
        """The noise that the family's own pipeline starts from with this seed. Shapes: (1, C, h, w), float32."""

    def sampling_times(self, latent_size: tuple[int, int], steps: int) -> "Tensor":
        """The flow times that the family's own pipeline visits, from 1 down to 0. Shapes: (steps + 1,)."""

    def original(self, name: str) -> "Tensor":
        """A weight of the transformer as the base has it, read from its files: training does not touch it."""

    def fingerprint(self, kind: str) -> str:
        """What "text" (encoders and tokenizers) or "vae" is made of: another value once its files are exchanged."""

    def release(self, *kinds: str) -> None:
        """Free "text", "vae" or "transformer"."""

    def draw_with_file(
        self, lora: Path | None, encoding: Encoding, empty: Encoding, seed: int, size: tuple[int, int]
    ) -> "Image":
        """Draw one picture through the public diffusers pipeline, around the parts in memory, with a LoRA file loaded
        into it in place of whatever LoRA the transformer has; without a file, with that LoRA.

        Units: size is (width, height) in pixels. Raises: ModelError when a layer of the file finds no place.
        """


class Family(Protocol):
    """What a file in this folder offers as FAMILY. Listing it must not import torch."""

    id: str
    title: str
    bases: tuple[BaseModel, ...]
    refused: tuple[Refused, ...]
    lora_targets: str
    """An anchored pattern of the names of the Linear layers that receive LoRA."""
    patch_px: int
    """That of its models, known before one is loaded."""
    pipeline_classes: tuple[str, ...]
    """What `_class_name` in a published folder's model_index.json (or modular_model_index.json) may be."""

    def load(self, base: BaseModel, folder: Path, device: str, fit: Fit) -> Model:
        """Open a base model from a folder; weights follow when they are needed. Raises: ModelError, AccessError."""

    def tiny(self) -> Model:
        """The same classes at toy size with random weights, for tests; its `save(folder)` writes it as published."""

    def size(self, base: BaseModel) -> Size:
        """How large the transformer is, from its architecture alone."""

    def describe(self, folder: Path) -> BaseModel:
        """A record of a base model in a folder of this family's layout. Raises: ModelError, also when it was distilled
        and cannot be trained on."""

    def published_names(self, base: BaseModel) -> Mapping[str, Sequence[str]]:
        """The layers of the published checkpoint that LoRA reaches, by their names there, and for each the names of our
        layers that it consists of, stacked along the rows in this order."""

    def usage(self, base: BaseModel, lora_name: str, prompt: str) -> str:
        """A few lines of Python that draw with the LoRA in diffusers."""
