"""What other trainers leave in a folder of pictures: how often each one comes, and what is not to be trained.

Separate because it knows the habits of other programs. Everything is told from names alone.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from finetune.dataset.archive import Entry

REPEATS = re.compile(r"([1-9][0-9]{0,2})_.+", re.DOTALL)
"""kohya's folders; a number that begins with 0, or has four digits as a year has, means something else."""
REGULARISATION = re.compile(r"reg(_.*)?|regulari[sz]ation(_.*)?|class_images", re.IGNORECASE | re.DOTALL)
SAMPLES = {"sample", "samples"}
MASK = re.compile(r"(.+)-(masklabel|condlabel)", re.IGNORECASE | re.DOTALL)
"""OneTrainer's pictures that belong to others."""
NO_PICTURE = "is not a picture"
KINDS = {
    "holds weights of a model": {".safetensors", ".ckpt", ".pt", ".pth", ".gguf", ".onnx"},
    "holds settings of a trainer": {".toml", ".yaml", ".yml", ".json", ".cfg", ".ini", ".sh", ".bat"},
    "holds what a trainer had worked out": {".npz", ".npy"},
    "is a video; save single pictures of it": {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"},
    "is a camera’s raw picture; save it as JPEG": {".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2"},
    "is a drawing; save it as PNG": {".psd", ".svg", ".ai", ".eps", ".xcf", ".kra", ".pdf"},
    "is a table of a kind that is not read; save it as CSV": {".parquet", ".xlsx", ".xls", ".ods", ".arrow"},
}
SHOWN = 5


def why_no_picture(entry: Entry) -> str:
    """What a file is that is neither picture nor caption."""
    return next(
        (f"{NO_PICTURE}: it {kind}" for kind, suffixes in KINDS.items() if entry.suffix in suffixes), NO_PICTURE
    )


def left_out(pictures: Sequence[Entry]) -> dict[str, str]:
    """Pictures that are not to be trained, by name, each with the reason; nothing if that were all of them."""
    stems = {(entry.folder, entry.stem.casefold()) for entry in pictures}
    found = {entry.name: reason for entry in pictures if (reason := _reason(entry, stems))}
    return found if len(found) < len(pictures) else {}


def _reason(entry: Entry, stems: set[tuple[str, str]]) -> str:
    if (mask := MASK.fullmatch(entry.stem)) and (entry.folder, mask[1].casefold()) in stems:
        return f"is OneTrainer’s mask of {mask[1]}; masks are not used"
    for folder in entry.folder.split("/"):
        if REGULARISATION.fullmatch(folder):
            return f"is in the folder {folder}, so a regularisation picture, which is not trained"
        if folder.lower() in SAMPLES:
            return f"is in the folder {folder}, so one that a trainer drew; rename the folder to use it"
    return ""


def repeats(entry: Entry) -> int:
    """How often a picture comes by the name of its folder."""
    found = REPEATS.fullmatch(PurePosixPath(entry.folder).name)
    return int(found[1]) if found else 1


def repeats_in_words(used: Iterable[Entry]) -> tuple[str, ...]:
    """Say what the names of folders do."""
    counts = {entry.folder: repeats(entry) for entry in used}
    if set(counts.values()) <= {1}:
        return ()
    is_same = len(set(counts.values())) == 1
    counts = {folder: count for folder, count in counts.items() if count > 1}
    said = [
        f"kohya’s folder {PurePosixPath(folder).name}: each picture comes {count} times as often."
        for folder, count in list(counts.items())[:SHOWN]
    ]
    if len(counts) > SHOWN:
        said.append(f"So do {len(counts) - SHOWN} more of its folders, each by its number.")
    if is_same:
        said.append("As that holds for all pictures, it changes nothing.")
    return tuple(said)
