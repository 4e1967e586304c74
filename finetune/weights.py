"""Where a base model's files are: a folder, or the Hub's cache, fetched when they are missing.

What is on this machine is used as it is, without asking the Hub: a run that goes on must find the base that it began
with.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from finetune import downloads, hub, layouts
from finetune.errors import ModelError
from finetune.families import BaseModel

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

Progress = Callable[[str, int, int], None]
"""Told what is being done in plain words, how many bytes are there, and of how many."""
Pick = Callable[[Path, Iterable[str]], list[str]]
"""Chooses from the names of all files of a repository, with a folder of its first ones."""

WEIGHTS = re.compile(r"(model|diffusion_pytorch_model)(-\d+-of-\d+)?\.safetensors")
"""What diffusers and transformers load of a part: no other precision, no other program's format."""
SMALL_KINDS = (".json", ".txt", ".model", ".jinja")


def folder(base: BaseModel, progress: Progress) -> Path:
    """The folder of a base model's files, fetched first if need be.

    `progress` is called about three times a second; what it raises ends the download, which goes on from there later.
    Raises: ModelError, AccessError.
    """
    if (local := _local(base)) is not None:
        if missing := lacking(local):
            raise ModelError(f"{base.title} in “{local}” is not complete: {', '.join(missing[:3])} is missing.")
        return local
    found = hub.cached(base.source)
    if found and not lacking(found):
        return found
    with hub.in_words(base.source):
        return of_hub(base.source, base.title, layouts.INDEXES, partial(_of_base, base), progress)


def is_present(base: BaseModel) -> bool:
    """Whether a base model can be used without a download. Asks nobody."""
    return here(base) is not None


def here(base: BaseModel) -> Path | None:
    """The folder of a base model that is whole on this machine; None of one that is not. Asks nobody."""
    place = _local(base) or hub.cached(base.source)
    try:
        return place if place is not None and not lacking(place) else None
    except ModelError:  # no folder, or none of a model
        return None


def missing_bytes(base: BaseModel) -> int:
    """How much would be downloaded: by the list of its files if the Hub gave it before, else as its record says."""
    if _local(base) is not None or is_present(base):
        return 0
    place, listed = hub.cached(base.source), hub.sizes(base.source)
    if place is None or not listed:
        return round(base.download_gib * 2**30)
    return sum(listed[name] for name in wanted(listed, layouts.index(place)) if not (place / name).exists())


def revision(folder: Path) -> str:
    """The commit of the files in a folder of the Hub's cache; empty for any other folder."""
    is_snapshot = folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name)
    return folder.name if is_snapshot else ""


def parts(index: Mapping[str, Any]) -> Iterator[str]:
    """The folders of the parts that an index names; those made from settings alone have none."""
    for name, value in index.items():
        if not isinstance(value, list) or len(value) < 2:
            continue
        if isinstance(value[-1], dict):  # modular: (library, class, where from)
            if value[-1].get("pretrained_model_name_or_path"):
                yield value[-1].get("subfolder") or name
        elif value[0] and value[1]:
            yield name


def wanted(names: Iterable[str], index: Mapping[str, Any]) -> list[str]:
    """Those of a repository's files that its parts are loaded from."""
    folders = set(parts(index))
    found = []
    for name in names:
        part, _, file = name.rpartition("/")
        is_of_part = part in folders and (file.endswith(SMALL_KINDS) or WEIGHTS.fullmatch(file))
        if is_of_part or name in layouts.INDEXES:
            found.append(name)
    return found


def lacking(folder: Path) -> list[str]:
    """What a folder must hold by its own indexes, and does not. Raises: ModelError when it has no index."""
    missing = []
    for part in parts(layouts.index(folder)):
        place = folder / part
        if not place.is_dir():
            missing.append(f"{part}/")
        elif (place / "config.json").exists():  # a network; tokenizers and schedulers have no such file
            missing += [f"{part}/{name}" for name in files_of(place) if not (place / name).exists()]
    return missing


def size_in_words(size: float) -> str:
    """A number of bytes as people read it, by thousands as disks and the Hub count."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB" if size < 1000 else f"{size / 1000:.1f} TB"


def _local(base: BaseModel) -> Path | None:
    """The folder of a base model that is none of the Hub's."""
    return Path(base.source) if os.path.isabs(base.source) else None


def files_of(part: Path) -> list[str]:
    """The files of weights that a part is made of: those that its index names, or the only one."""
    for name in ("model", "diffusion_pytorch_model"):
        path = part / f"{name}.safetensors.index.json"
        if path.exists():
            return sorted(set(layouts.read_json(path)["weight_map"].values()))
    there = [path.name for path in part.glob("*.safetensors") if WEIGHTS.fullmatch(path.name)]
    return there or ["*.safetensors"]


def of_hub(repo: str, title: str, first: Iterable[str], pick: Pick, progress: Progress) -> Path:
    """The snapshot of a repository of the Hub with the files that `pick` chooses once those named `first` are there.

    Small files come before weights, so that a missing licence shows at once; weights are linked last, so that a
    snapshot with weights is whole. Raises: what `pick` raises, ModelError, and what the Hub, network and disk raise.
    """
    from huggingface_hub import HfApi, snapshot_download

    quiet = {"tqdm_class": hub.silent_bar()}
    snapshot = Path(snapshot_download(repo, allow_patterns=list(first), **quiet))
    commit = revision(snapshot)
    listed = HfApi().model_info(repo, revision=commit, files_metadata=True).siblings
    sizes = {file.rfilename: file.size or 0 for file in listed}
    names = pick(snapshot, list(sizes))

    files = _large([file for file in listed if file.rfilename in names], repo, snapshot)
    small = sorted(set(names) - {file.name for file in files})
    total, settled = (sum(sizes[name] for name in some) for some in (names, small))

    def look(doing: str) -> None:
        progress(doing, settled + sum(file.there for file in files), total)

    with _alone(snapshot, partial(look, f"Waiting for another run that downloads {title}")):
        _check_space(title, total - settled - sum(file.there for file in files))
        snapshot_download(repo, revision=commit, allow_patterns=small, **quiet)
        downloads.fetch(files, partial(look, f"Downloading {title}"))
        snapshot_download(repo, revision=commit, allow_patterns=names, **quiet)
        _tidy(files, snapshot)
    return snapshot


def _of_base(base: BaseModel, snapshot: Path, listed: Iterable[str]) -> list[str]:
    """The files of a base model. Raises: ModelError when its repository does not hold all its parts."""
    index = layouts.index(snapshot)
    names = wanted(listed, index)
    held = {name.rpartition("/")[0] for name in names}
    if elsewhere := sorted(set(parts(index)) - held):
        raise ModelError(
            f"{base.title} does not hold all its parts: {', '.join(elsewhere)} lies in another place.",
            "Put all parts into one folder, and give that folder as the base model.",
        )
    return names


def _large(listed: "Iterable[RepoSibling]", repo: str, snapshot: Path) -> list[downloads.File]:
    """The weights among a repository's files that the snapshot does not have yet."""
    from huggingface_hub import hf_hub_url

    return [
        downloads.File(
            file.rfilename,
            file.size,
            file.lfs.sha256,
            hf_hub_url(repo, file.rfilename, revision=revision(snapshot)),
            snapshot.parent.parent / "blobs" / file.lfs.sha256,
        )
        for file in listed
        if file.lfs and file.rfilename.endswith(".safetensors") and not (snapshot / file.rfilename).exists()
    ]


@contextmanager
def _alone(snapshot: Path, while_waiting: Callable[[], None]) -> Iterator[None]:
    """Let one process at a time fetch a repository."""
    lock = filelock.FileLock(snapshot.parent.parent / "finetune.lock")
    while True:
        try:
            lock.acquire(timeout=downloads.SECONDS_BETWEEN_LOOKS)
            break
        except filelock.Timeout:
            while_waiting()
    try:
        yield
    finally:
        lock.release()


def _check_space(title: str, needed: int) -> None:
    """Make sure that a download fits the disk of the Hub's cache. Raises: ModelError."""
    from huggingface_hub import constants

    free = shutil.disk_usage(constants.HF_HUB_CACHE).free
    if needed > free:
        raise ModelError(
            f"{title} needs {size_in_words(needed)} on the disk, but only {size_in_words(free)} are free in "
            f"{constants.HF_HUB_CACHE}.",
            "Make room there, or set HF_HOME to a folder on a larger disk; then start again.",
        )


def _tidy(files: Iterable[downloads.File], snapshot: Path) -> None:
    """Remove what is left over: parts of files that the Hub has other ones of now, and, on a disk that knows no links,
    the files that the snapshot has copies of."""
    for part in (snapshot.parent.parent / "blobs").glob(f"*{downloads.PART}"):
        part.unlink()
    for file in files:
        if not (snapshot / file.name).is_symlink():
            file.blob.unlink(missing_ok=True)
