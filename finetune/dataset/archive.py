"""The ZIP as it was uploaded: which files it holds, in which order, and their bytes, safely.

Separate because everything here distrusts the ZIP, so that nothing after it has to. No file is ever written under a
name that the ZIP chose; names only order the pictures and match captions to them.
"""

import io
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

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
LOCAL_HEADER_BYTES = 30
LONGEST_NAME = 400
MOST_IGNORED = 500
"""How many files that were left out are listed one by one."""
REPACK = "Pack the pictures again, as a plain .zip, and upload that."
UNPACKED_FREELY = 64 * MIB
"""Up to here, how far a ZIP unpacks is nobody's business."""


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


@dataclass(frozen=True)
class Entry:
    """A file in the ZIP, under its readable name."""

    name: str
    info: zipfile.ZipInfo

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
    """An open ZIP: its usable files in natural order, and what was left out."""

    zip: zipfile.ZipFile
    size: int
    limits: Limits
    entries: list[Entry] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)
    more_ignored: int = 0
    unpacked: int = 0

    def ignore(self, file: str, reason: str) -> None:
        """Note a file that is left out; of thousands, the first."""
        if len(self.ignored) < MOST_IGNORED:
            self.ignored.append(Ignored(file, reason))
        else:
            self.more_ignored += 1

    def left_out(self) -> tuple[Ignored, ...]:
        """What was left out, the last entry for all that are not listed."""
        if not self.more_ignored:
            return tuple(self.ignored)
        count = self.more_ignored
        return (*self.ignored, Ignored("…", f"{count:,} more file{' was' if count == 1 else 's were'} left out"))

    def read(self, entry: Entry, most_bytes: int | None = None) -> bytes:
        """Unpack one file into memory, counting real bytes.

        Raises: Unusable for this file alone; DatasetError when the ZIP as a whole is not worth going on with.
        """
        most_bytes = min(most_bytes or self.limits.file_bytes, self.limits.file_bytes)
        if entry.info.file_size > most_bytes:
            if entry.info.file_size > self.limits.unpacked_ratio * max(1, entry.info.compress_size):
                raise self._bomb(entry)
            raise Unusable(f"is larger than {most_bytes // MIB} MiB")
        content = io.BytesIO()
        try:
            with self.zip.open(entry.info) as file:
                while block := file.read(MIB):
                    content.write(block)
                    self._count(len(block), entry)
        except (NotImplementedError, RuntimeError, *DAMAGED) as error:
            raise Unusable("is damaged inside the ZIP") from error
        return content.getvalue()

    def _count(self, count: int, entry: Entry) -> None:
        self.unpacked += count
        if self.unpacked > max(UNPACKED_FREELY, self.limits.unpacked_ratio * self.size):
            raise self._bomb(entry)
        if self.unpacked > self.limits.total_bytes:
            most = self.limits.total_bytes / 2**30
            raise DatasetError(f"The ZIP unpacks to more than {most:.0f} GiB.", "Use fewer or smaller pictures.")

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
            raise _too_many(f"a list of {size / MIB:,.0f} MiB of files", self._limits)
        return super().read(size)


@contextmanager
def opened(path: Path, limits: Limits) -> Iterator[Archive]:
    """Open a ZIP and list what can be used. Raises: DatasetError when it is not a whole, open ZIP."""
    size = path.stat().st_size
    if size == 0:
        raise DatasetError("The file is empty (0 bytes).", "The upload may have been cut off: try again.")
    with _File(path, limits) as file:
        try:
            zip = zipfile.ZipFile(file)
        except (*DAMAGED, NotImplementedError) as error:
            raise _not_a_zip(path) from error
        if len(zip.filelist) > limits.files:
            raise _too_many(f"{len(zip.filelist):,} files", limits)
        _check_overlaps(zip)
        archive = Archive(zip, size, limits)
        _list(archive)
        yield archive


def _too_many(files: str, limits: Limits) -> DatasetError:
    return DatasetError(f"The ZIP holds {files}; {limits.files:,} is the limit.", REPACK)


def _check_overlaps(file: zipfile.ZipFile) -> None:
    """Refuse a ZIP in which several files share the same bytes, as no packing program makes it."""
    infos = sorted(file.filelist, key=lambda info: info.header_offset)
    ends = [*(info.header_offset for info in infos[1:]), file.start_dir]
    for info, end in zip(infos, ends, strict=False):
        if info.header_offset + LOCAL_HEADER_BYTES + info.compress_size > end:
            name = _short(_readable_name(info))
            raise DatasetError(f"Files lie on top of each other in the ZIP (at “{name}”).", REPACK, name)


def _not_a_zip(path: Path) -> DatasetError:
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            return DatasetError("The ZIP is damaged: its list of files cannot be read.", f"It may be cut off. {REPACK}")
    return DatasetError("The file is not a ZIP.", "Pack the pictures as .zip; RAR, 7z and tar are not read.")


def _encrypted() -> DatasetError:
    return DatasetError("The ZIP is protected by a password.", "Pack it again without one.")


def _list(archive: Archive) -> None:
    clutter: list[str] = []
    known: set[str] = set()
    for info in archive.zip.filelist:
        name = _readable_name(info).removeprefix("./")
        if name.endswith("/"):
            continue
        if _is_clutter(name):
            clutter.append(_short(name))
        elif reason := _reason_against(name, info):
            archive.ignore(_short(name) or "(no name)", reason)
        elif info.flag_bits & ENCRYPTED:
            raise _encrypted()
        elif name in known:
            archive.ignore(name, "has the name of another file in the ZIP")
        else:
            known.add(name)
            archive.entries.append(Entry(name, info))
    archive.entries.sort(key=lambda entry: natural_order(entry.name))
    if clutter:
        files = "a file" if len(clutter) == 1 else f"{len(clutter)} files"
        shown = ", ".join(clutter[:2]) + (" …" if clutter[2:] else "")
        archive.ignore(shown, f"{files} that macOS or Windows added, not a picture")


def _readable_name(info: zipfile.ZipInfo) -> str:
    """Names are UTF-8 when the ZIP says so; some programs write UTF-8 without saying, others backslashes.

    What cannot be seen, or turns the direction of what is written after it, is replaced.
    """
    name = info.orig_filename
    if not info.flag_bits & 0x800:
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = info.orig_filename
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    return "".join(letter if letter.isprintable() else "�" for letter in name)


def _short(name: str) -> str:
    """A name as it can be shown, however long it is."""
    return name if len(name) <= LONGEST_NAME else f"{name[:60]} … {name[-20:]}"


def _is_clutter(name: str) -> bool:
    parts = name.lower().split("/")
    return "__macosx" in parts or parts[-1].startswith("._") or any(part in CLUTTER for part in parts)


def _reason_against(name: str, info: zipfile.ZipInfo) -> str:
    if not name:
        return "has no name"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "its name is a path of a disk, not of the ZIP"
    if ".." in name.split("/"):
        return "its name climbs out of the ZIP"
    if kind := SPECIAL.get(stat.S_IFMT(info.external_attr >> 16)):
        return f"is {kind}, not a file"
    if len(name) > LONGEST_NAME:
        return f"its name is longer than {LONGEST_NAME} letters"
    if Path(name).suffix.lower() in PACKED:
        return "is an archive inside the ZIP; unpack it and put its pictures into the ZIP"
    if info.compress_type not in METHODS:
        return "is compressed in a way that is not read; pack it the normal way"
    return ""


def natural_order(name: str) -> tuple[object, ...]:
    """Sort key by which img2 comes before img10 and a folder's pictures stay together."""
    return (*(tuple(_pieces(part)) for part in name.split("/")), name)


def _pieces(part: str) -> Iterator[tuple[int, int, str]]:
    for piece in re.split(r"([0-9]+)", part.casefold()):
        digits = piece.lstrip("0") if piece.isascii() and piece.isdigit() else None
        yield (1, 0, piece) if digits is None else (0, len(digits), digits)
