"""Small real pictures and ZIPs, made when a test asks for them."""

import io
import zipfile
from pathlib import Path

import numpy
from PIL import Image

Content = bytes | str | Image.Image


def picture(seed: int = 0, width: int = 32, height: int = 32, mode: str = "RGB") -> Image.Image:
    """A coarse pattern of the seed's own; every seed gives another."""
    values = numpy.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=numpy.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST).convert(mode)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """A picture as the content of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def zip_of(path: Path, files: dict[str, Content], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write a ZIP; pictures become PNG, text becomes UTF-8."""
    with zipfile.ZipFile(path, "w", compression) as zip:
        for name, content in files.items():
            zip.writestr(name, encoded(content) if isinstance(content, Image.Image) else content)
    return path


def example_zip(path: Path, count: int = 4) -> Path:
    """A ZIP of pictures without captions."""
    return zip_of(path, {f"{number}.png": picture(number) for number in range(1, count + 1)})
