"""What the live view is told: everything about a run that is new since a cursor.

Separate from the tab, because it is pure: events go in, words and numbers come out.
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from finetune import bases, registry, runs, webhooks
from finetune.api import files, progress, watch
from finetune.errors import ConfigError
from finetune.runs import Run, State
from finetune.ui import images
from finetune.ui.handlers import Visit

MOST_LOG_LINES = 200
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
    run = visit.run(asked.get("run"))
    events, cursor = progress.read_on(run, asked.get("since"))
    told = {"run": run.id, "cursor": cursor, **progress.told(visit.queue, run, events), "log": _log(events)}
    if not asked.get("since"):
        told |= _about(visit, run)
    match told["state"]:
        case State.QUEUED:
            told["hindrance"] = visit.queue.outlook(run).hindrance
        case State.READY | State.STOPPED:
            told |= {"result": _result(visit, run), "drawing": images.told(visit, run)}
        case State.FAILED:
            told["failure"] = _last(visit, run, "failed")
    return told | {"webhook": _webhook(visit, run)}


def has_owners(visit: Visit, known: Iterable[Run]) -> bool:
    """Whether it is to be said whose each of these runs is: to an owner of the machine, when they are of several."""
    return visit.somebody().owns_machine and len({run.owner for run in known}) > 1


def duration(seconds: float) -> str:
    """A time in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _about(visit: Visit, run: Run) -> dict[str, Any]:
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
    if has_owners(visit, runs.all_in(visit.settings.runs)):
        facts.append(f"owned by {run.owner}")
    return {"name": request.finetune_comment, "facts": facts, "watch": watch.link(visit.settings, run)}


def _webhook(visit: Visit, run: Run) -> dict[str, Any] | None:
    """What came of telling the run's end; None when nobody is to be told."""
    request = run.request()
    if not request or not request.webhook_url:
        return None
    deliveries = [
        {
            "id": delivery.id,
            "address": _address(delivery.url),
            "attempts": delivery.attempts,
            "next_time": delivery.next_time,
            "is_delivered": delivery.is_delivered,
        }
        for delivery in webhooks.of_task(visit.settings, run.id)
    ]
    return {"address": _address(str(request.webhook_url)), "deliveries": deliveries}


def _address(url: str) -> str:
    """Host and path of an address: what else it holds may be a password."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"


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
