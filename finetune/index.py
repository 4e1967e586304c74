"""index.db: what the service keeps beyond the run folders, in SQLite: keys, and deliveries of webhooks.

Separate, because both are read and written by several threads and by the command line at once. Runs and images are
not in it: their folders say all there is.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from finetune.errors import StorageError
from finetune.settings import Settings

VERSIONS = (
    (
        """
        CREATE TABLE keys (
            id TEXT PRIMARY KEY,      -- its first letters, to tell keys apart
            hash TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            owns_machine INTEGER NOT NULL,
            created REAL NOT NULL
        )
        """,
        """
        CREATE TABLE deliveries (
            id TEXT PRIMARY KEY,
            task TEXT NOT NULL,       -- the run or the image that ended
            owner TEXT NOT NULL,      -- whose it is: nobody's deliveries hold up those of others
            ended REAL NOT NULL,      -- when: a run that goes on after a failure ends again
            url TEXT NOT NULL,
            body BLOB NOT NULL,
            signature TEXT NOT NULL,  -- of the body; empty without a secret, which is kept nowhere here
            attempts TEXT NOT NULL,   -- JSON: [{"time", "answer"}]
            next_time REAL,           -- when to try again; NULL once it is over
            is_delivered INTEGER NOT NULL,
            UNIQUE (task, ended)
        )
        """,
        "CREATE INDEX deliveries_due ON deliveries (next_time) WHERE next_time IS NOT NULL",
    ),
)
"""What takes the database from each version to the next; a version that was published is never changed."""
SECONDS_TO_WAIT = 10.0


@contextmanager
def opened(settings: Settings) -> Iterator[sqlite3.Connection]:
    """The database, made or brought up to date if need be; what is changed is kept if all went well, else nothing.

    Raises: StorageError when it cannot be read or written.
    """
    _make_file(settings)
    try:
        with closing(sqlite3.connect(settings.index, timeout=SECONDS_TO_WAIT)) as connection:
            connection.row_factory = sqlite3.Row
            # The disk of a Space may be a mounted bucket, which does not share memory between programs.
            connection.execute(f"PRAGMA journal_mode = {'DELETE' if settings.on_space else 'WAL'}")
            _bring_up_to_date(connection)
            with connection:
                yield connection
    except sqlite3.IntegrityError:
        raise
    except sqlite3.DatabaseError as error:
        raise StorageError(
            f"The service’s database cannot be used: {error}.", f"Is the disk full? The file is {settings.index.name}."
        ) from error


def _make_file(settings: Settings) -> None:
    """Make the file, readable by the owner alone. One that is there is left alone: closing a second handle of it would
    take from SQLite the locks that this process has on it."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(settings.index, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA user_version").fetchone()[0] == len(VERSIONS):
        return
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(VERSIONS):
            raise StorageError("The service’s database was made by a newer version.", "Start that version again.")
        for statements in VERSIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(VERSIONS)}")
