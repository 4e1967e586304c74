"""ZIP -> checked images and captions in the run folder.

`archive` reads the ZIP, `pictures` one picture, `texts` the captions; here they become numbered files and
`dataset.json`. What is not used is listed with its reason, and a ZIP that cannot be used leaves nothing behind.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.dataset import archive, pictures, texts
from finetune.dataset.archive import Archive, Entry, Ignored, Limits, Unusable
from finetune.dataset.texts import Caption
from finetune.errors import DatasetError
from finetune.runs import Run

FEW = 4
READS = f"Pictures may be {pictures.READABLE}."


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


def read(run: Run) -> Dataset:
    """The pictures of a run. Raises: DatasetError when it has none."""
    if not (values := run.read("dataset.json")):
        raise DatasetError("This run has no pictures.", "Upload a ZIP of pictures first.")
    return from_dict(values)


def content_hash(run: Run) -> str:
    """Tell the pictures of a run, with the captions that came with them, from all others; names do not count."""
    hashed = hashlib.blake2b(digest_size=16)
    for picture in read(run).images:
        hashed.update((run.images / picture.file).read_bytes())
        hashed.update(f"\n{picture.caption or ''}\n".encode())
    return hashed.hexdigest()


def unpack(
    zip_path: Path, run: Run, tell: Callable[[int, int], None] = lambda done, of: None, limits: Limits = archive.LIMITS
) -> Dataset:
    """Check a ZIP and put its pictures into the run folder, in place of those that were there.

    `tell(done, of)` is called after each picture. Raises: DatasetError when the ZIP cannot be used; the folder is then
    as it was before.
    """
    try:
        with archive.opened(zip_path, limits) as zip, tempfile.TemporaryDirectory(dir=run.folder) as part:
            dataset = _unpack(zip, Path(part), tell)
            _put(dataset, Path(part), run)
    except OSError as error:
        raise DatasetError(
            f"The pictures could not be stored: {error.strerror or error}.", "Is the disk full, or was the file moved?"
        ) from error
    return dataset


def _unpack(zip: Archive, folder: Path, tell: Callable[[int, int], None]) -> Dataset:
    entries = _sort_out(zip)
    captions = texts.gather(zip, entries)
    (folder / "images").mkdir()
    (folder / "thumbnails").mkdir()
    images: list[Picture] = []
    twins: dict[str, str] = {}
    for done, entry in enumerate(entries, start=1):
        try:
            images.append(_add(zip, entry, captions.get(entry.name), folder, len(images) + 1, twins))
        except Unusable as reason:
            zip.ignore(entry.name, str(reason))
        tell(done, len(entries))
    if not images:
        reasons = "; ".join(f"{one.file} {one.reason}" for one in zip.ignored[:3])
        raise DatasetError("No picture in the ZIP can be used.", f"{reasons}. {READS}", zip.ignored[0].file)
    _list_captions_left_over(zip, images, captions)
    return Dataset(tuple(images), tuple(zip.ignored), _warnings(images))


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


def _add(
    zip: Archive, entry: Entry, caption: Caption | None, folder: Path, number: int, twins: dict[str, str]
) -> Picture:
    checked = pictures.check(zip.read(entry), zip.limits)
    digest = hashlib.sha256(f"{checked.pixels.size}".encode() + checked.pixels.tobytes()).hexdigest()
    if digest in twins:
        raise Unusable(f"has the same pixels as {twins[digest]}")
    file = f"{number:04}.png"
    checked.pixels.save(folder / "images" / file, compress_level=1)
    pictures.thumbnail(checked.pixels).save(folder / "thumbnails" / f"{number:04}.webp", quality=85)
    twins[digest] = entry.name
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


def _put(dataset: Dataset, part: Path, run: Run) -> None:
    """Swap the new pictures in; descriptions of the old ones go with them."""
    for name in ("dataset.json", "descriptions.json"):
        (run.folder / name).unlink(missing_ok=True)
    for target in (run.images, run.thumbnails):
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part / target.name, target)
    run.write("dataset.json", dataset.as_dict())
