"""A picture that means harm: each kind is refused or becomes plain pixels, in bounded time and memory.

More facts about pictures are in `test_dataset.py`; `bench/fuzz.py` changes thousands of them at random.
"""

import json
import struct
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path

import hostile
import pillow_heif
import pytest
from hostile import MIB, Member, chunk, png
from pictures import encoded, picture
from PIL import Image, ImageCms, PngImagePlugin

from finetune import dataset, runs
from finetune.dataset import Limits, intake, pictures
from finetune.dataset.archive import Unusable

here = partial(dataset.unpack, take=intake.take)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
OTHERS = ("EPS", "PDF", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS", "JPEG2000", "ICNS", "IM", "SPIDER", "QOI")
MARK = b"40.7128N-74.0060W"
ROW = zlib.compress(bytes(1000))
pillow_heif.register_heif_opener()


@pytest.fixture
def run(tmp_path):
    return runs.create(tmp_path / "runs")


@pytest.fixture
def spent(tmp_path):
    """What it costs to read a ZIP with one good picture and this one, without limits of the system."""

    def spent(content, method=hostile.DEFLATED):
        members = [Member(b"a.png", encoded(picture())), Member(b"b.png", content, method)]
        (tmp_path / "in.zip").write_bytes(hostile.zip_bytes(members))
        return hostile.spent(tmp_path / "in.zip", tmp_path / "out")

    return spent


def claimed(format, width, height):
    """A small picture whose header promises another size."""
    content = bytearray(encoded(picture(), format))
    if format == "PNG":
        return png(width, height, ROW)
    if format == "JPEG":
        place = next(at for at in range(len(content)) if content[at : at + 2] == b"\xff\xc0")
        content[place + 5 : place + 9] = struct.pack(">HH", height, width)
    elif format == "WEBP":
        place = content.index(b"VP8 ") + 14
        content[place : place + 4] = struct.pack("<HH", width, height)
    elif format == "GIF":
        content[6:10] = struct.pack("<HH", width, height)
    elif format == "BMP":
        content[18:26] = struct.pack("<ii", width, height)
    elif format == "TIFF":
        return tiff({256: width, 257: height})
    else:
        place = content.index(b"ispe") + 8
        content[place : place + 8] = struct.pack(">II", width, height)
    return bytes(content)


def tiff(changes, data=bytes(3072)):
    """A TIFF of 32 x 32 pixels with other tags: numbers, or (type, count, value)."""
    tags = {256: 32, 257: 32, 258: 8, 259: 1, 262: 2, 273: 8, 277: 3, 278: 32, 279: len(data), **changes}
    lines = b""
    for tag, value in sorted(tags.items()):
        kind, count, number = value if isinstance(value, tuple) else (4, 1, value)
        lines += struct.pack("<HHII", tag, kind, count, number)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + lines + bytes(4)


# --- bombs


@pytest.mark.parametrize(
    ("format", "width", "height"),
    [(name, 30_000, 30_000) for name in FORMATS if name != "WEBP"]
    + [("WEBP", 16_383, 16_383), ("JPEG", 65_500, 65_500), ("GIF", 65_535, 65_535), ("BMP", 2**31 - 1, 2**31 - 1)]
    + [("TIFF", 2**32 - 1, 2**32 - 1), ("PNG", 2**31 - 1, 2**31 - 1), ("AVIF", 2**32 - 1, 2**32 - 1)],
)
def test_a_header_that_promises_too_much_is_refused_before_decoding(spent, format, width, height):
    """Whatever the format, hundreds of megapixels are refused by the header, without taking their memory."""
    cost = spent(claimed(format, width, height))

    assert [image["source"] for image in cost["said"]["images"]] == ["a.png"]
    assert cost["seconds"] < 5 and cost["mib"] < 100


def test_a_frame_larger_than_its_gif_is_refused(spent):
    """A GIF whose one frame is larger than the picture counts as large as the frame."""
    content = bytearray(encoded(picture(), "GIF"))
    place = content.index(b"\x2c\0\0\0\0")
    content[place + 5 : place + 9] = struct.pack("<HH", 65_535, 65_535)

    cost = spent(bytes(content))

    assert "too large" in cost["said"]["ignored"][0]["reason"]
    assert cost["mib"] < 100


def test_a_gif_of_countless_frames_is_one_picture(spent):
    """Only the first frame is read; the others are not even counted."""
    whole = encoded(picture(3), "GIF", save_all=True, append_images=[picture(2)])
    place = whole.index(b"\x21\xf9", whole.index(b"\x2c"))
    frame = whole[place:-1]

    cost = spent(whole[:-1] + frame * (20 * MIB // len(frame)) + b";", hostile.STORED)

    assert cost["said"]["images"][1]["notes"] == ["only the first of its pictures is used"]
    assert cost["seconds"] < 5 and cost["mib"] < 150


@pytest.mark.parametrize(
    "changes",
    [
        {273: (4, 2**28, 8), 279: (4, 2**28, 8)},
        {273: (4, 100_000, 8), 278: 1, 279: (4, 100_000, 8), 257: 100_000},
        {322: 60_000, 323: 60_000, 324: 8, 325: 3072},
        {259: 7},
        {259: 50_000},
        {258: (3, 65_535, 8), 277: 65_535},
        {34_665: 8},
    ],
    ids=["strips", "rows", "tiles", "jpeg", "zstd", "samples", "exif"],
)
def test_a_tiff_of_absurd_tags_is_ignored(spent, changes):
    """Millions of strips, tiles of gigabytes and wrong ways to pack cost the picture alone."""
    cost = spent(tiff(changes))

    assert len(cost["said"]["images"]) + len(cost["said"]["ignored"]) == 2
    assert cost["seconds"] < 5 and cost["mib"] < 300


def test_a_tiff_that_leads_back_to_itself_ends(spent):
    """A list of pictures that has no end is read once."""
    content = bytearray(tiff({}))
    content[-4:] = content[4:8]

    assert len(spent(bytes(content))["said"]["images"]) == 2


@pytest.mark.parametrize(
    "chunks",
    [
        chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(200 * MIB))),
        chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(200 * MIB))),
        chunk(b"iTXt", b"x\0\1\0\0\0" + zlib.compress(bytes(200 * MIB))),
        chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(MIB - 1))) * 300,
        chunk(b"tEXt", b"x\0" + bytes(100)) * 50_000,
        chunk(b"abCd", b"") * 500_000,
    ],
    ids=["profile", "text", "international text", "many texts", "small texts", "many chunks"],
)
def test_a_png_with_packed_chunks_is_affordable(spent, chunks):
    """What is packed beside the pixels is never unpacked beyond a few megabytes."""
    cost = spent(png(32, 32, zlib.compress(bytes(97 * 32)), chunks=chunks))

    assert len(cost["said"]["images"]) + len(cost["said"]["ignored"]) == 2
    assert cost["seconds"] < 20 and cost["mib"] < 250


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no process's memory in this way")
def test_exif_that_is_a_bomb_ends_at_the_limit_of_memory(tmp_path, run):
    """EXIF with thousands of entries that all mean the same megabytes costs the picture, not the machine."""
    count = 60_000
    entries = b"".join(struct.pack("<HHII", tag, 7, 2 * MIB, 0) for tag in range(count))
    exif = b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4 + 2 * MIB)
    bomb = png(32, 32, zlib.compress(bytes(97 * 32)), chunks=chunk(b"eXIf", exif))
    (tmp_path / "in.zip").write_bytes(hostile.zip_bytes([Member(b"a.png", encoded(picture())), Member(b"b.png", bomb)]))

    found = dataset.unpack(tmp_path / "in.zip", run, limits=Limits(process_bytes=600 * MIB))

    assert [image.source for image in found.images] == ["a.png"]
    assert "memory" in found.ignored[0].reason


def test_a_profile_of_many_megabytes_is_overlooked(run, tmp_path):
    """A colour profile larger than any printer's is not given to the library that reads them."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(5 * MIB)

    checked = pictures.check(encoded(picture(), "JPEG", icc_profile=profile), Limits())

    assert checked.pixels.size == (32, 32)


# --- formats that are not read


@pytest.mark.parametrize("format", OTHERS)
def test_other_formats_of_pillow_are_not_opened(format):
    """A picture in a format that is not listed is refused, whatever its name says."""
    with pytest.raises(Unusable, match="is damaged, or not JPEG"):
        pictures.check(encoded(picture(), format), Limits())


@pytest.mark.parametrize(
    "content",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 32, 32, 8, 3) + bytes(4000),
        b"SIMPLE  =                    T" + b" " * 50 + b"BITPIX  =                    8" + bytes(2000),
        b"P6 32 32 255 " + bytes(3072),
        b"<html><script>alert(1)</script>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(touched) (w) file\n",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000),
        b"#!/bin/sh\ntouch /tmp/touched\n",
    ],
    ids=["SVG", "PSD", "FITS", "PPM", "HTML", "EPS", "OLE", "shell"],
)
def test_what_is_no_listed_picture_is_refused(content):
    """Vector graphics, documents and programs are never pictures here."""
    with pytest.raises(Unusable, match="is damaged, or not JPEG"):
        pictures.check(content, Limits())


@pytest.mark.skipif(sys.platform == "win32", reason="the false Ghostscript is a shell script")
def test_ghostscript_is_never_started(tmp_path):
    """PostScript is not given to the program that runs it, though Pillow would."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o700)
    (tmp_path / "a.eps").write_bytes(encoded(picture(), "EPS"))
    check = (
        "import sys; from finetune.dataset import archive, pictures; content = open(sys.argv[1], 'rb').read()\n"
        "try: pictures.check(content, archive.Limits())\n"
        "except archive.Unusable: pass\n"
        "if len(sys.argv) > 2:\n"
        "    from PIL import Image\n"
        "    try: Image.open(sys.argv[1]).load()\n"
        "    except OSError: pass"
    )
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    words = [sys.executable, "-c", check, str(tmp_path / "a.eps")]

    subprocess.run(words, cwd=hostile.PROJECT, env=environment, check=True)
    is_started_by_us = (tmp_path / "started").exists()
    subprocess.run([*words, "and as Pillow does"], cwd=hostile.PROJECT, env=environment, check=True)

    assert not is_started_by_us
    assert (tmp_path / "started").exists()


# --- what is kept


def decorated(format):
    """A picture with a place in everything that its format can carry beside pixels."""
    exif = Image.Exif()
    exif[0x010E], exif[0x8298] = MARK.decode(), MARK.decode()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + MARK
    options = {
        "PNG": {"exif": exif, "icc_profile": profile, "pnginfo": _texts()},
        "JPEG": {"exif": exif, "icc_profile": profile, "comment": MARK, "xmp": MARK},
        "WEBP": {"exif": exif, "icc_profile": profile, "xmp": MARK},
        "GIF": {"comment": MARK},
        "BMP": {},
        "TIFF": {"exif": exif, "icc_profile": profile, "description": MARK.decode()},
        "AVIF": {"exif": exif, "icc_profile": profile, "xmp": MARK},
        "HEIF": {"exif": exif.tobytes(), "icc_profile": profile, "xmp": MARK},
    }[format]
    return encoded(picture(width=64, height=64), format, **options)


def _texts():
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", MARK.decode())
    texts.add_itxt("XML:com.adobe.xmp", MARK.decode())
    return texts


def kinds(content):
    """The kinds of chunks of a PNG, or of a WebP."""
    found, place = [], 8 if content.startswith(b"\x89PNG") else 12
    while place < len(content):
        if content.startswith(b"\x89PNG"):
            (size,) = struct.unpack(">I", content[place : place + 4])
            found.append(content[place + 4 : place + 8])
            place += 12 + size
        else:
            found.append(content[place : place + 4])
            (size,) = struct.unpack("<I", content[place + 4 : place + 8])
            place += 8 + size + size % 2
    return set(found)


def assert_only_pixels(run):
    for path in [*run.images.iterdir(), *run.thumbnails.iterdir()]:
        content = path.read_bytes()
        assert kinds(content) <= {b"IHDR", b"IDAT", b"IEND", b"VP8 "}, path
        assert MARK not in content


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_but_pixels_is_kept(tmp_path, run, format):
    """EXIF, its place, comments, XMP and profiles of a picture are in no file of the run."""
    content = decorated(format)
    assert MARK in content or format == "BMP"

    (tmp_path / "in.zip").write_bytes(hostile.zip_bytes([Member(b"a." + format.lower().encode(), content)]))
    here(tmp_path / "in.zip", run)

    assert_only_pixels(run)


@pytest.mark.parametrize(
    "content",
    [
        encoded(picture()) + hostile.zip_bytes([Member(b"x", MARK)]),
        encoded(picture(), "JPEG") + b"<html><script>" + MARK,
        encoded(picture(), "JPEG", comment=b"<script>" + MARK + b"</script>"),
        encoded(picture(), "GIF").replace(b"GIF87a", b"GIF89a") + b"/*" + MARK + b"*/=1;",
        encoded(picture(), "BMP") + b"%PDF-1.7 " + MARK,
        b"".join([encoded(picture(), "TIFF"), b"MZ", MARK]),
        encoded(picture(), "WEBP") + b"PK\3\4" + MARK,
    ],
    ids=["PNG+ZIP", "JPEG+HTML", "JPEG comment", "GIF+JS", "BMP+PDF", "TIFF+EXE", "WEBP+ZIP"],
)
def test_a_picture_that_is_something_else_too_becomes_pixels(tmp_path, run, content):
    """What else a file was is gone when it is stored."""
    (tmp_path / "in.zip").write_bytes(hostile.zip_bytes([Member(b"a.png", content)]))

    here(tmp_path / "in.zip", run)

    assert_only_pixels(run)


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_cut_off_anywhere_is_refused_or_read(format):
    """Wherever a picture ends too early, it is left out with a reason; nothing else happens."""
    whole = encoded(picture(width=64, height=64), format)

    refused = 0
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        try:
            assert pictures.check(whole[:length], Limits()).pixels.mode == "RGB"
        except Unusable as reason:
            refused += bool(str(reason))

    assert refused > 30


def test_changed_pictures_and_zips_do_no_harm():
    """Hundreds of files of each format, changed at random, are read or refused, quickly and in little memory."""
    program = Path(__file__).parent / "bench" / "fuzz.py"

    done = subprocess.run(
        [sys.executable, str(program), "--count", "200", "--json"],
        cwd=hostile.PROJECT,
        capture_output=True,
        check=False,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert {one["format"] for one in found} >= {*FORMATS, "ZIP"}
    assert max(one["slowest_seconds"] for one in found) < 10
    assert max(one["peak_mib"] for one in found) < 800
    assert all(one["refused"] > 20 for one in found if one["format"] in FORMATS)
