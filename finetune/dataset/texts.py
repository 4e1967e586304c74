"""The captions that came with the pictures: text files of the same name, or tables.

Separate because it knows text encodings and what tables look like that people and other trainers write, and nothing
about pictures.
"""

import codecs
import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from finetune.dataset import letters
from finetune.dataset.archive import Archive, Entry, Unusable

FILES = (".caption", ".txt")
"""Of one caption for the picture of that name; the last one wins."""
TABLES = (".csv", ".tsv", ".jsonl")
JSON_TABLES = {"captions.json", "metadata.json", "meta_cap.json", "meta_lat.json", "meta_clean.json"}
"""The last three are kohya’s. Other files of this kind are settings more often than captions."""
FILE_COLUMNS = ("file_name", "filename", "file", "image", "path", "image_path", "file_path", "img")
TEXT_COLUMNS = ("caption", "text", "prompt", "description", "tags")
TEXT_BYTES, TABLE_BYTES = 2**20, 8 * 2**20
LONGEST_CAPTION = 4000
"""More than any text encoder reads. Units: letters."""
SHARES, GUESSED = "shares the caption of", "its caption is not UTF-8"
_DEEPEST = 8
"""How many folders of a name are compared."""
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


@dataclass
class Captions:
    """All captions that were found, by the names of the pictures, and which file had one for which pictures."""

    of: dict[str, Caption] = field(default_factory=dict)
    files: dict[str, set[str]] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    """What is to be said of a file as a whole."""

    def add(self, picture: str, caption: Caption) -> None:
        """Let a picture have a caption; one that it had before gives way, and a note says so."""
        self.files.setdefault(caption.source, set()).add(picture)
        other = self.of.get(picture)
        if other and other.text != caption.text:
            note = f"has two captions; the one of {caption.source} was taken, not of {other.source}"
            caption = replace(caption, notes=(*caption.notes, note))
        self.of[picture] = caption


Reader = Callable[[Archive, Entry, Captions, list[Entry]], list[str]]
"""Adds what a file holds, and returns what is to be said of it. Raises: Unusable."""


def is_captions(entry: Entry) -> bool:
    """Whether a file may hold captions."""
    return entry.suffix in FILES or is_table(entry)


def is_table(entry: Entry) -> bool:
    """Whether a file may be a table of captions."""
    return entry.suffix in TABLES or PurePosixPath(entry.name).name.lower() in JSON_TABLES


def gather(archive: Archive, pictures: list[Entry]) -> Captions:
    """Find the caption of each picture; the archive's list of ignored files gets the files without any.

    A picture's own file wins over a table.
    """
    captions = Captions()
    for entry in filter(is_table, archive.entries):
        _try(archive, entry, captions, pictures, _from_table)
    beside: dict[str, list[Entry]] = {}
    for picture in pictures:
        for key in {f"{picture.folder}/{picture.stem}".casefold(), f"/{picture.name}".casefold()}:
            beside.setdefault(key.lstrip("/"), []).append(picture)
    for suffix in FILES:
        for entry in archive.entries:
            if entry.suffix == suffix:
                found = beside.get(f"{entry.folder}/{entry.stem}".casefold().lstrip("/"), [])
                _try(archive, entry, captions, found, _from_file)
    return captions


def _try(archive: Archive, entry: Entry, captions: Captions, pictures: list[Entry], read: Reader) -> None:
    """Read a file of captions; one without any is ignored, with all that was remarked on it as the reason."""
    try:
        remarks = read(archive, entry, captions, pictures)
    except Unusable as reason:
        remarks = [str(reason)]
    if entry.name in captions.files:
        captions.remarks[entry.name] = remarks
    else:
        archive.ignore(entry.name, "; ".join(remarks) or "is empty")


def decode(content: bytes) -> tuple[str, str]:
    """Read text in whichever encoding it was saved; the second value is a note if that was a guess.

    Raises: Unusable when it is no text.
    """
    try:
        for mark, encoding in _MARKS:
            if content.startswith(mark):
                return _printable(content.decode(encoding)), ""
        if 0 in content:
            return _printable(content.decode(_utf16_without_mark(content))), ""
        try:
            return _printable(content.decode("utf-8")), ""
        except UnicodeDecodeError:
            encoding = letters.guess(content, letters.OF_TEXTS)
        if not encoding:
            raise Unusable("is not readable text; save it as UTF-8")
        text = _printable(content.decode(encoding))
        return text, f"{GUESSED} and was read as {letters.NAMES[encoding]}"
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


def _from_file(archive: Archive, entry: Entry, captions: Captions, pictures: list[Entry]) -> list[str]:
    if not pictures:
        raise Unusable("no picture of this name lies beside it")
    text, note = decode(archive.read(entry, TEXT_BYTES))
    words, notes = _tidy(text, note)
    for picture in pictures if words else []:
        others = [other.name for other in pictures if other is not picture]
        shared = (f"{SHARES} {', '.join(others)}",) if others else ()
        captions.add(picture.name, Caption(words, entry.name, (*notes, *shared)))
    return []


def _from_table(archive: Archive, entry: Entry, captions: Captions, pictures: list[Entry]) -> list[str]:
    text, note = decode(archive.read(entry, TABLE_BYTES))
    by_name = _names(entry.folder, pictures)
    strangers, empty, again, remarks = [], [], [], []
    found: dict[str, Caption] = {}
    for name, caption in _table_rows(entry, text, by_name, remarks):
        picture = _find(by_name, name)
        words, notes = _tidy(caption, note)
        if picture is None:
            strangers.append(name)
        elif not words:
            empty.append(name)
        elif picture.name in found:
            again.append(name)
        else:
            found[picture.name] = Caption(words, entry.name, notes)
    for name, caption in found.items():
        captions.add(name, caption)
    if strangers:
        remarks.append(f"{_rows(strangers)} no picture of the {archive.kind}: {_some(strangers)}")
    if empty:
        remarks.append(f"no caption in it for {_some(empty)}")
    if again:
        remarks.append(f"the first row of each picture counts, not a later one for {_some(again)}")
    return remarks


def _names(folder: str, pictures: list[Entry]) -> dict[str, Entry]:
    """By which names a table may call a picture: its path from the table or the ZIP, or the end of that, in each case
    with the ending or without.

    Where a name fits several pictures, the surer way decides; an end that fits two is not used.
    """
    ways: list[list[tuple[str, Entry]]] = [
        [(picture.name.removeprefix(f"{folder}/"), picture) for picture in pictures],
        [(picture.name, picture) for picture in pictures],
        [(end, picture) for picture in pictures for end in _ends(picture.name)],
        [(end, picture) for picture in pictures for end in _ends(f"{picture.folder}/{picture.stem}".lstrip("/"))],
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


def _find(by_name: Mapping[str, Entry], name: str) -> Entry | None:
    """The picture that a table means; of a path on somebody's disk, the end decides."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./")).casefold()
    return by_name.get(name) or next(filter(None, map(by_name.get, _ends(name))), None)


def _ends(name: str) -> list[str]:
    """The path without its first folder, without the first two, and so on to the name alone."""
    parts = name.rsplit("/", _DEEPEST)[-_DEEPEST:]
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _table_rows(entry: Entry, text: str, by_name: Mapping[str, Entry], remarks: list[str]) -> Iterator[tuple[str, str]]:
    if entry.suffix == ".jsonl":
        return _json_lines(text, remarks)
    return _json_rows(text, remarks) if entry.suffix == ".json" else _csv_rows(text, by_name)


def _csv_rows(text: str, by_name: Mapping[str, Entry] | None = None) -> Iterator[tuple[str, str]]:
    """Rows of a table with titles; or without, if the first cell names a picture: then the second is its caption."""
    first_line = text.partition("\n")[0]
    delimiter = max(",;\t", key=first_line.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        first = next(rows, [])
        header = [title.strip().lower() for title in first]
        if by_name and len(first) > 1 and _find(by_name, first[0].strip()):
            header = ["file", "caption"]
            yield first[0].strip(), first[1]
        file, caption = _column(header, FILE_COLUMNS), _column(header, TEXT_COLUMNS)
        for row in rows:
            if any(cell.strip() for cell in row):
                cells = dict(zip(header, row, strict=False))
                yield cells.get(file, "").strip(), cells.get(caption, "")
    except csv.Error as error:
        raise Unusable(f"is not a readable table ({error})") from error


def _json_lines(text: str, remarks: list[str]) -> Iterator[tuple[str, str]]:
    unreadable = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield _cells(json.loads(line))
        except (ValueError, AttributeError, RecursionError):
            unreadable.append(f"line {number}")
        except Unusable as reason:
            unreadable.append(f"line {number} ({reason})")
    if unreadable:
        remarks.append(f"{_some(unreadable)} cannot be read as JSON")


def _json_rows(text: str, remarks: list[str]) -> Iterator[tuple[str, str]]:
    """A list of rows; or captions by name, each the words alone or what kohya knows of a picture."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unusable("cannot be read as JSON") from error
    unreadable = 0
    for name, value in values.items() if isinstance(values, dict) else [(None, row) for row in _listed(values)]:
        try:
            yield (str(name), _words(value)) if name is not None else _cells(value)
        except (AttributeError, Unusable):
            unreadable += 1
    if unreadable:
        remarks.append(f"{unreadable:,} of its rows cannot be read")


def _listed(values: Any) -> Sequence[Any]:
    if isinstance(values, list):
        return values
    raise Unusable("holds no captions by the names of pictures")


def _cells(row: dict[str, Any]) -> tuple[str, str]:
    cells = {str(key).lower(): value for key, value in row.items()}
    file, caption = _column(cells, FILE_COLUMNS), _column(cells, TEXT_COLUMNS)
    return str(cells[file]), _text(cells[caption])


def _words(value: Any) -> str:
    """A caption by itself, or kohya's caption and tags, which it joins in this way."""
    if not isinstance(value, dict):
        return _text(value)
    return ", ".join(filter(None, (_text(value.get("caption")), _text(value.get("tags")))))


def _text(value: Any) -> str:
    """Words; of a list, as tags are."""
    if isinstance(value, list):
        return ", ".join(word for word in value if isinstance(word, str))
    return value if isinstance(value, str) else ""


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
