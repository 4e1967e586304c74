"""One folder per run: request, images, events, samples, checkpoints, LoRA files.

The folder is all that the service and a worker share, and it is enough to list, reopen and resume a run. Events are
appended as lines of JSON; state is what the last of them say.
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from finetune.errors import MissingError
from finetune.inputs import Request

LOCAL = "local"
"""Who owns what is made where nobody has to say who they are."""


class State(StrEnum):
    """Where a run is. Earned by events, never assumed."""

    DRAFT = "draft"
    QUEUED = "queued"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    READY = "ready"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self in (State.STOPPED, State.FAILED, State.READY)


_STATE_AFTER = {
    "queued": State.QUEUED,
    "started": State.RUNNING,
    "stopping": State.STOPPING,
    "stopped": State.STOPPED,
    "failed": State.FAILED,
    "ready": State.READY,
}


@dataclass(frozen=True)
class Run:
    """A run's folder and what lies in it."""

    folder: Path

    @property
    def id(self) -> str:
        """The run's name in addresses: a lower-case UUID4."""
        return self.folder.name

    @property
    def owner(self) -> str:
        """Who made it."""
        return self.read("run.json").get("owner", LOCAL)

    @property
    def images(self) -> Path:
        """Checked pictures, as they are trained on."""
        return self.folder / "images"

    @property
    def thumbnails(self) -> Path:
        """Small copies of the pictures, for the page."""
        return self.folder / "thumbnails"

    @property
    def samples(self) -> Path:
        """Pictures drawn during training."""
        return self.folder / "samples"

    @property
    def encodings(self) -> Path:
        """Latents and encoded captions, by content."""
        return self.folder / "encodings"

    @property
    def checkpoints(self) -> Path:
        """What resume needs."""
        return self.folder / "checkpoints"

    @property
    def results(self) -> Path:
        """What is downloaded: the LoRA, captions, settings."""
        return self.folder / "results"

    @property
    def lora(self) -> Path | None:
        """The finished LoRA for diffusers; the file beside it, with a longer name, is the one for ComfyUI."""
        return min(self.results.glob("*.safetensors"), key=lambda path: len(path.name), default=None)

    @property
    def worker_log(self) -> Path:
        """What the worker printed."""
        return self.folder / "worker.log"

    def request(self) -> Request | None:
        """What was asked for; None while the run is a draft."""
        values = self.read("request.json")
        return Request(**values) if values else None

    def read(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the folder; empty if it is not there."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}

    def write(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file of the folder in one move, readable by the owner alone."""
        part = self.folder / f"{name}.part"
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(values, file, indent=1, ensure_ascii=False)
        os.replace(part, self.folder / name)

    def tell(self, kind: str, **values: Any) -> None:
        """Append an event."""
        line = json.dumps({"time": round(time.time(), 6), "kind": kind, **values}, ensure_ascii=False)
        with open(self.folder / "events.jsonl", "ab") as file:
            file.write(line.encode() + b"\n")

    def events(self, cursor: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Events after a cursor, and the cursor behind them. Units: bytes."""
        path = self.folder / "events.jsonl"
        if not path.exists():
            return [], 0
        with open(path, "rb") as file:
            file.seek(cursor)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        return [json.loads(line) for line in whole.splitlines()], cursor + len(whole)

    def state(self) -> State:
        """Where the run is, by its last event that says so."""
        events, _ = self.events()
        return state_after(events)

    def created(self) -> datetime:
        """When the run was made."""
        return datetime.fromisoformat(self.read("run.json")["created"])

    def ask_to_stop(self) -> None:
        """Ask the worker to stop after the current step."""
        (self.folder / "stop").touch()

    def is_asked_to_stop(self) -> bool:
        """Whether the worker was asked to stop."""
        return (self.folder / "stop").exists()

    def forget_stop(self) -> None:
        """Take the request to stop back, so that the run can go on."""
        (self.folder / "stop").unlink(missing_ok=True)


def state_after(events: list[dict[str, Any]]) -> State:
    """Where a run is after these events."""
    return next((_STATE_AFTER[e["kind"]] for e in reversed(events) if e["kind"] in _STATE_AFTER), State.DRAFT)


def create(runs_folder: Path, owner: str = LOCAL) -> Run:
    """Make the folder of a new run, a draft."""
    run = Run(runs_folder / str(uuid.uuid4()))
    run.folder.mkdir(parents=True)
    run.write("run.json", {"created": datetime.now(UTC).isoformat(), "owner": owner})
    return run


def find(runs_folder: Path, id: str) -> Run:
    """The run of that id. Raises: MissingError when there is none."""
    try:
        run = Run(runs_folder / str(uuid.UUID(id)))
    except (ValueError, AttributeError, TypeError):
        run = None
    if run is None or not (run.folder / "run.json").exists():
        raise MissingError("There is no such run.", "It may have been deleted: look under Runs.")
    return run


def all_in(runs_folder: Path) -> Iterator[Run]:
    """All runs, newest first; one that is deleted meanwhile is not among them."""
    found = [Run(path.parent) for path in runs_folder.glob("*/run.json")]
    made = [(about["created"], run) for run in found if (about := run.read("run.json"))]
    yield from (run for _, run in sorted(made, key=lambda pair: pair[0], reverse=True))


def delete(run: Run, trash: Path) -> None:
    """Move a run out of sight; `restore` brings it back."""
    trash.mkdir(parents=True, exist_ok=True)
    shutil.move(run.folder, trash / run.id)


def discard(run: Run) -> None:
    """Delete a draft for good."""
    shutil.rmtree(run.folder, ignore_errors=True)


def restore(id: str, trash: Path, runs_folder: Path) -> Run:
    """Bring a deleted run back. Raises: MissingError when it is gone for good."""
    run = find(trash, id)
    shutil.move(run.folder, runs_folder / run.id)
    return Run(runs_folder / run.id)


def empty_trash(trash: Path, older_than_days: float = 30) -> None:
    """Delete for good what was deleted long ago. Units: days since the folder was last moved or written."""
    for path in trash.glob("*"):
        if time.time() - path.stat().st_mtime > older_than_days * 86400:
            shutil.rmtree(path)
