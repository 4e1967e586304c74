"""What becomes of an uploaded ZIP: numbered pictures with thumbnails in a folder, and a list of all there was.

Separate from the run folder, because it happens in a process of its own (`apart`), which knows nothing of runs.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from finetune.dataset import archive, pictures, texts
from finetune.dataset.archive import Archive, Entry, Ignored, Limits, Unusable
from finetune.dataset.texts import Caption
from finetune.errors import DatasetError

FEW = 4
READS = f"Pictures may be {pictures.READABLE}."
Tell = Callable[[int, int], None]
"""Called after each picture with how many files are done, and of how many."""


@dataclass(frozen=True)
class Picture:
    """A picture as it is trained on. `caption` is what came with it, without the trigger word."""

    file: str
    source: str
    width: int
    height: int
    caption: str | None
    caption_source: str | None
    notes: tuple[str, ...] = ()
    repeats: int = 1
    """How often it comes while each other one comes once."""
    traits: Mapping[str, Any] = field(default_factory=dict)
    """What was measured on its pixels, for the checks."""


@dataclass(frozen=True)
class Dataset:
    """All pictures in order, what was left out, and what the user should know."""

    images: tuple[Picture, ...]
    ignored: tuple[Ignored, ...] = ()
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def from_dict(values: dict[str, Any]) -> Dataset:
    """Read what `as_dict` gave."""
    return Dataset(
        images=tuple(Picture(**{**image, "notes": tuple(image["notes"])}) for image in values["images"]),
        ignored=tuple(Ignored(**one) for one in values["ignored"]),
        warnings=tuple(values["warnings"]),
    )


def take(zip_path: Path, folder: Path, tell: Tell, limits: Limits) -> Dataset:
    """Put the pictures of a ZIP into the folders `images` and `thumbnails` of an empty folder. Raises: DatasetError."""
    with archive.opened(zip_path, limits) as zip:
        entries = _sort_out(zip)
        captions = texts.gather(zip, entries)
        images = _pictures(zip, entries, captions, folder, tell)
        _list_captions_left_over(zip, images, captions)
        return Dataset(tuple(images), zip.left_out(), _warnings(images))


def _sort_out(zip: Archive) -> list[Entry]:
    """The files that may be pictures, in order; what is neither picture nor caption is listed as ignored."""
    entries = [entry for entry in zip.entries if entry.suffix in pictures.SUFFIXES]
    others = [entry for entry in zip.entries if entry.suffix not in pictures.SUFFIXES]
    for entry in others:
        if entry.suffix != ".txt" and not texts.is_table(entry):
            zip.ignore(entry.name, "is not a picture")
    if not entries and (zip.ignored or others):
        names = [one.file for one in zip.ignored] + [entry.name for entry in others if entry.suffix == ".txt"]
        raise DatasetError("There is no picture in the ZIP.", f"It holds {', '.join(names[:3])}. {READS}")
    if not entries:
        raise DatasetError("The ZIP is empty.", f"Put your pictures into it. {READS}")
    if len(entries) > zip.limits.pictures:
        count, most = len(entries), zip.limits.pictures
        raise DatasetError(f"The ZIP holds {count:,} pictures; {most:,} is the limit.", "Choose the best of them.")
    return entries


def _pictures(
    zip: Archive, entries: list[Entry], captions: dict[str, Caption], folder: Path, tell: Tell
) -> list[Picture]:
    (folder / "images").mkdir()
    (folder / "thumbnails").mkdir()
    images: list[Picture] = []
    twins: dict[str, str] = {}
    decoded = 0
    tell(0, len(entries))
    for done, entry in enumerate(entries, start=1):
        try:
            checked = pictures.check(zip.read(entry), zip.limits)
            decoded += checked.original_pixels
            _check_total(decoded, zip.limits)
            file = _store(checked.pixels, folder, len(images) + 1, entry.name, twins)
            images.append(_told(file, entry, checked, captions.get(entry.name)))
        except Unusable as reason:
            zip.ignore(entry.name, str(reason))
        tell(done, len(entries))
    if not images:
        reasons = "; ".join(f"{one.file} {one.reason}" for one in zip.ignored[:3])
        raise DatasetError("No picture in the ZIP can be used.", f"{reasons}. {READS}", zip.ignored[0].file)
    return images


def _check_total(decoded: int, limits: Limits) -> None:
    if decoded > limits.total_pixels:
        most = limits.total_pixels / 1e6
        raise DatasetError(
            f"The pictures have more than {most:,.0f} megapixels together.",
            f"Make them smaller: more than {pictures.LONGEST_PX} px a side is not used.",
        )


def _store(pixels: Image.Image, folder: Path, number: int, name: str, twins: dict[str, str]) -> str:
    """Write a picture and its thumbnail; returns its file. Raises: Unusable when an earlier one looks the same."""
    digest = hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).hexdigest()
    if digest in twins:
        raise Unusable(f"has the same pixels as {twins[digest]}")
    twins[digest] = name
    pixels.save(folder / "images" / f"{number:04}.png", compress_level=1)
    pictures.thumbnail(pixels).save(folder / "thumbnails" / f"{number:04}.webp", quality=85)
    return f"{number:04}.png"


def _told(file: str, entry: Entry, checked: pictures.Checked, caption: Caption | None) -> Picture:
    return Picture(
        file,
        entry.name,
        *checked.pixels.size,
        caption=caption.text if caption else None,
        caption_source=caption.source if caption else None,
        notes=checked.notes + (caption.notes if caption else ()),
    )


def _list_captions_left_over(zip: Archive, images: list[Picture], captions: dict[str, Caption]) -> None:
    used = {image.caption_source for image in images}
    for source in dict.fromkeys(caption.source for caption in captions.values()):
        if source not in used:
            zip.ignore(source, "its picture was ignored")


def _warnings(images: list[Picture]) -> tuple[str, ...]:
    if len(images) >= FEW:
        return ()
    pictures_are = "is only one picture" if len(images) == 1 else f"are only {len(images)} pictures"
    return (f"There {pictures_are}. That works, but {FEW} or more teach better.",)
