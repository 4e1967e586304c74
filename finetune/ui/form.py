"""The request as form fields, made from its one definition in `inputs.Request`.

Only the order, the groups and the words of choices are decided here; names, help, defaults and limits come from the
definition, so that a new field appears by itself among the further settings.
"""

from typing import Any

import gradio as gr
from gradio.components import Component

from finetune import bases, inputs, registry
from finetune.errors import ConfigError
from finetune.inputs import FinetuneType, Request
from finetune.recipe import BATCH

FIRST = ("finetune_comment", "mode", "trigger_word", "base_model", "finetune_type")
TRAINING = ("iterations", "learning_rate", "priority", "lora_rank", "captioning")
WORDS = {
    "general": "General",
    "character": "Character",
    "style": "Style",
    "product": "Product",
    "speed": "Speed",
    "quality": "Quality",
    "high_res_only": "High resolution only",
    "lora": "LoRA adapter",
    "full": "Full",
}


def names() -> tuple[str, ...]:
    """All fields, in the order of the form."""
    further = [name for name in Request.model_fields if name not in FIRST + TRAINING]
    return (*FIRST, *TRAINING, *further)


def build() -> dict[str, Component]:
    """Lay the form out; returns its components by field, in the order of `names`."""
    schema = Request.model_json_schema()
    fields: dict[str, Component] = {}
    with gr.Group():
        for name in FIRST:
            fields[name] = _component(name, schema)
    with gr.Accordion("Training", open=True):
        for name in TRAINING:
            fields[name] = _component(name, schema)
    with gr.Accordion("More settings", open=False):
        for name in names()[len(fields) :]:
            fields[name] = _component(name, schema)
    return fields


def read(values: dict[str, Any]) -> Request:
    """Make the request of what the form holds. Raises: ConfigError naming the first field that is wrong."""
    request = inputs.read(_plain(values))
    bases.check(request.base_model)
    return request


def check(values: dict[str, Any]) -> dict[str, str]:
    """Say what is wrong with what the form holds: a message by field name, each a sentence."""
    problems = inputs.check(_plain(values))
    if "base_model" not in problems and values["base_model"]:
        try:
            bases.check(values["base_model"])
        except ConfigError as error:
            problems["base_model"] = str(error)
    return {name: text[0].upper() + text[1:] for name, text in problems.items()}


def in_words(values: dict[str, Any]) -> str:
    """What will be trained with these values, in one line; empty while a field is wrong."""
    if {name for name in check(values) if name != "finetune_comment" and name != "mode"}:
        return ""
    request = Request(**{**_plain(values), "finetune_comment": "-", "mode": "general"})
    is_full = request.finetune_type is FinetuneType.FULL
    trained = "all weights and extracts a LoRA" if is_full else "a LoRA"
    rate = f"{request.rate:.0e}".replace("e-0", "e-") + (" (the usual)" if request.learning_rate is None else "")
    base = bases.title(request.base_model)
    return (
        f"Trains {trained} of rank {request.lora_rank} on “{base}”: {request.iterations} steps "
        f"of {BATCH[request.priority]} pictures each, learning rate {rate}."
    )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """What the form holds, as the request wants it: an empty field is one that was not filled in."""
    plain = dict(values)
    if isinstance(prompts := plain.get("sample_prompts"), str):
        plain["sample_prompts"] = tuple(line.strip() for line in prompts.splitlines() if line.strip())
    return {name: value for name, value in plain.items() if value is not None and value != ""}


def _component(name: str, schema: dict[str, Any]) -> Component:
    field = schema["properties"][name]
    kinds = [_resolved(kind, schema) for kind in field.get("anyOf", [field])]
    kind = next(kind for kind in kinds if kind.get("type") != "null")
    may_be_empty = len(kinds) > 1
    about = {
        "label": Request.model_fields[name].title,
        "info": field["description"],
        "elem_id": f"field-{name}",
        "interactive": True,
    }
    default = field.get("default")
    if name == "base_model":
        choices = [
            (f"{base.title} – {base.note}" if base.note else base.title, base.id)
            for base in registry.base_models().values()
        ]
        return gr.Dropdown(choices, value=default, allow_custom_value=True, **about)
    if "enum" in kind:
        return _choice(kind["enum"], default, about)
    if kind["type"] == "boolean":
        return gr.Checkbox(value=default, **about)
    if kind["type"] in ("integer", "number") and not may_be_empty:
        return _number(kind, default, about)
    if kind["type"] == "array":
        return gr.Textbox(value="\n".join(default), lines=3, placeholder="automatic", **about)
    if field.get("password"):
        return gr.Textbox(type="password", html_attributes=gr.InputHTMLAttributes(autocomplete="new-password"), **about)
    examples = field.get("examples") or [""]
    placeholder = (
        "automatic" if kind["type"] == "number" else "https://" if kind.get("format") == "uri" else examples[0]
    )
    return gr.Textbox(value=default, placeholder=placeholder, max_lines=1, **about)


def _choice(values: list[Any], default: Any, about: dict[str, Any]) -> Component:
    choices = [(WORDS.get(value, str(value)), value) for value in values]
    return gr.Dropdown(choices, value=default, filterable=False, **about)


def _number(kind: dict[str, Any], default: Any, about: dict[str, Any]) -> Component:
    """A slider where a few hundred values are possible, else a field to type in.

    The field has no bounds of its own: Gradio would answer with a notice far from the field.
    """
    low, high = kind.get("minimum"), kind.get("maximum")
    if low is not None and high is not None and high - low <= 1000:
        return gr.Slider(low, high, value=default, step=10, **about)
    return gr.Number(value=default, precision=0, **about)


def _resolved(kind: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = kind.get("$ref", "").removeprefix("#/$defs/")
    return {**schema["$defs"][reference], **kind} if reference else kind
