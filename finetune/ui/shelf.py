"""The panel “Your datasets” of the tab New finetune: keep these pictures under a name, and use them again.

Using a dataset fills a new draft at once: nothing is uploaded, and the draft is then like any other.
"""

from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from finetune import runs, shelf
from finetune.api import datasets
from finetune.errors import FinetuneError, MissingError
from finetune.queue import Queue
from finetune.runs import LOCAL
from finetune.shelf import Kept
from finetune.ui import handlers, page
from finetune.ui.handlers import Visit

FOLLOW = "(panel, name) => ({ run: panel && panel.run, name })"


def build(queue: Queue) -> gr.HTML:
    """Lay the panel out; its event `use` carries the dataset that was chosen."""
    functions = [
        handlers.server(every, queue, "datasets"),
        handlers.server(keep, queue, "keep"),
        handlers.server(remove, queue, "remove"),
    ]
    return page.component("shelf.js", functions, elem_id="shelf")


def wire(
    queue: Queue, listed: gr.HTML, panel: gr.HTML, zip_file: gr.File, problem: gr.HTML, fields: dict[str, Component]
) -> Dependency:
    """Let the panel follow the draft that the page shows; returns the event that fills a new one with a dataset."""
    name = fields["finetune_comment"]
    gr.on(
        [panel.change, name.change],
        fn=None,
        js=FOLLOW,
        inputs=[panel, name],
        outputs=listed,
        api_visibility="private",
    )
    about = [fields[name] for name in ("mode", "trigger_word", "captioning", "base_model")]
    return listed.use(
        handlers.event(use, queue),
        [name, *about],
        [panel, zip_file, problem, name],
        api_visibility="private",
        show_progress_on=panel,
    )


def every(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """The caller's datasets, newest first, and the name that a new version of the draft's would have."""
    names = shelf.by_name(shelf.of(visit.settings, visit.somebody()))
    has_owners = any(versions[0].owner not in (LOCAL, visit.somebody().name) for versions in names)
    return {
        "datasets": [_about(visit, versions, has_owners) for versions in names],
        "origin": _origin(visit, asked.get("run")),
    }


def keep(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """Keep a draft's pictures under a name. Raises: FinetuneError."""
    kept = shelf.keep(visit.settings, visit.run(asked.get("run")), str(asked.get("name") or ""), visit.somebody())
    return _version(kept)


def remove(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """Delete a dataset with all its versions, or one of them. Raises: MissingError."""
    for kept in _matching(visit, asked):
        shelf.remove(kept)
    return {"done": True}


def use(
    visit: Visit, name: str, mode: str, trigger: str, captioning: bool, base: str, event: gr.EventData
) -> tuple[Any, ...]:
    """Make a draft of a dataset; returns the panel's value, an empty upload, no problem, and the name."""
    kept = _matching(visit, getattr(event, "dataset", None))[0]
    run = visit.queue.create(visit.somebody().name)
    try:
        shelf.use(kept, run)
    except FinetuneError:
        runs.discard(run)
        raise
    value = {"run": run.id, "mode": mode, "trigger": trigger, "captioning": captioning, "base": base}
    return value, None, None, name or kept.name


def _origin(visit: Visit, id: Any) -> str:
    """The name of the dataset that a draft is or was made of; empty where there is none."""
    try:
        return visit.run(id).read(shelf.ORIGIN).get("name", "")
    except MissingError:
        return ""


def _matching(visit: Visit, asked: Any) -> list[Kept]:
    """Which versions a page means by a name, and perhaps a hash and an owner. Raises: MissingError."""
    asked = asked if isinstance(asked, dict) else {}
    name, version, owner = (str(asked.get(key) or "") for key in ("name", "hash", "owner"))
    return shelf.matching(visit.settings, visit.somebody(), f"{name}@{version}" if version else name, owner)


def _about(visit: Visit, versions: list[Kept], has_owners: bool) -> dict[str, Any]:
    newest = versions[0]
    return {
        **_version(newest),
        "owner": newest.owner,
        "whose": newest.owner if has_owners else "",
        "source": newest.source,
        "picture": datasets.thumbnail_link(visit.settings, newest),
        "versions": [_version(kept) for kept in versions],
    }


def _version(kept: Kept) -> dict[str, Any]:
    return {"name": kept.name, "hash": kept.hash, "pictures": kept.pictures, "created": kept.created}
