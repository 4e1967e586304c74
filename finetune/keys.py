"""Keys: what a program shows instead of a name and a password, and what opens the page where there are no passwords.

A key is shown once, when it is made. Only its hash is kept, so that nobody who reads the database can use one.
"""

import hashlib
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune import index, owners
from finetune.errors import DeniedError, FinetuneError, MissingError
from finetune.owners import Caller
from finetune.settings import Settings

PREFIX = "ft_"
RANDOM_BYTES = 32
ID_LETTERS = len(PREFIX) + 12
"""How much of a key is its id, which is shown: 48 bits, which leave 208 to guess."""
MOST_EACH = 50


@dataclass(frozen=True)
class Key:
    """What is known of a key."""

    id: str
    owner: str
    owns_machine: bool
    created: float

    def told(self) -> dict[str, Any]:
        """What the page and the command line show of it."""
        made = datetime.fromtimestamp(self.created, UTC).isoformat(timespec="seconds")
        return {"id": self.id, "owner": self.owner, "owns_machine": self.owns_machine, "created": made}

    def caller(self, settings: Settings) -> Caller:
        """Whom it speaks for."""
        return Caller(self.owner, self.owns_machine or owners.person(settings, self.owner).owns_machine)


def new(settings: Settings, owner: str, owns_machine: bool = False) -> str:
    """Make a key for somebody; the answer is the only place where it can be read.

    Raises: ConfigError for a name that cannot be one, DeniedError when there are too many of theirs.
    """
    owner = owners.check_name(owner)
    key = PREFIX + secrets.token_hex(RANDOM_BYTES)
    with index.opened(settings) as connection:
        connection.execute("BEGIN IMMEDIATE")
        (count,) = connection.execute("SELECT count(*) FROM keys WHERE owner = ?", (owner,)).fetchone()
        if count >= MOST_EACH:
            raise DeniedError(f"“{owner}” has {count} keys already.", "Revoke one that is no longer used.")
        row = (key[:ID_LETTERS], _hash(key), owner, owns_machine, time.time())
        connection.execute("INSERT INTO keys (id, hash, owner, owns_machine, created) VALUES (?, ?, ?, ?, ?)", row)
    return key


def find(settings: Settings, key: str) -> Key | None:
    """What is known of a key that somebody shows; None if it is none of ours."""
    # By its hash: how long the search takes tells nothing of a key, because nobody can choose what a hash begins with.
    found = _found(settings, "WHERE hash = ?", _hash(key)) if key.startswith(PREFIX) else []
    return found[0] if found else None


def by_id(settings: Settings, id: str) -> Key | None:
    """The key of that id; None once it was revoked."""
    found = _found(settings, "WHERE id = ?", id)
    return found[0] if found else None


def of(settings: Settings, owner: str) -> list[Key]:
    """Somebody's keys, newest first."""
    return _found(settings, "WHERE owner = ? ORDER BY created DESC", owner)


def every(settings: Settings) -> list[Key]:
    """All keys, newest first."""
    return _found(settings, "ORDER BY created DESC")


def exist(settings: Settings) -> bool:
    """Whether there is any key."""
    with index.opened(settings) as connection:
        return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM keys)").fetchone()[0])


def revoke(settings: Settings, id: str, caller: Caller) -> None:
    """End a key of the caller's, or any for an owner of the machine: from now on it opens nothing.

    Raises: MissingError when there is none, FinetuneError when nobody would be asked who they are without it.
    """
    with index.opened(settings) as connection:
        connection.execute("BEGIN IMMEDIATE")
        row = connection.execute("SELECT owner FROM keys WHERE id = ?", (id,)).fetchone()
        if row is None or not (caller.owns_machine or row["owner"] == caller.name):
            raise MissingError("There is no such key.", "It may have been revoked already.")
        (count,) = connection.execute("SELECT count(*) FROM keys").fetchone()
        is_all_that_asks = count == 1 and not (settings.auth or settings.share or settings.on_space)
        # Whoever could end the last key would, from then on, use the service as its owner does at home.
        if is_all_that_asks and caller is not owners.AT_HOME:
            raise FinetuneError(
                "This is the last key: without it, nobody would be asked who they are.",
                "Make another one first, or revoke it where the service runs: python -m finetune key revoke.",
            )
        connection.execute("DELETE FROM keys WHERE id = ?", (id,))


def _found(settings: Settings, condition: str, *values: str) -> list[Key]:
    with index.opened(settings) as connection:
        rows = connection.execute(f"SELECT id, owner, owns_machine, created FROM keys {condition}", values)
        return [Key(row["id"], row["owner"], bool(row["owns_machine"]), row["created"]) for row in rows]


def _hash(key: str) -> str:
    # A fast hash is right here: slow ones make up for passwords that can be guessed, and 256 random bits cannot be. It
    # is needed for every request, so a slow one would only let strangers keep the processor busy.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
