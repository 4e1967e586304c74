"""Captioners: image to caption, one file each; and any image-text-to-text model of the Hub by its id.

A captioner is asked in the words of `finetune.instructions`, answers as it likes, and never names the trigger word;
`finetune.captions` adds that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from finetune import hub, registry
from finetune.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

    from finetune.families import BaseModel
    from finetune.inputs import Mode
    from finetune.weights import Progress

BY_SIZE = ("qwen3-vl-4b", "qwen3-vl-2b", "smolvlm-500m")
"""Those that take each other's place where memory is short, the best first."""


@dataclass(frozen=True)
class Answer:
    """What a captioner said of a picture, as it said it."""

    text: str
    is_cut: bool = False
    """Whether it had no room to end."""


class LoadedCaptioner(Protocol):
    """A captioner whose weights are in memory."""

    listens: bool
    """Whether it does what it is asked in words; else asking again changes nothing."""
    at_once: int
    """How many pictures it takes at a time."""

    def describe(self, pictures: "Sequence[Image]", mode: "Mode", words: str) -> list[Answer]:
        """Answer for each of some RGB pictures. Raises: CaptionError."""

    def release(self) -> None:
        """Free the memory."""


class Captioner(Protocol):
    """What a file in this folder offers as CAPTIONER. Listing it must not import torch."""

    id: str
    title: str
    licence: str
    source: str
    """An id on the Hub; empty if there is nothing to fetch."""
    gib: float
    """Its weights in 16 bits, which is also what is fetched."""

    def revision(self, base: "BaseModel") -> str:
        """Tells its weights from other ones, as far as that is known without loading them."""

    def fits(self, base: "BaseModel", device: str, free_bytes: int) -> bool:
        """Whether it can be chosen for this base model on a device with so much free memory."""

    def load(self, base: "BaseModel", device: str, free_bytes: int, progress: "Progress") -> LoadedCaptioner:
        """Load the weights onto a torch device, fetched first if need be. Raises: ModelError, AccessError."""


def find(name: str) -> Captioner:
    """The captioner of an id: one of the list, or a model on the Hub. Raises: ConfigError when it is none."""
    from finetune.captioners.vlm import VisionLanguage

    name = name.strip()
    known = registry.captioners()
    if name in known:
        return known[name]
    repo = hub.repository(name)
    if repo is None:
        choices = ", ".join(known)
        hint = f"Choose one of: {choices}; or give an id on the Hub (owner/name) of an image-text-to-text model."
        raise ConfigError(f"There is no captioner “{name}”.", hint, "captioner")
    same = (one for one in known.values() if one.source.lower() == repo.lower())
    return next(same, None) or VisionLanguage(id=repo, title=repo, source=repo)


def admit(name: str, owns_machine: bool) -> None:
    """Refuse at once what cannot be a captioner, and what only an owner of the machine may have fetched: a stranger
    fills no disk with models of their choice. Raises: ConfigError.
    """
    if not name.strip():
        return
    if not owns_machine and find(name).id not in registry.captioners():
        raise ConfigError(
            f"“{name.strip()}” is not in the list of captioners, and only an owner of this machine may name others.",
            f"Choose one of: {', '.join(registry.captioners())}; or leave it empty.",
            "captioner",
        )
    find(name)


def suited(asked: str, base: "BaseModel", device: str, free_bytes: int) -> list[Captioner]:
    """The captioners to try for a base model, the best first: the one that was asked for, else those that fit.

    Empty where the base has none. Raises: ConfigError.
    """
    if asked.strip():
        return [find(asked)]
    if not base.captioner:
        return []
    best, known = base.captioner, registry.captioners()
    steps = BY_SIZE[BY_SIZE.index(best) :] if best in BY_SIZE else (best, *(BY_SIZE[1:] if best == "own" else ()))
    return [known[id] for id in steps if known[id].fits(base, device, free_bytes)] or [known[steps[-1]]]
