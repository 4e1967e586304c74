"""Datasets that are kept: under a name, in versions by their content, for any number of runs of their owner.

A version is a folder that looks like that of a run: images, thumbnails, dataset.json, descriptions.json; about.json
says what it is. Files are shared with the runs by hard links, so that using a dataset costs no room. Nothing ever
writes into a picture that is there: whoever changes one has to put a new file in its place.
"""

import hashlib
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune import dataset
from finetune.errors import ConfigError, FinetuneError, MissingError, StorageError
from finetune.inputs import visible
from finetune.owners import Caller
from finetune.runs import Run
from finetune.settings import Settings

ORIGIN = "origin.json"
"""The file of a run that says which dataset its pictures are, or were before they were edited."""
MOST_LETTERS = 100
LONGEST_TYPED = 1000
"""Of what is typed, more is not looked at."""
MOST_EACH = 100
"""Versions that one owner may keep."""
_VERSION = re.compile(r"(.+)@([0-9a-f]{4,32})", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Kept:
    """One version of a dataset on the shelf."""

    folder: Path
    name: str
    owner: str
    created: str
    """When this content was last kept under the name."""
    hash: str
    pictures: int
    source: str
    """Where the pictures are from, in words."""

    @property
    def label(self) -> str:
        """What finds exactly this version."""
        return f"{self.name}@{self.hash[:8]}"

    @property
    def contents(self) -> Run:
        """The folder as what reads pictures knows it."""
        return Run(self.folder)


def root(settings: Settings) -> Path:
    """Where all datasets lie, in a folder for each owner."""
    return settings.home / "datasets"


def tidy(name: str) -> str:
    """A name as it is kept: in one line, without letters that cannot be seen. Raises: ConfigError."""
    name = visible(unicodedata.normalize("NFC", _whole(name)))
    if not any(unicodedata.category(letter)[0] in "LNPS" for letter in name):
        raise ConfigError("The dataset needs a name.", "Give it a few words, such as “my dog”.", "name")
    if len(name) > MOST_LETTERS:
        raise ConfigError("The name is too long.", f"It may have {MOST_LETTERS} letters.", "name")
    return name


def keep(settings: Settings, run: Run, name: str, caller: Caller, source: str = "") -> Kept:
    """Keep a run's pictures, as edited, under a name of the caller's; the same content again makes no new version.

    `source` says where they are from, if the run does not know.
    Raises: ConfigError for a name that is none, DatasetError when there are no pictures, StorageError when there is no
    room, FinetuneError when the caller keeps too many.
    """
    name = tidy(name)
    settings.check_room(sum((run.images / picture.file).stat().st_size for picture in dataset.read(run).images))
    folder = _folder(settings, caller.name, name)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root(settings), prefix=".") as part:
        made = Run(Path(part) / "made")
        made.folder.mkdir()
        share(run, made)
        made.write("dataset.json", replace(dataset.read(made), ignored=(), texts=()).as_dict())  # of a ZIP
        target = Run(folder / dataset.content_hash(made))  # of what was taken, should the run be edited meanwhile
        if not target.read("about.json"):
            _check_number(settings, caller.name)
            _move(made.folder, target.folder)
    _add_descriptions(run, target)
    about = {
        "name": name,
        "owner": caller.name,
        "created": datetime.now(UTC).isoformat(),
        "hash": target.folder.name,
        "pictures": len(dataset.read(target).images),
        "source": source or _source(run),
    }
    target.write("about.json", about)
    kept = Kept(target.folder, **about)
    _remember(kept, run)
    return kept


def of(settings: Settings, caller: Caller) -> list[Kept]:
    """All versions of all datasets that the caller may use, newest first."""
    found = _read(settings, "*" if caller.owns_machine else _digest(caller.name))
    return sorted(found, key=lambda kept: kept.created, reverse=True)


def by_name(found: list[Kept]) -> list[list[Kept]]:
    """Versions that stand under one name together, in the order in which they were given."""
    names: dict[Path, list[Kept]] = {}
    for kept in found:
        names.setdefault(kept.folder.parent, []).append(kept)
    return list(names.values())


def find(settings: Settings, caller: Caller, asked: str, owner: str = "") -> Kept:
    """The newest version of a name, or the one whose hash begins as in `name@ab12cd34`.

    `owner` says whose, for an owner of the machine; else it is the caller's. Raises: MissingError.
    """
    return matching(settings, caller, asked, owner)[0]


def matching(settings: Settings, caller: Caller, asked: str, owner: str = "") -> list[Kept]:
    """All versions of a name, newest first, or those of a hash. Raises: MissingError when there is none."""
    owner, asked = owner or caller.name, _whole(asked).strip()
    is_allowed = owner == caller.name or caller.owns_machine
    theirs = [kept for kept in of(settings, caller) if kept.owner == owner] if is_allowed else []
    if found := _named(asked, theirs):
        return found
    if exact := _VERSION.fullmatch(asked):
        versions = _named(exact[1], theirs)
        if found := [kept for kept in versions if kept.hash.startswith(exact[2].lower())]:
            return found
        if versions:
            known = ", ".join(kept.hash[:8] for kept in versions[:10])
            raise MissingError(f"“{versions[0].name}” has no version {exact[2]}.", f"It has {known}.")
    names = list(dict.fromkeys(f"“{kept.name}”" for kept in theirs))
    hint = f"There is {', '.join(names[:10])}." if names else "None was kept yet."
    raise MissingError(f"There is no dataset “{visible(asked)[:MOST_LETTERS]}”.", hint)


def use(kept: Kept, run: Run) -> None:
    """Fill a draft with a dataset's pictures; what is changed there afterwards does not change the dataset.

    Raises: StorageError when they cannot be copied.
    """
    share(kept.contents, run)
    _remember(kept, run)


def share(source: Run, target: Run) -> None:
    """Give one folder the pictures of another, as edited there, and what captioners said of them.

    Raises: StorageError when they cannot be copied.
    """
    found = dataset.read(source)
    try:
        target.images.mkdir(exist_ok=True)
        target.thumbnails.mkdir(exist_ok=True)
        for picture in found.images:
            thumbnail = Path(picture.file).with_suffix(".webp").name
            _link(source.images / picture.file, target.images / picture.file)
            _link(source.thumbnails / thumbnail, target.thumbnails / thumbnail)
    except OSError as error:
        raise StorageError(
            f"The pictures could not be copied: {error.strerror or error}.", "Is the disk full?"
        ) from error
    _add_descriptions(source, target)
    target.write("dataset.json", found.as_dict())


def remove(kept: Kept) -> None:
    """Delete a version for good; runs that were made with it keep their pictures."""
    gone = kept.folder.with_name(f"{kept.hash}.gone")
    shutil.rmtree(gone, ignore_errors=True)  # of a time when it could not be deleted whole
    with suppress(FileNotFoundError):
        os.replace(kept.folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def name_of(run: Run, content_hash: str) -> str:
    """Under which name a run's pictures are kept; empty if they are not, or were edited since."""
    origin = run.read(ORIGIN)
    return origin["name"] if origin.get("hash") == content_hash else ""


def _whole(typed: str) -> str:
    """What was typed, without what is too much of it, and without halves of letters, which no file can hold."""
    return typed[:LONGEST_TYPED].encode("utf-8", "ignore").decode()


def _named(name: str, among: list[Kept]) -> list[Kept]:
    key = _key(name)
    return [kept for kept in among if _key(kept.name) == key]


def _remember(kept: Kept, run: Run) -> None:
    run.write(ORIGIN, {"name": kept.name, "hash": kept.hash})


def _source(run: Run) -> str:
    if request := run.request():
        return f"the finetune {request.finetune_comment}"
    origin = run.read(ORIGIN)
    return f"{origin['name']}@{origin['hash'][:8]}" if origin else "an upload"


def _check_number(settings: Settings, owner: str) -> None:
    """Raises: FinetuneError when the owner keeps too many already."""
    if len(list(_read(settings, _digest(owner)))) >= MOST_EACH:
        raise FinetuneError(
            f"You keep {MOST_EACH} datasets and versions, and no more are taken from one owner.",
            "Delete one that is no longer needed.",
        )


def _move(made: Path, target: Path) -> None:
    """Put a new version in place in one move; one that was made meanwhile is the same."""
    try:
        os.rename(made, target)
    except OSError:
        if not target.exists():
            raise


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or where the disk knows no such thing, copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _add_descriptions(source: Run, target: Run) -> None:
    """Let one folder have what captioners said of the same pictures in another."""
    if said := source.read("descriptions.json"):
        target.write("descriptions.json", _joined(target.read("descriptions.json"), said))


def _joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """All that two objects say, at every depth; where both say something, the new one counts."""
    both = {key: _joined(old[key], value) for key, value in new.items() if isinstance(old.get(key), dict)}
    return {**old, **new, **both}


def _read(settings: Settings, owners: str) -> Iterator[Kept]:
    """The versions in folders of owners; one that is being made or removed is not among them."""
    for path in root(settings).glob(f"{owners}/*/*/about.json"):
        about = Run(path.parent).read("about.json")
        if about and path.parent.name == about["hash"]:
            yield Kept(path.parent, **about)


def _folder(settings: Settings, owner: str, name: str) -> Path:
    return root(settings) / _digest(owner) / _digest(_key(name))


def _key(name: str) -> str:
    """What makes two names the same: neither case nor the way in which letters are composed."""
    return visible(unicodedata.normalize("NFKC", name).casefold())


def _digest(text: str) -> str:
    """A folder's name for a text, which no text can turn into a path."""
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=10).hexdigest()
