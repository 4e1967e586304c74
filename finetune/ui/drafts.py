"""A draft's pictures as its page shows them: in words and numbers, as they would be trained.

Separate from the handlers, because nothing here is changed, but for one thing: pictures that nobody has described are
given to the captioner.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

from finetune import bases, captioners, captions, crops, dataset, descriptions, recipe, registry, weights
from finetune.api import files
from finetune.dataset import Dataset, Picture, edits
from finetune.dataset.edits import Edits
from finetune.errors import ConfigError
from finetune.families import BaseModel
from finetune.inputs import Mode, Priority, Request
from finetune.runs import Run, State
from finetune.ui.handlers import Visit
from finetune.ui.live import duration

TRIGGER = Request.model_fields["trigger_word"].default
PRIORITY = Request.model_fields["priority"].default
LONGEST_TRIGGER = 64
"""What is longer is refused beside its field; here it would be repeated in a thousand captions."""
MARK_BYTES = 3
"""Of a hash that tells, of a picture that the page knows, whether anything about it has changed."""


@dataclass(frozen=True)
class Draft:
    """The pictures of a run, excluded ones too, as the values of the form would train them."""

    visit: Visit
    run: Run
    found: Dataset
    edits: Edits
    said: Mapping[str, str]
    mode: Mode | None
    trigger: str
    captioning: bool
    base_model: str
    captioner: str
    priority: Priority

    @cached_property
    def pictures(self) -> list[Picture]:
        """Each with the caption that counts now."""
        return [self.edits.on(picture).applied(picture) for picture in self.found.images]

    @cached_property
    def trained(self) -> list[Picture]:
        """Those that are not excluded."""
        return [picture for picture in self.pictures if not self.edits.on(picture).is_excluded]

    @cached_property
    def silent(self) -> list[Picture]:
        """Those that a captioner has to describe."""
        return descriptions.silent(self.trained, self.said)

    @cached_property
    def failures(self) -> Mapping[str, str]:
        """Why some could not be described, by file."""
        return descriptions.failures(self.run, self.mode) if self.mode else {}

    @cached_property
    def leaks(self) -> Mapping[str, list[str]]:
        """Words of descriptions that should not be in them, by file."""
        return descriptions.leaks(self.run, self.mode) if self.mode else {}

    @cached_property
    def base(self) -> BaseModel | None:
        """None for one of the Hub that nobody asked for yet, and for what is none: the field itself says so."""
        try:
            return bases.check(self.base_model)
        except ConfigError:
            return None

    @cached_property
    def is_draft(self) -> bool:
        """Whether it can still be changed."""
        return self.visit.queue.state(self.run) is State.DRAFT

    @cached_property
    def is_waiting(self) -> bool:
        """Let the captioner describe what is missing; whether something can still come of that."""
        can = self.mode and self.captioning and self.silent and self.has_captioner and self.is_draft
        if not can:
            return False
        self.describe([picture.file for picture in self.silent])
        return self.visit.queue.is_describing(self.run)

    @cached_property
    def has_captioner(self) -> bool:
        """Whether somebody can describe pictures: whom the form names, if who asks may, or else one for the base."""
        try:
            captioners.admit(self.captioner, self.visit.somebody().owns_machine)
        except ConfigError:  # the field itself says so
            return False
        return bool(self.base and (self.captioner or self.base.captioner))

    def describe(self, files: Collection[str], again: bool = False) -> None:
        """Ask the captioner for what it was not asked for yet, or `again`."""
        self.visit.queue.describe(self.run, self.mode, self.base_model, files, again, self.captioner)

    def written(self, picture: Picture) -> str:
        """The words of a picture without the trigger word: what is edited."""
        if picture.caption is not None:
            return picture.caption
        return self.said.get(picture.file, "") if self.captioning else ""

    def caption(self, picture: Picture) -> str:
        """A picture's caption as it is trained."""
        said = self.said.get(picture.file)
        return captions.trained(picture.caption, said, self.mode or Mode.GENERAL, self.trigger, self.captioning)


def read(visit: Visit, asked: Mapping[str, Any]) -> Draft:
    """The draft that the page asks about. Raises: FinetuneError for no such run, DatasetError without pictures."""
    run = visit.run(asked.get("run"))
    mode = Mode(asked["mode"]) if asked.get("mode") in list(Mode) else None
    return Draft(
        visit,
        run,
        dataset.uploaded(run),
        edits.stored(run),
        descriptions.said(run, mode) if mode else {},
        mode,
        " ".join(str(asked.get("trigger") or "")[:LONGEST_TRIGGER].split()) or TRIGGER,
        bool(asked.get("captioning", True)),
        str(asked.get("base")),
        str(asked.get("captioner") or "").strip(),
        Priority(asked["priority"]) if asked.get("priority") in list(Priority) else PRIORITY,
    )


def told(draft: Draft, known: Any) -> dict[str, Any]:
    """What the page is told of a draft; `known` is what the last answer said of what the page knows."""
    shapes = _shapes(draft)
    shown = [_shown(draft, picture, shapes[picture.file]) for picture in draft.pictures]
    sizes = Counter((cut["width"], cut["height"]) for p in draft.trained for cut in shapes[p.file])
    marks, fresh = _fresh(shown, known)
    return {
        "revision": draft.edits.revision,
        "known": marks,
        "pictures": fresh,
        "buckets": [{"width": size[0], "height": size[1], "pictures": sizes[size]} for size in sorted(sizes)],
        "trigger": draft.trigger,
        "counts": _counts(shown),
        "undo": draft.edits.undo,
        "redo": draft.edits.redo,
        "warnings": [*draft.found.warnings, *_troubles(draft)],
        "report": None if known else [asdict(row) for row in draft.found.report()],
        "progress": _progress(draft) if draft.is_waiting else None,
        "is_waiting": draft.is_waiting,
        "is_draft": draft.is_draft,
    }


def _progress(draft: Draft) -> dict[str, Any]:
    """How far the captioner is with what it was asked for, or with being fetched."""
    of = sum(picture.caption is None for picture in draft.trained)
    done = of - len(draft.silent)
    events, _ = draft.run.events()
    last = next((event for event in reversed(events) if event["kind"] == "caption_progress"), None)
    words = f"{done} of {of} described"
    if last and last["done"] < last["of"]:
        if last.get("unit") == "bytes":
            sizes = [weights.size_in_words(last[name]) for name in ("done", "of")]
            words = f"{last['title']}: {' of '.join(sizes)}"
        if seconds := last.get("seconds_left"):
            words = f"{words}, about {duration(seconds)} left"
    return {"done": done, "of": of, "words": words}


def _shapes(draft: Draft) -> dict[str, tuple[dict[str, Any], ...]]:
    """How each picture is cut, by file; nothing as long as the base model is not known."""
    if draft.base is None:
        return {picture.file: () for picture in draft.pictures}
    resolutions = recipe.resolutions(draft.priority, draft.base.resolution_px)
    patch_px = registry.families()[draft.base.family].patch_px
    return {p.file: _crops(p.width, p.height, resolutions, patch_px) for p in draft.pictures}


@lru_cache(maxsize=8192)
def _crops(width: int, height: int, resolutions_px: tuple[int, ...], patch_px: int) -> tuple[dict[str, Any], ...]:
    told = []
    for resolution_px in resolutions_px:
        size = crops.fit(width, height, resolution_px, patch_px)
        left, top, right, bottom = crops.box(width, height, size)
        share = round(100 * (1 - (right - left) * (bottom - top) / (width * height)))
        told.append(
            {
                "resolution_px": resolution_px,
                "width": size[0],
                "height": size[1],
                "box": [round(side, 1) for side in (left, top, right, bottom)],
                "cut_off": f"{share} %" if share else "",
            }
        )
    return tuple(told)


def _shown(draft: Draft, picture: Picture, shapes: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    settings, run = draft.visit.settings, draft.run
    is_excluded = draft.edits.on(picture).is_excluded
    told = {
        "file": picture.file,
        "source": picture.source,
        "width": picture.width,
        "height": picture.height,
        "url": files.link(settings, run, f"thumbnails/{picture.file.removesuffix('.png')}.webp"),
        "full_url": files.link(settings, run, f"images/{picture.file}"),
        "notes": [*picture.notes, *_remarks(draft, picture)],
        "repeats": picture.repeats,
        "is_excluded": is_excluded,
        "origin": _origin(draft, picture, is_excluded),
        "text": draft.written(picture),
        "caption": draft.caption(picture),
        "crops": shapes,
    }
    if told["origin"] == "waiting":
        told["caption"] = "" if draft.mode else "Choose a mode to have it described."
    return told


def _remarks(draft: Draft, picture: Picture) -> list[str]:
    """What is to be said of a description, or of why there is none."""
    if picture.caption is not None or not draft.captioning:
        return []
    if failed := draft.failures.get(picture.file):
        return [f"was not described: {failed}"]
    leaks = draft.leaks.get(picture.file)
    return [f"its description says what {draft.trigger} is to stand for: {', '.join(leaks)}"] if leaks else []


def _origin(draft: Draft, picture: Picture, is_excluded: bool) -> str:
    """Where the words of a picture are from."""
    if picture.caption:
        return "edited" if picture.caption_source == edits.EDITED else "zip"
    if picture.caption is None and draft.captioning:
        if draft.said.get(picture.file):
            return "described"
        if not is_excluded and (draft.is_waiting or (draft.has_captioner and not draft.mode)):
            return "waiting"
    return "plain"


def _fresh(shown: list[dict[str, Any]], known: Any) -> tuple[str, list[dict[str, Any] | None]]:
    """What the page knows from now on, and of the pictures those that it does not know like that yet."""
    marks = [hashlib.blake2b(json.dumps(one).encode(), digest_size=MARK_BYTES).hexdigest() for one in shown]
    size = 2 * MARK_BYTES
    before = [known[at : at + size] for at in range(0, len(known), size)] if isinstance(known, str) else []
    if len(before) != len(marks):
        return "".join(marks), list(shown)
    return "".join(marks), [None if old == new else one for old, new, one in zip(before, marks, shown, strict=True)]


def _counts(shown: list[dict[str, Any]]) -> str:
    origins = Counter(picture["origin"] for picture in shown if not picture["is_excluded"])
    words = {
        "zip": "with captions from the ZIP",
        "edited": "edited",
        "described": "described",
        "waiting": "will be described",
        "plain": "with a plain caption",
    }
    total, excluded = origins.total(), len(shown) - origins.total()
    parts = [counted(total, "picture")]
    parts += [f"{origins[origin]} {text}" for origin, text in words.items() if origins[origin]]
    return ", ".join(parts + ([f"{excluded} excluded"] if excluded else []))


def _troubles(draft: Draft) -> list[str]:
    """Why pictures were not described."""
    count = len(draft.silent)
    if not count or not draft.captioning or draft.is_waiting or (draft.has_captioner and not draft.mode):
        return []
    plain = f"{count} picture{' gets' if count == 1 else 's get'} a plain caption."
    if not draft.has_captioner:
        return [f"{plain} There is no captioner for this base model yet: put a .txt beside each picture in the ZIP."]
    events, _ = draft.run.events()
    failed = next((event for event in reversed(events) if event["kind"] == "caption_failed"), None)
    why = (
        f"{failed['message']} {failed.get('hint', '')}".strip() if failed else "The captioner found no words for them."
    )
    return [f"{plain} {why}"]


def counted(count: int, word: str) -> str:
    """How many there are of something."""
    return f"{count} {word}{'' if count == 1 else 's'}"
