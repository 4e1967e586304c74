"""The tab New finetune: pictures in, request filled in, Train."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from finetune import bases, captioners, dataset, runs
from finetune.dataset import edits
from finetune.dataset.pictures import TRANSPARENT
from finetune.errors import FinetuneError
from finetune.inputs import Request
from finetune.queue import Queue
from finetune.runs import State
from finetune.settings import ASSETS
from finetune.ui import checks, form, handlers, page, pictures, plan, program, shelf, upload
from finetune.ui.handlers import Visit

EXAMPLE = ASSETS / "example" / "twemoji.zip"
EXAMPLE_FIELDS = {"finetune_comment": "twemoji", "mode": "style", "trigger_word": "TWEMO"}
DEFAULT_BASE = Request.model_fields["base_model"].default
PICTURES = ("cards.js", "trained.js", "tools.js")
SHOWN_IN_WORDS = ("trigger_word", "base_model", "finetune_type", "iterations", "learning_rate", "priority", "lora_rank")
# The panel redraws captions as they are typed, without asking for a Python event at each key.
FOLLOWED = {
    "mode": "mode",
    "trigger": "trigger_word",
    "captioning": "captioning",
    "base": "base_model",
    "captioner": "captioner",
    "priority": "priority",
}
FOLLOW = f"""(panel, ...values) => panel && panel.run ? Object.fromEntries([["run", panel.run],
    ...{json.dumps(list(FOLLOWED))}.map((name, place) => [name, values[place]])]) : panel"""
CHECKING = gr.Progress()


@dataclass(frozen=True)
class NewTab:
    """What the page wires up: the button, and what it takes and changes."""

    train: gr.Button
    pictures: gr.File
    ground: gr.Radio
    problem: gr.HTML
    panel: gr.HTML
    fields: dict[str, Component]


def build(queue: Queue) -> NewTab:
    """Lay the tab out and wire all but the Train button."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320):
            zip_file = upload.build()
            problem = gr.HTML(value="", elem_id="pictures-problem", html_template=page.NOTICE)
            example = gr.Button("Load the example", size="sm", elem_id="load-example", visible=EXAMPLE.exists())
            gr.Markdown(
                "JPEG, PNG, WebP, HEIC and more. A `.txt` file with a picture’s name, or one `captions.csv`, brings "
                "captions of your own; folders of other trainers are read as they are. 10 to 200 pictures work best.",
                elem_classes="hint",
            )
            ground = gr.Radio(
                list(dataset.GROUNDS),
                value="white",
                label="What is transparent becomes",
                elem_id="ground",
            )
            edits = [
                handlers.server(pictures.panel, queue, "pictures"),
                handlers.server(pictures.change, queue, "change_pictures"),
                handlers.server(pictures.download, queue, "download"),
            ]
            panel = page.component("pictures.js", edits, elem_id="pictures-panel", parts=PICTURES)
            found = checks.build(queue)
            kept = shelf.build(queue)
        with gr.Column(scale=5, min_width=320):
            fields = form.build()
            words = gr.HTML(
                value=form.in_words(_defaults(fields)),
                html_template="<p class='words'>{{value}}</p>",
                elem_id="in-words",
            )
            planned = page.component(
                "plan.js", [handlers.server(plan.panel, queue, "plan")], elem_id="plan", value=_planned(fields)
            )
            train = gr.Button("Train", variant="primary", size="lg", elem_id="train")
            asked = [
                handlers.server(program.panel, queue, "programs"),
                handlers.server(program.make_key, queue, "make_key"),
                handlers.server(program.revoke_key, queue, "revoke_key"),
            ]
            programs = page.component("program.js", asked, elem_id="program", value=_defaults(fields))
    tab = NewTab(train, zip_file, ground, problem, panel, fields)
    used = shelf.wire(queue, kept, panel, zip_file, problem, fields)
    _wire(queue, tab, example, words, used)
    _wire_plan(tab, planned)
    _wire_program(tab, programs)
    checks.wire(found, panel, fields)
    return tab


def receive(
    visit: Visit,
    files: list[tuple[str, str]] | None,
    name: str,
    mode: str,
    trigger: str,
    captioning: bool,
    base: str,
    ground: str = "white",
    progress: gr.Progress = CHECKING,
) -> tuple[dict[str, Any] | None, dict[str, str] | None, str]:
    """Make a draft of an upload; returns the panel's value, what is wrong with the upload, and the name."""
    if not files:
        return None, None, name
    run = visit.queue.create(visit.somebody().name)
    given = [(known_as, Path(path)) for known_as, path in files]
    try:
        dataset.unpack(given, run, lambda done, of: progress((done, of), desc="Checking pictures"), ground=ground)
    except FinetuneError as error:
        runs.discard(run)
        return None, page.notice(error), name
    value = {"run": run.id, "mode": mode, "trigger": trigger, "captioning": captioning, "base": base}
    return value, None, name or upload.title(files)


def read_anew(
    visit: Visit,
    panel: dict[str, Any] | None,
    files: list[tuple[str, str]] | None,
    name: str,
    mode: str,
    trigger: str,
    captioning: bool,
    base: str,
    ground: str,
    progress: gr.Progress = CHECKING,
) -> tuple[Any, ...]:
    """Make the draft again on another ground, if that changes anything. Raises: FinetuneError when edits would go."""
    if not files or not (panel or {}).get("run"):
        return gr.skip(), gr.skip(), gr.skip()
    run = visit.run(panel["run"])
    found = dataset.uploaded(run)
    if not any(note.startswith(TRANSPARENT) for picture in found.images for note in picture.notes):
        return gr.skip(), gr.skip(), gr.skip()
    if edits.stored(run).of:
        raise FinetuneError("You changed captions, which would be lost.", "Drop the pictures again to start anew.")
    return receive(visit, files, name, mode, trigger, captioning, base, ground, progress)


def load_example(visit: Visit, captioning: bool, base: str, progress: gr.Progress = CHECKING) -> tuple[Any, ...]:
    """Take the example ZIP that ships, with fields that suit it; returns file, panel, problem, and those fields."""
    asked = EXAMPLE_FIELDS
    panel, problem, _ = receive(
        visit,
        [(EXAMPLE.name, str(EXAMPLE))],
        "",
        asked["mode"],
        asked["trigger_word"],
        captioning,
        base,
        progress=progress,
    )
    return [str(EXAMPLE)], panel, problem, *asked.values()


def check(visit: Visit, pictures: Any, panel: Any, **values: Any) -> list[dict[str, Any]]:
    """Say beside each field what is wrong with it, before anything starts."""
    problems = form.check(values)
    if not (panel or {}).get("run"):
        problems["pictures"] = "Drop pictures first, or load the example."
    names = ("pictures", "panel", *form.names())
    return [gr.validate(name not in problems, problems.get(name, "")) for name in names]


def train(visit: Visit, pictures: Any, panel: dict[str, Any], **values: Any) -> tuple[Any, ...]:
    """Put the draft into the queue; returns the open tab, the run to show, and an empty upload."""
    run, request = visit.run((panel or {}).get("run")), form.read(values)
    bases.admit(request.base_model, visit.somebody().owns_machine)
    captioners.admit(request.captioner, visit.somebody().owns_machine)
    visit.queue.submit(run, request)
    return gr.Tabs(selected="run"), run.id, None, None, None


def reopen(visit: Visit, id: str) -> dict[str, Any] | None:
    """The panel's value for a draft named in the address; None if it is gone or was started."""
    try:
        run = visit.run(id)
    except FinetuneError:
        return None
    if visit.queue.state(run) is not State.DRAFT or not run.read("dataset.json"):
        return None
    draft = run.read("draft.json")
    return {
        "run": run.id,
        "mode": draft.get("mode"),
        "trigger": "",
        "captioning": True,
        "base": draft.get("base_model") or DEFAULT_BASE,
        "captioner": draft.get("captioner", ""),
    }


def _wire(queue: Queue, tab: NewTab, example: gr.Button, words: gr.HTML, used: Dependency) -> None:
    private = {"api_visibility": "private", "show_progress_on": tab.panel}
    fields = tab.fields
    about = [fields[name] for name in ("mode", "trigger_word", "captioning", "base_model")]
    followed = [fields[name] for name in FOLLOWED.values()]
    name = fields["finetune_comment"]
    received = tab.pictures.upload(
        handlers.event(receive, queue),
        [tab.pictures, name, *about, tab.ground],
        [tab.panel, tab.problem, name],
        **private,
    )
    read_again = tab.ground.input(
        handlers.event(read_anew, queue),
        [tab.panel, tab.pictures, name, *about, tab.ground],
        [tab.panel, tab.problem, name],
        **private,
    )
    tab.pictures.clear(fn=None, js="() => [null, null]", outputs=[tab.panel, tab.problem], api_visibility="private")
    loaded = example.click(
        handlers.event(load_example, queue),
        [fields["captioning"], fields["base_model"]],
        [tab.pictures, tab.panel, tab.problem, *(fields[name] for name in EXAMPLE_FIELDS)],
        **private,
    )
    follow = {"fn": None, "js": FOLLOW, "inputs": [tab.panel, *followed], "outputs": tab.panel}
    follow["api_visibility"] = "private"
    for event in (received, read_again, loaded, used):
        event.then(**follow)
    gr.on([component.change for component in followed], **follow)
    gr.on(
        [fields[name].change for name in SHOWN_IN_WORDS],
        lambda **values: form.in_words(values),
        inputs_kwargs={name: fields[name] for name in SHOWN_IN_WORDS},
        outputs=words,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def _wire_plan(tab: NewTab, planned: gr.HTML) -> None:
    asked = [tab.fields[name] for name in plan.FIELDS]
    gr.on(
        [component.change for component in [tab.panel, *asked]],
        fn=None,
        js=f"(panel, ...values) => Object.fromEntries([['run', panel && panel.run], "
        f"...{json.dumps(plan.FIELDS)}.map((name, place) => [name, values[place]])])",
        inputs=[tab.panel, *asked],
        outputs=planned,
        api_visibility="private",
    )


def _wire_program(tab: NewTab, programs: gr.HTML) -> None:
    """Let the programs follow the form; of the secret they are told only whether there is one."""
    gr.on(
        [component.change for component in tab.fields.values()],
        fn=None,
        js=f"(...values) => Object.fromEntries({json.dumps(list(tab.fields))}.map((name, place) => "
        "[name, name === 'webhook_secret' && values[place] ? 'given' : values[place]]))",
        inputs=list(tab.fields.values()),
        outputs=programs,
        api_visibility="private",
    )


def _planned(fields: dict[str, Component]) -> dict[str, Any]:
    return {name: fields[name].value for name in plan.FIELDS}


def _defaults(fields: dict[str, Component]) -> dict[str, Any]:
    return {name: component.value for name, component in fields.items()}
