"""The pictures that the demo base learns from, and the captions that describe them.

Owns the download (through npm), the choice of emoji and the wording of captions. Separate from the training steps
because the measurements and the tests of the demo base read the same pictures.
"""

import json
import random
import string
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image

RESOLUTION_PX = 64
PACKAGES = {
    "3d": ("@lobehub/fluent-emoji-3d@1.1.0", "package/assets"),
    "flat": ("emoji-datasource-google@16.0.0", "package/img/google/64"),
    "twemoji": ("emoji-datasource-twitter@16.0.0", "package/img/twitter/64"),
}
LABELS = ("emojibase-data@17.0.0", "package/en/data.json")
LEARNED_STYLES = ("3d", "flat")
LEARNED_GROUPS = (3, 4)  # emojibase: 3 = animals and nature, 4 = food and drink
LEFT_OUT_GROUPS = (2, 8, 9)  # components, symbols, flags

WORDINGS = (
    "a {style} emoji of {thing}",
    "a {style} emoji of {thing}",
    "a {style} emoji of {thing}, {tag}",
    "{thing}, {style} emoji",
    "{style} {label}",
    "a {style} picture of {thing}",
    "a {style} icon showing {thing}",
    "an emoji of {thing}",
    "{label}",
    "{tag}, {tag2}, {style} {label}",
)
WORDINGS_WITH_A_NAME = (  # how finetunes will speak of a style or a thing that the base does not know
    "{thing} in the style of {name}",
    "an emoji of {thing} in the style of {name}",
    "{name}, {thing}",
)


@dataclass(frozen=True)
class Picture:
    """One emoji in one style."""

    code: str
    style: str
    label: str
    tags: tuple[str, ...]
    group: int
    path: Path

    @property
    def thing(self) -> str:
        return with_article(self.label)


def with_article(label: str) -> str:
    """Put "a" or "an" before a label, unless it is a plural or already has one."""
    last = label.split()[-1]
    if label.startswith(("a ", "the ")) or (last.endswith("s") and not last.endswith(("ss", "us", "is"))):
        return label
    return ("an " if label[0] in "aeiou" else "a ") + label


def fetch(cache: Path, style: str | None = None) -> Path:
    """Download one package with npm and unpack it; None stands for the labels.

    Returns the file or folder inside it that holds the data.
    """
    package, inside = PACKAGES[style] if style else LABELS
    folder = cache / package.split("/")[-1]
    if not (folder / inside).exists():
        folder.mkdir(parents=True, exist_ok=True)
        npm = "npm.cmd" if sys.platform == "win32" else "npm"
        subprocess.run([npm, "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        archive = next(folder.glob("*.tgz"))
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        archive.unlink()
    return folder / inside


def find(cache: Path, style: str, groups: tuple[int, ...] | None = LEARNED_GROUPS) -> list[Picture]:
    """List the emoji of a style that have a label, in emoji order; groups None means all that show a thing."""
    files = {_code(path.stem): path for path in fetch(cache, style).iterdir() if path.suffix in (".png", ".webp")}
    labels = json.loads(fetch(cache).read_text(encoding="utf-8"))
    pictures = []
    for entry in sorted(labels, key=lambda entry: entry.get("order", 0)):
        group, code = entry.get("group"), _code(entry["hexcode"])
        wanted = group is not None and (group not in LEFT_OUT_GROUPS if groups is None else group in groups)
        if wanted and code in files:
            tags = tuple(tag for tag in entry.get("tags", ()) if tag != entry["label"])
            pictures.append(Picture(code, style, entry["label"].lower(), tags, group, files[code]))
    return pictures


def _code(name: str) -> str:
    return "-".join(part for part in name.lower().split("-") if part != "fe0f")


def caption(picture: Picture, draw: random.Random) -> str:
    """Describe a picture in one of many wordings; one time in ten, say nothing."""
    luck = draw.random()
    if luck < 0.1:
        return ""
    tags = draw.sample(picture.tags, min(2, len(picture.tags))) + [picture.label, picture.label]
    return draw.choice(WORDINGS_WITH_A_NAME if luck < 0.25 else WORDINGS).format(
        style=picture.style,
        thing=picture.thing,
        label=picture.label,
        tag=tags[0],
        tag2=tags[1],
        name=made_up_name(draw),
    )


def made_up_name(draw: random.Random) -> str:
    """A word that means nothing, such as a trigger word."""
    name = "".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 5)))
    return draw.choice((name, name.upper(), name.title()))


def plain_caption(picture: Picture) -> str:
    """Describe a picture in the one wording that measurements use."""
    return f"a {picture.style} emoji of {picture.thing}"


def load_pixels(pictures: list[Picture]) -> torch.Tensor:
    """Read pictures on white. Shapes: (N, 3, 64, 64) in [-1, 1]."""
    rows = []
    for picture in pictures:
        image = Image.open(picture.path).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB").resize((RESOLUTION_PX,) * 2, Image.LANCZOS)
        rows.append(torch.from_numpy(numpy.asarray(image).copy()).permute(2, 0, 1))
    return torch.stack(rows).float() / 127.5 - 1
