"""The pictures of a run as they came, what a person changed about them since, and what comes of both.

Changes are a layer of their own in the run folder: what was uploaded is never touched, so each one can be taken back,
also after a restart.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import filelock

from finetune.dataset import texts
from finetune.dataset.intake import Dataset, Picture, from_dict
from finetune.errors import DatasetError, FinetuneError
from finetune.runs import Run

EDITED = "edited"
"""The source of a caption that a person wrote here."""
STORED, HISTORY, LOCK = "edits.json", "edits_history.json", "edits.lock"
MOST_CHANGES = 200
MOST_LETTERS = 4_000_000
"""Of all changes that can be taken back; the newest is kept whatever its size."""
LONGEST_WORDS = 500
"""That can be found, put in place or added at once."""


@dataclass(frozen=True)
class Edit:
    """What was changed about one picture."""

    caption: str | None = None
    """Empty for the mode's plain one; None for what came with the picture."""
    is_anew: bool = False
    """Whether what came with it does not count, so that the captioner describes it."""
    is_excluded: bool = False

    def applied(self, picture: Picture) -> Picture:
        """The picture with the caption that counts now."""
        if self.caption is not None:
            return replace(picture, caption=self.caption, caption_source=EDITED)
        return replace(picture, caption=None, caption_source=None) if self.is_anew else picture


UNCHANGED = Edit()
Step = list[str]
"""A change that can be taken back: its title, and the edits before it as text, which is only read for that."""


@dataclass(frozen=True)
class Edits:
    """All edits of a run, by file; `undo` and `redo` name what can be taken back and done again."""

    revision: int = 0
    """Goes up with each change."""
    of: Mapping[str, Edit] = field(default_factory=dict)
    undo: str = ""
    redo: str = ""

    def on(self, picture: Picture) -> Edit:
        """What was changed about a picture."""
        return self.of.get(picture.file, UNCHANGED)


@dataclass(frozen=True)
class Change:
    """Something to change about pictures, all at once, and what to call it. All is by file."""

    title: str
    captions: Mapping[str, str | None] = field(default_factory=dict)
    """Empty for the mode's plain one; None for what came with the picture."""
    excluded: tuple[str, ...] = ()
    included: tuple[str, ...] = ()
    anew: Mapping[str, str] = field(default_factory=dict)
    """To be described anew, with the description of now, which undoing brings back as a caption; empty for none."""


def uploaded(run: Run) -> Dataset:
    """The pictures of a run as they came. Raises: DatasetError when it has none."""
    if not (values := run.read("dataset.json")):
        raise DatasetError("This run has no pictures.", "Upload a ZIP of pictures first.")
    return from_dict(values)


def edited(run: Run) -> Dataset:
    """The pictures of a run as they are trained: with the captions that count now, and without excluded ones.

    Raises: DatasetError when it has none.
    """
    found, edits = uploaded(run), stored(run)
    images = (edits.on(picture).applied(picture) for picture in found.images if not edits.on(picture).is_excluded)
    return replace(found, images=tuple(images))


def stored(run: Run) -> Edits:
    """What was changed about a run's pictures until now."""
    values = run.read(STORED)
    return Edits(**{**values, "of": {file: Edit(**edit) for file, edit in values["of"].items()}}) if values else Edits()


def change(run: Run, asked: Change) -> int:
    """Change the pictures of a run, and keep that at once; returns how many pictures are other than before.

    Changes at the same time happen one after the other, and the last one counts. Raises: DatasetError when no picture
    would be left, or there is none of that name.
    """
    with _held(run):
        found, edits = uploaded(run), stored(run)
        after = _after(asked, {picture.file: picture for picture in found.images}, edits)
        of = {**edits.of, **after}
        if asked.excluded and all(of.get(picture.file, UNCHANGED).is_excluded for picture in found.images):
            raise DatasetError("At least one picture must stay.", "Exclude fewer of them.")
        before = {file: edits.of.get(file, UNCHANGED) for file in after}
        before |= {file: replace(before[file], caption=said) for file, said in asked.anew.items() if said}
        changed = {file: edit for file, edit in before.items() if edit != after[file]}
        if changed:
            history = _history(run)
            _keep(run, edits, of, [*history["undo"], _step(asked.title, changed)], [])
        return len(changed)


def undo(run: Run) -> str:
    """Take the last change back; returns its title. Raises: FinetuneError when there is none."""
    return _swap(run, "undo", "redo")


def redo(run: Run) -> str:
    """Do again what was taken back last; returns its title. Raises: FinetuneError when there is nothing."""
    return _swap(run, "redo", "undo")


def forget(run: Run) -> None:
    """Forget all edits: the pictures are others now."""
    for name in (STORED, HISTORY):
        (run.folder / name).unlink(missing_ok=True)


def replaced(
    written: Mapping[str, str], find: str, replacement: str, matches_case: bool = False, whole_words: bool = False
) -> dict[str, str]:
    """Captions in which some words become others: those that differ from what is written now.

    `find` is taken letter by letter. Raises: FinetuneError for words that are too long, or none.
    """
    _check_words(find, replacement)
    if not find:
        raise FinetuneError("There is nothing to find.", "Type what is to be replaced.")
    pattern = rf"(?<!\w){re.escape(find)}(?!\w)" if whole_words else re.escape(find)
    wanted = re.compile(pattern, 0 if matches_case else re.IGNORECASE)
    return _differing(written, lambda text: wanted.sub(lambda _: replacement, text))


def added(written: Mapping[str, str], prefix: str, suffix: str) -> dict[str, str]:
    """Captions with something put before and after them, with blanks between; those that are empty stay so.

    Raises: FinetuneError for words that are too long.
    """
    _check_words(prefix, suffix)
    behind = suffix if suffix[:1] in (",", ".", ";", ":") else f" {suffix}"
    return _differing(written, lambda text: f"{prefix} {text}{behind}" if text else "")


def tidy(text: str) -> str:
    """A caption as those in a ZIP are read: with even blanks, without letters that are none, and not endless."""
    return texts._tidy(text, "")[0]


def _after(asked: Change, pictures: Mapping[str, Picture], edits: Edits) -> dict[str, Edit]:
    """The edits of the pictures that a change names, when it is done. Raises: DatasetError."""
    named = (*asked.captions, *asked.excluded, *asked.included, *asked.anew)
    if stranger := next((file for file in named if file not in pictures), None):
        raise DatasetError(f"There is no picture “{stranger[:40]}” in this run.", "Load the page again.", stranger)
    after = {file: edits.of.get(file, UNCHANGED) for file in named}
    for file, caption in asked.captions.items():
        words = caption if caption is None else tidy(caption)
        is_as_it_came = words is None or words == pictures[file].caption
        after[file] = replace(after[file], caption=None if is_as_it_came else words, is_anew=False)
    for file in asked.anew:
        after[file] = replace(after[file], caption=None, is_anew=True)
    for files, is_excluded in ((asked.excluded, True), (asked.included, False)):
        after |= {file: replace(after[file], is_excluded=is_excluded) for file in files}
    return after


def _swap(run: Run, taken: str, given: str) -> str:
    """Put the pictures of the newest change of one list back to how they were, and keep how they are in the other."""
    with _held(run):
        edits, history = stored(run), _history(run)
        if not history[taken]:
            raise FinetuneError(f"There is nothing to {taken}.")
        title, text = history[taken].pop()
        before = {file: Edit(**edit) for file, edit in json.loads(text).items()}
        history[given].append(_step(title, {file: edits.of.get(file, UNCHANGED) for file in before}))
        _keep(run, edits, {**edits.of, **before}, history["undo"], history["redo"])
        return title


def _keep(run: Run, edits: Edits, of: Mapping[str, Edit], undo: list[Step], redo: list[Step]) -> None:
    # History first: should this end between the two, the newest change in it changes nothing.
    undo, redo = _newest(undo), _newest(redo)
    run.write(HISTORY, {"undo": undo, "redo": redo})
    titles = {name: steps[-1][0] if steps else "" for name, steps in (("undo", undo), ("redo", redo))}
    of = {file: _short(edit) for file, edit in sorted(of.items()) if edit != UNCHANGED}
    run.write(STORED, {"revision": edits.revision + 1, "of": of, **titles})


def _step(title: str, before: Mapping[str, Edit]) -> Step:
    """What takes a change back."""
    return [title, json.dumps({file: _short(edit) for file, edit in before.items()}, ensure_ascii=False)]


def _short(edit: Edit) -> dict[str, Any]:
    return {name: value for name, value in asdict(edit).items() if value not in (None, False)}


def _newest(steps: list[Step]) -> list[Step]:
    """As many of the newest steps as are kept."""
    letters, kept = 0, 0
    for _, text in reversed(steps[-MOST_CHANGES:]):
        letters += len(text)
        if kept and letters > MOST_LETTERS:
            break
        kept += 1
    return steps[len(steps) - kept :]


def _history(run: Run) -> dict[str, list[Step]]:
    return {"undo": [], "redo": [], **run.read(HISTORY)}


@contextmanager
def _held(run: Run) -> Iterator[None]:
    """Be the only one, in this process and others, who changes this run's pictures."""
    with filelock.FileLock(run.folder / LOCK):
        yield


def _check_words(*words: str) -> None:
    if too_long := next((text for text in words if len(text) > LONGEST_WORDS), None):
        raise FinetuneError(
            f"“{too_long[:40]} …” has {len(too_long):,} letters; {LONGEST_WORDS} is the limit.", "Use fewer words."
        )


def _differing(written: Mapping[str, str], rewrite: Callable[[str], str]) -> dict[str, str]:
    rewritten = {file: tidy(rewrite(text)) for file, text in written.items()}
    return {file: text for file, text in rewritten.items() if text != written[file]}
