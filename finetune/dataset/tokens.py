"""How much of a caption a base model's text encoder reads, by the base's own tokenizer where its files are here.

Separate from the checks, because it opens files of base models. It reads as the families do, without what they need of
torch: what a family's template puts before a caption is counted here instead.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import hub
from finetune.families import BaseModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FOLDERS = ("tokenizer_2", "tokenizer")
"""Where there are two, the second reads the whole caption, and the first the gist of its start."""
AROUND = {"demo": 1, "flux1": 1, "flux2-klein": 3, "flux2-dev": 40, "flux3": 3}
"""Tokens that a template puts before a caption, or that end it, by base or family; of FLUX.2 dev about so many."""
LETTERS_FOR_A_TOKEN = 4
"""In English captions, rather too few than too many."""
LONG_TOKEN = 16
"""So many letters for each token are looked at first; the rest only matters if they are read."""

Unread = Callable[[str], str]
"""Gives the end of a caption that is not read; empty if all of it is."""


def reader(base: BaseModel) -> tuple[Unread, bool]:
    """What tells which end of a caption a base does not read, and whether it is exact rather than an estimate."""
    most = base.text_tokens - AROUND.get(base.id, AROUND.get(base.family, 0))
    path = _file(base)
    if path is None:
        return (lambda text: text[most * LETTERS_FOR_A_TOKEN :].strip()), False

    def unread(text: str) -> str:
        if len(text.encode()) <= most:  # no token is shorter than a byte
            return ""
        for start in (text[: most * LONG_TOKEN], text):
            spans = _tokenizer(path, path.stat().st_mtime).encode(start, add_special_tokens=False).offsets
            if len(spans) > most:
                return text[spans[most - 1][1] :].strip()
        return ""

    return unread, True


def _file(base: BaseModel) -> Path | None:
    """The tokenizer's file, if it is on this machine."""
    folder = Path(base.source) if os.path.isabs(base.source) else hub.cached(base.source)
    places = [folder / name / "tokenizer.json" for name in FOLDERS] if folder else []
    return next((place for place in places if place.is_file()), None)


@lru_cache(maxsize=2)
def _tokenizer(path: Path, changed: float) -> "Tokenizer":
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(path))
    found.no_truncation()
    found.no_padding()
    return found
