"""Who owns what."""

import pytest

from finetune import owners, runs
from finetune.errors import ConfigError, MissingError
from finetune.owners import AT_HOME, Caller
from finetune.settings import Settings

ALICE, BOB, ROOT = Caller("alice"), Caller("bob"), Caller("root", owns_machine=True)


@pytest.fixture
def settings(tmp_path):
    return Settings(tmp_path)


@pytest.fixture
def run(settings):
    return runs.create(settings.runs, "alice")


@pytest.mark.parametrize("caller", [ALICE, ROOT, AT_HOME])
def test_run_is_found_by_its_owner_and_by_owners_of_the_machine(settings, run, caller):
    """Who may use a run gets it by its id."""
    assert owners.find(settings, run.id, caller) == run


def test_run_of_somebody_else_is_missing_as_if_there_were_none(settings, run):
    """The error does not tell a run of others from one that never was."""
    with pytest.raises(MissingError) as theirs:
        owners.find(settings, run.id, BOB)
    with pytest.raises(MissingError) as none:
        owners.find(settings, "6ba7b810-9dad-11d1-80b4-00c04fd430c8", BOB)

    assert str(theirs.value) == str(none.value)


def test_deleted_run_of_somebody_else_is_missing(settings, run):
    """The trash has owners too."""
    runs.delete(run, settings.trash)

    assert owners.find_deleted(settings, run.id, ALICE).id == run.id
    with pytest.raises(MissingError):
        owners.find_deleted(settings, run.id, BOB)


def test_run_without_an_owner_belongs_to_the_machine(settings):
    """What was made before anybody had to sign in is seen by owners of the machine alone."""
    run = runs.create(settings.runs)

    assert ROOT.may_use(run) and not ALICE.may_use(run)


def test_link_lets_anybody_watch_until_it_is_withdrawn(settings, run):
    """Who has the key of the link finds the run, whoever they are, and not any more once it was withdrawn."""
    key = owners.allow_watching(run)
    assert owners.find_to_watch(settings, run.id, key) == run

    owners.end_watching(run)

    with pytest.raises(MissingError):
        owners.find_to_watch(settings, run.id, key)


@pytest.mark.parametrize("key", ["", "x", "ü"])
def test_run_is_not_watched_without_the_right_key(settings, run, key):
    """Neither before there is a link nor with another key."""
    for _ in range(2):
        with pytest.raises(MissingError):
            owners.find_to_watch(settings, run.id, key)
        owners.allow_watching(run)


@pytest.mark.parametrize(
    ("admins", "auth", "owning"),
    [
        ((), (("ann", "1"), ("bob", "2")), ["ann"]),
        (("bob",), (("ann", "1"), ("bob", "2")), ["bob"]),
        (("carl",), (("ann", "1"),), []),
        ((), (), []),
    ],
)
def test_machine_is_owned_by_who_is_named_else_by_the_first_of_auth(tmp_path, admins, auth, owning):
    """A name in the settings takes the place of the first who has a password."""
    settings = Settings(tmp_path, admins=admins, auth=auth)

    assert [name for name in ("ann", "bob") if owners.person(settings, name).owns_machine] == owning


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x00b", "a:b", "a\u202eb", "x" * 65, "visitor-1"])
def test_name_that_would_mislead_is_refused(name):
    """Invisible characters, colons, endless names and those of visitors are no names."""
    with pytest.raises(ConfigError):
        owners.check_name(name)


def test_name_is_the_same_however_it_was_typed():
    """Letters with accents come composed or in parts; spaces around a name are an accident."""
    assert owners.check_name(" Zoe\u0308 B. ") == "Zo\u00eb B."
