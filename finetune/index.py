"""index.db: what the service keeps beyond the run folders, in SQLite: keys, and deliveries of webhooks.

Separate, because both are read and written by several threads and by the command line at once. Runs and images are
not in it: their folders say all there is.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from finetune.settings import Settings

VERSIONS = (
    """
    CREATE TABLE keys (
        id TEXT PRIMARY KEY,      -- its first letters, to tell keys apart
        hash TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        owns_machine INTEGER NOT NULL,
        created REAL NOT NULL
    );
    CREATE TABLE deliveries (
        id TEXT PRIMARY KEY,
        task TEXT NOT NULL,       -- the run or the image that ended
        ended REAL NOT NULL,      -- when: a run that goes on after a failure ends again
        url TEXT NOT NULL,
        body BLOB NOT NULL,
        signature TEXT NOT NULL,  -- of the body; empty without a secret, which is kept nowhere here
        attempts TEXT NOT NULL,   -- JSON: [{"time", "answer"}]
        next_time REAL,           -- when to try again; NULL once it is over
        is_delivered INTEGER NOT NULL,
        UNIQUE (task, ended)
    );
    CREATE INDEX deliveries_due ON deliveries (next_time) WHERE next_time IS NOT NULL;
    """,
)
"""What takes the database from each version to the next; a version that was published is never changed."""
SECONDS_TO_WAIT = 10.0


@contextmanager
def opened(settings: Settings) -> Iterator[sqlite3.Connection]:
    """The database, made or brought up to date if need be; what is changed is kept if all went well, else nothing."""
    settings.home.mkdir(parents=True, exist_ok=True)
    os.close(os.open(settings.index, os.O_RDWR | os.O_CREAT, 0o600))
    with closing(sqlite3.connect(settings.index, timeout=SECONDS_TO_WAIT)) as connection:
        connection.row_factory = sqlite3.Row
        # The disk of a Space may be a mounted bucket, which does not share memory between programs.
        connection.execute(f"PRAGMA journal_mode = {'DELETE' if settings.on_space else 'WAL'}")
        _bring_up_to_date(connection)
        with connection:
            yield connection


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA user_version").fetchone()[0] == len(VERSIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    script = "".join(VERSIONS[version:])
    connection.executescript(f"{script} PRAGMA user_version = {len(VERSIONS)}; COMMIT;")
