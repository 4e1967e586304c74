"""What is measured on a picture's pixels, for the checks: numbers small enough to keep beside the picture.

Separate from the checks, because pixels are seen once, when they are read, and what follows from them is asked again
whenever the form changes. Every measurement looks at a small copy or at a few pieces, so that the time it takes does
not grow with the picture.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image

Values = NDArray[numpy.float32]

SMALL_PX = 64
GRID = 4
PIECE_PX, PIECES = 128, 12
SMALLEST_PIECE_PX = 48
"""Of a smaller picture too few frequencies can be told apart."""
BANDS = numpy.array([1 / 16, 1 / 8, 3 / 16, 1 / 4, 5 / 16, 3 / 8, 7 / 16, 1 / 2, 9 / 16, 5 / 8, 3 / 4, 7 / 8, 1.0])
"""Where bands of frequencies begin and end. Units: half of what the pixels could hold is 0.5."""
CENTRES = numpy.sqrt(BANDS[1:] * BANDS[:-1])
COARSE, FINEST = 3, 3
"""How many bands are the coarse ones, and how many the finest."""
FAINT = 2.5
"""Coarse power below which a piece shows too little to judge it. Units, as of all that follow: powers of ten."""
DROP = 3.5
"""How far below the coarse bands the power of a band may lie that still shows something. Of 29 photographs and 400
emoji, all that are sharp keep above it up to half of the frequencies; enlarged or blurred ones do not."""
OVER_NOISE, CLEAR = 0.3, 3.0
EVEN = 0.25
"""The finest bands of nothing but noise differ by less."""
ALIKE_BITS, ALIKE_LEVELS = 6, 12.0
"""How far hashes and mean colours of pictures that are nearly the same may lie apart. No two of 29 photographs differ
by less than 20 bits; copies of them that were scaled, saved anew or made brighter differ by 6 at most."""
EVEN_LEVELS, FAINT_LEVELS, BLACK, WHITE = 8, 16, 12, 251
"""How far the parts of an even picture lie apart at most, those of an almost black or white one, and how bright these
are."""


def measure(pixels: Image.Image, original: tuple[int, int]) -> dict[str, float | str]:
    """Measure a picture as it is stored: upright RGB, at most 2048 px long; `original` is its size before that.

    `hash` (16 hexadecimal digits) is alike for pictures that look alike, `tint` (96) holds the colours of a grid of 4 x
    4. `span` is how far its lightest and darkest parts lie apart in the colour where they do most, `mean` its
    brightness, both from 0 to 255. `detail` is the share of its width that would be enough for all the detail it shows:
    1 for a sharp picture, about 0.25 for one enlarged four times; it is missing where nothing can be said.
    """
    small = pixels.reduce(max(1, min(pixels.size) // SMALL_PX))
    values = numpy.asarray(small, dtype=numpy.float32)
    found: dict[str, float | str] = {
        "hash": f"{_hash(small):016x}",
        "tint": small.resize((GRID, GRID), Image.Resampling.BOX).tobytes().hex(),
        "span": float(numpy.ptp(values, axis=(0, 1)).max()),
        "mean": round(float(values.mean()), 1),
    }
    detail = _detail(pixels)
    return found if detail is None else {**found, "detail": round(detail, 3)}


def emptiness(traits: Mapping[str, Any]) -> str:
    """What a picture is that shows nothing; empty if it shows something."""
    span, mean = traits.get("span", 255), traits.get("mean", 128)
    if span < FAINT_LEVELS and not BLACK <= mean <= WHITE:
        return "black" if mean < BLACK else "white"
    return "of one colour" if span <= EVEN_LEVELS else ""


def alike(traits: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Places of pictures that look like an earlier one, each with the place of that one."""
    if not traits:
        return []
    hashes = numpy.array([int(one["hash"], 16) for one in traits], dtype=numpy.uint64)
    tints = numpy.array([list(bytes.fromhex(one["tint"])) for one in traits], dtype=numpy.float32)
    tints -= tints.mean(axis=1, keepdims=True)  # the same picture may be brighter
    is_free, found = numpy.ones(len(hashes), dtype=bool), []
    for place in range(len(hashes)):
        if is_free[place]:
            near = is_free & (numpy.bitwise_count(hashes ^ hashes[place]) <= ALIKE_BITS)
            near &= numpy.abs(tints - tints[place]).mean(axis=1) <= ALIKE_LEVELS
            found += [(int(other), place) for other in numpy.nonzero(near)[0] if other > place]
            is_free &= ~near
    return found


def _hash(small: Image.Image) -> int:
    """Which of the 64 coarsest waves, but for those of a single direction, are stronger than most.

    Source: the pHash of Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions". Waves of a
    single direction are left out, because pictures on a plain ground share them.
    """
    values = numpy.asarray(small.convert("L").resize((32, 32), Image.Resampling.BILINEAR), dtype=numpy.float32)
    waves = (_waves() @ values @ _waves().T).ravel()
    bits = numpy.packbits(waves > numpy.median(waves))
    return int.from_bytes(bits.tobytes(), "big")


@cache
def _waves() -> Values:
    places = (2 * numpy.arange(32) + 1) * numpy.pi / 64
    return numpy.cos(places[None] * numpy.arange(1, 9)[:, None]).astype(numpy.float32)


def _detail(pixels: Image.Image) -> float | None:
    """The share of the width that holds all detail, by the third-sharpest of the pieces with most contrast.

    So a sharp subject before a blurred ground is a sharp picture.
    """
    side = min(PIECE_PX, *pixels.size)
    if side < SMALLEST_PIECE_PX:
        return None
    reaches = sorted(filter(None, (_reach(_power(piece)) for piece in _pieces(pixels, side))), reverse=True)
    if not reaches:
        return None
    return reaches[min(2, len(reaches) - 1)] ** 1.5  # where the power has fallen lies beyond the last real detail


def _pieces(pixels: Image.Image, side: int) -> list[Values]:
    """The squares of a picture with most contrast, in grey."""
    width, height = pixels.size
    across, down = width // side, height // side
    left, top = (width - across * side) // 2, (height - down * side) // 2
    ground = (left, top, left + across * side, top + down * side)
    look = pixels.resize((across * 16, down * 16), Image.Resampling.NEAREST, box=ground).convert("L")
    contrast = numpy.asarray(look, dtype=numpy.float32).reshape(down, 16, across, 16).std(axis=(1, 3)).ravel()
    chosen = [divmod(int(place), across) for place in numpy.argsort(-contrast, kind="stable")[:PIECES]]
    corners = [(left + column * side, top + row * side) for row, column in chosen]
    return [
        numpy.asarray(pixels.crop((x, y, x + side, y + side)).convert("L"), dtype=numpy.float32) for x, y in corners
    ]


def _power(piece: Values) -> Values:
    """The mean power in each band, as powers of ten."""
    window, band, counts = _rings(len(piece))
    power = numpy.abs(numpy.fft.rfft2((piece - piece.mean()) * window)) ** 2
    sums = numpy.bincount(band, power.ravel(), minlength=len(BANDS) + 1)[1 : len(BANDS)]
    return numpy.log10(sums / counts + 1e-9)


@cache
def _rings(side: int) -> tuple[Values, NDArray[numpy.int64], Values]:
    """A window for pieces of a side, the band of each frequency, and the weight of each band."""
    bell = numpy.hanning(side + 2)[1:-1].astype(numpy.float32)
    window = bell[:, None] * bell[None]
    frequencies = 2 * numpy.hypot(numpy.fft.fftfreq(side)[:, None], numpy.fft.rfftfreq(side)[None])
    band = numpy.digitize(frequencies, BANDS).ravel()
    counts = numpy.bincount(band, minlength=len(BANDS) + 1)[1 : len(BANDS)] * (window**2).sum()
    return window, band, counts


def _reach(power: Values) -> float | None:
    """The highest frequency at which a piece still shows something; None where it shows too little to tell."""
    coarse, finest = power[:COARSE].max(), power[-FINEST:]
    noise = finest.mean() + OVER_NOISE if numpy.ptp(finest) < EVEN else -numpy.inf
    if coarse < FAINT or coarse - noise < CLEAR:
        return None
    least = max(coarse - DROP, noise)
    last = int(numpy.nonzero(power >= least)[0].max())
    if last == len(power) - 1:
        return 1.0
    part = (power[last] - least) / (power[last] - power[last + 1])
    return float(CENTRES[last] ** (1 - part) * CENTRES[last + 1] ** part)
