"""Change pictures and ZIPs at random and read them: nothing may crash, hang or take much memory.

    python tests/bench/fuzz.py --count 5000 [--format WEBP] [--seed 1]

Each format is read in a process of its own; if that dies, the number of the file that did it is told, and the same
seed and number make the file again.
"""

import argparse
import io
import json
import random
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import pillow_heif  # noqa: E402
from PIL import Image  # noqa: E402

from finetune.dataset import apart, archive, intake, pictures, texts  # noqa: E402
from finetune.errors import DatasetError  # noqa: E402

TEXTS = {
    "TXT": (
        "a café by the lake",
        "рыжая кошка".encode("cp1251"),
        "赤い帽子をかぶった猫".encode("cp932"),
        "a café".encode("utf-16"),
        "a café".encode("utf-32"),
    ),
    "CSV": (
        'file_name,text\nb.png,"a cat, asleep"\n',
        "b.png;a cat\n",
        "image\tprompt\nb\ta cat\n".encode("utf-16-le"),
    ),
    "JSONL": ('{"file_name": "a/b.png", "text": "a cat"}\n{"image": "c.png", "caption": null}\n',),
    "JSON": (
        '{"C:\\\\x\\\\a\\\\b": {"caption": "a cat", "tags": "cat, sitting", "train_resolution": [512, 512]}}',
        '[{"file_name": "b.png", "text": ["a", "b"]}, {"file_name": "c.png"}]',
        '{"b.png": "a cat", "c.png": ["a", {}]}',
    ),
}
"""Files of captions, beside a picture a/b.png."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "ZIP", *TEXTS)
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
VARIANTS = {
    "PNG": ({}, {"mode": "P"}, {"mode": "I;16"}, {"mode": "LA"}, {"save_all": True}),
    "JPEG": ({}, {"progressive": True}, {"mode": "CMYK"}, {"mode": "L"}),
    "WEBP": ({}, {"lossless": True}, {"mode": "RGBA"}, {"save_all": True}),
    "GIF": ({}, {"save_all": True}),
    "BMP": ({}, {"mode": "P"}, {"mode": "1"}),
    "TIFF": (
        *({"compression": name} for name in ("raw", "tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate", "zstd")),
        {"compression": "group4", "mode": "1"},
        {"mode": "F"},
        {"mode": "CMYK"},
        {"save_all": True},
    ),
    "AVIF": ({}, {"mode": "RGBA"}, {"save_all": True}),
    "HEIF": ({}, {"mode": "RGBA"}, {"mode": "L"}),
}


def seeds(format: str) -> list[bytes]:
    """Good files of a format."""
    if format in TEXTS:
        return [text if isinstance(text, bytes) else text.encode() for text in TEXTS[format]]
    if format == "ZIP":
        return [_zip(method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    pillow_heif.register_heif_opener()
    made = []
    for variant in VARIANTS[format]:
        options = dict(variant)
        image = _noise(48).convert("L" if options.get("mode") == "I;16" else options.get("mode", "RGB"))
        image = image.convert("I;16") if options.pop("mode", "") == "I;16" else image
        if options.get("save_all"):
            options["append_images"] = [image.transpose(Image.Transpose.ROTATE_90)] * 3
        if not options and format not in ("GIF", "BMP"):
            exif = Image.Exif()
            exif[0x0112] = 6
            options = {"exif": exif.tobytes()}
        file = io.BytesIO()
        image.save(file, format, **options)
        made.append(file.getvalue())
    return made


def changed(content: bytes, rng: random.Random) -> bytes:
    """The same with something wrong in it."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(made))
        match rng.randrange(6):
            case 0:
                made[place] ^= 1 << rng.randrange(8)
            case 1:
                made[place] = rng.randrange(256)
            case 2:
                kind = rng.choice(("<H", ">H", "<I", ">I"))
                number = rng.choice(NUMBERS) & (0xFFFF if "H" in kind else 0xFFFFFFFF)
                made[place : place + struct.calcsize(kind)] = struct.pack(kind, number)
            case 3:
                del made[place : place + rng.randrange(1, 64)]
            case 4:
                made[place:place] = made[max(0, place - rng.randrange(1, 256)) : place]
            case 5 if rng.random() < 0.2:
                del made[place:]
        if not made:
            return b""
    return bytes(made)


def with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have right checksums, so that what is wrong in them is read."""
    made, place = bytearray(content), 8
    while place + 12 <= len(made):
        (size,) = struct.unpack(">I", made[place : place + 4])
        end = place + 8 + size
        if end + 4 > len(made):
            break
        made[end : end + 4] = struct.pack(">I", zlib.crc32(made[place + 4 : end]))
        place = end + 4
    return bytes(made)


def read_all(format: str, count: int, seed: int) -> None:
    """Read changed files of one format, under the limits of an upload; say the number of each before it."""
    good = seeds(format)
    apart.limit(archive.LIMITS)
    refused, slowest = 0, 0.0
    for number in range(count):
        rng = random.Random(f"{format} {seed} {number}")
        content = changed(rng.choice(good), rng)
        content = with_checksums(content) if format == "PNG" else content
        print(number, flush=True)
        started = time.monotonic()
        try:
            _read(format, content)
        except (archive.Unusable, DatasetError):
            refused += 1
        slowest = max(slowest, time.monotonic() - started)
    print(json.dumps({"format": format, "count": count, "refused": refused, "slowest_seconds": round(slowest, 3)}))


def _read(format: str, content: bytes) -> None:
    if format in TEXTS:
        _read_captions(format, content)
        return
    if format != "ZIP":
        pictures.check(content, archive.LIMITS)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.zip"
        path.write_bytes(content)
        intake.take(path, Path(folder), lambda done, of: None, archive.LIMITS)


def _read_captions(format: str, content: bytes) -> None:
    """Read captions beside a picture. Raises: Unusable when none of them is of use."""
    name = "a/b.txt" if format == "TXT" else f"captions.{format.lower()}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions"
        path.write_bytes(content)
        with archive.opened([("a/b.png", path), (name, path)], archive.LIMITS) as found:
            captions = texts.gather(found, [found.entries[0]])
            if not captions.of:
                raise archive.Unusable(found.ignored[0].reason)


def _noise(side: int) -> Image.Image:
    rng = random.Random(side)
    return Image.frombytes("RGB", (8, 8), rng.randbytes(192)).resize((side, side), Image.Resampling.BICUBIC)


def _zip(method: int) -> bytes:
    file, png = io.BytesIO(), io.BytesIO()
    _noise(32).save(png, "PNG")
    with zipfile.ZipFile(file, "w", method) as zip:
        zip.writestr("a/b.png", png.getvalue())
        zip.writestr("a/b.txt", "a thing")
        zip.writestr("metadata.jsonl", '{"file_name": "a/b.png", "text": "another"}')
    return file.getvalue()


def main() -> int:
    """Fuzz all formats asked for; returns the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=FORMATS)
    parser.add_argument("--json", action="store_true", help="print figures for programs")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        read_all(asked.format, asked.count, asked.seed)
        return 0
    figures, died = [], 0
    for format in [asked.format] if asked.format else FORMATS:
        figure = _watched(format, asked)
        died += "died" in figure
        figures.append(figure)
        if not asked.json:
            print(figure, flush=True)
    if asked.json:
        print(json.dumps(figures))
    return 1 if died else 0


def _watched(format: str, asked: argparse.Namespace) -> dict:
    import psutil

    words = [sys.executable, __file__, "--one", "--format", format, "--count", str(asked.count)]
    with tempfile.TemporaryFile() as log:
        process = psutil.Popen([*words, "--seed", str(asked.seed)], stdout=subprocess.PIPE, stderr=log)
        peak, last = 0, b""
        for line in process.stdout:
            last = line
            if line.strip().endswith(b"0") or len(line) > 8:
                with suppress(psutil.Error):
                    peak = max(peak, process.memory_info().rss)
        if process.wait() == 0:
            return {**json.loads(last), "peak_mib": peak // 2**20}
        log.seek(0)
        sys.stderr.write(log.read()[-4000:].decode(errors="replace"))
        return {"format": format, "died": process.returncode, "number": int(last or -1)}


if __name__ == "__main__":
    sys.exit(main())
