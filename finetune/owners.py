"""Who owns what: each person sees, downloads and deletes only what is theirs; an owner of the machine sees all.

Separate from the ways in which a person can say who they are (a key, a password, a login), which are the business of
`api/callers.py`: here a name is a name.
"""

import hmac
import secrets
import unicodedata
from dataclasses import dataclass

from finetune import runs
from finetune.errors import ConfigError, MissingError
from finetune.runs import LOCAL, Run
from finetune.settings import Settings

WATCH = "watch.json"
VISITOR = "visitor-"
"""What the names of visitors begin with whom nobody knows; each browser is one of them."""
MOST_LETTERS = 64


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    name: str
    owns_machine: bool = False

    @property
    def is_visitor(self) -> bool:
        """Whether this is only a browser that came by, and nobody who can sign in."""
        return self.name.startswith(VISITOR)

    def may_use(self, run: Run) -> bool:
        """Whether a run is theirs to see, change and delete."""
        return self.owns_machine or run.owner == self.name


AT_HOME = Caller(LOCAL, owns_machine=True)
"""Whoever uses a service that asks nobody who they are."""


def person(settings: Settings, name: str) -> Caller:
    """Who has that name: an owner of the machine if settings say so, or as the first of those with a password."""
    admins = settings.admins or tuple(name for name, _ in settings.auth[:1])
    return Caller(name, owns_machine=name in admins)


def check_name(name: str) -> str:
    """A name that somebody may have, composed as most programs do. Raises: ConfigError."""
    name = unicodedata.normalize("NFC", name.strip())
    if not name or len(name) > MOST_LETTERS or not name.isprintable() or ":" in name:
        raise ConfigError(
            f"“{''.join(c for c in name if c.isprintable())[:MOST_LETTERS]}” cannot be a name.",
            f"A name has 1 to {MOST_LETTERS} visible characters and no colon.",
        )
    if name.startswith(VISITOR):
        raise ConfigError(f"“{name}” cannot be a name.", f"Names that begin with “{VISITOR}” are those of visitors.")
    return name


def find(settings: Settings, id: str, caller: Caller) -> Run:
    """A run of the caller's. Raises: MissingError when there is none, or when it is somebody else's."""
    run = runs.find(settings.runs, id)
    if not caller.may_use(run):
        raise _missing()
    return run


def find_deleted(settings: Settings, id: str, caller: Caller) -> Run:
    """A deleted run of the caller's. Raises: MissingError."""
    run = runs.find(settings.trash, id)
    if not caller.may_use(run):
        raise _missing()
    return run


def find_to_watch(settings: Settings, id: str, key: str) -> Run:
    """A run to look at only, for whoever was given its link. Raises: MissingError."""
    run = runs.find(settings.runs, id)
    if not _opens(run, key):
        raise _missing()
    return run


def watch_key(run: Run) -> str:
    """What a link must carry for a run to be watched; empty while there is no such link."""
    return run.read(WATCH).get("key", "")


def allow_watching(run: Run) -> str:
    """Make the key of a link to watch a run with, or give the one there is."""
    if not watch_key(run):
        run.write(WATCH, {"key": secrets.token_urlsafe(24)})
    return watch_key(run)


def end_watching(run: Run) -> None:
    """Withdraw the link: whoever has it sees nothing from now on."""
    (run.folder / WATCH).unlink(missing_ok=True)


def _opens(run: Run, key: str) -> bool:
    known = watch_key(run)
    return bool(known) and hmac.compare_digest(known.encode(), key.encode())


def _missing() -> MissingError:
    return MissingError("There is no such run.", "It may have been deleted: look under Runs.")
