"""The tab Run: one run, live."""

from typing import Any

import gradio as gr

from finetune import publish
from finetune.errors import FinetuneError
from finetune.queue import Queue
from finetune.ui import handlers, live, page
from finetune.ui.handlers import Visit


def build(queue: Queue) -> gr.HTML:
    """Lay the tab out; the component's value is the id of the run that it shows."""
    functions = [
        handlers.server(live.news, queue, "live"),
        handlers.server(stop, queue, "stop"),
        handlers.server(resume, queue, "resume"),
        handlers.server(push, queue, "push"),
    ]
    return page.component("live.js", functions, elem_id="live")


def stop(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """Stop the run that the page shows."""
    visit.queue.stop(visit.run(asked.get("run")))
    return {}


def resume(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """Let the run that the page shows go on."""
    visit.queue.resume(visit.run(asked.get("run")))
    return {}


def push(visit: Visit, asked: dict[str, Any]) -> dict[str, str]:
    """Push the LoRA of the run that the page shows to the Hub, with the visitor's own token: never the machine's."""
    run = visit.run(asked.get("run"))
    if not (token := str(asked.get("token") or "").strip()):
        raise FinetuneError(
            "A token is needed.", "Make one with write right at https://huggingface.co/settings/tokens."
        )
    return {
        "url": publish.push_run(run, str(asked.get("repo") or ""), token, is_private=asked.get("is_public") is not True)
    }
