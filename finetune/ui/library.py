"""The tab Runs: all of them, to open, delete and bring back."""

from pathlib import Path
from typing import Any

import gradio as gr

from finetune import bases, runs
from finetune.api import files, progress
from finetune.queue import TRASH_DAYS, Queue
from finetune.runs import Run, State
from finetune.ui import handlers, live, page
from finetune.ui.handlers import Visit


def build(queue: Queue) -> gr.HTML:
    """Lay the tab out; the component's event `open` carries the id of the run to open."""
    functions = [
        handlers.server(every, queue, "runs"),
        handlers.server(remove, queue, "remove"),
        handlers.server(restore, queue, "restore"),
    ]
    return page.component("runs.js", functions, elem_id="runs")


def every(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """All runs of the caller's but drafts, newest first, and those that were deleted."""
    listed, deleted = _seen(visit, visit.settings.runs), _seen(visit, visit.settings.trash)
    has_owners = live.has_owners(visit, [*listed, *deleted])
    places = {run.id: place for place, run in enumerate(visit.queue.waiting(), 1)}
    return {
        "runs": [
            {**_about(visit, run, has_owners), "place": places.get(run.id), "picture": _picture(visit, run)}
            for run in listed
        ],
        "deleted": [_about(visit, run, has_owners) for run in deleted],
        "days": round(TRASH_DAYS),
    }


def remove(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """Delete a run; `restore` brings it back."""
    visit.queue.delete(visit.run(asked.get("run")))
    return {"done": True}


def restore(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """Bring a deleted run back."""
    visit.queue.restore(visit.deleted(asked.get("run")).id)
    return {"done": True}


def open_run(visit: Visit, event: gr.EventData) -> tuple[Any, str]:
    """Show the run that was chosen in the list; returns the open tab and its id."""
    run = visit.run(event.run)
    return gr.Tabs(selected="run"), run.id


def _seen(visit: Visit, folder: Path) -> list[Run]:
    """Runs in a folder that are the caller's and no drafts."""
    caller, state = visit.somebody(), visit.queue.state
    return [run for run in runs.all_in(folder) if caller.may_use(run) and state(run) is not State.DRAFT]


def _about(visit: Visit, run: Run, has_owners: bool) -> dict[str, Any]:
    state, request = visit.queue.state(run), run.request()
    return {
        "id": run.id,
        "name": request.finetune_comment if request else "Draft",
        "base": bases.title(request.base_model) if request else "",
        "owner": run.owner if has_owners else None,
        "state": state,
        "badge": progress.WORDS[state],
        "created": run.created().isoformat(),
    }


def _picture(visit: Visit, run: Run) -> str | None:
    """The latest sample, else the first picture of the dataset."""
    samples = sorted(path.name for path in run.samples.glob("step*-0.png")) if run.samples.exists() else []
    if samples:
        return files.link(visit.settings, run, f"samples/{samples[-1]}")
    first = "thumbnails/0001.webp"
    return files.link(visit.settings, run, first) if (run.folder / first).exists() else None
