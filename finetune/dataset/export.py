"""Pictures with their captions, laid out as other trainers read them, and this service too.

What is written are the pictures as they are trained: upright RGB of at most 2048 px a side, as PNG. The files that were
uploaded are not kept.
"""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from finetune.dataset import exchange
from finetune.dataset.intake import Picture
from finetune.errors import FinetuneError

Files = list[tuple[str, str | Path]]
"""Names with what they hold: a text, or the content of another file."""


class Layout(StrEnum):
    """How a dataset lies in a folder or a ZIP."""

    PLAIN = "plain"
    """A `.txt` beside each picture."""
    KOHYA = "kohya"
    """The same, in folders that begin with how often their pictures come in a pass, such as `10_name`."""
    HF = "hf"
    """All captions in metadata.jsonl, as ImageFolder of the library datasets reads it."""


def files(folder: Path, images: Sequence[Picture], captions: Sequence[str | None], layout: Layout, name: str) -> Files:
    """The files of a dataset whose pictures lie in a folder; `name` is that of kohya's folders."""
    stems = _stems(images)
    made: Files = []
    rows = []
    for picture, caption, stem in zip(images, captions, stems, strict=True):
        place = f"{picture.repeats}_{name}/" if layout is Layout.KOHYA else ""
        made.append((f"{place}{stem}.png", folder / picture.file))
        if layout is Layout.HF:
            rows.append(json.dumps({"file_name": f"{stem}.png", "text": caption or ""}, ensure_ascii=False))
        elif caption is not None:
            made.append((f"{place}{stem}.txt", caption + "\n"))
    return [*made, ("metadata.jsonl", "\n".join(rows) + "\n")] if rows else made


def caption_files(images: Sequence[Picture], captions: Sequence[str | None]) -> Files:
    """The captions alone, under names by which they are found when they lie beside the pictures that were uploaded."""
    named = zip(exchange.text_names(images), captions, strict=True)
    return [(name, f"{caption}\n") for name, caption in named if caption is not None]


def within(folder: Path, made: Files) -> Files:
    """The same files for a folder: where all of them lie in one of its name, that is this one."""
    own = f"{folder.resolve().name}/"
    is_own = all(name.startswith(own) for name, _ in made)
    return [(name.removeprefix(own), content) for name, content in made] if is_own else made


def write(made: Files, output: Path) -> int:
    """Write files into a ZIP, in place of the one that is there, or into a folder; returns how many.

    What is in the folder already stays as it is. Raises: FinetuneError when that cannot be done.
    """
    try:
        return _write_zip(made, output) if is_zip(output) else _write_folder(made, output)
    except OSError as error:
        raise FinetuneError(
            f"{output} cannot be written: {error.strerror or error}.", "Is there room, and may you write there?"
        ) from error


def is_zip(output: Path) -> bool:
    """Whether a path means a ZIP; else it means a folder."""
    return output.suffix.lower() == ".zip"


def _write_zip(made: Files, output: Path) -> int:
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f"{output.name}.part")
    with zipfile.ZipFile(part, "w") as archive:
        for name, content in made:
            if isinstance(content, Path):
                archive.write(content, name)  # PNG is packed already
            else:
                archive.writestr(name, content, zipfile.ZIP_DEFLATED)
    os.replace(part, output)
    return len(made)


def _write_folder(made: Files, output: Path) -> int:
    missing = [(output / name, content) for name, content in made if not (output / name).exists()]
    for path, content in missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_text(content, encoding="utf-8")
    return len(missing)


def _stems(images: Sequence[Picture]) -> list[str]:
    """A name for each picture: its own, with its folders before it or a number behind it where that is taken."""
    stems: list[str] = []
    taken: set[str] = set()
    for picture in images:
        path = exchange.unpacked_name(re.sub(r"\.\w+$", "", picture.source))
        number = Path(picture.file).stem
        ways = (path.rpartition("/")[2], path.replace("/", "_"), f"{path.replace('/', '_')}-{number}", number)
        stem = next(way for way in ways if way.casefold() not in taken)
        taken.add(stem.casefold())
        stems.append(stem)
    return stems
