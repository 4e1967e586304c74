"""The tab Run: one run, live."""

from typing import Any

import gradio as gr

from finetune import owners, publish, webhooks
from finetune.api import watch
from finetune.errors import FinetuneError, MissingError
from finetune.queue import Queue
from finetune.ui import handlers, images, live, page
from finetune.ui.handlers import Visit

PARTS = ("stage.js", "curve.js", "samples.js", "webhook.js", "images.js")


def build(queue: Queue) -> gr.HTML:
    """Lay the tab out; the component's value is the id of the run that it shows."""
    functions = [
        handlers.server(live.news, queue, "live"),
        handlers.server(stop, queue, "stop"),
        handlers.server(resume, queue, "resume"),
        handlers.server(push, queue, "push"),
        handlers.server(share, queue, "share"),
        handlers.server(withdraw, queue, "withdraw"),
        handlers.server(send_again, queue, "send_again"),
        handlers.server(images.draw, queue, "draw"),
        handlers.server(images.compare, queue, "compare"),
        handlers.server(images.remove, queue, "remove"),
    ]
    return page.component("live.js", functions, elem_id="live", parts=PARTS)


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


def share(visit: Visit, asked: dict[str, Any]) -> dict[str, str]:
    """Make a link to watch the run that the page shows."""
    run = visit.run(asked.get("run"))
    owners.allow_watching(run)
    return {"watch": watch.link(visit.settings, run)}


def withdraw(visit: Visit, asked: dict[str, Any]) -> dict[str, str]:
    """Withdraw that link."""
    owners.end_watching(visit.run(asked.get("run")))
    return {"watch": ""}


def send_again(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """Tell the end of the run that the page shows once more, as the `delivery` that is named did."""
    run = visit.run(asked.get("run"))
    known = {delivery.id for delivery in webhooks.of_task(visit.settings, run.id)}
    if (delivery := str(asked.get("delivery"))) not in known:
        raise MissingError("There is no such delivery.", "Load the page again.")
    webhooks.send_again(visit.settings, delivery)
    return {}
