"""What the live view is told: everything about a run that is new since a cursor.

Separate from the tab, because it is pure: events go in, words and numbers come out.
"""

from typing import Any

from finetune import bases, owners, registry
from finetune.api import files
from finetune.errors import ConfigError
from finetune.runs import Run, State
from finetune.ui.handlers import Visit

MOST_POINTS = 800
MOST_LOG_LINES = 200
WORDS = {
    State.DRAFT: "Draft",
    State.QUEUED: "Waiting",
    State.RUNNING: "Running",
    State.STOPPING: "Stopping",
    State.STOPPED: "Stopped",
    State.FAILED: "Failed",
    State.READY: "Ready",
}
FIGURES = {
    "loss_before": ("Loss on your pictures, before", lambda value: f"{value:.3f}"),
    "loss_after": ("Loss on your pictures, after", lambda value: f"{value:.3f}"),
    "recovered": ("Kept of what the full finetune gained", lambda value: f"{value:.0%}"),
    "recovered_before_healing": ("Kept before healing", lambda value: f"{value:.0%}"),
    "seconds": ("Time", lambda value: duration(value)),
    "peak_memory_mib": ("Peak memory", lambda value: f"{value:,.0f} MiB"),
    "captured_energy": ("Captured by the LoRA", lambda value: f"{value:.1%}"),
}


def news(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """What is new about a run since a cursor (`{"run": id, "since": bytes}`). Raises: FinetuneError for no such run."""
    run = owners.find_to_watch(visit.settings, str(asked.get("run") or ""), visit.caller, str(asked.get("watch") or ""))
    since = asked.get("since")
    since = since if isinstance(since, int) and since > 0 else 0
    events, cursor = run.events(since)
    state = visit.queue.state(run)
    told = {
        "run": run.id,
        "cursor": cursor,
        "state": state,
        "badge": WORDS[state],
        "notice": _notice(visit, run, state),
    }
    told |= _progress(events)
    told |= {"points": points(events), "samples": _samples(visit, run, events), "log": _log(events)}
    if since == 0:
        told |= _about(run)
    if state in (State.READY, State.STOPPED):
        told["result"] = _result(visit, run)
    if state is State.FAILED:
        told["failure"] = _last(visit, run, "failed")
    return told


def points(events: list[dict[str, Any]]) -> list[list[float]]:
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


def duration(seconds: float) -> str:
    """A time in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _about(run: Run) -> dict[str, Any]:
    request = run.request()
    if not request:
        return {"name": "Draft", "facts": []}
    facts = [
        bases.title(request.base_model),
        f"{request.mode.value} mode",
        f"trigger word {request.trigger_word}",
        f"{request.finetune_type.value}, rank {request.lora_rank}",
        f"{request.iterations} steps",
    ]
    return {"name": request.finetune_comment, "facts": facts}


def _notice(visit: Visit, run: Run, state: State) -> str:
    """What to say while there is no stage."""
    if state is not State.QUEUED:
        return {
            State.STOPPING: "Stopping after the current step; what was learned so far is kept.",
            State.STOPPED: "This run was stopped. It can go on from where it was.",
            State.READY: "The LoRA was saved, loaded back and checked.",
        }.get(state, "")
    before = visit.queue.outlook(run).before
    return "Waiting for its turn." if not before else f"Waiting for its turn; {before} before it in the queue."


def _progress(events: list[dict[str, Any]]) -> dict[str, Any]:
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


def _samples(visit: Visit, run: Run, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "step": event["step"],
            "index": event["index"],
            "prompt": event["prompt"],
            "url": files.link(visit.settings, run, f"samples/{event['file']}"),
        }
        for event in events
        if event["kind"] == "sample"
    ]


def _log(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines = [line for event in events if (line := _line(event))]
    return lines[-MOST_LOG_LINES:]


def _line(event: dict[str, Any]) -> dict[str, Any] | None:
    said = event.get("message") or event.get("reason") or ""
    match event["kind"]:
        case "queued":
            words = "In the queue."
        case "started" if "pid" in event:
            words = "The worker has started."
        case "stage" if event.get("done") in (None, 0):
            words = f"{event['title']}."
        case "checkpoint":
            words = f"Checkpoint at step {event['step']}."
        case "caption":
            words = f"{event['file']}: {event['text']}"
        case "held_out":
            words = f"Loss on mirrored copies of your pictures, which are not trained: {event['loss']:.3f}."
        case "log" | "plan":
            words = said
        case "warning" | "failed":
            words = f"{said} {event.get('hint', '')}".strip()
        case "interrupted":
            words = f"The worker was lost. {said}"
        case "stopping":
            words = "Asked to stop."
        case "stopped":
            words = f"Stopped at step {event.get('step', 0)}."
        case "ready":
            words = "Ready."
        case _:
            return None
    is_warning = event["kind"] in ("warning", "failed", "interrupted")
    return {"time": event["time"], "text": words, "is_warning": is_warning}


def _last(visit: Visit, run: Run, kind: str) -> dict[str, Any]:
    events, _ = run.events()
    return next((event for event in reversed(events) if event["kind"] == kind), {})


def _result(visit: Visit, run: Run) -> dict[str, Any] | None:
    """What can be downloaded, with measured figures and the lines that use it; None while there is nothing."""
    request, ending = run.request(), _last(visit, run, visit.queue.state(run))
    listed = [file for file in ending.get("files", []) if (run.results / file["name"]).is_file()]
    if not request or not listed:
        return None
    summary = ending.get("summary", {})
    figures = [[words, show(summary[name])] for name, (words, show) in FIGURES.items() if name in summary]
    return {
        "files": [{**file, "url": files.link(visit.settings, run, f"results/{file['name']}")} for file in listed],
        "checks": ending.get("checks", []),
        "comparison": [_pair(visit, run, event) for event in run.events()[0] if event["kind"] == "comparison"],
        "figures": figures,
        "usage": _usage(run, listed[0]["name"]),
    }


def _pair(visit: Visit, run: Run, event: dict[str, Any]) -> dict[str, str]:
    """A picture of the full finetune and the same one of the extracted LoRA."""
    links = {side: files.link(visit.settings, run, f"samples/{event[side]}") for side in ("full", "lora")}
    return {"prompt": event["prompt"], **links}


def _usage(run: Run, lora_name: str) -> str:
    request = run.request()
    try:
        base = bases.check(request.base_model)
    except ConfigError:  # a folder that is gone since
        base = None
    if not base:
        return ""
    prompts = run.read("config.json").get("sample_prompts") or [request.trigger_word]
    return registry.families()[base.family].usage(base, lora_name, prompts[-1])
