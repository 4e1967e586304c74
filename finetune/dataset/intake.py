"""What becomes of an upload: numbered pictures with thumbnails in a folder, and a report on every file.

Separate from the run folder, because it happens in a process of its own (`apart`), which knows nothing of runs.
"""

import hashlib
import io
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.dataset import archive, other_trainers, pictures, texts, traits
from finetune.dataset.archive import Archive, Entry, Ignored, Limits, Unusable, Upload
from finetune.dataset.texts import Captions
from finetune.errors import DatasetError

FEW = 4
READS = f"Pictures may be {pictures.READABLE}."
AT_ONCE = min(4, os.cpu_count() or 1)
"""Pictures that are decoded at the same time; together they take no more memory than a single one may."""
REMARKS = (pictures.REDUCED, pictures.LONG, texts.SHARES)
"""With these words notes begin that tell of no repair."""
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
class Text:
    """A file whose captions are used."""

    file: str
    pictures: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """What became of a file, or of several of one kind: it was used, used after a repair, or ignored."""

    file: str
    what: str
    words: str
    count: int = 1


@dataclass(frozen=True)
class Dataset:
    """All pictures in order, what was left out, and what the user should know."""

    images: tuple[Picture, ...]
    ignored: tuple[Ignored, ...] = ()
    warnings: tuple[str, ...] = ()
    texts: tuple[Text, ...] = ()
    ground: str = "white"
    """What lies under what was transparent."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def report(self) -> tuple[Row, ...]:
        """What became of every file of the upload: pictures, captions, and what was left out."""
        used = [_row(image.source, _about(image), image.notes, _repairs(image)) for image in self.images]
        read = [_row(text.file, _captions(text), text.notes, _guesses(text)) for text in self.texts]
        left_out = [Row(one.file, "ignored", one.reason, one.count) for one in self.ignored]
        return (*used, *read, *left_out)


def passes(found: Dataset, iterations: int, batch: int) -> float:
    """How often training sees a picture that comes once while others may come more often."""
    counts = [image.repeats for image in found.images]
    return iterations * batch * math.gcd(*counts) / sum(counts)


def from_dict(values: dict[str, Any]) -> Dataset:
    """Read what `as_dict` gave."""
    return Dataset(
        images=tuple(Picture(**{**image, "notes": tuple(image["notes"])}) for image in values["images"]),
        ignored=tuple(Ignored(**one) for one in values["ignored"]),
        warnings=tuple(values["warnings"]),
        texts=tuple(Text(**{**text, "notes": tuple(text["notes"])}) for text in values.get("texts", ())),
        ground=values.get("ground", "white"),
    )


def take(upload: Upload, folder: Path, tell: Tell, limits: Limits, ground: str = "white") -> Dataset:
    """Put the pictures of an upload into the folders `images` and `thumbnails` of an empty folder.

    Raises: DatasetError.
    """
    with archive.opened(upload, limits) as found:
        entries = _sort_out(found)
        captions = texts.gather(found, entries)
        images = _pictures(found, entries, captions, folder, tell, ground)
        read = _texts(found, images, captions)
        used = {image.source for image in images}
        warnings = (
            *other_trainers.repeats_in_words(entry for entry in entries if entry.name in used),
            *(f"{file}: {remark}." for file, remarks in captions.remarks.items() for remark in remarks),
            *_warnings(images),
        )
        return Dataset(tuple(images), found.left_out(), warnings, read, ground)


def _sort_out(found: Archive) -> list[Entry]:
    """The files that may be pictures, in order; what is neither picture nor caption is listed as ignored."""
    entries = [entry for entry in found.entries if entry.suffix in pictures.SUFFIXES]
    others = [entry for entry in found.entries if entry.suffix not in pictures.SUFFIXES]
    for entry in others:
        if not texts.is_captions(entry):
            found.ignore(entry.name, other_trainers.why_no_picture(entry))
    if not entries and (found.ignored or others):
        raise _no_picture(found, others)
    if not entries:
        raise DatasetError(f"The {found.kind} is empty.", f"Put your pictures into it. {READS}")
    reasons = other_trainers.left_out(entries)
    for name, reason in reasons.items():
        found.ignore(name, reason)
    entries = [entry for entry in entries if entry.name not in reasons]
    if len(entries) > found.limits.pictures:
        count, most = len(entries), found.limits.pictures
        raise DatasetError(
            f"The {found.kind} holds {count:,} pictures; {most:,} is the limit.", "Choose the best of them."
        )
    return entries


def _no_picture(found: Archive, others: list[Entry]) -> DatasetError:
    packed = next((one.file for one in found.ignored if Path(one.file).suffix.lower() in archive.PACKED), None)
    if packed:
        hint = f"Its pictures are perhaps in {packed}: unpack that, and upload it alone."
    else:
        names = [one.file for one in found.ignored] + [entry.name for entry in others if texts.is_captions(entry)]
        hint = f"It holds {', '.join(names[:3])}. {READS}"
    return DatasetError(f"There is no picture in the {found.kind}.", hint)


@dataclass(frozen=True)
class _Made:
    """A picture as it will be stored."""

    size: tuple[int, int]
    original: tuple[int, int]
    notes: tuple[str, ...]
    digest: bytes
    """Of its pixels."""
    picture: bytes
    thumbnail: bytes
    traits: Mapping[str, Any]


def _pictures(
    found: Archive, entries: list[Entry], captions: Captions, folder: Path, tell: Tell, ground: str
) -> list[Picture]:
    (folder / "images").mkdir()
    (folder / "thumbnails").mkdir()
    images: list[Picture] = []
    twins: dict[bytes, str] = {}
    decoded = 0
    tell(0, len(entries))
    for done, (entry, making) in enumerate(_in_order(found, entries, ground), start=1):
        try:
            made = making.result()
            decoded += made.original[0] * made.original[1]
            _check_total(decoded, found.limits)
            if made.digest in twins:
                raise Unusable(f"has the same pixels as {twins[made.digest]}")
            twins[made.digest] = entry.name
            images.append(_stored(made, folder, len(images) + 1, entry, captions))
        except Unusable as reason:
            found.ignore(entry.name, str(reason))
        tell(done, len(entries))
    if not images:
        reasons = "; ".join(f"{one.file} {one.reason}" for one in found.ignored[:3])
        raise DatasetError(f"No picture in the {found.kind} can be used.", f"{reasons}. {READS}", found.ignored[0].file)
    return images


def _in_order(found: Archive, entries: list[Entry], ground: str) -> Iterator[tuple[Entry, Future[_Made]]]:
    """Decode several pictures at the same time, as far as memory allows, and give them in their order."""
    waiting: deque[tuple[Entry, Future[_Made], int]] = deque()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for entry in entries:
            making: Future[_Made] = Future()
            needed = entry.size
            while waiting and (len(waiting) == AT_ONCE or needed + _held(waiting) > found.limits.decoded_bytes):
                yield waiting.popleft()[:2]
            try:
                content = found.read(entry)
                header = pictures.read_header(content, found.limits)
                needed += header.bytes
                while waiting and needed + _held(waiting) > found.limits.decoded_bytes:
                    yield waiting.popleft()[:2]
                making = pool.submit(_made, header, ground)
            except Unusable as reason:
                making.set_exception(reason)
            waiting.append((entry, making, needed))
        yield from (waited[:2] for waited in waiting)


def _held(waiting: deque[tuple[Entry, Future[_Made], int]]) -> int:
    return sum(needed for _, _, needed in waiting)


def _made(header: pictures.Header, ground: str) -> _Made:
    checked = pictures.decode(header, ground)
    pixels = checked.pixels
    small = io.BytesIO()
    pictures.thumbnail(pixels).save(small, "WEBP", quality=85)
    return _Made(
        pixels.size,
        checked.original,
        checked.notes,
        hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).digest(),
        pictures.png(pixels),
        small.getvalue(),
        traits.measure(pixels, checked.original),
    )


def _stored(made: _Made, folder: Path, number: int, entry: Entry, captions: Captions) -> Picture:
    """Write a picture and its thumbnail."""
    (folder / "images" / f"{number:04}.png").write_bytes(made.picture)
    (folder / "thumbnails" / f"{number:04}.webp").write_bytes(made.thumbnail)
    caption = captions.of.get(entry.name)
    return Picture(
        f"{number:04}.png",
        entry.name,
        *made.size,
        caption=caption.text if caption else None,
        caption_source=caption.source if caption else None,
        notes=made.notes + (caption.notes if caption else ()),
        repeats=other_trainers.repeats(entry),
        traits=made.traits,
    )


def _check_total(decoded: int, limits: Limits) -> None:
    if decoded > limits.total_pixels:
        most = limits.total_pixels / 1e6
        raise DatasetError(
            f"The pictures have more than {most:,.0f} megapixels together.",
            f"Make them smaller: more than {pictures.LONGEST_PX} px a side is not used.",
        )


def _texts(found: Archive, images: list[Picture], captions: Captions) -> tuple[Text, ...]:
    """The files whose captions are used; the others are listed as ignored."""
    used: list[Text] = []
    names = {image.source for image in images}
    for file, described in captions.files.items():
        theirs = [image for image in images if image.caption_source == file]
        if theirs:
            guesses = (note for image in theirs for note in image.notes if note.startswith(texts.GUESSED))
            used.append(Text(file, len(theirs), tuple(dict.fromkeys([*guesses, *captions.remarks[file]]))))
        elif described & names:
            found.ignore(file, "its pictures have captions of their own")
        else:
            found.ignore(file, "its picture was ignored")
    return tuple(used)


def _row(file: str, words: str, notes: tuple[str, ...], repairs: list[str]) -> Row:
    return Row(file, "repaired" if repairs else "used", "; ".join(filter(None, (words, *notes))))


def _repairs(image: Picture) -> list[str]:
    return [note for note in image.notes if not note.startswith(REMARKS)]


def _guesses(text: Text) -> list[str]:
    return [note for note in text.notes if note.startswith(texts.GUESSED)]


def _about(image: Picture) -> str:
    return f"comes {image.repeats} times as often" if image.repeats > 1 else ""


def _captions(text: Text) -> str:
    return "caption of a picture" if text.pictures == 1 else f"captions of {text.pictures:,} pictures"


def _warnings(images: list[Picture]) -> tuple[str, ...]:
    if len(images) >= FEW:
        return ()
    pictures_are = "is only one picture" if len(images) == 1 else f"are only {len(images)} pictures"
    return (f"There {pictures_are}. That works, but {FEW} or more teach better.",)
