"""The process that draws the images that were ordered, one after the other, until it is asked to go or has nothing to
do: ending is how it gives memory back.

It shares nothing with the service but the folder of images. What draws is a painter, which keeps its model between
images: see `painter.py`.
"""

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from finetune import images
from finetune.errors import FinetuneError, MissingError, StorageError
from finetune.images import Image, Order
from finetune.runs import Run
from finetune.settings import Settings

if TYPE_CHECKING:
    import PIL.Image

SECONDS_BETWEEN_LOOKS = 0.2
AHEAD = 20
"""So many orders are looked through for one whose base model is loaded."""
OVERTAKEN = 10
"""So many may go before the one that waits longest, because their base model is loaded."""
QUALITY = {"jpeg": {"quality": 95, "subsampling": 0}, "png": {}, "webp": {"quality": 95}}
"""Nothing else is written into a file: no prompt, no seed, no name."""


class Painter(Protocol):
    """Draws an order with a finetune, and keeps its model for the next one."""

    @property
    def base_model(self) -> str:
        """The base model that is loaded, as finetunes name it; empty while there is none."""

    def draw(self, run: Run, order: Order, progress: Callable[[float], None]) -> "PIL.Image.Image":
        """Draw; `progress` is told how much of it is done. Raises: FinetuneError."""

    def forget(self) -> None:
        """Give back all memory."""


class Studio:
    """One life of the process."""

    def __init__(self, settings: Settings, painter: Painter, rest: Callable[[float], None] = time.sleep) -> None:
        """`rest` passes the time until the next look for orders."""
        self.settings = settings
        self._painter = painter
        self._rest = rest
        self._first = ""
        self._overtaken = 0

    def work(self) -> None:
        """Draw whatever waits; return when asked to stop, or after minutes with nothing to do.

        Raises: what a second image in a row fails of unexpectedly, because the program itself may be broken then.
        """
        folder, idle, was_well = images.studio(self.settings), 0.0, True
        images.recover(self.settings)
        while folder.folder.is_dir() and not folder.is_asked_to_stop():
            if (image := self._next()) is None:
                if idle >= self.settings.idle_minutes * 60:
                    return
                self._rest(SECONDS_BETWEEN_LOOKS)
                idle += SECONDS_BETWEEN_LOOKS
                continue
            is_well = self._deal_with(image, is_last_try=not was_well)
            idle, was_well = 0.0, is_well

    def _next(self) -> Image | None:
        """The image that waits longest, or one of those behind it whose base model is loaded."""
        waiting = images.waiting(self.settings)
        if not waiting:
            return None
        if waiting[0].id != self._first:
            self._first, self._overtaken = waiting[0].id, 0
        if self._overtaken < OVERTAKEN:
            quick = next((image for image in waiting[:AHEAD] if self._is_loaded(image)), waiting[0])
            self._overtaken += quick.id != self._first
            return quick
        return waiting[0]

    def _is_loaded(self, image: Image) -> bool:
        with suppress(MissingError):
            request = images.finetune(self.settings, image).request()
            return bool(request) and request.base_model == self._painter.base_model
        return False

    def _deal_with(self, image: Image, is_last_try: bool) -> bool:
        """Draw an image, or say why not; returns whether all went as can be expected."""
        try:
            self._draw(image)
        except FinetuneError as error:
            image.fail(str(error))
        except Exception as error:
            image.fail(f"Something unexpected went wrong ({type(error).__name__}). The log of the studio says more.")
            if is_last_try:
                raise
            traceback.print_exc()
            self._painter.forget()
            return False
        return True

    def _draw(self, image: Image) -> None:
        began = round(time.time(), 3)
        about = {"status": "Pending", "attempts": image.status().get("attempts", 0) + 1, "start_time": began}
        image.tell(**about, progress=0.0)

        def progress(share: float) -> None:
            image.tell(**about, progress=round(share, 3))

        order = image.order()
        picture = self._painter.draw(images.finetune(self.settings, image), order, progress)
        name = _save(picture, image.folder, order.output_format)
        image.tell(status="Ready", file=name, start_time=began, end_time=round(time.time(), 3))


def _save(picture: "PIL.Image.Image", folder: Path, kind: str) -> str:
    name = f"sample.{kind}"
    options: dict[str, Any] = QUALITY[kind]
    try:
        picture.save(folder / name, kind.upper(), **options)
    except OSError as error:
        raise StorageError(f"The picture cannot be saved: {error.strerror}.", "Make room on the disk.") from error
    return name
