"""The page: three tabs, and the address that opens one of them. Gradio is imported here and nowhere below."""

from typing import Any

import gradio as gr

from finetune import keys
from finetune.api import callers
from finetune.api.callers import Mode
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.ui import handlers, library, new, page, run
from finetune.ui.handlers import Visit

BRAND = "<header class='brand'><h1>Finetune</h1><p>Teach an image model your pictures.</p></header>"


def build(settings: Settings, queue: Queue) -> gr.Blocks:
    """Build the page of a data folder."""
    with gr.Blocks(title="Finetune", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as blocks:
        with gr.Row(elem_id="top"):
            gr.HTML(html_template=BRAND)
            if callers.mode(settings) is Mode.HUB:
                gr.LoginButton(size="sm", min_width=180, scale=0)  # elsewhere it makes an identity up
            else:
                page.component("who.js", [handlers.server(who, queue, "who")], elem_id="who")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("New finetune", id="new"):
                tab = new.build(queue)
            with gr.Tab("Run", id="run"):
                live = run.build(queue)
            with gr.Tab("Runs", id="runs"):
                listed = library.build(queue)
        tab.train.click(
            handlers.event(new.train, queue),
            inputs_kwargs={"pictures": tab.pictures, "panel": tab.panel, **tab.fields},
            outputs=[tabs, live, tab.pictures, tab.panel, tab.problem],
            validator=handlers.event(new.check, queue),
            api_visibility="private",
        )
        listed.open(handlers.event(library.open_run, queue), outputs=[tabs, live], api_visibility="private")
        described = [tab.fields[name] for name in ("mode", "base_model", "captioner")]
        opened = [tabs, live, tab.panel, *described]
        blocks.load(handlers.event(open_address, queue), outputs=opened, api_visibility="private")
    return blocks


def who(visit: Visit, asked: Any) -> dict[str, Any]:
    """Who is signed in; nobody where nobody is asked."""
    caller = visit.somebody()
    if callers.mode(visit.settings) is Mode.AT_HOME:
        return {"name": "", "can_sign_in": False}
    if caller.is_visitor:
        return {"name": "", "can_sign_in": keys.exist(visit.settings)}
    return {"name": caller.name, "can_sign_in": False}


def open_address(visit: Visit) -> tuple[Any, ...]:
    """Open what the address names: a run, or a draft with what it was described for.

    Returns the tab, the run's id, the panel's value, and the mode, base model and captioner.
    """
    if id := visit.address.get("run"):
        return gr.Tabs(selected="run"), id, *(gr.skip(),) * 4
    if (id := visit.address.get("draft")) and (panel := new.reopen(visit, id)):
        return gr.skip(), gr.skip(), panel, panel["mode"], panel["base"], panel["captioner"]
    return (gr.skip(),) * 6
