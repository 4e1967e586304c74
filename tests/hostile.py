"""ZIPs and pictures that nobody makes in good faith, built byte by byte, and what it costs to refuse them."""

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent
UTF8 = 0x800
STORED, DEFLATED = 0, 8
MIB = 2**20


@dataclass(frozen=True)
class Member:
    """A file of a ZIP; what is None is as the content says."""

    name: bytes
    content: bytes = b""
    method: int = DEFLATED
    flags: int = UTF8
    mode: int = 0
    packed: bytes | None = None
    size: int | None = None
    packed_size: int | None = None
    checksum: int | None = None
    local_name: bytes | None = None
    local_size: int | None = None
    offset: int | None = None
    extra: bytes = b""

    @property
    def data(self) -> bytes:
        """What lies in the ZIP."""
        if self.packed is not None:
            return self.packed
        return deflated(self.content) if self.method == DEFLATED else self.content

    def local(self) -> bytes:
        """The header before the data, and the data."""
        name = self.name if self.local_name is None else self.local_name
        size = self._size if self.local_size is None else self.local_size
        numbers = (20, self.flags, self.method, 0, 0x21, self._checksum, len(self.data), size, len(name), 0)
        return struct.pack("<4s5H3I2H", b"PK\3\4", *numbers) + name + self.data

    def central(self, offset: int) -> bytes:
        """The line in the list of files."""
        offset = offset if self.offset is None else self.offset
        packed = len(self.data) if self.packed_size is None else self.packed_size
        numbers = (0x314, 20, self.flags, self.method, 0, 0x21, self._checksum, packed, self._size, len(self.name))
        rest = (len(self.extra), 0, 0, 0, self.mode << 16, offset)
        return struct.pack("<4s6H3I5H2I", b"PK\1\2", *numbers, *rest) + self.name + self.extra

    @property
    def _size(self) -> int:
        return len(self.content) if self.size is None else self.size

    @property
    def _checksum(self) -> int:
        return zlib.crc32(self.content) if self.checksum is None else self.checksum


def deflated(content: bytes) -> bytes:
    """Raw deflate, as ZIPs hold it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def end(count: int, size: int, offset: int, comment: bytes = b"") -> bytes:
    """The end record of a ZIP."""
    few = min(count, 0xFFFF)
    return struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, few, few, size, offset, len(comment)) + comment


def zip_bytes(members: Sequence[Member], comment: bytes = b"") -> bytes:
    """A ZIP of these members, as they say."""
    data, lines = bytearray(), bytearray()
    for member in members:
        lines += member.central(len(data))
        data += member.local()
    return bytes(data + lines + end(len(members), len(lines), len(data), comment))


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: bytes, colour: int = 2, chunks: bytes = b"", depth: int = 8) -> bytes:
    """A PNG whose header promises a size, whatever its rows hold; `rows` is what is packed already."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    mark = b"\x89PNG\r\n\x1a\n"
    return mark + chunk(b"IHDR", header) + chunks + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def spent(path: Path, folder: Path) -> dict:
    """Read a ZIP in a process of its own without limits; returns its seconds, peak MiB and what it said."""
    program = (
        "import json, resource, sys, time; from pathlib import Path; from finetune.dataset import archive, intake\n"
        "from finetune.errors import DatasetError\n"
        "began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: said = intake.take(Path(sys.argv[1]), Path(sys.argv[2]), lambda *_: None, archive.LIMITS).as_dict()\n"
        "except DatasetError as error: said = {'error': str(error)}\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print(json.dumps({'seconds': time.monotonic() - began, 'mib': peak / 1024, 'said': said}))"
    )
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), str(folder)],
        cwd=PROJECT,
        capture_output=True,
        check=True,
        timeout=300,
    )
    return json.loads(done.stdout)
