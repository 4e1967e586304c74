"""One picture file -> upright RGB pixels, however it was saved.

Separate because it knows file formats and colour modes, and because no picture, not even a hostile one, may exhaust
memory: the header is checked before anything is decoded, JPEG is decoded small, the rest is made small in strips. What
is kept are pixels alone: no EXIF, no place, no text of the file.
"""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy
import pillow_heif
from PIL import AvifImagePlugin, ExifTags, Image, ImageCms, ImageFile, ImageOps

from finetune.dataset.archive import Limits, Unusable

FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "BMP", "TIFF", "GIF")
SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".heic", ".heif", ".hif"),
    *(".avif", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
}
READABLE = "JPEG, PNG, WebP, HEIC, AVIF, BMP, TIFF or GIF"
LONGEST_PX = 2048
SHORTEST_PX = 16
LONG_RATIO = 3
STRIP_PIXELS = 2**24
PROFILE_BYTES = 2**22
"""Larger colour profiles are overlooked; those of printers have 2 MiB."""
_BROKEN = (
    *(OSError, SyntaxError, ValueError, ArithmeticError, LookupError, EOFError, TypeError, RuntimeError),
    *(AttributeError, struct.error, zlib.error),
)


@dataclass(frozen=True)
class Checked:
    """A picture ready to be trained on, and what was done to it."""

    pixels: Image.Image
    notes: tuple[str, ...]
    original_pixels: int
    """How many were decoded for it."""


def check(content: bytes, limits: Limits) -> Checked:
    """Read a picture and make it upright, RGB and at most 2048 px long. Raises: Unusable with the reason."""
    try:
        image = _open(content)
        _check_size(image.size, limits.pixels)
        return _normalised(image, limits.decoded_bytes)
    except (MemoryError, Image.DecompressionBombError) as error:
        raise Unusable("is too large for the memory of this machine") from error
    except _BROKEN as error:
        raise Unusable("cannot be read; the picture is damaged or cut off") from error


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


def _check_memory(image: ImageFile.ImageFile, original: tuple[int, int], most_bytes: int) -> None:
    """Estimate what decoding takes. Units: bytes.

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


def _normalised(image: ImageFile.ImageFile, most_bytes: int) -> Checked:
    original, notes = image.size, []
    image.draft(None, tuple(max(1, side * 2 * LONGEST_PX // max(original)) for side in original))
    _check_memory(image, original, most_bytes)  # first of all: even asking a PNG for its EXIF decodes it
    if getattr(image, "is_animated", False) and image.format in ("GIF", "PNG", "WEBP", "AVIF", "TIFF"):
        notes.append("only the first of its pictures is used")  # counting them would read millions
    orientation = _orientation(image)
    image.load()
    left_to_turn = _orientation(image)
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK":
        notes.append("was converted from CMYK to RGB")
    small, had_alpha = _reduced(image)
    small = _to_rgb(small, profile)
    small.thumbnail((LONGEST_PX, LONGEST_PX), Image.Resampling.LANCZOS)
    small = _turned(small, left_to_turn)
    if had_alpha:
        notes.append("what was transparent became white")
    if orientation > 1:
        notes.append("was rotated as its EXIF says")
    if max(small.size) < max(original):
        notes.append(f"was reduced from {original[0]:,} × {original[1]:,} px")
    if max(original) > LONG_RATIO * min(original):
        notes.append(f"is very long ({max(original) / min(original):.0f} : 1); training crops its ends")
    return Checked(small, tuple(notes), original[0] * original[1])


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


def _reduced(image: Image.Image) -> tuple[Image.Image, bool]:
    """Divide the size by a whole number, strip by strip, so that no second copy of a large picture is made.

    Returns an L, RGB or CMYK picture at most twice as large as needed, and whether anything was transparent.
    """
    factor = max(1, max(image.size) // (2 * LONGEST_PX))
    span, height = _span(image), max(1, STRIP_PIXELS // image.width // factor) * factor
    small, had_alpha = None, False
    for top in range(0, image.height, height):
        strip = image.crop((0, top, image.width, min(top + height, image.height)))
        strip, has_alpha = _flattened(strip, span)
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


def _flattened(strip: Image.Image, span: tuple[float, float] | None) -> tuple[Image.Image, bool]:
    if span is not None:
        values = (numpy.asarray(strip, dtype=numpy.float32) - span[0]) * (255 / (span[1] - span[0]))
        return Image.fromarray(numpy.nan_to_num(values).clip(0, 255).round().astype(numpy.uint8)), False
    if strip.has_transparency_data:
        strip = strip.convert("RGBA")
        has_alpha = strip.getextrema()[3][0] < 255
        return Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), has_alpha
    if strip.mode in ("L", "RGB", "CMYK"):
        return strip, False
    if strip.mode == "1":
        return strip.convert("L"), False
    if strip.mode == "LAB":
        return ImageCms.profileToProfile(strip, ImageCms.createProfile("LAB"), _srgb(), outputMode="RGB"), False
    return strip.convert("RGB"), False


def _to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert colours by the picture's profile; without one, or with one that does not fit, as well as can be."""
    if profile and len(profile) <= PROFILE_BYTES and image.mode != "L":
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" not in ImageCms.getProfileDescription(source).lower():
                return ImageCms.profileToProfile(image, source, _srgb(), outputMode="RGB")
        except (ImageCms.PyCMSError, *_BROKEN):
            pass
    return image if image.mode == "RGB" else image.convert("RGB")


def _srgb() -> ImageCms.core.CmsProfile:
    return ImageCms.createProfile("sRGB")
