"""What the environment says about this machine."""

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from finetune import registry, settings
from finetune.errors import ConfigError, StorageError


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """An environment in which nothing is set."""
    for name in list(os.environ):
        if name.startswith(("FINETUNE_", "GRADIO_", "SPACE_", "OAUTH_", "SYSTEM")):
            monkeypatch.delenv(name)
    return monkeypatch


def test_nothing_set_is_fine():
    """Every setting has a default, and a worker never gets more threads than there are cores."""
    found = settings.read()

    assert found.home == Path.home() / ".finetune"
    assert (found.host, found.port, found.share) == (None, None, False)
    assert 1 <= found.threads <= (os.cpu_count() or 1)
    assert not found.allow_private_webhooks and not found.on_space


@pytest.mark.parametrize(
    ("variable", "value", "name", "expected"),
    [
        ("GRADIO_SERVER_NAME", "0.0.0.0", "host", "0.0.0.0"),
        ("GRADIO_SERVER_PORT", "8080", "port", 8080),
        ("GRADIO_SHARE", "True", "share", True),
        ("GRADIO_ROOT_PATH", "/lora", "root_path", "/lora"),
        ("FINETUNE_DEVICE", "cuda", "device", "cuda"),
        ("FINETUNE_THREADS", "3", "threads", 3),
        ("FINETUNE_MEMORY_GIB", "0.5", "memory_bytes", 2**29),
        ("FINETUNE_MEMORY_GIB", "", "memory_bytes", None),
        ("FINETUNE_UPLOAD_MIB", "10", "upload_mib", 10),
        ("FINETUNE_UPLOAD_MIB", "", "upload_mib", 2048),
        ("FINETUNE_PRIVATE_WEBHOOKS", "1", "allow_private_webhooks", True),
        ("FINETUNE_PRIVATE_WEBHOOKS", "true", "allow_private_webhooks", True),
        ("FINETUNE_PRIVATE_WEBHOOKS", "0", "allow_private_webhooks", False),
    ],
)
def test_variable_is_read(bare, variable, value, name, expected):
    """Each variable reaches the setting that it is about."""
    bare.setenv(variable, value)

    assert getattr(settings.read(), name) == expected


@pytest.mark.parametrize("value", ["much", "-1", "0", "nan", "inf"])
def test_memory_that_is_none_is_an_error_in_words(bare, value):
    """A limit of memory names itself and what it holds."""
    bare.setenv("FINETUNE_MEMORY_GIB", value)

    with pytest.raises(ConfigError, match=f"FINETUNE_MEMORY_GIB is “{value}”"):
        settings.read()


@pytest.mark.parametrize("variable", ["GRADIO_SERVER_PORT", "FINETUNE_THREADS", "FINETUNE_UPLOAD_MIB"])
@pytest.mark.parametrize("value", ["many", "-1", "0", "1.5"])
def test_number_that_is_none_is_an_error_in_words(bare, variable, value):
    """A variable that must be a whole number names itself and what it holds."""
    bare.setenv(variable, value)

    with pytest.raises(ConfigError, match=f"{variable} is “{value}”"):
        settings.read()


def test_space_is_recognised(bare):
    """The variable that every Space sets says that this is one."""
    bare.setenv("SPACE_ID", "owner/name")

    assert settings.read().on_space


def test_home_is_an_absolute_path(bare, tmp_path):
    """A relative home is made absolute, because workers run in another folder."""
    bare.chdir(tmp_path)
    bare.setenv("FINETUNE_HOME", "here")

    found = settings.read()

    assert found.home == tmp_path.resolve() / "here"
    assert (found.runs, found.trash) == (found.home / "runs", found.home / "trash")


def test_worker_gets_its_threads_and_home(bare, tmp_path):
    """A worker's environment is this one, with threads decided for every library that counts its own."""
    bare.setenv("FINETUNE_HOME", str(tmp_path))
    bare.setenv("FINETUNE_THREADS", "2")
    bare.setenv("OMP_NUM_THREADS", "64")
    bare.setenv("OTHER", "kept")

    environment = settings.read().worker_environment()

    assert {environment[name] for name in ("FINETUNE_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")} == {"2"}
    assert (environment["FINETUNE_HOME"], environment["OTHER"]) == (str(tmp_path.resolve()), "kept")


def test_secret_is_made_once_and_is_the_owner_s(tmp_path):
    """Links that were signed stay valid after a restart, and nobody else reads the key."""
    first, again = settings.Settings(tmp_path / "home").secret, settings.Settings(tmp_path / "home").secret

    assert first == again and len(first) == 32
    if sys.platform != "win32":
        assert stat.S_IMODE((tmp_path / "home" / "secret.key").stat().st_mode) == 0o600


def test_demo_base_may_lie_elsewhere(bare, tmp_path):
    """A demo base that somebody has built is used without being copied into the project."""
    assert registry.base_model("demo").source == str(settings.DEMO_BASE.resolve())

    bare.setenv("FINETUNE_DEMO_BASE", str(tmp_path))

    assert registry.base_model("demo").source == str(tmp_path.resolve())


@pytest.mark.parametrize(
    ("text", "auth"),
    [
        ("", ()),
        ("ann:one", (("ann", "one"),)),
        ("ann:o:n, bob:two", (("ann", "o:n"), ("bob", "two"))),
        ("ann:one,1\nbob: two \n", (("ann", "one,1"), ("bob", " two "))),
        ("ann:one,1\n", None),
    ],
)
def test_passwords_come_from_the_environment(bare, text, auth):
    """Between commas or one a line; in lines, commas belong to passwords."""
    bare.setenv("FINETUNE_AUTH", text)

    if auth is None:
        with pytest.raises(ConfigError):
            settings.read()
    else:
        assert settings.read().auth == auth


@pytest.mark.parametrize("text", ["ann", "ann:", ":secret", "ann:one,secret"])
def test_password_that_is_not_understood_is_not_repeated(bare, text):
    """The error names the variable and nothing that stands in it."""
    bare.setenv("FINETUNE_AUTH", text)

    with pytest.raises(ConfigError, match="FINETUNE_AUTH") as error:
        settings.read()
    assert "secret" not in str(error.value) and "ann" not in str(error.value)


def test_worker_does_not_get_passwords(bare):
    """A worker needs none, and its environment is easier to look at than ours."""
    bare.setenv("FINETUNE_AUTH", "ann:one")

    assert "FINETUNE_AUTH" not in settings.read().worker_environment()


@pytest.mark.parametrize("missing", [None, "SYSTEM", "SPACE_ID", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET"])
def test_hub_login_is_that_of_a_space(bare, missing):
    """Only where all that a Space sets is there; its author then owns the machine."""
    given = {"SYSTEM": "spaces", "SPACE_ID": "ann/x", "OAUTH_CLIENT_ID": "i", "OAUTH_CLIENT_SECRET": "s"}
    for name, value in {**given, "SPACE_AUTHOR_NAME": "ann"}.items():
        if name != missing:
            bare.setenv(name, value)

    found = settings.read()

    assert found.has_hub_login == (missing is None)
    assert found.admins == (("ann",) if missing is None else ())


def test_room_is_what_the_disk_has_above_its_reserve(tmp_path):
    """What would go below the reserve is refused with the figures; what fits is not."""
    free = shutil.disk_usage(tmp_path).free
    here = settings.Settings(tmp_path / "home", disk_reserve_gib=1)

    here.check_room(max(0, free - 2 * 2**30))
    with pytest.raises(StorageError, match="GiB are free"):
        here.check_room(free)
    with pytest.raises(StorageError):
        settings.Settings(tmp_path, disk_reserve_gib=2**20).check_room(0, tmp_path / "uploads")
