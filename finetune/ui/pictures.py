"""What the panel under the upload is told: a draft's pictures, with captions as they will be trained.

What the page's script calls, each with one dict of the form's values, `asked`: `{"run", "mode", "trigger",
"captioning", "base", "captioner", "priority"}`.

`server.pictures({...asked, known})` gives
`{"revision", "known", "pictures", "buckets", "trigger", "counts", "undo", "redo", "warnings", "report", "progress",
"is_waiting", "is_draft"}`.
`pictures` has an entry for each picture, excluded ones too; with `known` (what the last answer said; leave it out at
first, and when the run is another one) an entry is null where nothing has changed since. A picture is `{"file",
"source", "width", "height", "url", "full_url", "notes", "repeats", "is_excluded", "origin", "text", "caption",
"crops"}`: `text` is what is edited, `caption` what is trained; `origin` is zip, edited, described, plain or waiting.
`crops` has one entry for each resolution: `{"resolution_px", "width", "height", "box", "cut_off"}`: `box` in pixels of
the picture (left, top, right, bottom), `cut_off` a share of its area in words, "" for nothing. `buckets` is a list of
`{"width", "height", "pictures"}`. `undo` and `redo` say in words what they would take back or repeat, "" for nothing.
`report` has a row for each file of the upload, `{"file", "what", "words", "count"}`; it never changes, and is null with
`known`. `progress` is null or `{"done", "of", "words"}` while the captioner describes.

`server.change_pictures({...asked, known, revision, what, ...})` changes the captions, at once and for good, and gives
the same answer with `said`: words on what was done. `what` is
`"caption"` with `files`, `text` ("" for the plain caption, null for what came with the ZIP);
`"exclude"`, `"include"`, `"describe"` with `files`;
`"replace"` with `files`, `find`, `replacement`, `matches_case`, `whole_words`;
`"add"` with `files`, `prefix`, `suffix`;
`"upload"` with `path` of a ZIP that Gradio's `upload` has taken;
`"mend"` with `label`, `captions` by file, `excluded` files, as a check proposes;
`"undo"`, `"redo"`: with `revision`, refused when there is a newer one that the page has not seen.

`server.download(asked)` gives `{"url"}` of a ZIP with a .txt for each picture.

"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune import captions, descriptions
from finetune.api import files
from finetune.dataset import Picture, edits, exchange
from finetune.dataset.edits import Change
from finetune.errors import DatasetError, FinetuneError, MissingError
from finetune.ui import drafts
from finetune.ui.drafts import Draft, counted
from finetune.ui.handlers import Visit


def panel(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """What is known of a run's pictures, and what changed since it was last told.

    Raises: FinetuneError for no such run, DatasetError for one without pictures.
    """
    return drafts.told(drafts.read(visit, asked), asked.get("known"))


def change(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """Change pictures of a draft; gives what `panel` gives, and what was done in words.

    Raises: FinetuneError when that cannot be done.
    """
    draft = drafts.read(visit, asked)
    _check_open(draft)
    act = _ACTS.get(str(asked.get("what")))
    if act is None:
        raise _not_understood()
    said = act(draft, asked)
    return {**panel(visit, asked), "said": said}


def download(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """Write the captions of a draft, as they would be trained, into a ZIP; gives a link to it."""
    draft = drafts.read(visit, asked)
    _check_open(draft)
    draft.run.results.mkdir(exist_ok=True)
    texts = [draft.caption(picture) for picture in draft.trained]
    exchange.write_captions(draft.run.results / "captions.zip", draft.trained, texts)
    link = files.link(visit.settings, draft.run, "results/captions.zip")
    return {"url": f"{link}&of={hashlib.blake2b(json.dumps(texts).encode(), digest_size=8).hexdigest()}"}


def _check_open(draft: Draft) -> None:
    if not draft.is_draft:
        raise FinetuneError(
            "This run was started, and its pictures stay as they are.", "Its captions are in its files."
        )


def _write(draft: Draft, asked: Mapping[str, Any]) -> str:
    text = asked.get("text")
    named = {p.file: draft.written(p) for p in _named(draft, asked)}
    words = None if text is None else edits.tidy(str(text))
    texts = {file: words for file, written in named.items() if words is None or not words or words != written}
    title = "edit of a caption" if len(texts) == 1 else f"edit of {len(texts)} captions"
    return "Saved." if edits.change(draft.run, Change(title, captions=texts)) else "Nothing has changed."


def _exclude(draft: Draft, asked: Mapping[str, Any]) -> str:
    named = tuple(picture.file for picture in _named(draft, asked))
    count = edits.change(draft.run, Change(f"exclusion of {counted(len(named), 'picture')}", excluded=named))
    return f"{counted(count, 'picture')} excluded from the training."


def _include(draft: Draft, asked: Mapping[str, Any]) -> str:
    named = tuple(picture.file for picture in _named(draft, asked))
    count = edits.change(draft.run, Change(f"inclusion of {counted(len(named), 'picture')}", included=named))
    return f"{counted(count, 'picture')} included again."


def _replace(draft: Draft, asked: Mapping[str, Any]) -> str:
    find = str(asked.get("find") or "")
    texts = edits.replaced(
        {picture.file: draft.written(picture) for picture in _named(draft, asked)},
        find,
        str(asked.get("replacement") or ""),
        bool(asked.get("matches_case")),
        bool(asked.get("whole_words")),
    )
    if not texts:
        return f"“{find}” is in none of these captions."
    edits.change(draft.run, Change(f"find and replace in {counted(len(texts), 'caption')}", captions=texts))
    return f"Replaced in {counted(len(texts), 'caption')}."


def _add(draft: Draft, asked: Mapping[str, Any]) -> str:
    written = {picture.file: draft.written(picture) for picture in _named(draft, asked)}
    texts = edits.added(written, str(asked.get("prefix") or ""), str(asked.get("suffix") or ""))
    edits.change(draft.run, Change(f"words added to {counted(len(texts), 'caption')}", captions=texts))
    empty = sum(not text for text in written.values())
    left = f" {counted(empty, 'picture')} without words stayed so." if empty else ""
    return f"Added to {counted(len(texts), 'caption')}.{left}"


def _describe(draft: Draft, asked: Mapping[str, Any]) -> str:
    if not draft.captioning:
        raise FinetuneError("Automatic captions are switched off.", "Switch them on to have pictures described.")
    if not draft.mode:
        raise FinetuneError("No mode is chosen yet.", "Choose a mode first: it decides what descriptions are about.")
    if not draft.has_captioner:
        raise FinetuneError("There is no captioner for this base model yet.", "Choose another one, or write captions.")
    named = [picture for picture in _named(draft, asked) if not draft.edits.on(picture).is_excluded]
    anew = {p.file: draft.said.get(p.file, "") if p.caption is None else "" for p in named}
    edits.change(draft.run, Change(f"new descriptions of {counted(len(anew), 'picture')}", anew=anew))
    descriptions.forget(draft.run, draft.mode, anew)
    draft.describe(list(anew), again=True)
    return f"{counted(len(anew), 'picture')} will be described again."


def _upload(draft: Draft, asked: Mapping[str, Any]) -> str:
    found = exchange.read_captions(_uploaded(draft.visit, asked.get("path")), draft.found.images)
    unused = [f"{one.file} {one.reason}" for one in found.ignored]
    if not found.captions:
        hint = "; ".join(unused[:3]) or "Name each .txt like its picture."
        raise DatasetError("No caption in the ZIP is for one of these pictures.", hint)
    before = {picture.file: draft.caption(picture) for picture in draft.pictures}
    others = {file: text for file, text in found.captions.items() if text != before[file]}
    # Words from outside name the trigger word of today; the form may soon hold another one.
    texts = {file: captions.for_any_trigger(text, draft.trigger) for file, text in others.items()}
    edits.change(draft.run, Change(f"upload of {counted(len(texts), 'caption')}", captions=texts))
    said = [f"{counted(len(texts), 'caption')} taken, {len(found.captions) - len(texts)} as before."]
    if without := len(draft.pictures) - len(found.captions):
        said.append(f"The ZIP has none for {counted(without, 'picture')}.")
    if unused:
        said.append(f"Not used: {'; '.join(unused[:3])}{f'; and {len(unused) - 3} more' if unused[3:] else ''}.")
    return " ".join(said)


def _mend(draft: Draft, asked: Mapping[str, Any]) -> str:
    texts, excluded = asked.get("captions") or {}, asked.get("excluded") or []
    if not isinstance(texts, dict) or not isinstance(excluded, list):
        raise _not_understood()
    texts = {str(file): str(text) for file, text in texts.items()}
    title = " ".join(str(asked.get("label") or "mending").split())[:80]
    count = edits.change(draft.run, Change(title, captions=texts, excluded=tuple(map(str, excluded))))
    return f"{counted(count, 'picture')} mended."


def _undo(draft: Draft, asked: Mapping[str, Any]) -> str:
    _check_seen(draft, asked)
    return f"Taken back: {edits.undo(draft.run)}."


def _redo(draft: Draft, asked: Mapping[str, Any]) -> str:
    _check_seen(draft, asked)
    return f"Done again: {edits.redo(draft.run)}."


_ACTS: Mapping[str, Callable[[Draft, Mapping[str, Any]], str]] = {
    "caption": _write,
    "exclude": _exclude,
    "include": _include,
    "describe": _describe,
    "replace": _replace,
    "add": _add,
    "upload": _upload,
    "mend": _mend,
    "undo": _undo,
    "redo": _redo,
}


def _check_seen(draft: Draft, asked: Mapping[str, Any]) -> None:
    """Raises: FinetuneError when the newest change is one of another tab, which this page does not show yet."""
    if asked.get("revision") not in (None, draft.edits.revision):
        raise FinetuneError("The pictures were changed elsewhere meanwhile.", "Look at them, then try again.")


def _named(draft: Draft, asked: Mapping[str, Any]) -> list[Picture]:
    """The pictures that a change is about. Raises: FinetuneError for none, and for one that is not there."""
    named = asked.get("files")
    if not isinstance(named, list) or not named:
        raise FinetuneError("No picture is selected.", "Select some first.")
    of = {picture.file: picture for picture in draft.pictures}
    if not all(isinstance(file, str) and file in of for file in named):
        raise MissingError("One of these pictures is not there any more.", "Load the page again.")
    return [of[file] for file in dict.fromkeys(named)]


def _uploaded(visit: Visit, path: Any) -> Path:
    """A file that the page has uploaded, and no other file of this machine. Raises: MissingError."""
    folder = visit.settings.uploads.resolve()
    try:
        found = Path(str(path)).resolve()
        if found.is_relative_to(folder) and found.is_file():
            return found
    except (OSError, ValueError):  # what is no path at all
        pass
    raise MissingError("The upload did not arrive.", "Choose the file again.")


def _not_understood() -> FinetuneError:
    return FinetuneError("The page asked for something that this service does not know.", "Load the page again.")
