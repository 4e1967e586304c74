"""The one device, and the rule by which images and training share it.

A run that has started is never interrupted by an image: images wait until it has ended. Whenever no run is at work,
images that wait are drawn first, for SECONDS_FOR_IMAGES at most while a run waits. Then the studio, which draws them,
is asked to go: it finishes the picture at hand and ends its process, which gives back the memory; after
SECONDS_TO_FINISH it is ended. A run starts only when the studio is gone. After the run it is the images' turn again.
"""

from collections.abc import Callable

from finetune import images
from finetune.errors import ExecutorError
from finetune.executors import Executor
from finetune.images import Image
from finetune.queue.history import last_words
from finetune.settings import Settings

SECONDS_FOR_IMAGES = 300.0
SECONDS_TO_FINISH = 120.0
TRIES_TO_DRAW = 3


class Device:
    """Whose turn it is, step by step. What it must know after a restart of the service is what the executor finds."""

    def __init__(self, settings: Settings, executor: Executor, now: Callable[[], float]) -> None:
        self._settings = settings
        self._executor = executor
        self._now = now
        self._turn_began: float | None = None
        self._sent_away: float | None = None
        self._may_have_died = True
        self._studios_lost = 0
        self._orders_at_start: list[Image] = []
        self.hindrance = ""
        """Why no run starts now, in a sentence."""
        self.seconds: float = 0.0
        """For how long at most."""

    @property
    def is_taken_back(self) -> bool:
        """Whether the studio was sent away for a run."""
        return self._sent_away is not None

    @property
    def is_drawing(self) -> bool:
        """Whether the studio has the device."""
        return self._executor.is_running(images.studio(self._settings))

    def take_turns(self, is_training: bool, is_awaited: bool) -> bool:
        """Start, leave or send away the studio; returns whether the run that waits may start now."""
        studio = images.studio(self._settings)
        is_drawing = self._executor.is_running(studio)
        if not is_drawing:
            self._clear_up()
        self.hindrance, self.seconds = "", 0.0
        if is_training or not is_awaited:
            self._turn_began = None
        elif self._turn_began is None:
            self._turn_began = self._now()
        if not is_training and self._is_turn_of_images() and (ordered := images.waiting(self._settings)):
            self._give_to_images(ordered, is_drawing)
            return False
        if is_drawing and (is_training or is_awaited):
            self._send_away()
            return False
        if is_awaited and not is_training:
            self._turn_began = None
            return True
        return False

    def _is_turn_of_images(self) -> bool:
        return self._sent_away is None and self._seconds_of_turn() > 0

    def _seconds_of_turn(self) -> float:
        return SECONDS_FOR_IMAGES - (self._now() - (self._turn_began or self._now()))

    def _give_to_images(self, ordered: list[Image], is_drawing: bool) -> None:
        self.hindrance = f"Images are drawn first, for up to {SECONDS_FOR_IMAGES / 60:.0f} minutes."
        self.seconds = self._seconds_of_turn()
        if is_drawing:
            return
        self._orders_at_start, self._may_have_died = ordered, True
        try:
            self._executor.start(images.studio(self._settings), "draw")
        except ExecutorError as error:
            ordered[0].fail(str(error))

    def _send_away(self) -> None:
        studio = images.studio(self._settings)
        if self._sent_away is None:
            self._sent_away = self._now()
            studio.ask_to_stop()
        waited = self._now() - self._sent_away
        if waited > SECONDS_TO_FINISH:
            self._executor.stop(studio)
        self.hindrance = "The last image is being finished, and its model leaves the memory."
        self.seconds = max(0.0, SECONDS_TO_FINISH - waited)

    def _clear_up(self) -> None:
        """See to what a studio left that is gone: the image that it had begun, and the request that it should go."""
        if not self._may_have_died:
            return
        studio = images.studio(self._settings)
        images.recover(self._settings)
        self._count_loss(was_asked=studio.is_asked_to_stop())
        studio.forget_stop()
        self._sent_away, self._may_have_died = None, False

    def _count_loss(self, was_asked: bool) -> None:
        """Give up the next image where studios end before they draw any, so that none is started for ever."""
        began_with, self._orders_at_start = self._orders_at_start, []
        if was_asked or not began_with:
            return
        if any(_was_touched(image) for image in began_with):
            self._studios_lost = 0
            return
        self._studios_lost += 1
        if self._studios_lost >= TRIES_TO_DRAW:
            self._studios_lost = TRIES_TO_DRAW - 1
            words = last_words(images.studio(self._settings))
            began_with[0].fail(f"The program that draws ended {TRIES_TO_DRAW} times before it could begin. {words}")


def _was_touched(image: Image) -> bool:
    """Whether it is over, was begun, or was even deleted since."""
    return image.is_over or "attempts" in image.status() or not image.folder.exists()
