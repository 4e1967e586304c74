"""Captions in a ZIP, one `.txt` for each picture: out, to be kept beside the pictures or changed elsewhere, and in.

Separate from reading an upload, because nothing but words comes in here, for pictures that are there already.
"""

import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from finetune.dataset import archive, edits, pictures, texts
from finetune.dataset.archive import MIB, Archive, Entry, Ignored, Limits, Unusable
from finetune.dataset.intake import Picture
from finetune.errors import DatasetError

RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?:\..*)?", re.IGNORECASE | re.DOTALL)
"""Names that mean a device on Windows, whatever their ending."""
MOST_BYTES = 16 * MIB
"""Of all captions together, because they are read in the service's own process; other files stay packed."""
LIMITS = Limits(total_bytes=MOST_BYTES, directory_bytes=4 * MIB)


@dataclass(frozen=True)
class Brought:
    """Captions that a ZIP holds, by the file of the picture that they are for, and what of it was not taken."""

    captions: dict[str, str]
    ignored: tuple[Ignored, ...]


def write_captions(path: Path, images: Sequence[Picture], captions: Sequence[str]) -> None:
    """Write a ZIP with each caption under its picture's name, so that they can be unpacked beside the pictures."""
    named = zip(text_names(images), captions, strict=True)
    part = path.with_name(f"{path.name}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as made:
        for name, caption in named:
            made.writestr(name, caption + "\n")
    os.replace(part, path)


def read_captions(path: Path, images: Sequence[Picture]) -> Brought:
    """Find the captions of pictures in a ZIP: `.txt` files with their names, or a table as an upload may have one.

    Raises: DatasetError when it is no ZIP that can be read.
    """
    with archive.opened(path, LIMITS) as zip:
        _check_size(zip)
        file_of = {image.source: image.file for image in images}
        tables = replace(zip, entries=[entry for entry in zip.entries if texts.is_table(entry)])
        sources = [Entry(source, Path()) for source in file_of]
        captions = {file_of[name]: caption.text for name, caption in texts.gather(tables, sources).of.items()}
        captions |= _from_files(zip, images)
        for entry in zip.entries:
            if entry.suffix not in pictures.SUFFIXES and not texts.is_captions(entry):
                zip.ignore(entry.name, "holds no captions")
        return Brought(captions, zip.left_out())


def text_names(images: Sequence[Picture]) -> list[str]:
    """The name of each picture's `.txt` in a ZIP: its own with another ending, where no other picture has that."""
    names: list[str] = []
    taken: set[str] = set()
    for picture in images:
        source = unpacked_name(picture.source)
        stem = PurePosixPath(source).with_suffix("").as_posix()
        ways = (f"{stem}.txt", f"{source}.txt", f"{source}.{picture.file}.txt")  # a.jpg, a.png and A.png
        names.append(next(way for way in ways if way.casefold() not in taken))
        taken.add(names[-1].casefold())
    return names


def unpacked_name(source: str) -> str:
    """A picture's name within its ZIP as a path that unpacks to the same place everywhere, and never outside."""
    parts = [re.sub(r'[<>:"|?*\\\x00-\x1f]', "_", part).rstrip(" .") for part in source.split("/")]
    return "/".join(f"_{part}" if RESERVED.fullmatch(part) else part for part in parts if part) or "_"


def _check_size(zip: Archive) -> None:
    size = sum(entry.size for entry in zip.entries if texts.is_captions(entry))
    if size > MOST_BYTES:
        raise DatasetError(
            f"The captions in the ZIP take {size / MIB:,.0f} MiB; {MOST_BYTES // MIB} MiB is the limit.",
            "Leave out what is not a caption.",
        )


def _from_files(zip: Archive, images: Sequence[Picture]) -> dict[str, str]:
    found: dict[str, str] = {}
    file_of = _files_by_name(images)
    for entry in zip.entries:
        if entry.suffix not in texts.FILES:
            continue
        name = PurePosixPath(entry.name.casefold()).with_suffix(".txt").as_posix()
        file = next((file_of[end] for end in _endings(name) if end in file_of), None)
        if file is None:
            zip.ignore(entry.name, "no picture has this name")
        elif file in found:
            zip.ignore(entry.name, "is for a picture whose caption was found already")
        elif text := _text(zip, entry):
            found[file] = text
    return found


def _text(zip: Archive, entry: Entry) -> str:
    try:
        text = edits.tidy(texts.decode(zip.read(entry, texts.TEXT_BYTES))[0])
    except Unusable as reason:
        zip.ignore(entry.name, str(reason))
        return ""
    if not text:
        zip.ignore(entry.name, "is empty")
    return text


def _files_by_name(images: Sequence[Picture]) -> dict[str, str]:
    """What a `.txt` may be called for each picture: as we name it, else by its path or the end of it.

    Where a name fits several pictures, the surer way decides; one that fits two in the same way is not used.
    """
    whole = [PurePosixPath(image.source).with_suffix(".txt").as_posix() for image in images]
    ways = [
        [(name, image) for name, image in zip(text_names(images), images, strict=True)],
        [(f"{image.source}.txt", image) for image in images],
        [(name, image) for name, image in zip(whole, images, strict=True)],
        [(end, image) for name, image in zip(whole, images, strict=True) for end in _endings(name)],
    ]
    names: dict[str, str] = {}
    for way in ways:
        fitting: dict[str, set[str]] = {}
        for name, image in way:
            fitting.setdefault(name.casefold(), set()).add(image.file)
        for name, files in fitting.items():
            if len(files) == 1:
                names.setdefault(name, files.pop())
    return names


def _endings(name: str) -> Iterator[str]:
    """A path, and what is left of it without its first folder, and so on."""
    yield name
    while "/" in name:
        name = name.partition("/")[2]
        yield name
