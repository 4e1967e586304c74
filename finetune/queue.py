"""Which run goes next, and what became of the ones that were running.

There is no database: the run folders are the queue. A run waits from its `queued` event until a worker is started for
it, oldest first, one training at a time. `Queue.tick` is one step of that, taken every second by the one service that
holds the lock of the data folder. What a page asks for (submit, stop, resume) is only written into the run's folder,
so any service may be asked.
"""

import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import filelock

from finetune import bases, runs
from finetune.errors import ExecutorError, FinetuneError
from finetune.executors import Executor
from finetune.inputs import Mode, Request
from finetune.runs import LOCAL, Run, State
from finetune.settings import Settings

SECONDS_BETWEEN_TICKS = 1.0
SECONDS_TO_STOP = 60.0
TRIES_WITHOUT_PROGRESS = 3
DRAFT_DAYS = 1.0
TRASH_DAYS = 30.0
LOG_TAIL_CHARACTERS = 600


@dataclass
class _History:
    """A run's events but for the many that say nothing about its state, read on from where reading ended."""

    cursor: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0

    def read_on(self, run: Run) -> "_History":
        new, self.cursor = run.events(self.cursor)
        self.step = next((event["step"] for event in reversed(new) if event["kind"] == "step"), self.step)
        self.events += [event for event in new if event["kind"] not in ("step", "stage", "sample", "log", "caption")]
        return self

    def time_of_last(self, kind: str) -> float:
        return next((event["time"] for event in reversed(self.events) if event["kind"] == kind), 0.0)

    def losses_in_a_row(self) -> int:
        """How often the worker was lost since the run last got anywhere, or was started anew by a person."""
        count = 0
        for event in reversed(self.events):
            if event["kind"] in ("checkpoint", "stopped", "failed", "ready"):
                break
            count += event["kind"] == "interrupted"
        return count


@dataclass(frozen=True)
class Outlook:
    """What a waiting run waits for."""

    before: int
    """How many runs are before it."""
    seconds: float | None = None
    """Until it is expected to start; None where nobody can tell."""
    hindrance: str = ""
    """Why nothing starts now, in a sentence, though nothing is before it."""


class Queue:
    """The runs of one data folder, and the executor that works on them."""

    def __init__(
        self,
        settings: Settings,
        executor: Executor,
        now: Callable[[], float] = time.time,
        after_tick: Callable[[], None] = lambda: None,
    ) -> None:
        """`after_tick` is called after each step of the one queue that owns the data folder."""
        self.settings = settings
        self._executor = executor
        self._now = now
        self._after_tick = after_tick
        self._histories: dict[str, _History] = {}
        self._reading = threading.RLock()
        self._changing = threading.RLock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        settings.home.mkdir(parents=True, exist_ok=True)
        self._owner = filelock.FileLock(settings.home / "queue.lock", thread_local=False)

    def state(self, run: Run) -> State:
        """Where a run is."""
        return runs.state_after(self._history(run).events)

    def waiting(self) -> list[Run]:
        """Runs that wait for a worker, the one that waits longest first."""
        queued = [run for run in runs.all_in(self.settings.runs) if self.state(run) is State.QUEUED]
        return sorted(queued, key=lambda run: self._history(run).time_of_last("queued"))

    def outlook(self, run: Run) -> Outlook:
        """When a waiting run is expected to start, and what keeps it from starting."""
        return Outlook(next((place for place, other in enumerate(self.waiting()) if other.id == run.id), 0))

    def create(self, owner: str = LOCAL) -> Run:
        """Make a draft for somebody."""
        return runs.create(self.settings.runs, owner)

    def submit(self, run: Run, request: Request) -> None:
        """Put a draft into the queue. Raises: FinetuneError when it has no pictures or is no draft any more."""
        bases.check(request.base_model)
        with self._changing:
            if self.state(run) is not State.DRAFT:
                raise FinetuneError("This run was started already.", "Drop the pictures again to start another one.")
            if not run.read("dataset.json"):
                raise FinetuneError("There are no pictures yet.", "Drop a ZIP of pictures first.")
            self._executor.check()
            run.write("request.json", request.model_dump(mode="json"))
            run.tell("queued")

    def stop(self, run: Run) -> None:
        """Take a run out of the queue, or ask its worker to stop after the current step."""
        with self._changing:
            match self.state(run):
                case State.QUEUED:
                    run.tell("stopped", step=self._history(run).step)
                case State.RUNNING:
                    run.ask_to_stop()
                    run.tell("stopping")

    def resume(self, run: Run) -> None:
        """Let a run that was stopped, or that failed, go on from its last checkpoint."""
        with self._changing:
            if self.state(run) not in (State.STOPPED, State.FAILED):
                raise FinetuneError("Only a run that was stopped or that failed can go on.")
            run.forget_stop()
            run.tell("queued")

    def delete(self, run: Run) -> None:
        """Stop a run and move it out of sight; `restore` brings it back."""
        with self._changing:
            self._executor.stop(run)
            if not (state := self.state(run)).is_over and state is not State.DRAFT:
                run.tell("stopped", step=self._history(run).step)
            runs.delete(run, self.settings.trash)
            os.utime(self.settings.trash / run.id)

    def restore(self, id: str) -> Run:
        """Bring a deleted run back. Raises: FinetuneError when it is gone for good."""
        return runs.restore(id, self.settings.trash, self.settings.runs)

    def describe(self, run: Run, mode: Mode, base_model: str) -> None:
        """Let the captioner describe a draft's pictures for a mode; asking again for the same changes nothing."""
        draft = run.read("draft.json")
        if (draft.get("mode"), draft.get("base_model")) != (mode, base_model):
            run.write("draft.json", {"mode": mode, "base_model": base_model, "is_waiting": True})

    def is_describing(self, run: Run) -> bool:
        """Whether descriptions of a draft's pictures can still come."""
        return bool(run.read("draft.json").get("is_waiting")) or self._executor.is_running(run)

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
        if not self._is_owner():
            return False
        with self._changing:
            known = list(runs.all_in(self.settings.runs))
            training = [run for run in known if self.state(run) in (State.RUNNING, State.STOPPING)]
            busy = [run for run in training if self._look_after(run)]
            if not busy and (waiting := self.waiting()):
                self._train(waiting[0])
            drafts = [run for run in known if self.state(run) is State.DRAFT]
            self._caption_next(drafts)
            self._tidy(drafts)
        self._after_tick()
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

    def _history(self, run: Run) -> _History:
        with self._reading:
            return self._histories.setdefault(run.id, _History()).read_on(run)

    def _look_after(self, run: Run) -> bool:
        """Deal with a run that should have a worker; returns whether it has one."""
        if self._executor.is_running(run):
            asked = self._history(run).time_of_last("stopping")
            if self.state(run) is State.STOPPING and self._now() - asked > SECONDS_TO_STOP:
                self._executor.stop(run)
            return True
        # The worker's last words may have come between reading the events and looking for the worker.
        history = self._history(run)
        match self.state(run):
            case State.STOPPING:
                run.tell("stopped", step=history.step)
            case State.RUNNING:
                self._recover(run, history)
        return False

    def _recover(self, run: Run, history: _History) -> None:
        reason = _last_words(run)
        run.tell("interrupted", reason=reason)
        if history.losses_in_a_row() + 1 < TRIES_WITHOUT_PROGRESS:
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

    def _caption_next(self, drafts: list[Run]) -> None:
        """Start the captioner for the draft that asked first; one works at a time."""
        asking = [run for run in drafts if run.read("draft.json").get("is_waiting")]
        if not asking:
            return
        run = min(asking, key=lambda run: (run.folder / "draft.json").stat().st_mtime)
        if any(self._executor.is_running(other) for other in drafts if other.id != run.id):
            return
        self._executor.stop(run)
        run.write("draft.json", {**run.read("draft.json"), "is_waiting": False})
        try:
            self._executor.start(run, "caption")
        except ExecutorError as error:
            run.tell("caption_failed", message=error.message, hint=error.hint)

    def _tidy(self, drafts: list[Run]) -> None:
        """Throw away drafts that nobody came back to, and what was deleted long ago."""
        for run in drafts:
            if self._now() - run.created().timestamp() > DRAFT_DAYS * 86400:
                self._executor.stop(run)
                runs.discard(run)
        runs.empty_trash(self.settings.trash, TRASH_DAYS)


def _last_words(run: Run) -> str:
    """What the worker printed last, shortened."""
    if not run.worker_log.exists():
        return "The worker ended without a word."
    with open(run.worker_log, "rb") as log:
        log.seek(max(0, run.worker_log.stat().st_size - LOG_TAIL_CHARACTERS))
        lines = log.read().decode("utf-8", errors="replace").strip().splitlines()
    return f"The worker’s last words: {' / '.join(lines[-3:])}" if lines else "The worker ended without a word."
