"""The card “Try it”: pictures drawn with a run's LoRA. They are ordered here and drawn by the studio, page or no page.

Separate from the live view, because it is the one part of the tab that asks for work of its own.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from finetune import images
from finetune.errors import ConfigError, FinetuneError, MissingError
from finetune.families import BaseModel
from finetune.images import Image, Order
from finetune.runs import Run, State
from finetune.ui.handlers import Visit

LONGEST_PROMPT = 2000
LARGEST_SEED = 2**63 - 1
MOST_SHOWN = 60
SHAPES = {"Square": 1.0, "Wide": 3 / 2, "Tall": 2 / 3}
PNG = "png"


def told(visit: Visit, run: Run) -> dict[str, Any] | None:
    """What the card shows: what can be chosen, and the caller's pictures, the newest first; None without a LoRA."""
    try:
        base = _base(visit, run)
    except FinetuneError:
        return None
    prompts = run.read("config.json").get("sample_prompts") or [run.request().trigger_word]
    found = [(image, order) for image, order in _orders(visit) if _is_theirs(visit, run, order)]
    waits_for = _waits_for(visit)
    newest = sorted(found, key=lambda pair: pair[1].created, reverse=True)[:MOST_SHOWN]
    return {
        "prompt": prompts[0],
        "sizes": [
            {"value": value, "title": f"{name}, {value.replace('x', ' × ')}"} for name, value in _sizes(base).items()
        ],
        "kept": "a day" if images.DAYS_KEPT == 1 else f"{images.DAYS_KEPT:g} days",
        "images": [_shown(visit, image, order, waits_for) for image, order in newest],
    }


def draw(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """Order a picture of the run that the page shows. Raises: ConfigError, BusyError."""
    run = visit.run(asked.get("run"))
    width, height = _size(_base(visit, run), asked.get("size"))
    images.order(
        visit.settings,
        run,
        visit.somebody().name,
        _prompt(asked.get("prompt")),
        endpoint="page",
        strength=_strength(asked.get("strength")),
        seed=_seed(asked.get("seed")),
        width=width,
        height=height,
        output_format=PNG,
    )
    return {}


def compare(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """Order what the base draws in place of a picture: the same without the LoRA. Raises: MissingError, BusyError."""
    order = _named(visit, asked).order()
    _base(visit, visit.run(order.finetune_id))
    mine = {"owner": visit.somebody().name, "created": time.time(), "webhook_url": None, "webhook_secret": None}
    images.create(visit.settings, replace(order, strength=0.0, **mine))
    return {}


def remove(visit: Visit, asked: dict[str, Any]) -> dict[str, Any]:
    """Delete a picture, or take it out of the queue. Raises: MissingError."""
    images.discard(_named(visit, asked))
    return {}


def _base(visit: Visit, run: Run) -> BaseModel:
    """The base model to draw with. Raises: FinetuneError while there is no LoRA, or no base any more."""
    if visit.queue.state(run) not in (State.READY, State.STOPPED) or not run.lora:
        raise FinetuneError("This run has no LoRA yet.", "Wait until it is ready.")
    return images.base_of(run)


def _named(visit: Visit, asked: dict[str, Any]) -> Image:
    """The picture that a page names, of the run that it shows. Raises: MissingError when it is not the caller's."""
    run, image = visit.run(asked.get("run")), images.find(visit.settings, str(asked.get("image")))
    if not _is_theirs(visit, run, image.order()):
        raise MissingError("There is no such picture.", "It may have been deleted: load the page again.")
    return image


def _orders(visit: Visit) -> Iterator[tuple[Image, Order]]:
    for image in images.all_in(visit.settings):
        with suppress(MissingError):  # it was deleted meanwhile
            yield image, image.order()


def _is_theirs(visit: Visit, run: Run, order: Order) -> bool:
    caller = visit.somebody()
    return order.finetune_id == run.id and (caller.owns_machine or order.owner == caller.name)


def _sizes(base: BaseModel) -> dict[str, str]:
    """Width and height by shape, as the base draws them."""
    found = {name: images.size(base, None, None, ratio) for name, ratio in SHAPES.items()}
    return {name: f"{width}x{height}" for name, (width, height) in found.items()}


def _size(base: BaseModel, asked: Any) -> tuple[int, int]:
    known = list(_sizes(base).values())
    if asked not in known:
        raise ConfigError("That size is not among those to choose from.", f"Choose one of: {', '.join(known)}.", "size")
    width, _, height = asked.partition("x")
    return int(width), int(height)


def _prompt(asked: Any) -> str:
    text = " ".join(asked.encode("utf-8", "ignore").decode().split()) if isinstance(asked, str) else ""
    if not text:
        raise ConfigError("There is no prompt.", "Say what to draw.", "prompt")
    if len(text) > LONGEST_PROMPT:
        raise ConfigError(f"The prompt has {len(text)} characters.", f"Keep it to {LONGEST_PROMPT}.", "prompt")
    return text


def _seed(asked: Any) -> int | None:
    """The seed that was typed; None, which is a random one, for an empty field."""
    text = "" if asked is None else str(asked).strip()
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= LARGEST_SEED):
        shown = text[:30].encode("ascii", "replace").decode()
        raise ConfigError(f"The seed is “{shown}”.", "It must be a whole number from 0, or empty.", "seed")
    return int(text)


def _strength(asked: Any) -> float:
    if not isinstance(asked, int | float) or not 0 <= asked <= 2:
        raise ConfigError("The strength must be a number from 0 to 2.", field="strength")
    return round(float(asked), 3)


def _shown(visit: Visit, image: Image, order: Order, waits_for: dict[str, str]) -> dict[str, Any]:
    status = image.status()
    about = {name: getattr(order, name) for name in ("prompt", "width", "height", "strength")}
    about |= {"id": image.id, "seed": str(order.seed)}  # larger than a script's numbers may be
    match status["status"]:
        case "Ready":
            return about | {"url": images.link(visit.settings, image), "file": f"{image.id}.{order.output_format}"}
        case "Error":
            return about | {"error": status.get("error") or "It could not be drawn."}
    progress = status.get("progress")
    return about | {"progress": progress, "words": waits_for.get(image.id) if progress is None else "Drawing …"}


def _waits_for(visit: Visit) -> dict[str, str]:
    """What each image that is not drawn yet waits for, by its id."""
    waiting = images.waiting(visit.settings)
    hindrance = visit.queue.image_outlook(waiting[0]).hindrance if waiting else ""
    places = [f"Waiting; {place} before it." if place else "Waiting; it is next." for place in range(len(waiting))]
    return {image.id: hindrance or words for image, words in zip(waiting, places, strict=True)}
