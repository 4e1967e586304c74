"""The tab Run: one run, live."""

from typing import Any

import gradio as gr

from finetune import runs
from finetune.queue import Queue
from finetune.ui import handlers, live, page


def build(queue: Queue) -> gr.HTML:
    """Lay the tab out; the component's value is the id of the run that it shows."""
    functions = [
        handlers.server(live.news, queue, "live"),
        handlers.server(stop, queue, "stop"),
        handlers.server(resume, queue, "resume"),
    ]
    return page.component("live.js", functions, elem_id="live")


def stop(queue: Queue, asked: dict[str, Any]) -> dict[str, Any]:
    """Stop the run that the page shows."""
    queue.stop(runs.find(queue.settings.runs, str(asked.get("run", ""))))
    return {}


def resume(queue: Queue, asked: dict[str, Any]) -> dict[str, Any]:
    """Let the run that the page shows go on."""
    queue.resume(runs.find(queue.settings.runs, str(asked.get("run", ""))))
    return {}
