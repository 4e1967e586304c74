"""The field that pictures are dropped on: a ZIP, pictures and captions, or folders.

Separate from the tab, because Gradio's field takes neither folders nor names as they are: a page script hands over the
files of a folder one by one, each under its path, and here they get back the names that Gradio has cleaned.
"""

from pathlib import Path

import gradio as gr
from gradio.components.file import ListFiles

from finetune.dataset import pictures, texts
from finetune.ui import page

READ = sorted({*pictures.SUFFIXES, *texts.FILES, *texts.TABLES, ".json", ".zip"})
"""Of other files in a folder the name alone is sent, so that the report can list them."""


def build() -> gr.File:
    """Lay out the field; its value is a list of name and path of each file, an upload for `dataset.unpack`."""
    field = gr.File(
        label="Pictures: a ZIP, files or a folder", file_count="multiple", height=150, elem_id="pictures-zip"
    )
    field.preprocess = named
    page.component("folder.js", [], elem_id="pictures-folder", value=READ)
    return field


def named(files: ListFiles | None) -> list[tuple[str, str]] | None:
    """The files with the names that they had before Gradio kept them."""
    return [(file.orig_name or Path(file.path).name, file.path) for file in files] if files else None


def title(files: list[tuple[str, str]]) -> str:
    """What to call a finetune of these files: after the ZIP or the folder; empty for files without either."""
    if len(files) == 1:
        return Path(files[0][0]).stem
    folders = {name.partition("/")[0] for name, _ in files if "/" in name}
    return folders.pop() if len(folders) == 1 else ""
