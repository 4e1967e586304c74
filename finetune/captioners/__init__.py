"""Captioners: image to caption, one file each.

A captioner describes what `mode` asks for and never names the trigger word; `finetune.captions` adds that.
"""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

    from finetune.inputs import Mode


class LoadedCaptioner(Protocol):
    """A captioner whose weights are in memory."""

    def caption(self, image: "Image", mode: "Mode") -> str:
        """Describe an RGB image in one sentence. Raises: CaptionError."""


class Captioner(Protocol):
    """What a file in this folder offers as CAPTIONER. Listing it must not import torch."""

    id: str
    title: str

    def load(self, device: str) -> LoadedCaptioner:
        """Load the weights onto a torch device. Raises: ModelError, AccessError."""
