"""Build the example dataset: `python assets/example/build.py CACHE`, where CACHE keeps the downloads.

Sixteen Twemoji pictures, ten of them with a caption. Whatever is not in TRAINED_CODES stays unseen, for measuring.
"""

import argparse
import io
import sys
import zipfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "demo-base"))
from stages import pictures

STYLE = "twemoji"
TRAINED_CODES = (
    *("1f98a", "1f418", "1f427", "1f438", "1f420", "1f98b", "1f41e", "1f41d"),  # animals
    *("1f33b", "1f335", "1f340", "1f344"),  # plants
    *("1f34e", "1f955", "1f354", "1f370"),  # food
)
# These come without a caption, for the demo captioner to describe. It reads them right; it misreads most other Twemoji.
WITHOUT_CAPTION = ("1f418", "1f427", "1f41e", "1f335", "1f955", "1f354")
MOMENT = (2025, 1, 1, 0, 0, 0)


def main() -> None:
    """Write the ZIP beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path, help="folder that keeps the downloads")
    write(parser.parse_args().cache, Path(__file__).parent / "twemoji.zip")


def write(cache: Path, target: Path) -> None:
    """Write the pictures on white, in the order of TRAINED_CODES; captions beside most of them."""
    found = {picture.code: picture for picture in pictures.find(cache, STYLE)}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as zip:
        for code in TRAINED_CODES:
            picture = found[code]
            name = picture.label.replace(" ", "-")
            _put(zip, f"{name}.png", _on_white(picture.path))
            if code not in WITHOUT_CAPTION:
                _put(zip, f"{name}.txt", f"{picture.thing}\n".encode())


def _on_white(path: Path) -> bytes:
    image = Image.open(path).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()


def _put(zip: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, MOMENT)  # a fixed time, so that the same pictures give the same ZIP
    entry.create_system, entry.external_attr, entry.compress_type = 3, 0o644 << 16, zipfile.ZIP_DEFLATED
    zip.writestr(entry, content)


if __name__ == "__main__":
    main()
