"""ZIP -> checked images and captions in the run folder.

`archive` reads the ZIP, `pictures` one picture, `texts` the captions; `intake` makes numbered files of them, and
`apart` lets that happen in a process of its own. What is not used is listed with its reason, and a ZIP that cannot be
used leaves nothing behind.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from finetune.dataset import apart, archive
from finetune.dataset.archive import Ignored, Limits
from finetune.dataset.intake import Dataset, Picture, Tell, from_dict
from finetune.errors import DatasetError
from finetune.runs import Run

__all__ = ["Dataset", "Ignored", "Limits", "Picture", "content_hash", "from_dict", "read", "unpack"]


def read(run: Run) -> Dataset:
    """The pictures of a run. Raises: DatasetError when it has none."""
    if not (values := run.read("dataset.json")):
        raise DatasetError("This run has no pictures.", "Upload a ZIP of pictures first.")
    return from_dict(values)


def content_hash(run: Run) -> str:
    """Tell the pictures of a run, with the captions that came with them, from all others; names do not count."""
    hashed = hashlib.blake2b(digest_size=16)
    for picture in read(run).images:
        hashed.update((run.images / picture.file).read_bytes())
        hashed.update(f"\n{picture.caption or ''}\n".encode())
    return hashed.hexdigest()


def unpack(
    zip_path: Path,
    run: Run,
    tell: Tell = lambda done, of: None,
    limits: Limits = archive.LIMITS,
    take: Callable[[Path, Path, Tell, Limits], Dataset] = apart.take,
) -> Dataset:
    """Check a ZIP and put its pictures into the run folder, in place of those that were there.

    `tell(done, of)` is called before the first picture and after each. `take` does the work; `intake.take` does it in
    this process. Raises: DatasetError when the ZIP cannot be used, BusyError when too many are being read, StorageError
    when the disk is full; the folder is then as it was before.
    """
    try:
        with tempfile.TemporaryDirectory(dir=run.folder) as part:
            dataset = take(zip_path, Path(part), tell, limits)
            _put(dataset, Path(part), run)
    except OSError as error:
        raise DatasetError(
            f"The pictures could not be stored: {error.strerror or error}.", "Is the disk full, or was the file moved?"
        ) from error
    return dataset


def _put(dataset: Dataset, part: Path, run: Run) -> None:
    """Swap the new pictures in; descriptions of the old ones go with them."""
    for name in ("dataset.json", "descriptions.json"):
        (run.folder / name).unlink(missing_ok=True)
    for target in (run.images, run.thumbnails):
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part / target.name, target)
    run.write("dataset.json", dataset.as_dict())
