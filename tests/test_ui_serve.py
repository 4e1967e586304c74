"""How the service starts: what it is told, what it refuses, and what it says about who can use it."""

import pretend
import pytest

from finetune import keys
from finetune.errors import FinetuneError
from finetune.owners import AT_HOME, Caller
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.ui import serve, who
from finetune.ui.handlers import Visit

AUTH = (("ann", "one"),)


@pytest.fixture
def settings(tmp_path):
    return Settings(tmp_path)


def refused(capsys, *arguments):
    """What is said when the service does not start."""
    try:
        status = serve.main(arguments)
    except SystemExit as end:  # argparse's own
        status = end.code
    assert status == 2
    return capsys.readouterr().err


def test_command_line_comes_before_the_environment(settings):
    """What is given as an option takes the place of what settings say, and the rest stays."""
    arguments = ["--auth", "bob:a:b", "--auth", "carl:c", "--admin", "carl", "--host", "0.0.0.0", "--port", "80"]

    found = serve.options(Settings(settings.home, auth=AUTH, admins=("ann",)), arguments)

    assert (found.auth, found.admins) == ((("bob", "a:b"), ("carl", "c")), ("carl",))
    assert (found.host, found.port, found.share, found.without_password) == ("0.0.0.0", 80, False, False)
    assert serve.options(found, []) == found


@pytest.mark.parametrize("auth", ["ann", "ann:", ":secret"])
def test_name_without_a_password_is_refused(capsys, settings, auth):
    """Nobody gets in with an empty password."""
    assert "NAME:PASSWORD" in refused(capsys, "--auth", auth)


@pytest.mark.parametrize(
    "arguments", [["--auth", "visitor-1:x"], ["--admin", "a\nb"], ["--auth", "a:1", "--auth", "a:2"]]
)
def test_names_that_mislead_are_refused(settings, arguments):
    """The rules for names hold here too, and one name has one password."""
    with pytest.raises(FinetuneError):
        serve.options(settings, arguments)


@pytest.mark.parametrize("variable", ["GRADIO_SHARE", None])
def test_public_link_without_a_password_is_refused_in_words(capsys, tmp_path, monkeypatch, variable):
    """Whether an option or the environment asks for it; the words say what else to add."""
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    if variable:
        monkeypatch.setenv(variable, "1")

    text = refused(capsys, *([] if variable else ["--share"]))

    assert "--auth" in text and "--without-password" in text and "key new" in text


@pytest.mark.parametrize(
    "values", [{"without_password": True}, {"auth": AUTH}, {"on_space": True}, {"share": False}, {"key": True}]
)
def test_public_link_is_made_when_it_is_asked_for_twice_or_asks_itself(tmp_path, values):
    """With --without-password, with a password or with a key; a Space makes no link."""
    settings = Settings(tmp_path, **{"share": True, **{name: value for name, value in values.items() if name != "key"}})
    if "key" in values:
        keys.new(settings, "ann")

    serve.check(settings)


def test_hub_login_without_what_it_needs_is_refused_in_words(tmp_path):
    """Gradio's own error would be a traceback."""
    if serve.importlib.util.find_spec("authlib"):
        pytest.skip("it is installed here")

    with pytest.raises(FinetuneError, match="oauth"):
        serve.check(Settings(tmp_path, on_space=True, has_hub_login=True))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, []),
        ({"host": "127.0.0.1"}, []),
        ({"host": "localhost"}, []),
        ({"host": "::1"}, []),
        ({"host": "0.0.0.0"}, ["Everyone in your network", "--auth"]),
        ({"host": "gpu-box"}, ["Everyone in your network"]),
        ({"host": "0.0.0.0", "auth": AUTH}, ["has to sign in"]),
        ({"share": True, "without_password": True}, ["Anyone who has the public link", "each browser"]),
        ({"on_space": True}, ["Anyone can train"]),
        ({"on_space": True, "has_hub_login": True}, ["Hugging Face account"]),
    ],
)
def test_service_says_who_can_use_it(tmp_path, values, words):
    """Nothing where only this machine reaches it; a warning where nobody is asked."""
    told = " ".join(serve.told(Settings(tmp_path, **values)))

    assert all(word in told for word in words) and bool(told) == bool(words)


def test_service_says_when_nobody_owns_the_machine(settings):
    """With keys of persons only, nobody would see all runs."""
    keys.new(settings, "carl")
    assert "--admin" in " ".join(serve.told(settings))

    keys.new(settings, "root", owns_machine=True)
    assert "--admin" not in " ".join(serve.told(settings))


@pytest.mark.parametrize(
    ("values", "caller", "told"),
    [
        ({}, AT_HOME, ("", False)),
        ({"auth": AUTH}, Caller("ann"), ("ann", False)),
        ({"share": True, "without_password": True}, Caller("visitor-1"), ("", True)),
        ({"share": True, "without_password": True}, Caller("carl"), ("carl", False)),
    ],
)
def test_page_says_who_is_signed_in(tmp_path, values, caller, told):
    """Nobody at home; a visitor may sign in where there is a key to do so with."""
    settings = Settings(tmp_path, **values)
    if "share" in values:
        keys.new(settings, "carl")
    queue = Queue(settings, pretend.StillExecutor())

    found = who(Visit(queue, caller), {})
    queue.close()

    assert (found["name"], found["can_sign_in"]) == told
