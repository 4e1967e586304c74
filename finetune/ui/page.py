"""What all tabs share: components that a page script draws, notices, and the look."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from finetune.errors import FinetuneError
from finetune.settings import ASSETS

FOLDER = ASSETS / "page"
STYLE = FOLDER / "style.css"
NOTICE = """{{#if value}}<div class="notice bad" role="alert"><strong>{{value.message}}</strong>
<span>{{value.hint}}</span></div>{{/if}}"""
SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
THEME = gr.themes.Default(primary_hue="teal", neutral_hue="slate", radius_size="md", font=SANS, font_mono=MONO)


def component(
    script: str, functions: list[Callable[..., Any]], elem_id: str, value: Any = None, parts: Sequence[str] = ()
) -> gr.HTML:
    """A component that a script of the page folder, made of these parts, draws, asking functions for what to show."""
    text = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in ("dom.js", *parts, script))
    return gr.HTML(
        value=value,
        html_template='<div class="holder"></div>',
        js_on_load=text,
        server_functions=functions,
        elem_id=elem_id,
        elem_classes="ours",
        apply_default_css=False,
    )


def notice(error: FinetuneError) -> dict[str, str]:
    """An error as the value of a component with the template NOTICE."""
    return {"message": error.message, "hint": error.hint}
