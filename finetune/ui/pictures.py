"""What the panel under the upload is told: a draft's pictures, with captions as they will be trained.

Separate from the tab, because it is pure but for one thing: pictures without a caption are given to the captioner.
"""

from typing import Any

from finetune import bases, captions, dataset
from finetune.api import files
from finetune.dataset import Dataset, Picture
from finetune.errors import ConfigError
from finetune.inputs import Mode, Request
from finetune.queue import Queue
from finetune.runs import Run, State
from finetune.ui.handlers import Visit

TRIGGER = Request.model_fields["trigger_word"].default
LONGEST_TRIGGER = 64
"""What is longer is refused beside its field; here it would be repeated in a thousand captions."""


def panel(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """The pictures of a run as `{"run", "mode", "trigger", "captioning", "base"}` would train them.

    Raises: FinetuneError for no such run, DatasetError for one without pictures.
    """
    run = visit.run(asked.get("run"))
    found = dataset.read(run)
    mode = Mode(asked["mode"]) if asked.get("mode") in list(Mode) else None
    captioning = bool(asked.get("captioning", True))
    said = run.read("descriptions.json").get(mode, {}) if mode else {}
    silent = [picture for picture in found.images if not picture.caption and picture.file not in said]
    base = str(asked.get("base"))
    can_be_described = _has_captioner(base)
    wants_words = bool(mode and captioning and silent) and can_be_described
    is_waiting = wants_words and _is_described(visit.queue, run, mode, base)
    trigger = " ".join(str(asked.get("trigger") or "")[:LONGEST_TRIGGER].split()) or TRIGGER
    told = []
    for picture in found.images:
        description = said.get(picture.file)
        words = captions.trained(picture.caption, description, mode or Mode.GENERAL, trigger, captioning)
        told.append({**_shown(visit, run, picture), "caption": words, "origin": "plain"})
        if picture.caption:
            told[-1]["origin"] = "zip"
        elif captioning and description:
            told[-1]["origin"] = "described"
        elif captioning and (is_waiting or (can_be_described and not mode)):
            told[-1] |= {"origin": "waiting", "caption": "" if mode else "Choose a mode to have it described."}
    return {
        "pictures": told,
        "counts": _counts(found, [picture["origin"] for picture in told]),
        "ignored": [{"file": one.file, "reason": one.reason} for one in found.ignored],
        "warnings": [
            *found.warnings,
            *([] if is_waiting or not captioning else _troubles(run, silent, mode, can_be_described)),
        ],
        "is_waiting": is_waiting,
    }


def _is_described(queue: Queue, run: Run, mode: Mode, base_model: str) -> bool:
    """Let the pictures be described; returns whether a description can still come."""
    if queue.state(run) is not State.DRAFT:
        return False
    queue.describe(run, mode, base_model)
    return queue.is_describing(run)


def _shown(visit: Visit, run: Run, picture: Picture) -> dict[str, Any]:
    thumbnail = f"thumbnails/{picture.file.removesuffix('.png')}.webp"
    url = files.link(visit.settings, run, thumbnail)
    return {"file": picture.file, "source": picture.source, "url": url, "notes": list(picture.notes)}


def _counts(found: Dataset, origins: list[str]) -> str:
    total = len(found.images)
    parts = [f"{total} picture{'' if total == 1 else 's'}"]
    words = {
        "zip": "with captions from the ZIP",
        "described": "described",
        "waiting": "will be described",
        "plain": "with a plain caption",
    }
    parts += [f"{count} {text}" for origin, text in words.items() if (count := origins.count(origin))]
    return ", ".join(parts)


def _has_captioner(base_model: str) -> bool:
    """Whether there is a captioner for a base model. For one of the Hub that nobody asked for yet there is none."""
    try:
        base = bases.check(base_model)
    except ConfigError:  # the field itself says so
        return False
    return bool(base and base.captioner)


def _troubles(run: Run, silent: list[Picture], mode: Mode | None, can_be_described: bool) -> list[str]:
    """Why pictures were not described."""
    if not silent or (can_be_described and not mode):
        return []
    plain = f"{len(silent)} picture{' gets' if len(silent) == 1 else 's get'} a plain caption."
    if not can_be_described:
        return [f"{plain} There is no captioner for this base model yet: put a .txt beside each picture in the ZIP."]
    events, _ = run.events()
    failed = next((event for event in reversed(events) if event["kind"] == "caption_failed"), None)
    why = (
        f"{failed['message']} {failed.get('hint', '')}".strip() if failed else "The captioner found no words for them."
    )
    return [f"{plain} {why}"]
