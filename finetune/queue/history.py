"""What the events of each run say so far: read on from where reading ended, and kept small however many there are.

Separate, because everything that is asked of the queue is asked of this: a thousand runs that are over cost one look
at the size of a file each. That look is what finds what others write: a worker, the command line, another service.
"""

import copy
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import runs
from finetune.runs import Run, State

LOG_TAIL_CHARACTERS = 600


@dataclass
class History:
    """A run at one moment, as its events tell it. Times are seconds since 1970; what no event has told is None or 0."""

    state: State = State.DRAFT
    place: float = 0.0
    """Since when it has its place in the queue: a run whose worker was lost keeps it, one that a person lets go on
    goes to the end."""
    expected_seconds: float | None = None
    """What the whole run was expected to take when it was submitted."""
    workers: int = 0
    """How many have begun with it."""
    began: float = 0.0
    asked_to_stop: float = 0.0
    losses: int = 0
    """How often the worker was lost since the run last got anywhere, or was started anew by a person."""
    stage: str | None = None
    step: int | None = None
    of: int | None = None
    is_stepping: bool = False
    """Whether the last news was a step."""
    seconds_left: float | None = None
    """Of the steps, or else of the stage; as it was `at`."""
    at: float = 0.0
    error: str | None = None
    took_seconds: float | None = None
    """From start to end, where one worker did it all."""
    ends: int = 0
    """How often it has ended: one that goes on ends again."""

    @property
    def is_at_work(self) -> bool:
        """Whether it should have a worker."""
        return self.state in (State.RUNNING, State.STOPPING)

    @property
    def share_left(self) -> float:
        """Which part of the steps is still to be done."""
        return 1 - (self.step or 0) / self.of if self.of else 1.0

    def take(self, event: dict[str, Any]) -> None:
        """Hear an event."""
        said = runs.state_after([event])
        if said is not State.DRAFT:
            self.state = said
            self.is_stepping, self.seconds_left = False, None
            self.ends += said.is_over
        match event["kind"]:
            case "queued":
                self.place = self.place if self.losses else event["time"]
                self.expected_seconds = event.get("expected_seconds", self.expected_seconds)
                self.stage = self.error = None
            case "started":
                self.began = event["time"]
                self.workers += "pid" in event
            case "stopping":
                self.asked_to_stop = event["time"]
            case "interrupted":
                self.losses += 1
            case "checkpoint":
                self.losses = 0
            case "stopped" | "failed" | "ready":
                self._end(event)
            case "step":
                self.step, self.of, self.is_stepping = event["step"], event.get("of"), True
                self.seconds_left, self.at = event.get("seconds_left"), event["time"]
            case "stage":
                self.stage, self.is_stepping = event.get("title"), False
                self.seconds_left, self.at = event.get("seconds_left"), event["time"]

    def _end(self, event: dict[str, Any]) -> None:
        self.losses = 0
        self.error = event.get("message") if self.state is State.FAILED else None
        if self.state is State.READY and self.workers == 1:
            self.took_seconds = event.get("summary", {}).get("seconds")


class _Kept:
    """A run's history as far as its events were read; what is given out is never changed afterwards."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._events = os.fspath(run.folder / "events.jsonl")
        self._history = History()
        self._cursor = 0
        self._reading = threading.Lock()

    def read_on(self) -> History:
        with self._reading:  # of this run alone: nobody waits here for the files of another
            size = self._size()
            if size < self._cursor:  # the folder is gone, or another one lies in its place
                self._history, self._cursor = History(), 0
            if size > self._cursor:
                self._read_new()
            return self._history

    def _read_new(self) -> None:
        new, cursor = self.run.events(self._cursor)
        history = copy.copy(self._history)
        for event in new:
            history.take(event)
        self._history, self._cursor = history, cursor

    def _size(self) -> int:
        try:
            return os.stat(self._events).st_size
        except (FileNotFoundError, NotADirectoryError):
            return 0


class Histories:
    """The histories of all runs that were asked for."""

    def __init__(self, runs_folder: Path) -> None:
        self._runs_folder = runs_folder
        self._kept: dict[str, _Kept] = {}
        self._damaged: set[str] = set()

    def of(self, run: Run) -> History:
        """What a run's events say by now."""
        return self._of(os.fspath(run.folder)).read_on()

    def every(self) -> list[tuple[Run, History]]:
        """All runs with what their events say, in no order; what cannot be read is left out, and said once."""
        found = []
        for folder in self._folders():
            kept = self._of(folder)
            try:
                history = kept.read_on()
                if history.state is not State.DRAFT or (kept.run.folder / "run.json").exists():
                    found.append((kept.run, history))
            except (OSError, ValueError, KeyError, TypeError) as error:
                self._tell_damage(folder, error)
        return found

    def forget_gone(self) -> None:
        """Keep nothing of folders that are gone."""
        for folder in [folder for folder in list(self._kept) if not os.path.exists(folder)]:
            self._kept.pop(folder, None)

    def _of(self, folder: str) -> _Kept:
        return self._kept.get(folder) or self._kept.setdefault(folder, _Kept(Run(Path(folder))))

    def _folders(self) -> list[str]:
        try:
            names = os.listdir(self._runs_folder)
        except FileNotFoundError:
            return []
        return [os.path.join(self._runs_folder, name) for name in names if not name.startswith(".")]

    def _tell_damage(self, folder: str, error: Exception) -> None:
        if folder not in self._damaged:
            self._damaged.add(folder)
            print(f"The events in {folder} cannot be read: {error!r}.", file=sys.stderr)


def last_words(run: Run) -> str:
    """What a worker printed last, shortened."""
    if not run.worker_log.exists():
        return "The worker ended without a word."
    with open(run.worker_log, "rb") as log:
        log.seek(max(0, run.worker_log.stat().st_size - LOG_TAIL_CHARACTERS))
        lines = log.read().decode("utf-8", errors="replace").strip().splitlines()
    return f"The worker’s last words: {' / '.join(lines[-3:])}" if lines else "The worker ended without a word."
