"""Images that were ordered from finetunes: one folder for each, which the service and the studio share.

`order.json` says what to draw, and is written by the service; `status.json` what became of it, and is written by the
studio that draws, or by the service when there is no studio any more. An image without a status waits.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.errors import MissingError
from finetune.runs import Run
from finetune.settings import Settings


@dataclass(frozen=True)
class Order:
    """What is to be drawn, with every value decided but the ones that the base model's sampler has (None)."""

    owner: str
    created: float
    finetune_id: str
    endpoint: str
    prompt: str
    seed: int
    width: int
    height: int
    strength: float
    """The factor on the LoRA: 0 draws what the base does."""
    output_format: str = "jpeg"
    steps: int | None = None
    guidance: float | None = None
    webhook_url: str | None = None
    webhook_secret: str | None = None
    root: str = ""
    """Where the service was reached by who ordered: what is told to a webhook names the image by it."""


@dataclass(frozen=True)
class Image:
    """The folder of an ordered image."""

    folder: Path

    @property
    def id(self) -> str:
        """A lower-case UUID4: its task id."""
        return self.folder.name

    def order(self) -> Order:
        """What was asked for."""
        return Order(**json.loads((self.folder / "order.json").read_text(encoding="utf-8")))

    def status(self) -> dict[str, Any]:
        """{"status": "Pending" | "Ready" | "Error", "progress", "error", "file", "start_time", "end_time"}."""
        path = self.folder / "status.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"status": "Pending"}

    @property
    def is_over(self) -> bool:
        """Whether it was drawn, or cannot be."""
        return self.status()["status"] != "Pending"

    def tell(self, **status: Any) -> None:
        """Say what became of it, in one move."""
        _write(self.folder / "status.json", status)


def create(settings: Settings, order: Order) -> Image:
    """Put an order at the end of the queue."""
    image = Image(settings.images / str(uuid.uuid4()))
    part = image.folder.with_name(f".{image.id}")  # seen by nobody until it is whole
    part.mkdir(parents=True)
    _write(part / "order.json", asdict(order))
    os.replace(part, image.folder)
    return image


def find(settings: Settings, id: str) -> Image:
    """The image of that id. Raises: MissingError when there is none."""
    try:
        image = Image(settings.images / str(uuid.UUID(id)))
    except (ValueError, AttributeError, TypeError):
        image = None
    if image is None or not image.folder.is_dir():
        raise MissingError("There is no such image.", "Images are deleted a day after they were drawn.")
    return image


def all_in(settings: Settings) -> Iterator[Image]:
    """All images, in no order."""
    yield from (Image(path.parent) for path in settings.images.glob("*/order.json") if path.parent.name[0] != ".")


def waiting(settings: Settings) -> list[Image]:
    """Images that are not over, the one that waits longest first."""
    return sorted((image for image in all_in(settings) if not image.is_over), key=lambda image: image.order().created)


def discard(image: Image) -> None:
    """Delete an image for good."""
    shutil.rmtree(image.folder, ignore_errors=True)


def studio(settings: Settings) -> Run:
    """The folder of the worker that draws; executors know it as they know a run's."""
    folder = settings.images / ".studio"
    folder.mkdir(parents=True, exist_ok=True)
    return Run(folder)


def _write(path: Path, values: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(values, file, indent=1, ensure_ascii=False)
    os.replace(part, path)
