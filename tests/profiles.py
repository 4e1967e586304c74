"""Colour profiles as cameras, phones, scanners and printers write them, built byte by byte, and what they mean.

Source: ICC.1:2001-04 for the layout; the primaries are those that Adobe RGB (1998) and Display P3 publish, for D50.
"""

import struct

import numpy

D50 = (0.9642, 1.0, 0.8249)
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
ADOBE_GAMMA = 563 / 256


def matrix_profile(primaries, gamma: float, name: str) -> bytes:
    """A profile of three primaries and one curve."""
    tags = {b"desc": _description(name), b"wtpt": _xyz(D50)}
    for letter, primary in zip(b"rgb", primaries, strict=True):
        tags[bytes([letter]) + b"XYZ"] = _xyz(primary)
        tags[bytes([letter]) + b"TRC"] = _curve(gamma)
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    """A profile of grey with a curve, as scanners embed."""
    tags = {b"desc": _description("Grey"), b"wtpt": _xyz(D50), b"kTRC": _curve(gamma)}
    return _profile(b"mntr", b"GRAY", b"XYZ ", tags)


def ink_profile() -> bytes:
    """A profile of a press whose yellow is orange, and whose other inks are usual ones."""
    corners = numpy.zeros((2, 2, 2, 2, 3), dtype=numpy.uint8)
    for place in numpy.ndindex(2, 2, 2, 2):
        cyan, magenta, yellow, black = place
        lightness = 255 * (1 - black) * (1 - 0.3 * cyan - 0.3 * magenta - 0.25 * yellow)
        corners[place] = (
            max(0, lightness),
            128 - 40 * cyan + 60 * magenta + 40 * yellow,
            128 - 40 * cyan + 70 * yellow,
        )
    identity = bytes(range(256))
    head = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 * (n in (0, 4, 8)) for n in range(9)))
    table = head + identity * 4 + corners.tobytes() + identity * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"desc": _description("Ink"), b"wtpt": _xyz(D50), b"A2B0": table})


def to_srgb(pixel, primaries, gamma: float) -> tuple[float, ...]:
    """What a colour of a matrix profile is in sRGB, by the formulas of both."""
    linear = (numpy.array(pixel) / 255) ** gamma
    seen = numpy.linalg.solve(numpy.array(SRGB).T, numpy.array(primaries).T @ linear).clip(0, 1)
    encoded = numpy.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    return tuple(255 * encoded)


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, data, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">2I", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    size = start + len(data)
    head = struct.pack(">I4sI4s4s4s12s4s", size, b"test", 0x02400000, kind, space, connection, bytes(12), b"acsp")
    head += bytes(28) + struct.pack(">3i", *(round(65536 * value) for value in D50))
    return head.ljust(128, b"\0") + table + data


def _xyz(values) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * value) for value in values))


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma))


def _description(name: str) -> bytes:
    text = name.encode() + b"\0"
    return b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
