"""Which run goes next, and what became of the ones that were running.

There is no database: the run folders are the queue. A run waits from its `queued` event until a worker is started for
it, oldest first, one training at a time, by turns with the images that were ordered (`device.py` has the rule).
`Queue.tick` is one step of that, taken every second by the one service that holds the lock of the data folder. What a
page asks for (submit, stop, resume) is only written into the run's folder, so any service may be asked.
"""

import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import filelock

from finetune import bases, images, runs
from finetune.errors import BusyError, ExecutorError, FinetuneError, StorageError
from finetune.executors import Executor
from finetune.images import Image
from finetune.inputs import Mode, Request
from finetune.queue import forecast
from finetune.queue.device import Device
from finetune.queue.drafts import Drafts
from finetune.queue.history import Histories, History, last_words
from finetune.runs import LOCAL, Run, State
from finetune.settings import Settings

SECONDS_BETWEEN_TICKS = 1.0
SECONDS_BETWEEN_TIDYING = 60.0
SECONDS_TO_STOP = 60.0
TRIES_WITHOUT_PROGRESS = 3
TRASH_DAYS = 30.0
SECRET = "webhook.secret"
"""The file of a run that holds what signs its webhook, apart from the request, which others read."""


@dataclass(frozen=True)
class Outlook:
    """What a run or an image that waits waits for."""

    before: int
    """How many runs are before it, those at work included; of an image: how many images."""
    seconds: float | None = None
    """Until it is expected to start; None where nobody can tell."""
    hindrance: str = ""
    """Why nothing starts now, in a sentence, though the device is not at work on a run; of an image: why it waits."""


class Queue:
    """The runs of one data folder, and the executor that works on them."""

    def __init__(
        self,
        settings: Settings,
        executor: Executor,
        now: Callable[[], float] = time.time,
        after_tick: Callable[[list[Run]], None] = lambda ended: None,
    ) -> None:
        """`after_tick` is called after each step of the one queue that owns the data folder, with the runs that have
        ended since the last call that came back; the first time, with all that are over."""
        self.settings = settings
        self._executor = executor
        self._now = now
        self._after_tick = after_tick
        self._histories = Histories(settings.runs)
        self._device = Device(settings, executor, now)
        self._drafts = Drafts(settings, executor, now)
        self._changing = threading.RLock()
        self._looking = threading.Lock()
        self._looked_at = float("-inf")
        self._active: list[Run] = []
        self._pace = 1.0
        self._ends_told: dict[str, int] = {}
        self._tidied = float("-inf")
        self._is_elsewhere = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        settings.make_home()
        self._owner = filelock.FileLock(settings.home / "queue.lock", thread_local=False)

    def state(self, run: Run) -> State:
        """Where a run is."""
        return self._histories.of(run).state

    def progress(self, run: Run) -> dict[str, Any]:
        """How far a run is: state, stage (words), step, of, seconds_left, error (words); what is not known is None.

        Cheap enough for every request: of the run's events only what is new is read, and nothing of other runs.
        """
        history = self._histories.of(run)
        names = ("state", "stage", "step", "of", "seconds_left", "error")
        return {name: getattr(history, name) for name in names}

    def waiting(self) -> list[Run]:
        """Runs that wait for a worker, the one that waits longest first."""
        self._look()
        return [run for run, _ in self._line()[1]]

    def outlook(self, run: Run) -> Outlook:
        """When a waiting run is expected to start, and what keeps it from starting."""
        self._look(SECONDS_BETWEEN_TICKS)
        at_work, waiting = self._line()
        place = next((place for place, (other, _) in enumerate(waiting) if other.id == run.id), None)
        if place is None:
            return Outlook(0)
        hindrance, wait = ("", 0.0) if at_work else self._hindrance()
        expected = self._times(at_work, waiting)[0][place]
        seconds = None if expected is None or wait is None else expected + wait
        return Outlook(len(at_work) + place, seconds, hindrance)

    def image_outlook(self, image: Image) -> Outlook:
        """What an image that was ordered waits for; `before` counts images."""
        self._look(SECONDS_BETWEEN_TICKS)
        before = next((n for n, other in enumerate(images.waiting(self.settings)) if other.id == image.id), 0)
        at_work, waiting = self._line()
        if at_work:
            until = self._times(at_work, [])[1][0]
            return Outlook(before, None if before else until, "A run is at work; images are drawn when it has ended.")
        if self._device.is_taken_back:
            return Outlook(before, None, "A run is about to start; images are drawn when it has ended.")
        hindrance = self._trouble_of_executor()
        return Outlook(before, None if before or hindrance else 0.0, hindrance)

    def create(self, owner: str = LOCAL) -> Run:
        """Make a draft for somebody; of too many, the oldest is thrown away. Raises: BusyError, StorageError."""
        if self._is_disk_full():
            raise StorageError("The disk has no room left for more pictures.", "Delete runs that nobody needs.")
        with self._changing:
            drafts = [run for run, history in self._histories.every() if history.state is State.DRAFT]
            drafts = [run for run in drafts if run.owner == owner]
            self._drafts.make_room(drafts)
            return runs.create(self.settings.runs, owner)

    def check_room(self, owner: str) -> None:
        """Raises: BusyError when the queue takes no more, or no more of this owner's."""
        with self._changing:
            self._look()
            at_work, waiting = self._line()
            _, ends = self._times(at_work, waiting)
            mine = [end for (run, _), end in zip(at_work + waiting, ends, strict=True) if run.owner == owner]
            if len(mine) >= self.settings.waiting_each:
                words = f"{len(mine)} of your runs wait or are at work, and no more are taken from one owner."
                hint = (
                    "Start another when one of them is done. The machine’s owner can allow more: FINETUNE_WAITING_EACH."
                )
                raise BusyError(words, hint, forecast.retry_after(mine))
            if len(ends) >= self.settings.waiting:
                words = f"The queue is full: {len(ends)} runs wait or are at work."
                raise BusyError(words, "Try again when one of them is done.", forecast.retry_after(ends))

    def submit(self, run: Run, request: Request) -> None:
        """Put a draft into the queue.

        Raises: FinetuneError when it has no pictures or is no draft any more; BusyError when the queue is full, or its
        owner, be that the machine's own, has enough in it.
        """
        bases.check(request.base_model)
        expected = forecast.expected_seconds(self.settings, run, request)
        with self._changing:
            if self.state(run) is not State.DRAFT:
                raise FinetuneError("This run was started already.", "Drop the pictures again to start another one.")
            if not run.read("dataset.json"):
                raise FinetuneError("There are no pictures yet.", "Drop pictures first.")
            self._executor.check()
            self.check_room(run.owner)
            if request.webhook_secret:
                run.write(SECRET, {"secret": request.webhook_secret})
            run.write("request.json", request.model_dump(mode="json", exclude={"webhook_secret"}))
            run.tell("queued", expected_seconds=expected)
            self._look()

    def stop(self, run: Run) -> None:
        """Take a run out of the queue, or ask its worker to stop after the current step."""
        with self._changing:
            match self.state(run):
                case State.QUEUED:
                    run.tell("stopped", step=self._histories.of(run).step or 0)
                case State.RUNNING:
                    run.ask_to_stop()
                    run.tell("stopping")

    def resume(self, run: Run) -> None:
        """Let a run that was stopped, or that failed, go on from its last checkpoint, at the end of the queue.

        Raises: FinetuneError when it is neither, BusyError as `submit` does.
        """
        with self._changing:
            if self.state(run) not in (State.STOPPED, State.FAILED):
                raise FinetuneError("Only a run that was stopped or that failed can go on.")
            self.check_room(run.owner)
            run.forget_stop()
            run.tell("queued")
            self._look()

    def delete(self, run: Run) -> None:
        """Stop a run and move it out of sight; `restore` brings it back. Images of it that wait are given up."""
        with self._changing:
            self._executor.stop(run)
            history = self._histories.of(run)
            if not history.state.is_over and history.state is not State.DRAFT:
                run.tell("stopped", step=history.step or 0)
            runs.delete(run, self.settings.trash)
            os.utime(self.settings.trash / run.id)
            self._tidied = float("-inf")

    def restore(self, id: str) -> Run:
        """Bring a deleted run back. Raises: FinetuneError when it is gone for good."""
        return runs.restore(id, self.settings.trash, self.settings.runs)

    def describe(
        self,
        run: Run,
        mode: Mode,
        base_model: str,
        files: Collection[str] = (),
        again: bool = False,
        captioner: str = "",
    ) -> None:
        """Let a captioner describe a draft's pictures for a mode.

        Asking once more changes nothing, but for `files` that were not asked for before, or `again`.
        """
        self._drafts.describe(run, mode, base_model, files, again, captioner)

    def is_describing(self, run: Run) -> bool:
        """Whether descriptions of a draft's pictures can still come."""
        return self._drafts.is_describing(run)

    def start(self) -> None:
        """Take a step every second in a thread of its own, until `close`; and see what the machine can do."""
        self._executor.measure()
        self._thread = threading.Thread(target=self._go_on, name="queue", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Workers go on."""
        self._closed.set()
        if self._thread:
            self._thread.join(timeout=10)
        self._owner.release()

    def tick(self) -> bool:
        """Take one step; returns whether it was this service's to take."""
        self._is_elsewhere = not self._is_owner()
        if self._is_elsewhere:
            return False
        with self._changing:
            known = self._look()
            busy = [run for run, history in known if history.is_at_work and self._look_after(run)]
            _, waiting = self._line()
            is_awaited = bool(waiting) and not self._is_disk_full()
            drafts = [run for run, history in known if history.state is State.DRAFT]
            is_training = self._device.take_turns(bool(busy), is_awaited)
            self._drafts.take_turn(drafts, bool(busy) or is_training or self._device.is_drawing)
            if is_training:
                self._train(waiting[0][0])
        self._tell_ends(known)
        self._tidy(known)
        return True

    def _go_on(self) -> None:
        while not self._closed.wait(SECONDS_BETWEEN_TICKS):
            try:
                self.tick()
            except (OSError, ValueError, KeyError, FinetuneError):
                # A run folder that somebody deletes or damages by hand must not end the queue for all others.
                traceback.print_exc()

    def _is_owner(self) -> bool:
        try:
            self._owner.acquire(timeout=0)
        except filelock.Timeout:
            return False
        return True

    def _look(self, not_older_than_seconds: float = 0.0) -> list[tuple[Run, History]]:
        """See which runs wait or are at work, unless that was seen just now; returns all runs if it looked."""
        with self._looking:
            if time.monotonic() - self._looked_at < not_older_than_seconds:
                return []
            known = self._histories.every()
            self._active = [run for run, history in known if history.is_at_work or history.state is State.QUEUED]
            self._pace = forecast.pace(history for _, history in known)
            self._looked_at = time.monotonic()
            return known

    def _line(self) -> tuple[list[tuple[Run, History]], list[tuple[Run, History]]]:
        """Runs that are at work, and those that wait, in their order, as their events are now."""
        now = [(run, self._histories.of(run)) for run in self._active]
        waiting = [(run, history) for run, history in now if history.state is State.QUEUED]
        waiting.sort(key=lambda one: (one[1].place, one[0].id))
        return [(run, history) for run, history in now if history.is_at_work], waiting

    def _times(self, at_work: list[tuple[Run, History]], waiting: list[tuple[Run, History]]) -> forecast.Times:
        histories = [[history for _, history in some] for some in (at_work, waiting)]
        return forecast.times(*histories, self._pace, self._now())

    def _hindrance(self) -> tuple[str, float | None]:
        """Why no run starts though none is at work, and for how long at most, if that is known."""
        if self._is_elsewhere:
            return "Another service works on this data folder, and starts the runs.", 0.0
        if trouble := self._trouble_of_executor():
            return trouble, None
        if self._is_disk_full():
            return f"The disk is too full: {self.settings.disk_reserve_gib} GiB must stay free.", None
        return self._device.hindrance, self._device.seconds

    def _trouble_of_executor(self) -> str:
        try:
            self._executor.check()
        except ExecutorError as error:
            return str(error)
        return ""

    def _is_disk_full(self) -> bool:
        return shutil.disk_usage(self.settings.home).free < self.settings.disk_reserve_gib * 2**30

    def _tell_ends(self, known: list[tuple[Run, History]]) -> None:
        ended = [run for run, history in known if history.ends > self._ends_told.get(run.id, 0)]
        self._after_tick(ended)
        self._ends_told = {run.id: history.ends for run, history in known if history.ends}

    def _look_after(self, run: Run) -> bool:
        """Deal with a run that should have a worker; returns whether it has one."""
        if self._executor.is_running(run):
            history = self._histories.of(run)
            if history.state is State.STOPPING and self._now() - history.asked_to_stop > SECONDS_TO_STOP:
                self._executor.stop(run)
            return True
        # The worker's last words may have come between reading the events and looking for the worker.
        history = self._histories.of(run)
        match history.state:
            case State.STOPPING:
                run.tell("stopped", step=history.step or 0)
            case State.RUNNING:
                self._recover(run, history)
        return False

    def _recover(self, run: Run, history: History) -> None:
        reason = last_words(run)
        run.tell("interrupted", reason=reason)
        if history.losses + 1 < TRIES_WITHOUT_PROGRESS:
            run.tell("queued")
            return
        run.tell(
            "failed",
            message=f"The worker was lost {TRIES_WITHOUT_PROGRESS} times without getting any further. {reason}",
            hint="Often the computer ran out of memory: close other programs, then continue.",
        )

    def _train(self, run: Run) -> None:
        self._executor.stop(run)
        run.forget_stop()
        run.tell("started")
        try:
            self._executor.start(run, "train")
        except ExecutorError as error:
            run.tell("failed", message=error.message, hint=error.hint)

    def _tidy(self, known: list[tuple[Run, History]]) -> None:
        """Throw away drafts that nobody came back to, images of yesterday, and what was deleted long ago."""
        now = self._now()
        if abs(now - self._tidied) < SECONDS_BETWEEN_TIDYING:
            return
        self._tidied = now
        with self._changing:
            for run in [run for run, history in known if history.state is State.DRAFT]:
                # One that was started or deleted since it was seen is a draft no more.
                if self.state(run) is State.DRAFT and run.read("run.json"):
                    self._drafts.throw_away_if_old(run)
            images.tidy(self.settings, now)
            runs.empty_trash(self.settings.trash, TRASH_DAYS)
        self._histories.forget_gone()
