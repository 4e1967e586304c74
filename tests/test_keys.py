"""Keys: shown once, kept as hashes, and ended."""

import pytest

from finetune import keys
from finetune.errors import ConfigError, DeniedError, FinetuneError, MissingError
from finetune.owners import AT_HOME, Caller
from finetune.settings import Settings

ALICE, ROOT = Caller("alice"), Caller("root", owns_machine=True)


@pytest.fixture
def settings(tmp_path):
    return Settings(tmp_path)


def test_key_speaks_for_its_owner(settings):
    """Who shows a key is who it was made for."""
    key = keys.new(settings, "alice")

    assert keys.find(settings, key).caller(settings) == ALICE


def test_key_may_own_the_machine(settings):
    """A key for an owner of the machine is made as one, or has their name."""
    made, named = keys.new(settings, "root", owns_machine=True), keys.new(settings, "ann")

    assert keys.find(settings, made).caller(settings) == ROOT
    assert keys.find(settings, named).caller(Settings(settings.home, admins=("ann",))).owns_machine


def test_key_cannot_be_guessed(settings):
    """Two keys share their prefix and nothing else; behind the id that is shown, 208 random bits are left."""
    one, other = keys.new(settings, "alice"), keys.new(settings, "alice")

    assert one.startswith("ft_") and len(one) == len("ft_") + 64
    assert one[3:15] != other[3:15]
    assert len(one) - keys.ID_LETTERS == 52


def test_no_key_is_kept(settings):
    """Neither the database nor anything beside it holds what was shown, beyond its id."""
    key = keys.new(settings, "alice")

    kept = b"".join(path.read_bytes() for path in settings.home.iterdir())

    assert key[: keys.ID_LETTERS].encode() in kept
    assert key[keys.ID_LETTERS :].encode() not in kept


@pytest.mark.parametrize("shown", ["", "ft_", "ft_0", "x", "ü", "\udcff"])
def test_what_is_no_key_opens_nothing(settings, shown):
    """Other text, and parts of a key, are unknown."""
    key = keys.new(settings, "alice")

    assert keys.find(settings, shown) is None
    assert keys.find(settings, key[:-1]) is None
    assert keys.find(settings, key.upper()) is None


def test_revoked_key_opens_nothing(settings):
    """From the moment that it is revoked."""
    key = keys.new(settings, "alice")
    keys.new(settings, "bob")

    keys.revoke(settings, key[: keys.ID_LETTERS], ALICE)

    assert keys.find(settings, key) is None
    assert keys.by_id(settings, key[: keys.ID_LETTERS]) is None


def test_each_sees_and_ends_only_their_own_keys(settings):
    """A key of somebody else is missing, as if there were none; an owner of the machine ends any."""
    id = keys.new(settings, "bob")[: keys.ID_LETTERS]
    keys.new(settings, "alice")

    with pytest.raises(MissingError):
        keys.revoke(settings, id, ALICE)
    assert [key.owner for key in keys.of(settings, "alice")] == ["alice"]

    keys.revoke(settings, id, ROOT)
    assert [key.owner for key in keys.every(settings)] == ["alice"]


def test_last_key_is_ended_where_the_service_runs(settings):
    """Without any key nobody is asked, and whoever could bring that about from outside would own the machine."""
    id = keys.new(settings, "alice", owns_machine=True)[: keys.ID_LETTERS]

    for caller in (ALICE, Caller("local", owns_machine=True)):
        with pytest.raises(FinetuneError, match="last key"):
            keys.revoke(settings, id, caller)

    keys.revoke(settings, id, AT_HOME)
    assert not keys.exist(settings)


def test_last_key_may_go_where_people_sign_in_in_other_ways(tmp_path):
    """With passwords, or on a Space, the service asks without any key."""
    for number, values in enumerate(({"auth": (("alice", "one"),)}, {"on_space": True})):
        settings = Settings(tmp_path / str(number), **values)
        id = keys.new(settings, "alice")[: keys.ID_LETTERS]

        keys.revoke(settings, id, ALICE)

        assert not keys.exist(settings)


def test_name_that_cannot_be_one_gets_no_key(settings):
    """The rules for names hold for keys."""
    with pytest.raises(ConfigError):
        keys.new(settings, "visitor-1")
    assert not keys.exist(settings)


def test_nobody_fills_the_database_with_keys(settings):
    """One person has so many keys and no more."""
    for _ in range(keys.MOST_EACH):
        keys.new(settings, "alice")

    with pytest.raises(DeniedError, match="50"):
        keys.new(settings, "alice")
