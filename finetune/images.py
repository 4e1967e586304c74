"""Images that were ordered from finetunes: one folder for each, which the service and the studio share.

`order.json` says what to draw, and is written by the service; `status.json` what became of it, and is written by the
studio that draws, or by the service when there is no studio any more. An image without a status waits. Two folders of
marks tell quickly, however many images lie here, which ones are still to be drawn and whose webhook is still to hear.
"""

import json
import os
import secrets
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock

from finetune import bases, links, registry
from finetune.errors import BusyError, ConfigError, FinetuneError, MissingError, ModelError
from finetune.families import BaseModel
from finetune.runs import Run
from finetune.settings import Settings

FORMATS = ("jpeg", "png", "webp")
LARGEST_SIDE = 2048
"""Units: pixels. Larger pictures than this no base model was trained to draw, and they take minutes."""
LONGEST_PROMPT = 10_000
"""Units: characters; no base model reads as many."""
DAYS_KEPT = 1.0
LINK_SECONDS = 60 * 60
TRIES = 2
"""An image that ends the studio as often is not tried again."""
RETRY_AFTER_SECONDS = 30
WAITING, UNTOLD = ".waiting", ".untold"
SECRET = "webhook.secret"


@dataclass(frozen=True)
class Order:
    """What is to be drawn, with every value decided but the ones that the base model's sampler has (None)."""

    owner: str
    created: float
    finetune_id: str
    endpoint: str
    prompt: str
    seed: int
    width: int
    height: int
    strength: float
    """The factor on the LoRA: 0 draws what the base does."""
    output_format: str = "jpeg"
    steps: int | None = None
    guidance: float | None = None
    webhook_url: str | None = None
    webhook_secret: str | None = field(default=None, repr=False)
    """Only on the way to `create`: it is kept in a file of its own until the webhook is signed."""
    root: str = ""
    """Where the service was reached by who ordered: what is told to a webhook names the image by it."""


@dataclass(frozen=True)
class Message:
    """What a webhook is told of an image that is over."""

    id: str
    owner: str
    ended: float
    url: str
    secret: str = field(repr=False)
    status: str
    result: dict[str, Any] | None
    error: str


@dataclass(frozen=True)
class Image:
    """The folder of an ordered image."""

    folder: Path

    @property
    def id(self) -> str:
        """A lower-case UUID4: its task id."""
        return self.folder.name

    def order(self) -> Order:
        """What was asked for. Raises: MissingError when that cannot be read any more."""
        try:
            return Order(**json.loads((self.folder / "order.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise MissingError("What this image should show cannot be read any more.", "Order it again.") from error

    def status(self) -> dict[str, Any]:
        """{"status": "Pending" | "Ready" | "Error", "progress", "error", "file", "start_time", "end_time"}."""
        path = self.folder / "status.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"status": "Pending"}

    @property
    def is_over(self) -> bool:
        """Whether it was drawn, or cannot be."""
        return self.status()["status"] != "Pending"

    @property
    def ended(self) -> float | None:
        """When it was drawn or given up; None while it waits."""
        return self.status().get("end_time")

    @property
    def file(self) -> Path | None:
        """The picture, once it is drawn."""
        name = self.status().get("file")
        return self.folder / name if name else None

    def tell(self, **status: Any) -> None:
        """Say what became of it, in one move. Of an image that was deleted meanwhile nothing is said."""
        if not self.folder.is_dir():
            return
        _write(self.folder / "status.json", status)
        if status["status"] != "Pending":
            _mark(self, WAITING).unlink(missing_ok=True)

    def fail(self, words: str) -> None:
        """Say that it will not be drawn, and why."""
        began = self.status().get("start_time")
        self.tell(status="Error", error=words, start_time=began, end_time=round(time.time(), 3))


def order(
    settings: Settings,
    run: Run,
    owner: str,
    prompt: str,
    *,
    endpoint: str,
    strength: float = 1.0,
    seed: int | None = None,
    width: int | None = None,
    height: int | None = None,
    aspect: float = 1.0,
    output_format: str = "jpeg",
    steps: int | None = None,
    guidance: float | None = None,
    webhook_url: str | None = None,
    webhook_secret: str | None = None,
    root: str = "",
) -> Image:
    """Order an image from a finetune that is ready; what is not given, or 0, is as the base model has it.

    A seed of None or -1 is drawn by chance; `aspect` is the width by the height where one of them is not given.
    Raises: BusyError, ConfigError, ModelError, StorageError.
    """
    if len(prompt) > LONGEST_PROMPT:
        raise ConfigError(f"The prompt has {len(prompt)} characters.", f"Up to {LONGEST_PROMPT} are read.", "prompt")
    wide, high = size(base_of(run), width, height, aspect)
    asked = Order(
        owner=owner,
        created=time.time(),
        finetune_id=run.id,
        endpoint=endpoint,
        prompt=prompt,
        seed=secrets.randbelow(2**32) if seed in (None, -1) else seed % 2**63,
        width=wide,
        height=high,
        strength=strength,
        output_format=output_format,
        steps=steps,
        guidance=guidance,
        webhook_url=webhook_url,
        webhook_secret=webhook_secret,
        root=root,
    )
    return create(settings, asked)


def base_of(run: Run) -> BaseModel:
    """The base model that a finetune was trained on. Raises: ModelError when it is not on this machine any more."""
    request = run.request()
    try:
        base = bases.check(request.base_model) if request else None
    except ConfigError as error:
        raise ModelError(error.message, error.hint) from error
    if base is None:
        raise ModelError(
            "The base model of this finetune is not on this machine any more.",
            "Start any run with the same base model: that fetches its files again.",
        )
    return base


def size(base: BaseModel, width: int | None, height: int | None, aspect: float = 1.0) -> tuple[int, int]:
    """The size at which a base model draws what was asked for: rounded down to multiples of its patches.

    What is not given, or 0, follows from the other side and the aspect, or from the base's own resolution.
    Units: pixels. Raises: ConfigError for a side that is too long.
    """
    for name, side in (("width", width), ("height", height)):
        if side and side > LARGEST_SIDE:
            raise ConfigError(f"A {name} of {side} is too large.", f"Up to {LARGEST_SIDE} pixels are drawn.", name)
    patch = registry.families()[base.family].size(base).patch_px
    wide = width or (height * aspect if height else base.resolution_px * aspect**0.5)
    high = height or wide / aspect
    return tuple(max(patch, int(min(side, LARGEST_SIDE) + 1e-6) // patch * patch) for side in (wide, high))


def create(settings: Settings, order: Order) -> Image:
    """Put an order at the end of the queue. Raises: BusyError when it is full, or who orders has enough in it."""
    settings.images.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(settings.images / ".lock"):
        _check_room(settings, order.owner)
        image = Image(settings.images / str(uuid.uuid4()))
        part = image.folder.with_name(f".{image.id}")  # seen by nobody until it is whole
        part.mkdir()
        _write(part / "order.json", asdict(replace(order, webhook_secret=None)))
        if order.webhook_url:
            _write(part / SECRET, order.webhook_secret or "")
            _put_mark(image, UNTOLD, order.created)
        _put_mark(image, WAITING, order.created)
        os.replace(part, image.folder)
    return image


def find(settings: Settings, id: str) -> Image:
    """The image of that id. Raises: MissingError when there is none."""
    try:
        image = Image(settings.images / str(uuid.UUID(id)))
    except (ValueError, AttributeError, TypeError):
        image = None
    if image is None or not image.folder.is_dir():
        raise MissingError("There is no such image.", "Images are deleted a day after they were drawn.")
    return image


def all_in(settings: Settings) -> Iterator[Image]:
    """All images, in no order."""
    yield from (Image(path.parent) for path in settings.images.glob("*/order.json") if path.parent.name[0] != ".")


def waiting(settings: Settings) -> list[Image]:
    """Images that are not over, the one that waits longest first."""
    return [image for image in _marked(settings, WAITING) if not image.is_over]


def result(settings: Settings, image: Image, root: str) -> dict[str, Any] | None:
    """What a program gets of an image that is ready; None while it is not. Units: seconds.

    `root` is where the service is reached by whoever gets it.
    """
    told = image.status()
    if told["status"] != "Ready":
        return None
    asked = image.order()
    return {
        "sample": link(settings, image, root),
        "prompt": asked.prompt,
        "seed": asked.seed,
        "start_time": told["start_time"],
        "end_time": told["end_time"],
        "duration": round(told["end_time"] - told["start_time"], 3),
    }


def link(settings: Settings, image: Image, root: str = "") -> str:
    """A link to the picture of an image that is ready; it needs no key, stays the same for minutes and ends after an
    hour. Without a root it is relative to the page."""
    relative = links.sign(settings, f"images/{image.id}/{image.file.name}", LINK_SECONDS, 600)
    return f"{root.rstrip('/')}/{relative}" if root else relative


def untold(settings: Settings) -> list[Image]:
    """Images that are over and whose webhook has not heard of it, the oldest order first."""
    return [image for image in _marked(settings, UNTOLD) if image.is_over]


def message(settings: Settings, image: Image) -> Message | None:
    """What the webhook of an image that is over is told, with what signs it; None where there is nobody to tell."""
    try:
        asked, secret = image.order(), json.loads((image.folder / SECRET).read_text(encoding="utf-8"))
    except (FinetuneError, OSError, ValueError):
        return None
    told = image.status()
    return Message(
        id=image.id,
        owner=asked.owner,
        ended=told["end_time"],
        url=asked.webhook_url or "",
        secret=secret,
        status=told["status"],
        result=result(settings, image, asked.root),
        error=told.get("error") or "",
    )


def told(image: Image) -> None:
    """Forget the secret of a webhook, once what it is told is signed and kept."""
    (image.folder / SECRET).unlink(missing_ok=True)
    _mark(image, UNTOLD).unlink(missing_ok=True)


def recover(settings: Settings) -> None:
    """Put the image back that a studio had begun, once that studio is gone and before its request to stop is forgotten.

    One that has ended the studio too often is given up, so that it does not block the queue for ever.
    """
    was_asked = studio(settings).is_asked_to_stop()
    for image in waiting(settings):
        told = image.status()
        if "progress" not in told:
            continue
        attempts = told["attempts"] - was_asked  # whoever was told to go is not to blame
        if attempts < TRIES:
            image.tell(status="Pending", attempts=attempts)
        else:
            image.fail(
                f"Drawing this image ended the program {TRIES} times. Often memory ran out: order a smaller one."
            )


def tidy(settings: Settings, now: float) -> None:
    """Delete what was over a day ago, and give up what waits for a finetune that was deleted."""
    for image in waiting(settings):
        try:
            finetune(settings, image)
        except MissingError as error:
            image.fail(str(error))
    if settings.images.is_dir():
        for path in list(settings.images.iterdir()):
            _discard_if_old(path, now)


def finetune(settings: Settings, image: Image) -> Run:
    """The finetune that an image is drawn with. Raises: MissingError when it was deleted, or the order is not whole."""
    run = Run(settings.runs / image.order().finetune_id)
    if not (run.folder / "run.json").exists():
        raise MissingError("The finetune of this image was deleted.", "Order it from another one.")
    return run


def discard(image: Image) -> None:
    """Delete an image for good."""
    for name in (WAITING, UNTOLD):
        _mark(image, name).unlink(missing_ok=True)
    shutil.rmtree(image.folder, ignore_errors=True)


def studio(settings: Settings) -> Run:
    """The folder of the worker that draws; executors know it as they know a run's."""
    folder = settings.images / ".studio"
    folder.mkdir(parents=True, exist_ok=True)
    return Run(folder)


def _check_room(settings: Settings, owner: str) -> None:
    """Raises: BusyError, StorageError."""
    owners = []
    for image in waiting(settings):
        with suppress(MissingError):
            owners.append(image.order().owner)
    if len(owners) >= settings.images_waiting:
        raise BusyError(
            f"{len(owners)} images wait to be drawn, and no more are taken.", "Try again later.", RETRY_AFTER_SECONDS
        )
    if owners.count(owner) >= settings.images_waiting_each:
        raise BusyError(
            f"{owners.count(owner)} of your images wait to be drawn.",
            "Order more when some are done.",
            RETRY_AFTER_SECONDS,
        )
    settings.check_room(folder=settings.images)


def _discard_if_old(path: Path, now: float) -> None:
    """Delete the folder of an image that was over, or left half written, a day ago."""
    is_part = path.name.startswith(".")
    try:
        uuid.UUID(path.name.removeprefix("."))
        is_old = now - path.stat().st_mtime > DAYS_KEPT * 86400
    except (ValueError, OSError):
        return
    if is_old and (is_part or Image(path).is_over):
        discard(Image(path))


def _marked(settings: Settings, name: str) -> list[Image]:
    """The images with a mark, the oldest order first."""
    found = []
    for path in (settings.images / name).glob("*"):
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path.name))
    return [Image(settings.images / id) for _, id in sorted(found) if (settings.images / id).is_dir()]


def _mark(image: Image, name: str) -> Path:
    return image.folder.parent / name / image.id


def _put_mark(image: Image, name: str, created: float) -> None:
    path = _mark(image, name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.utime(path, (created, created))


def _write(path: Path, values: Any) -> None:
    part = path.with_suffix(".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(values, file, indent=1, ensure_ascii=False)
    os.replace(part, path)
