"""The captions that came with the pictures: `.txt` files of the same name, or one table.

Separate because it knows text encodings and table layouts, and nothing about pictures.
"""

import codecs
import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from finetune.dataset.archive import Archive, Entry, Unusable

TABLES = {"captions.csv", "metadata.csv", "captions.jsonl", "metadata.jsonl"}
FILE_COLUMNS = ("file_name", "filename", "file", "image", "path")
TEXT_COLUMNS = ("caption", "text", "prompt")
TEXT_BYTES, TABLE_BYTES = 2**20, 8 * 2**20
LONGEST_CAPTION = 4000
"""More than any text encoder reads. Units: letters."""
_CUT = f"its caption was cut to {LONGEST_CAPTION:,} letters"
_NO_LETTERS = re.compile("[\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Halves of letters, which JSON can hold and no file, and what turns the direction of the words after it."""
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Caption:
    """What a picture shows, in whose words."""

    text: str
    source: str
    notes: tuple[str, ...] = ()


def is_table(entry: Entry) -> bool:
    """Whether a file is a table of captions."""
    return PurePosixPath(entry.name).name.lower() in TABLES


def gather(archive: Archive, pictures: list[Entry]) -> dict[str, Caption]:
    """Find the caption of each picture, by the picture's name; the ZIP's list of ignored files gets what is unusable.

    A picture's own `.txt` wins over a table.
    """
    captions: dict[str, Caption] = {}
    for entry in filter(is_table, archive.entries):
        try:
            captions |= _from_table(archive, entry, pictures)
        except Unusable as reason:
            archive.ignore(entry.name, str(reason))
    of_stem: dict[str, list[Entry]] = {}
    for picture in pictures:
        for key in {f"{picture.folder}/{picture.stem}".casefold(), f"/{picture.name}".casefold()}:
            of_stem.setdefault(key.lstrip("/"), []).append(picture)
    for entry in archive.entries:
        if entry.suffix == ".txt":
            found = of_stem.get(f"{entry.folder}/{entry.stem}".casefold().lstrip("/"), [])
            captions |= _from_file(archive, entry, found, captions)
    return captions


def decode(content: bytes) -> tuple[str, str]:
    """Read text in whichever encoding it was saved; the second value is a note if that was a guess.

    Raises: Unusable when it is no text.
    """
    note = ""
    try:
        for mark, encoding in _MARKS:
            if content.startswith(mark):
                return _printable(content.decode(encoding)), ""
        if 0 in content:
            return _printable(content.decode(_utf16_without_mark(content))), ""
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            text, note = content.decode("cp1252"), "its caption is not UTF-8 and was read as Windows-1252"
        return _printable(text), note
    except UnicodeError as error:
        raise Unusable("is not readable text; save it as UTF-8") from error


def _utf16_without_mark(content: bytes) -> str:
    """Latin text has a zero in every second byte, and which one tells the order."""
    half = len(content) / 2
    if content[1::2].count(0) > 0.6 * half and content[::2].count(0) < 0.1 * half:
        return "utf-16-le"
    if content[::2].count(0) > 0.6 * half and content[1::2].count(0) < 0.1 * half:
        return "utf-16-be"
    raise Unusable("is not readable text; save it as UTF-8")


def _printable(text: str) -> str:
    if any(letter < " " and not letter.isspace() for letter in text):
        raise Unusable("is not readable text; save it as UTF-8")
    return text


def _from_file(
    archive: Archive, entry: Entry, pictures: list[Entry], from_tables: dict[str, Caption]
) -> dict[str, Caption]:
    if not pictures:
        archive.ignore(entry.name, "no picture of this name lies beside it")
        return {}
    try:
        text, note = decode(archive.read(entry, TEXT_BYTES))
    except Unusable as reason:
        archive.ignore(entry.name, str(reason))
        return {}
    text, notes_of_text = _tidy(text, note)
    if not text:
        archive.ignore(entry.name, "is empty")
        return {}
    found = {}
    for picture in pictures:
        other, notes = from_tables.get(picture.name), notes_of_text
        if other and other.text != text:
            notes += (f"has two captions; the one of {entry.name} was taken, not of {other.source}",)
        found[picture.name] = Caption(text, entry.name, notes)
    return found


def _from_table(archive: Archive, entry: Entry, pictures: list[Entry]) -> dict[str, Caption]:
    text, note = decode(archive.read(entry, TABLE_BYTES))
    rows = _json_rows(archive, entry, text) if entry.suffix == ".jsonl" else _csv_rows(text)
    by_name = _names(entry.folder, pictures)
    captions: dict[str, Caption] = {}
    strangers, empty = [], []
    for name, caption in rows:
        name = unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))
        if (picture := by_name.get(name.casefold())) is None:
            strangers.append(name)
            continue
        words, notes = _tidy(caption, note)
        if words:
            captions[picture.name] = Caption(words, entry.name, notes)
        else:
            empty.append(name)
    if strangers:
        archive.ignore(entry.name, f"{_rows(strangers)} no picture of the ZIP: {_some(strangers)}")
    if empty:
        archive.ignore(entry.name, f"no caption in it for {_some(empty)}")
    return captions


def _names(folder: str, pictures: list[Entry]) -> dict[str, Entry]:
    """By which names a table may call a picture: its path from the table or the ZIP, its name, or its name's stem.

    Where a name fits several pictures, the surer way decides; a bare name that fits two is not used.
    """
    ways: list[list[tuple[str, Entry]]] = [
        [(picture.name.removeprefix(f"{folder}/"), picture) for picture in pictures],
        [(picture.name, picture) for picture in pictures],
        [(PurePosixPath(picture.name).name, picture) for picture in pictures],
        [(picture.stem, picture) for picture in pictures],
    ]
    names: dict[str, Entry] = {}
    for way in ways:
        found: dict[str, list[Entry]] = {}
        for name, picture in way:
            found.setdefault(name.casefold(), []).append(picture)
        for name, fitting in found.items():
            if len(fitting) == 1:
                names.setdefault(name, fitting[0])
    return names


def _csv_rows(text: str) -> Iterator[tuple[str, str]]:
    first_line = text.partition("\n")[0]
    delimiter = max(",;\t", key=first_line.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [title.strip().lower() for title in next(rows, [])]
        file, caption = _column(header, FILE_COLUMNS), _column(header, TEXT_COLUMNS)
        for row in rows:
            if any(cell.strip() for cell in row):
                cells = dict(zip(header, row, strict=False))
                yield cells.get(file, "").strip(), cells.get(caption, "")
    except csv.Error as error:
        raise Unusable(f"is not a readable table ({error})") from error


def _json_rows(archive: Archive, entry: Entry, text: str) -> Iterator[tuple[str, str]]:
    unreadable = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            cells = {str(key).lower(): value for key, value in json.loads(line).items()}
        except (ValueError, AttributeError, RecursionError):
            unreadable.append(f"line {number}")
            continue
        caption = cells[_column(cells, TEXT_COLUMNS)]
        yield str(cells[_column(cells, FILE_COLUMNS)]), caption if isinstance(caption, str) else ""
    if unreadable:
        archive.ignore(entry.name, f"{_some(unreadable)} cannot be read as JSON")


def _column(titles: Iterable[str], known: tuple[str, ...]) -> str:
    if found := next((title for title in known if title in titles), None):
        return found
    raise Unusable(f"needs a column “{FILE_COLUMNS[0]}” and a column “{TEXT_COLUMNS[0]}”")


def _tidy(text: str, note: str) -> tuple[str, tuple[str, ...]]:
    """Words with even blanks, without letters that are none, and the notes on them."""
    words = " ".join(_CONTROLS.sub(" ", _NO_LETTERS.sub("", text)).split())
    notes = (*([note] if note else []), *([_CUT] if len(words) > LONGEST_CAPTION else []))
    return words[:LONGEST_CAPTION].rstrip(), notes


def _rows(names: list[str]) -> str:
    return "a row is for" if len(names) == 1 else f"{len(names)} rows are for"


def _some(names: list[str]) -> str:
    shown = [_tidy(name[:80], "")[0] for name in names[:5]]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if names[5:] else "")
