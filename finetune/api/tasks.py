"""What a program is told of a task, a finetune or an image: the answer of get_result.

Separate from the routes, because their lists say the same. Many programs ask all the time, so it must be cheap; and no
key is needed to ask, so nothing here is private.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from finetune import images, runs
from finetune.errors import MissingError
from finetune.images import Image
from finetune.queue import Queue
from finetune.runs import Run, State
from finetune.settings import Settings

Status = Literal["Task not found", "Pending", "Request Moderated", "Content Moderated", "Ready", "Error"]
STATUS: dict[State, Status] = {
    State.QUEUED: "Pending",
    State.RUNNING: "Pending",
    State.STOPPING: "Pending",
    State.STOPPED: "Error",
    State.FAILED: "Error",
    State.READY: "Ready",
}
STAGES = {State.QUEUED: "Waiting", State.STOPPING: "Stopping", State.READY: "Ready"}
STOPPED = "The finetune was stopped. What was learned so far is kept, and it can go on from there."
FAILED = "The finetune failed."


class ResultResponse(BaseModel):
    """How far a task is, and what came of it."""

    id: str = Field(description="Task id")
    status: Status = Field(description="Pending until it is Ready, or until an Error ended it.")
    result: Any | None = Field(None, description="Of an image that is Ready: sample, prompt, seed and times.")
    progress: float | None = Field(None, description="From 0 to 1, while it runs.")
    details: dict[str, Any] | None = Field(
        None, description="Stage, step, time left or place in the queue; or the error."
    )
    preview: Any | None = Field(None, description="Always null.")
    error: str | None = Field(None, description="What went wrong; only of an Error.")


def answer(queue: Queue, id: str, root: str) -> dict[str, Any]:
    """The answer of get_result, with links that begin with `root`. Raises: MissingError."""
    try:
        run = runs.find(queue.settings.runs, id)
    except MissingError:
        return _of_image(queue.settings, images.find(queue.settings, id), root)
    return _of_run(queue, run)


def share(known: dict[str, Any]) -> float | None:
    """What is done of a run's training, from 0 to 1; None before it starts and when it is over."""
    if known["state"] not in (State.RUNNING, State.STOPPING):
        return None
    return min(1.0, known["step"] / known["of"]) if known["step"] and known["of"] else 0.0


def not_found(id: str) -> dict[str, Any]:
    """The answer for an id that is no task's."""
    return _answer(id, "Task not found")


def _of_run(queue: Queue, run: Run) -> dict[str, Any]:
    known = queue.progress(run)
    state = known["state"]
    match state:
        case State.DRAFT:
            raise MissingError("What is not submitted yet is no task.")
        case State.STOPPED | State.FAILED:
            return _failed(run.id, STOPPED if state is State.STOPPED else known["error"] or FAILED)
    details = {
        "stage": STAGES.get(state) or known["stage"] or "Starting",
        "step": known["step"] or 0,
        "of": known["of"],
        "seconds_left": known["seconds_left"],
    }
    if state is State.QUEUED:
        outlook = queue.outlook(run)
        details |= {
            "position": outlook.before + 1,
            "seconds_to_start": outlook.seconds,
            "hindrance": outlook.hindrance or None,
        }
    return _answer(run.id, STATUS[state], progress=share(known), details=details)


def _of_image(settings: Settings, image: Image, root: str) -> dict[str, Any]:
    status = image.status()
    match status["status"]:
        case "Ready":
            return _answer(image.id, "Ready", result=images.result(settings, image, root))
        case "Error":
            return _failed(image.id, status.get("error") or "The image could not be drawn.")
        case _:
            return _answer(image.id, "Pending", progress=status.get("progress"))


def _failed(id: str, words: str) -> dict[str, Any]:
    return {**_answer(id, "Error", details={"error": words}), "error": words}


def _answer(
    id: str,
    status: Status,
    result: dict[str, Any] | None = None,
    progress: float | None = None,
    details: dict[str, Any] | None = None,
) -> dict[str, Any]:
    six = {"id": id, "status": status, "result": result, "progress": progress, "details": details}
    return {**six, "preview": None}
