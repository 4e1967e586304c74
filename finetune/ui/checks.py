"""The panel under the pictures: what the checks find in a draft, and the button that mends it.

It follows the form, because what is wrong depends on what is asked for. A mend is one change among the others of the
captions and pictures; what it does is decided here anew, whatever the page sends.
"""

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from finetune import bases, dataset
from finetune.api import files
from finetune.dataset import checks, edits
from finetune.dataset.checks import Finding
from finetune.errors import FinetuneError
from finetune.inputs import Request
from finetune.queue import Queue
from finetune.runs import Run, State
from finetune.ui import form, handlers, page
from finetune.ui.handlers import Visit

FIELDS = ("mode", "trigger_word", "captioning", "base_model", "iterations", "priority")
MOST_SHOWN = 24
"""Pictures of one finding."""
FOLLOW = """(panel, ...values) => panel && panel.run ? Object.fromEntries([["run", panel.run],
    ...FIELDS.map((name, place) => [name, values[place]])]) : null"""


def build(queue: Queue) -> gr.HTML:
    """Lay the panel out."""
    functions = [
        handlers.server(panel, queue, "checks"),
        handlers.server(mend, queue, "mend"),
        handlers.server(undo, queue, "undo_mend"),
    ]
    return page.component("checks.js", functions, elem_id="checks")


def wire(listed: gr.HTML, pictures: gr.HTML, fields: Mapping[str, Component]) -> None:
    """Let the panel follow the draft that the page shows, and the form."""
    asked = [fields[name] for name in FIELDS]
    gr.on(
        [component.change for component in (pictures, *asked)],
        fn=None,
        js=FOLLOW.replace("FIELDS", str(list(FIELDS))),
        inputs=[pictures, *asked],
        outputs=listed,
        api_visibility="private",
    )


def panel(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """What is found in the run `run` with these values of the form; `{"is_same"}` if that is what `known` says.

    Raises: FinetuneError for no such run, DatasetError for one without pictures.
    """
    run = visit.run(asked.get("run"))
    known = _known(run)
    if asked.get("known") == known:
        return {"is_same": True}
    findings, passes = _findings(run, asked)
    return {
        "known": known,
        "passes": passes,
        "findings": [_told(visit, run, finding) for finding in findings],
        "undo": edits.stored(run).undo,
        "is_draft": visit.queue.state(run) is State.DRAFT,
    }


def mend(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """Put the finding of the kind `kind` right, and tell what is found then. Raises: FinetuneError."""
    run = _draft(visit, asked)
    findings, _ = _findings(run, asked)
    found = next((one for one in findings if one.kind == asked.get("kind") and one.mend), None)
    if found is None:
        raise FinetuneError("This is no longer so.", "The pictures or captions were changed meanwhile.")
    edits.change(run, found.mend)
    return {**panel(visit, {**asked, "known": None}), "mended": found.mend.title}


def undo(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """Take the mend `title` back, if nothing was changed after it. Raises: FinetuneError."""
    run = _draft(visit, asked)
    if edits.stored(run).undo != asked.get("title"):
        raise FinetuneError("Something else was changed after that.", "Undo it among the pictures first.")
    edits.undo(run)
    return panel(visit, {**asked, "known": None})


def _draft(visit: Visit, asked: Mapping[str, Any]) -> Run:
    """The run, as long as its pictures may be changed."""
    run = visit.run(asked.get("run"))
    if visit.queue.state(run) is not State.DRAFT:
        raise FinetuneError("This run was started already.", "Its pictures stay as they are.")
    return run


def _findings(run: Run, asked: Mapping[str, Any]) -> tuple[list[Finding], str]:
    """What is found, and how often each picture is seen. A field that is wrong says so itself and counts as empty."""
    values = {"finetune_comment": "-", **{name: asked.get(name) for name in FIELDS}}
    wrong = form.check(values)
    right = {name: value for name, value in values.items() if name not in wrong and value not in (None, "")}
    request = form.read({"mode": "general", **right})
    base = None if "base_model" in wrong else bases.check(request.base_model)
    found = dataset.read(run)
    return checks.check(found, _captions(run, request), request, base), checks.passes(found, request)


def _captions(run: Run, request: Request) -> list[str | None]:
    """The words for each picture, before the trigger word is put in: its own, else its description."""
    said = run.read("descriptions.json").get(request.mode, {}) if request.captioning else {}
    pictures = dataset.read(run).images
    return [(said.get(one.file) if one.caption is None else one.caption) or None for one in pictures]


def _known(run: Run) -> str:
    """Another value once pictures, captions or descriptions are others."""
    said = run.read("descriptions.json")
    return f"{edits.stored(run).revision} {sum(map(len, said.values()))}"


def _told(visit: Visit, run: Run, finding: Finding) -> dict[str, Any]:
    pictures = zip(finding.files, finding.names, strict=True) if finding.files else ()
    shown = [
        {
            "name": name,
            "note": finding.notes.get(file, ""),
            "url": files.link(visit.settings, run, f"thumbnails/{file.removesuffix('.png')}.webp"),
        }
        for file, name in list(pictures)[:MOST_SHOWN]
    ]
    return {
        "kind": finding.kind,
        "severity": finding.severity,
        "title": finding.title,
        "words": finding.words,
        "pictures": shown,
        "names": [] if finding.files else list(finding.names[:MOST_SHOWN]),
        "more": max(0, len(finding.names) - MOST_SHOWN),
        "mend": finding.mend.title if finding.mend else "",
    }
