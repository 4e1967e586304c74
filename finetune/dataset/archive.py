"""What was uploaded, a ZIP or files one by one: which files there are, in which order, and their bytes, safely.

Separate because everything here distrusts the upload, so that nothing after it has to. No file is ever written under a
name that the upload chose; names only order the pictures and match captions to them.
"""

import io
import itertools
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from finetune.dataset import letters
from finetune.errors import DatasetError

MIB = 2**20
CLUTTER = {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".spotlight-v100", ".trashes", ".fseventsd"}
PACKED = {".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz"}
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, struct.error, OverflowError)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Python unpacks these in bounded pieces. Of others, one megabyte becomes as many gigabytes in a single piece."""
SPECIAL = {
    stat.S_IFLNK: "a link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
ENCRYPTED = 0x1 | 0x40
IS_UTF8 = 0x800
UNICODE_PATH = 0x7075
"""The field in which some programs repeat a name in UTF-8."""
LOCAL_HEADER_BYTES = 30
LONGEST_NAME = 400
MOST_IGNORED = 500
"""How many files that were left out are listed one by one."""
REPACK = "Pack the pictures again, as a plain .zip, and upload that."
UNPACKED_FREELY = 64 * MIB
"""Up to here, how far a ZIP unpacks is nobody's business."""
Upload = Path | Sequence[tuple[str, Path]]
"""A ZIP; or files, each under the name that it had where it comes from, folders included."""


@dataclass(frozen=True)
class Limits:
    """What one dataset may ask of this machine. Units: bytes, seconds, and pixels of one picture."""

    pictures: int = 1000
    files: int = 20_000
    directory_bytes: int = 8 * MIB
    """Of the ZIP's list of files."""
    total_bytes: int = 16 * 1024 * MIB
    file_bytes: int = 512 * MIB
    unpacked_ratio: int = 200
    pixels: int = 20_000 * 20_000
    total_pixels: int = 24_000_000_000
    """Of all pictures together: a thousand of a good camera."""
    decoded_bytes: int = 1024 * MIB
    process_bytes: int = 3 * 1024 * MIB
    """Of memory, for all that is done with one ZIP."""
    file_seconds: int = 60
    seconds: int = 1800


LIMITS = Limits()


class Unusable(Exception):
    """One file of the ZIP cannot be used; its text is the reason. The rest goes on."""


@dataclass(frozen=True)
class Ignored:
    """A file that was left out, and why."""

    file: str
    reason: str
    count: int = 1
    """Of how many files this is said."""


@dataclass(frozen=True)
class Entry:
    """A file of the upload, under its readable name."""

    name: str
    source: zipfile.ZipInfo | Path

    @property
    def size(self) -> int:
        """What it says, for a file in a ZIP."""
        return self.source.stat().st_size if isinstance(self.source, Path) else self.source.file_size

    @property
    def packed_size(self) -> int:
        """What it takes in the ZIP."""
        return self.size if isinstance(self.source, Path) else self.source.compress_size

    @property
    def folder(self) -> str:
        return self.name.rpartition("/")[0]

    @property
    def stem(self) -> str:
        return self.name.rpartition("/")[2].rpartition(".")[0] or self.name.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return Path(self.name.rpartition("/")[2]).suffix.lower()


@dataclass
class Archive:
    """An open upload: its usable files in natural order, and what was left out."""

    zip: zipfile.ZipFile | None
    """None for files one by one."""
    size: int
    limits: Limits
    entries: list[Entry] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)
    more_ignored: int = 0
    unpacked: int = 0

    @property
    def kind(self) -> str:
        """What it is called."""
        return "ZIP" if self.zip else "upload"

    def ignore(self, file: str, reason: str, count: int = 1) -> None:
        """Note a file that is left out, or several of one kind; of thousands, the first."""
        if len(self.ignored) < MOST_IGNORED:
            self.ignored.append(Ignored(file, reason, count))
        else:
            self.more_ignored += count

    def left_out(self) -> tuple[Ignored, ...]:
        """What was left out, the last entry for all that are not listed."""
        if not self.more_ignored:
            return tuple(self.ignored)
        count = self.more_ignored
        return (*self.ignored, Ignored("…", f"{count:,} more file{' was' if count == 1 else 's were'} left out", count))

    def read(self, entry: Entry, most_bytes: int | None = None) -> bytes:
        """Unpack one file into memory, counting real bytes.

        Raises: Unusable for this file alone; DatasetError when the ZIP as a whole is not worth going on with.
        """
        most_bytes = min(most_bytes or self.limits.file_bytes, self.limits.file_bytes)
        content = io.BytesIO()
        try:
            if entry.size > most_bytes:
                if entry.size > self.limits.unpacked_ratio * max(1, entry.packed_size):
                    raise self._bomb(entry)
                raise Unusable(f"is larger than {most_bytes // MIB} MiB")
            with self._open(entry) as file:
                while block := file.read(MIB):
                    content.write(block)
                    self._count(len(block), entry)
        except (NotImplementedError, RuntimeError, *DAMAGED) as error:
            raise Unusable("is damaged inside the ZIP" if self.zip else "cannot be read from the disk") from error
        return content.getvalue()

    def _open(self, entry: Entry) -> BinaryIO:
        return entry.source.open("rb") if isinstance(entry.source, Path) else self.zip.open(entry.source)

    def _count(self, count: int, entry: Entry) -> None:
        self.unpacked += count
        if self.unpacked > max(UNPACKED_FREELY, self.limits.unpacked_ratio * self.size):
            raise self._bomb(entry)
        if self.unpacked > self.limits.total_bytes:
            most = self.limits.total_bytes / 2**30
            raise DatasetError(f"The {self.kind} comes to more than {most:.0f} GiB.", "Use fewer or smaller pictures.")

    def _bomb(self, entry: Entry) -> DatasetError:
        return DatasetError(
            f"The ZIP unpacks to more than {self.limits.unpacked_ratio} times its size (at “{entry.name}”).",
            "Such ZIPs fill disks, so it was not unpacked. If it is yours, save its pictures as PNG or JPEG.",
            entry.name,
        )


class _File(io.BufferedReader):
    """A ZIP on the disk, whose list of files Python would read into memory whatever its size."""

    def __init__(self, path: Path, limits: Limits) -> None:
        super().__init__(io.FileIO(path))
        self._size, self._limits = path.stat().st_size, limits

    def read(self, size: int | None = -1) -> bytes:
        if (size or 0) > self._size:
            raise zipfile.BadZipFile("more is asked for than there is")
        if (size or 0) > self._limits.directory_bytes:
            raise _too_many(f"The ZIP holds a list of {size / MIB:,.0f} MiB of files", self._limits)
        return super().read(size)


@contextmanager
def opened(upload: Upload, limits: Limits) -> Iterator[Archive]:
    """Open an upload and list what can be used. Raises: DatasetError when it is no files and no whole, open ZIP."""
    if (path := _zip_of(upload)) is None:
        yield _loose(upload, limits)
        return
    size = path.stat().st_size
    if size == 0:
        raise DatasetError("The file is empty (0 bytes).", "The upload may have been cut off: try again.")
    with _File(path, limits) as file:
        try:
            packed = zipfile.ZipFile(file)
        except (*DAMAGED, NotImplementedError) as error:
            raise _not_a_zip(path) from error
        if len(packed.filelist) > limits.files:
            raise _too_many(f"The ZIP holds {len(packed.filelist):,} files", limits)
        _check_overlaps(packed)
        archive = Archive(packed, size, limits)
        _list(archive, zip(_names(packed.filelist), packed.filelist, strict=True))
        yield archive


def files(paths: Iterable[Path], most: int = LIMITS.files) -> list[tuple[str, Path]]:
    """All files of some files and folders, under names that begin with the folder's; of too many, one more than `most`.

    What is in a folder and is no file, such as a link to another folder, is among them, to be listed. Raises: OSError.
    """
    return list(itertools.islice(itertools.chain.from_iterable(_files(path) for path in paths), most + 1))


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        yield path.name, path
        return
    above = path.resolve().parent
    for folder, folders, names in os.walk(path.resolve(), onerror=_give_up):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for found in (Path(folder) / name for name in [*names, *links]):
            yield found.relative_to(above).as_posix(), found


def _give_up(error: OSError) -> None:
    raise error


def _zip_of(upload: Upload) -> Path | None:
    """The ZIP that an upload is; None for files one by one."""
    if isinstance(upload, Path):
        return upload
    if len(upload) != 1 or not upload[0][1].is_file():
        return None
    name, path = upload[0]
    if Path(name).suffix.lower() in PACKED:
        return path
    with path.open("rb") as file:
        return path if file.read(4) in (b"PK\3\4", b"PK\5\6") else None


def _loose(upload: Sequence[tuple[str, Path]], limits: Limits) -> Archive:
    """Files that are no ZIP; two of one name both count, as those that were dropped one after the other may be."""
    if len(upload) > limits.files:
        raise _too_many(f"There are more than {limits.files:,} files", limits)
    archive = Archive(None, sum(path.stat().st_size for _, path in upload if path.is_file()), limits)
    names: Counter[str] = Counter()
    listed = []
    for given, path in upload:
        name = _readable(given)
        names[name] += 1
        stem, dot, suffix = name.rpartition(".")
        if names[name] > 1:
            name = f"{stem} ({names[name]}){dot}{suffix}" if stem else f"{name} ({names[name]})"
        listed.append((name, path))
    _list(archive, listed)
    return archive


def _too_many(files: str, limits: Limits) -> DatasetError:
    return DatasetError(f"{files}; {limits.files:,} is the limit.", REPACK)


def _check_overlaps(file: zipfile.ZipFile) -> None:
    """Refuse a ZIP in which several files share the same bytes, as no packing program makes it."""
    infos = sorted(file.filelist, key=lambda info: info.header_offset)
    ends = [*(info.header_offset for info in infos[1:]), file.start_dir]
    for info, end in zip(infos, ends, strict=False):
        if info.header_offset + LOCAL_HEADER_BYTES + info.compress_size > end:
            name = _short(_readable(info.orig_filename))
            raise DatasetError(f"Files lie on top of each other in the ZIP (at “{name}”).", REPACK, name)


def _not_a_zip(path: Path) -> DatasetError:
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            return DatasetError("The ZIP is damaged: its list of files cannot be read.", f"It may be cut off. {REPACK}")
    return DatasetError("The file is not a ZIP.", "Pack the pictures as .zip; RAR, 7z and tar are not read.")


def _encrypted() -> DatasetError:
    return DatasetError("The ZIP is protected by a password.", "Pack it again without one.")


def _list(archive: Archive, found: Iterable[tuple[str, zipfile.ZipInfo | Path]]) -> None:
    clutter: list[str] = []
    known: set[str] = set()
    for name, source in found:
        name = name.removeprefix("./")
        if name.endswith("/"):
            continue
        if _is_clutter(name):
            clutter.append(_short(name))
        elif reason := _reason_against(name, source):
            archive.ignore(_short(name) or "(no name)", reason)
        elif archive.zip and source.flag_bits & ENCRYPTED:
            raise _encrypted()
        elif name in known:
            archive.ignore(name, "has the name of another file in the ZIP")
        else:
            known.add(name)
            archive.entries.append(Entry(name, source))
    archive.entries.sort(key=lambda entry: natural_order(entry.name))
    if clutter:
        files = "a file" if len(clutter) == 1 else f"{len(clutter)} files"
        shown = ", ".join(clutter[:2]) + (" …" if clutter[2:] else "")
        archive.ignore(shown, f"{files} that macOS or Windows added, not a picture", len(clutter))


def _names(infos: Sequence[zipfile.ZipInfo]) -> Iterator[str]:
    """The names of a ZIP's files: UTF-8 when the ZIP says so; else as one encoding makes words of all of them."""
    raw = [b"" if info.flag_bits & IS_UTF8 else info.orig_filename.encode("cp437") for info in infos]
    unclear = b"\n".join(name.rpartition(b".")[0] or name for name in raw if not _is_utf8(name))
    encoding = letters.guess(unclear, letters.OF_NAMES) or "cp437"
    for info, name in zip(infos, raw, strict=True):
        if not name:
            yield _readable(info.orig_filename)
        else:
            told = _unicode_path(info, name)
            yield _readable(told or name.decode("utf-8" if _is_utf8(name) else encoding, "replace"))


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _unicode_path(info: zipfile.ZipInfo, name: bytes) -> str:
    """The name as it is repeated in UTF-8, if it is, and belongs to this name."""
    extra = info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        content, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and content[:5] == struct.pack("<BL", 1, zlib.crc32(name)) and _is_utf8(content[5:]):
            return content[5:].decode("utf-8")
    return ""


def _readable(name: str) -> str:
    """A name with “/” between folders; what cannot be seen, or turns the direction of what follows, is replaced."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    return "".join(letter if letter.isprintable() else "�" for letter in name)


def _short(name: str) -> str:
    """A name as it can be shown, however long it is."""
    return name if len(name) <= LONGEST_NAME else f"{name[:60]} … {name[-20:]}"


def _is_clutter(name: str) -> bool:
    parts = name.lower().split("/")
    return "__macosx" in parts or parts[-1].startswith("._") or any(part in CLUTTER for part in parts)


def _reason_against(name: str, source: zipfile.ZipInfo | Path) -> str:
    if not name:
        return "has no name"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "its name is a path of a disk, not of the ZIP"
    if ".." in name.split("/"):
        return "its name climbs out of the ZIP"
    if kind := _kind(source):
        return f"is {kind}, not a file"
    if len(name) > LONGEST_NAME:
        return f"its name is longer than {LONGEST_NAME} letters"
    if Path(name).suffix.lower() in PACKED:
        if isinstance(source, Path):
            return "is an archive among other files; upload it alone, or unpack it first"
        return "is an archive inside the ZIP; unpack it and put its pictures into the ZIP"
    if isinstance(source, zipfile.ZipInfo) and source.compress_type not in METHODS:
        return "is compressed in a way that is not read; pack it the normal way"
    return ""


def _kind(source: zipfile.ZipInfo | Path) -> str:
    """What it is if it is no file."""
    if isinstance(source, Path):
        return "" if source.is_file() else "a folder, a broken link or a device"
    return SPECIAL.get(stat.S_IFMT(source.external_attr >> 16), "")


def natural_order(name: str) -> tuple[object, ...]:
    """Sort key by which img2 comes before img10 and a folder's pictures stay together."""
    return (*(tuple(_pieces(part)) for part in name.split("/")), name)


def _pieces(part: str) -> Iterator[tuple[int, int, str]]:
    for piece in re.split(r"([0-9]+)", part.casefold()):
        digits = piece.lstrip("0") if piece.isascii() and piece.isdigit() else None
        yield (1, 0, piece) if digits is None else (0, len(digits), digits)
