"""The model card (README.md) of a LoRA, ready for the Hub.

A pure function of plain values. Names, trigger words and prompts are what somebody typed: they are shown as they were
typed, and never become markup.
"""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import yaml

UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control letters, what turns the direction of words, and halves of letters, which no file can hold."""
LICENCE_IDS = {"Apache 2.0": "apache-2.0", "MIT": "mit"}
"""Licences that the Hub knows by an id; others are given by name and link."""


@dataclass(frozen=True)
class Facts:
    """What the card tells."""

    title: str
    trigger_word: str
    base_title: str
    base_hub_id: str
    """Empty when the base model is not on the Hub."""
    licence: str
    licence_url: str
    is_commercial: bool
    tags: tuple[str, ...]
    """What the LoRA is found by on the Hub, beside what holds for every LoRA."""
    files: tuple[str, str]
    """The names of the file for diffusers and of the one for ComfyUI."""
    samples: tuple[tuple[str, str], ...]
    """Prompts, and the pictures that were drawn for them: paths relative to the card."""
    usage: str
    """Lines of Python that draw with the LoRA."""
    settings: Mapping[str, str]
    pictures: int
    dataset_hash: str
    checked: str
    """How the files were proven, in one sentence."""
    dataset_name: str = ""
    """Empty when the dataset is not kept under one."""
    distilled: str = ""
    """A model on the Hub that draws with the LoRA in few steps."""


def write(facts: Facts) -> str:
    """Write the card."""
    sections = [
        f"---\n{_front_matter(facts)}---",
        f"# {text(facts.title)}",
        f"A LoRA for {_base(facts)}, made with Finetune.",
        f"Write <code>{text(facts.trigger_word)}</code> in the prompt: it stands for what was learned.",
        _gallery(facts.samples),
        f"## Use it\n\nIn diffusers, with `{facts.files[0]}`:\n\n{_code(facts.usage)}",
        f"In ComfyUI, put `{facts.files[1]}` into `models/loras` and add a *LoraLoaderModelOnly* node.",
        f"It also draws in few steps with {_hub_link(facts.distilled)}." if facts.distilled else "",
        f"## How it was made\n\n{_table(('Setting', 'Value'), facts.settings.items())}",
        f"Trained on {facts.pictures} picture{'' if facts.pictures == 1 else 's'} ({_dataset(facts)}).",
        text(facts.checked),
        f"## Licence\n\n{_licence(facts)}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def text(value: str) -> str:
    """Show what somebody typed in a line of Markdown or in a cell of a table, whatever it is."""
    line = " ".join(UNSEEN.sub(" ", value).split())
    return re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", html.escape(line, quote=False))


def _front_matter(facts: Facts) -> str:
    values: dict[str, Any] = {
        **_licence_values(facts),
        **({"base_model": facts.base_hub_id, "base_model_relation": "adapter"} if facts.base_hub_id else {}),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": list(dict.fromkeys(("text-to-image", "lora", "diffusers", *facts.tags, "template:sd-lora"))),
        "instance_prompt": facts.trigger_word,
        "widget": [{"text": prompt, "output": {"url": path}} for prompt, path in facts.samples],
    }
    known = {key: value for key, value in values.items() if value}
    return yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=1000)


def _licence_values(facts: Facts) -> dict[str, str]:
    if facts.licence in LICENCE_IDS:
        return {"license": LICENCE_IDS[facts.licence]}
    if not facts.licence_url:
        return {"license": "unknown"}
    name = re.sub(r"[^a-z0-9]+", "-", facts.licence.lower()).strip("-")
    return {"license": "other", "license_name": name, "license_link": facts.licence_url}


def _licence(facts: Facts) -> str:
    name = f"[{text(facts.licence)}]({_address(facts.licence_url)})" if facts.licence_url else text(facts.licence)
    told = f"This LoRA is derived from {_base(facts)}, whose licence applies: {name}."
    if not facts.licence_url:
        return f"{told} Ask whoever made the base model before you publish or sell anything."
    return told if facts.is_commercial else f"{told} **It does not allow commercial use of the model.**"


def _base(facts: Facts) -> str:
    return _hub_link(facts.base_hub_id) if facts.base_hub_id else text(facts.base_title)


def _dataset(facts: Facts) -> str:
    name = f"“{text(facts.dataset_name)}”, " if facts.dataset_name else ""
    return f"dataset {name}`{facts.dataset_hash}`"


def _hub_link(id: str) -> str:
    return f"[{text(id)}]({_address(f'https://huggingface.co/{id}')})"


def _gallery(samples: tuple[tuple[str, str], ...]) -> str:
    rows = [(f"![]({_address(path)})", text(prompt)) for prompt, path in samples]
    return _rows(("Picture", "Prompt"), rows) if rows else ""


def _table(titles: tuple[str, str], rows: Any) -> str:
    return _rows(titles, [(text(name), text(value)) for name, value in rows])


def _rows(titles: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"| {left} | {right} |" for left, right in (titles, ("---", "---"), *rows))


def _address(path: str) -> str:
    """A link's target, in which nothing can end the link."""
    return quote(path, safe=":/?#@!$&'*+,;=%~")


def _code(lines: str) -> str:
    """A block of code, fenced by more backticks than it has in a row."""
    longest = max((len(run) for run in re.findall("`+", lines)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}python\n{lines.rstrip()}\n{fence}"
