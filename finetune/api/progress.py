"""How a run stands, for whoever looks at it: state, stage, curve and samples, as far as they are new since a cursor.

Separate, because the live view and the page for those who only watch tell the same, the one more and the other nothing
else. It is pure: events go in, words and numbers come out.
"""

from typing import Any

from finetune.api import files
from finetune.queue import Outlook, Queue
from finetune.runs import Run, State

MOST_POINTS = 800
WORDS = {
    State.DRAFT: "Draft",
    State.QUEUED: "Waiting",
    State.RUNNING: "Running",
    State.STOPPING: "Stopping",
    State.STOPPED: "Stopped",
    State.FAILED: "Failed",
    State.READY: "Ready",
}
Events = list[dict[str, Any]]


def read_on(run: Run, since: Any) -> tuple[Events, int]:
    """What happened since a cursor that a page sent, and the next cursor; from the start if it is none of ours."""
    since = since if isinstance(since, int) and since > 0 else 0
    try:
        return run.events(since)
    except ValueError:  # it points into a line
        return run.events()


def told(queue: Queue, run: Run, events: Events) -> dict[str, Any]:
    """State, stage, curve and samples of a run, as far as these events tell of them."""
    state = queue.state(run)
    about = {"state": state, "badge": WORDS[state], "notice": _notice(queue, run, state)}
    return about | _stage(events) | {"points": points(events), "samples": _samples(queue, run, events)}


def points(events: Events) -> list[list[float]]:
    """Step and loss of each step told of; what a resumed run does again replaces what it had done.

    Of a long run every point is kept once, and thinned out evenly to what a screen can show.
    """
    found: list[list[float]] = []
    for event in events:
        if event["kind"] == "step":
            while found and found[-1][0] >= event["step"]:
                found.pop()
            found.append([event["step"], event["loss"]])
    if len(found) <= MOST_POINTS:
        return found
    return [found[i * (len(found) - 1) // (MOST_POINTS - 1)] for i in range(MOST_POINTS)]


def waiting(outlook: Outlook) -> str:
    """What a waiting run waits for, and until when."""
    place = f"{outlook.before} before it" if outlook.before else "it is next"
    start = "" if outlook.seconds is None else f" Expected to start in about {_roughly(outlook.seconds)}."
    return f"Waiting for its turn; {place}.{start}"


def _roughly(seconds: float) -> str:
    """A time that nobody knows to the second, in words."""
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(round(minutes, -1), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _notice(queue: Queue, run: Run, state: State) -> str:
    """What to say while there is no stage."""
    if state is State.QUEUED:
        return waiting(queue.outlook(run))
    return {
        State.STOPPING: "Stopping after the current step; what was learned so far is kept.",
        State.STOPPED: "This run was stopped. It can go on from where it was.",
        State.READY: "The LoRA was saved, loaded back and checked.",
    }.get(state, "")


def _stage(events: Events) -> dict[str, Any]:
    """Stage and step, by the last event that says something about them."""
    for event in reversed(events):
        match event["kind"]:
            case "step":
                values = {"done": event["step"], "of": event["of"], "seconds_left": event.get("seconds_left")}
                return {"progress": {"title": "Training", **values}}
            case "stage":
                told = {name: event.get(name) for name in ("done", "of", "unit", "seconds_left")}
                return {"progress": {"title": event["title"], **told}}
            case "queued" | "started":
                return {"progress": {"title": "Starting", "done": None, "of": None}}
    return {}


def _samples(queue: Queue, run: Run, events: Events) -> list[dict[str, Any]]:
    return [
        {
            "step": event["step"],
            "index": event["index"],
            "prompt": event["prompt"],
            "url": files.link(queue.settings, run, f"samples/{event['file']}"),
        }
        for event in events
        if event["kind"] == "sample"
    ]
