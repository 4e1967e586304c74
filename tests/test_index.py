"""The database of the service: made once, whoever comes first, and locked for others while it is written."""

import sqlite3
import subprocess
import sys
import threading

import pytest

from finetune import index
from finetune.errors import StorageError
from finetune.settings import Settings

WRITES = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home")


def test_database_is_made_when_it_is_first_opened_and_kept(settings):
    """What is written in one opening is read in the next."""
    with index.opened(settings) as database:
        database.execute("INSERT INTO keys VALUES ('a', 'b', 'me', 0, 1.0)")

    with index.opened(settings) as database:
        assert database.execute("SELECT owner FROM keys").fetchone()["owner"] == "me"


def test_database_is_for_its_owner_alone(settings):
    """Others on the machine cannot read addresses and hashes."""
    with index.opened(settings):
        pass

    assert settings.index.stat().st_mode & 0o077 == 0


def test_what_goes_wrong_half_way_is_taken_back(settings):
    """A change is kept only if all of it went well."""
    with pytest.raises(ZeroDivisionError), index.opened(settings) as database:
        database.execute("INSERT INTO keys VALUES ('a', 'b', 'me', 0, 1.0)")
        raise ZeroDivisionError

    with index.opened(settings) as database:
        assert not database.execute("SELECT * FROM keys").fetchall()


def test_many_may_be_first(settings):
    """Eight that open a database that is not there yet all find it whole."""
    together, found = threading.Barrier(8), []

    def look():
        together.wait()
        with index.opened(settings) as database:
            found.append(database.execute("SELECT count(*) FROM deliveries").fetchone()[0])

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [0] * 8


def test_opening_it_twice_gives_no_lock_away(settings):
    """While one thread writes and another has read, other programs still cannot write."""
    settings = Settings(home=settings.home, on_space=True)

    with index.opened(settings) as writing:
        writing.execute("INSERT INTO keys VALUES ('a', 'b', 'me', 0, 1.0)")
        with index.opened(settings) as reading:
            reading.execute("SELECT * FROM keys").fetchall()
        other = subprocess.run([sys.executable, "-c", WRITES, str(settings.index)], capture_output=True, check=False)

    assert b"database is locked" in other.stderr


def test_file_that_is_no_database_is_told_in_words(settings):
    """A damaged file is an error with a hint, not a traceback."""
    settings.home.mkdir()
    settings.index.write_bytes(b"no database at all" * 100)

    with pytest.raises(StorageError, match="not a database"), index.opened(settings):
        pass


def test_database_of_a_newer_version_is_left_alone(settings):
    """An older program does not write into what it does not know."""
    settings.home.mkdir()
    with sqlite3.connect(settings.index) as database:
        database.execute("PRAGMA user_version = 99")

    with pytest.raises(StorageError, match="newer"), index.opened(settings):
        pass
