"""ZIP, folder or files -> checked images and captions in the run folder.

`archive` reads the upload, `pictures` one picture, `texts` the captions, `other_trainers` the habits of other trainers;
`intake` makes numbered files of them, and `apart` lets that happen in a process of its own. What became of each file is
in the report, and an upload that cannot be used leaves nothing behind. `edits` is what a person changed since, and
`exchange` brings captions out and in.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune.dataset import apart, archive, edits
from finetune.dataset.archive import Ignored, Limits, Upload
from finetune.dataset.edits import uploaded
from finetune.dataset.intake import Dataset, Picture, Row, Tell, from_dict, passes
from finetune.dataset.pictures import GROUNDS
from finetune.errors import ConfigError, DatasetError
from finetune.runs import Run

__all__ = [
    "GROUNDS",
    "Dataset",
    "Ignored",
    "Limits",
    "Picture",
    "Row",
    "Upload",
    "content_hash",
    "files",
    "from_dict",
    "passes",
    "read",
    "unpack",
    "uploaded",
]


def read(run: Run) -> Dataset:
    """The pictures of a run as they are trained: as a person edited them. Raises: DatasetError when it has none."""
    return edits.edited(run)


def content_hash(run: Run) -> str:
    """Tell what is trained of a run from all else: pictures, captions of people, repeats; names do not count."""
    hashed = hashlib.blake2b(digest_size=16)
    for picture in read(run).images:
        hashed.update(hashlib.blake2b((run.images / picture.file).read_bytes()).digest())
        hashed.update(json.dumps([picture.caption, picture.repeats]).encode())
    return hashed.hexdigest()


def files(paths: Sequence[Path]) -> Upload:
    """What files and folders of this machine's owner make up: an upload for `unpack`. Raises: DatasetError."""
    for path in paths:
        if not path.exists():
            raise DatasetError(
                f"There is no file “{path}”.", "Give the path of a ZIP, a folder or pictures.", str(path)
            )
    try:
        return archive.files(paths)
    except OSError as error:
        raise DatasetError(f"“{error.filename}” cannot be read: {error.strerror}.", "Is it yours?") from error


def unpack(
    upload: Upload,
    run: Run,
    tell: Tell = lambda done, of: None,
    limits: Limits = archive.LIMITS,
    take: Callable[..., Dataset] = apart.take,
    ground: str = "white",
) -> Dataset:
    """Check a ZIP, or files one by one, and put their pictures into the run folder, in place of those that were there.

    `tell(done, of)` is called before the first picture and after each. `take` does the work; `intake.take` does it in
    this process. `ground` is what lies under what is transparent, of GROUNDS. Raises: DatasetError when the upload
    cannot be used, BusyError when too many are being read, StorageError when the disk is full; the folder is then as it
    was before.
    """
    if ground not in GROUNDS:
        raise ConfigError(f"There is no ground “{ground[:40]}”.", f"Choose {', '.join(GROUNDS)}.", "ground")
    try:
        with tempfile.TemporaryDirectory(dir=run.folder) as part:
            dataset = take(upload, Path(part), tell, limits, ground)
            _put(dataset, Path(part), run)
    except OSError as error:
        raise DatasetError(
            f"The pictures could not be stored: {error.strerror or error}.", "Is the disk full, or was the file moved?"
        ) from error
    return dataset


def _put(dataset: Dataset, part: Path, run: Run) -> None:
    """Swap the new pictures in; descriptions and edits of the old ones go with them."""
    edits.forget(run)
    for name in ("dataset.json", "descriptions.json"):
        (run.folder / name).unlink(missing_ok=True)
    for target in (run.images, run.thumbnails):
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part / target.name, target)
    run.write("dataset.json", dataset.as_dict())
