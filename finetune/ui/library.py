"""The tab Runs: all of them, to open, delete and bring back."""

from typing import Any

import gradio as gr

from finetune import api, bases, runs
from finetune.queue import TRASH_DAYS, Queue
from finetune.runs import Run, State
from finetune.ui import handlers, page
from finetune.ui.live import WORDS


def build(queue: Queue) -> gr.HTML:
    """Lay the tab out; the component's event `open` carries the id of the run to open."""
    functions = [
        handlers.server(every, queue, "runs"),
        handlers.server(remove, queue, "remove"),
        handlers.server(restore, queue, "restore"),
    ]
    return page.component("runs.js", functions, elem_id="runs")


def every(queue: Queue, asked: dict[str, Any]) -> dict[str, Any]:
    """All runs but drafts, newest first, and those that were deleted."""
    settings = queue.settings
    shown = [run for run in runs.all_in(settings.runs) if queue.state(run) is not State.DRAFT]
    gone = [run for run in runs.all_in(settings.trash) if queue.state(run) is not State.DRAFT]
    return {
        "runs": [{**_about(queue, run), "picture": _picture(queue, run)} for run in shown],
        "deleted": [_about(queue, run) for run in gone],
        "days": round(TRASH_DAYS),
    }


def remove(queue: Queue, asked: dict[str, Any]) -> dict[str, Any]:
    """Delete a run; `restore` brings it back."""
    queue.delete(runs.find(queue.settings.runs, str(asked.get("run", ""))))
    return {"done": True}


def restore(queue: Queue, asked: dict[str, Any]) -> dict[str, Any]:
    """Bring a deleted run back."""
    queue.restore(str(asked.get("run", "")))
    return {"done": True}


def open_run(queue: Queue, event: gr.EventData) -> tuple[Any, str]:
    """Show the run that was chosen in the list; returns the open tab and its id."""
    run = runs.find(queue.settings.runs, str(event.run))
    return gr.Tabs(selected="run"), run.id


def _about(queue: Queue, run: Run) -> dict[str, Any]:
    state, request = queue.state(run), run.request()
    base = bases.title(request.base_model) if request else ""
    name = request.finetune_comment if request else "Draft"
    created = run.created().isoformat()
    return {"id": run.id, "name": name, "base": base, "state": state, "badge": WORDS[state], "created": created}


def _picture(queue: Queue, run: Run) -> str | None:
    """The latest sample, else the first picture of the dataset."""
    samples = sorted(path.name for path in run.samples.glob("step*-0.png")) if run.samples.exists() else []
    if samples:
        return api.file_link(queue.settings, run, f"samples/{samples[-1]}")
    first = "thumbnails/0001.webp"
    return api.file_link(queue.settings, run, first) if (run.folder / first).exists() else None
