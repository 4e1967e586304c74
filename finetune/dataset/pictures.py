"""One picture file -> upright RGB pixels, however it was saved.

Separate because it knows file formats and colour modes, and because no picture, not even a hostile one, may exhaust
memory: the header is checked before anything is decoded, JPEG is decoded small, the rest is made small in strips. What
is kept are pixels alone: no EXIF, no place, no text of the file.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy
import pillow_heif
from PIL import AvifImagePlugin, ExifTags, Image, ImageChops, ImageCms, ImageFile, ImageOps

from finetune.dataset.archive import Limits, Unusable

FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "BMP", "TIFF", "GIF")
SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".heic", ".heif", ".hif"),
    *(".avif", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
}
READABLE = "JPEG, PNG, WebP, HEIC, AVIF, BMP, TIFF or GIF"
LONGEST_PX = 2048
DECODED_PX = 1920
"""A JPEG can be decoded at a half, a quarter or an eighth of its size, which is quick and as good: down to here."""
SHORTEST_PX = 16
LONG_RATIO = 3
STRIP_PIXELS = 2**24
PROFILE_BYTES = 2**22
"""Larger colour profiles are overlooked; those of printers have 2 MiB."""
GROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
"""What can lie under what is transparent."""
REDUCED, LONG, TRANSPARENT = "was reduced from", "is very long", "what was transparent became"
_BROKEN = (
    *(OSError, SyntaxError, ValueError, ArithmeticError, LookupError, EOFError, TypeError, RuntimeError),
    *(AttributeError, struct.error, zlib.error),
)


@dataclass(frozen=True)
class Checked:
    """A picture ready to be trained on, and what was done to it."""

    pixels: Image.Image
    notes: tuple[str, ...]
    original: tuple[int, int]
    """Its size in the file. Units: pixels."""


@dataclass(frozen=True)
class Header:
    """A picture of which nothing is decoded yet."""

    image: ImageFile.ImageFile
    original: tuple[int, int]
    bytes: int
    """What decoding it takes."""


def check(content: bytes, limits: Limits, ground: str = "white") -> Checked:
    """Read a picture and make it upright, RGB and at most 2048 px long. Raises: Unusable with the reason."""
    return decode(read_header(content, limits), ground)


def read_header(content: bytes, limits: Limits) -> Header:
    """Read what a picture says of itself. Raises: Unusable with the reason."""
    with _in_words():
        image = _open(content)
        original = image.size
        _check_size(original, limits.pixels)
        image.draft(None, tuple(max(1, side * DECODED_PX // max(original)) for side in original))
        return Header(image, original, _bytes_to_decode(image, original, limits.decoded_bytes))


def decode(header: Header, ground: str) -> Checked:
    """Make a picture upright, RGB and at most 2048 px long. Raises: Unusable with the reason."""
    with _in_words():
        return _normalised(header.image, header.original, ground)


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except (MemoryError, Image.DecompressionBombError) as error:
        raise Unusable("is too large for the memory of this machine") from error
    except _BROKEN as error:
        raise Unusable("cannot be read; the picture is damaged or cut off") from error


def png(pixels: Image.Image) -> bytes:
    """Pack an RGB picture without loss: each row as what it differs from the pixel to the left.

    Pillow tries five such ways for each row, which takes twice as long and saves an eighth. Source: PNG specification,
    12.9 "Filtering".
    """
    width, height = pixels.size
    values = numpy.asarray(pixels).reshape(height, width * 3)
    rows = numpy.ones((height, 1 + width * 3), dtype=numpy.uint8)  # the one before each row names the way
    rows[:, 1:] = values
    rows[:, 4:] -= values[:, :-3]
    packer = zlib.compressobj(1, zlib.DEFLATED, strategy=zlib.Z_RLE)
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packer.compress(rows) + packer.flush()), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def thumbnail(image: Image.Image, longest_px: int = 256) -> Image.Image:
    """A small copy; a tiny picture stays as it is."""
    small = image.copy()
    small.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    return small


def _open(content: bytes) -> ImageFile.ImageFile:
    """Read the header. Pillow's own `open` would apply its one global limit of pixels, which others also use."""
    Image.init()
    pillow_heif.register_heif_opener(decode_threads=1)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # else each core's thread takes its share of the memory that is allowed
    for name in FORMATS:
        factory, accepts = Image.OPEN[name]
        if accepts is None or accepts(content[:16]) is True:
            try:
                return factory(io.BytesIO(content), "")
            except SyntaxError:
                continue
    raise Unusable("is empty (0 bytes)" if not content else f"is damaged, or not {READABLE}")


def _check_size(size: tuple[int, int], most_pixels: int) -> None:
    width, height = size
    if width * height > most_pixels:
        most = most_pixels / 1e6
        raise Unusable(f"is too large ({width:,} × {height:,} px; {most:,.0f} megapixels is the limit)")
    if min(size) < SHORTEST_PX:
        raise Unusable(f"is too small ({width} × {height} px; {SHORTEST_PX} px a side is the least)")
    if min(size) * LONGEST_PX < SHORTEST_PX * max(size):
        raise Unusable(f"is too narrow for its length ({width:,} × {height:,} px)")


def _bytes_to_decode(image: ImageFile.ImageFile, original: tuple[int, int], most_bytes: int) -> int:
    """Estimate what decoding takes. Units: bytes. Raises: Unusable when that is too much.

    Pillow keeps 1 byte a pixel for grey, else 4. Libraries of video formats keep a copy, that of WebP two and what it
    hands over; a progressive JPEG keeps 2 bytes for each colour of each original pixel, however small it is decoded.
    """
    needed = image.width * image.height * (1 if image.mode in ("1", "L", "P") else 4)
    needed *= {"WEBP": 4, "HEIF": 2, "AVIF": 2}.get(image.format, 1)
    if image.info.get("progressive"):
        needed += original[0] * original[1] * 2 * len(image.getbands())
    if needed > most_bytes:
        raise Unusable(
            f"is too large ({original[0]:,} × {original[1]:,} px; opening it takes {needed / 2**30:.1f} GiB of memory, "
            f"{most_bytes / 2**30:.1f} GiB is the limit)"
        )
    return needed


def _normalised(image: ImageFile.ImageFile, original: tuple[int, int], ground: str) -> Checked:
    notes = []
    if getattr(image, "is_animated", False) and image.format in ("GIF", "PNG", "WEBP", "HEIF", "AVIF", "TIFF"):
        notes.append("only the first of its pictures is used")  # counting them would read millions
    orientation = _orientation(image)
    image.load()
    left_to_turn = _orientation(image)
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK":
        notes.append("was converted from CMYK to RGB")
    small, had_alpha = _reduced(_as_meant(image), GROUNDS[ground])
    small, note = _to_rgb(small, profile)
    small.thumbnail((LONGEST_PX, LONGEST_PX), Image.Resampling.LANCZOS)
    small = _turned(small, left_to_turn)
    if note and image.mode != "CMYK":
        notes.append(note)
    if had_alpha:
        notes.append(f"{TRANSPARENT} {ground}")
    if orientation > 1:
        notes.append("was rotated as its EXIF says")
    if max(small.size) < max(original):
        notes.append(f"{REDUCED} {original[0]:,} × {original[1]:,} px")
    if max(original) > LONG_RATIO * min(original):
        notes.append(f"{LONG} ({max(original) / min(original):.0f} : 1); training crops its ends")
    return Checked(small, tuple(notes), original)


def _as_meant(image: Image.Image) -> Image.Image:
    """Pillow takes the inks of every JPEG as Adobe writes them, inverted; other programs do not."""
    if image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
        return ImageChops.invert(image)
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _BROKEN:  # broken EXIF is no reason to refuse a picture
        return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    image = image.copy()
    image.info.clear()
    image.getexif()[ExifTags.Base.Orientation] = orientation
    turned = ImageOps.exif_transpose(image)
    return Image.frombytes("RGB", turned.size, turned.tobytes())


def _reduced(image: Image.Image, ground: tuple[int, int, int]) -> tuple[Image.Image, bool]:
    """Divide the size by a whole number, strip by strip, so that no second copy of a large picture is made.

    Returns an L, RGB or CMYK picture at most twice as large as needed, and whether anything was transparent.
    """
    factor = max(1, max(image.size) // (2 * LONGEST_PX))
    span, height = _span(image), max(1, STRIP_PIXELS // image.width // factor) * factor
    small, had_alpha = None, False
    for top in range(0, image.height, height):
        strip = image.crop((0, top, image.width, min(top + height, image.height)))
        strip, has_alpha = _flattened(strip, span, ground)
        had_alpha |= has_alpha
        if small is None:
            small = Image.new(strip.mode, (-(-image.width // factor), -(-image.height // factor)))
        small.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return small, had_alpha


def _span(image: Image.Image) -> tuple[float, float] | None:
    """The values that mean black and white where a pixel has more than 8 bits; None where it has 8."""
    if image.mode.startswith("I;16"):
        return 0, 65535
    if image.mode in ("I", "F"):
        low, high = image.getextrema()
        usual = (1,) if image.mode == "F" else (255, 65535)
        return min(0, low), next((most for most in usual if high <= most), high)
    return None


def _flattened(
    strip: Image.Image, span: tuple[float, float] | None, ground: tuple[int, int, int]
) -> tuple[Image.Image, bool]:
    if span is not None:
        values = (numpy.asarray(strip, dtype=numpy.float32) - span[0]) * (255 / (span[1] - span[0]))
        return Image.fromarray(numpy.nan_to_num(values).clip(0, 255).round().astype(numpy.uint8)), False
    if strip.has_transparency_data:
        strip = strip.convert("RGBA")
        has_alpha = strip.getextrema()[3][0] < 255
        return Image.alpha_composite(Image.new("RGBA", strip.size, ground), strip).convert("RGB"), has_alpha
    if strip.mode in ("L", "RGB", "CMYK"):
        return strip, False
    if strip.mode == "1":
        return strip.convert("L"), False
    if strip.mode == "LAB":
        return ImageCms.profileToProfile(strip, ImageCms.createProfile("LAB"), _srgb(), outputMode="RGB"), False
    return strip.convert("RGB"), False


def _to_rgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """Convert colours by the picture's profile; without one, or with one that does not fit, as well as can be.

    Returns also what is to be said of that.
    """
    note = ""
    if profile:
        try:
            converted = _converted(image, profile)
            return (converted, "its colours were converted to sRGB") if converted else (image.convert("RGB"), "")
        except (ImageCms.PyCMSError, Unusable, *_BROKEN):
            note = "its colour profile cannot be used"
    return image.convert("RGB"), note


def _converted(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The picture in sRGB; None if it is that already. Raises: what shows that the profile does not fit."""
    if len(profile) > PROFILE_BYTES:
        raise Unusable("has a profile that is too large")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
        return None
    if image.mode == "L" and source.profile.xcolor_space.strip() == "RGB":  # of a grey picture that was in colour
        image = image.convert("RGB")
    return ImageCms.profileToProfile(image, source, _srgb(), outputMode="RGB")


def _srgb() -> ImageCms.core.CmsProfile:
    return ImageCms.createProfile("sRGB")
