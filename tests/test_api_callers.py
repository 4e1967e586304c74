"""Who asks over HTTP, and where they reach the service."""

import time

import pytest
from requests_made import asked

from finetune import keys
from finetune.api import callers, sessions
from finetune.api.callers import Mode
from finetune.errors import DeniedError
from finetune.owners import AT_HOME, Caller
from finetune.settings import Settings

AUTH = (("ann", "one"), ("bob", "two"))
HUB = {"on_space": True, "has_hub_login": True}


def carrying(settings, cookie, **more):
    """A request of a browser that carries the cookie of a session."""
    return asked({"Cookie": f"{sessions.session_cookie(settings)}={cookie}"}, **more)


def by_hub(name="ann", seconds=60):
    """A request with what Gradio’s sign-in by the Hub leaves in its session."""
    info = {"userinfo": {"preferred_username": name}, "expires_at": time.time() + seconds}
    return asked(session={"oauth_info": info})


@pytest.mark.parametrize(
    ("values", "has_key", "mode"),
    [
        ({}, False, Mode.AT_HOME),
        ({}, True, Mode.CLOSED),
        ({"auth": AUTH}, False, Mode.CLOSED),
        ({"share": True, "without_password": True}, False, Mode.OPEN),
        ({"share": True, "without_password": True}, True, Mode.OPEN),
        ({"share": True, "auth": AUTH, "without_password": True}, False, Mode.CLOSED),
        ({"share": True}, True, Mode.CLOSED),
        ({"share": True}, False, Mode.CLOSED),
        ({"without_password": True}, False, Mode.AT_HOME),
        ({"on_space": True}, False, Mode.OPEN),
        ({"on_space": True}, True, Mode.CLOSED),
        (HUB, False, Mode.HUB),
        (HUB, True, Mode.HUB),
        ({**HUB, "auth": AUTH}, False, Mode.CLOSED),
    ],
)
def test_settings_and_keys_decide_how_people_say_who_they_are(tmp_path, values, has_key, mode):
    """Nobody is asked at home only; what is public is never open to all by accident."""
    settings = Settings(tmp_path, **values)
    if has_key:
        keys.new(settings, "carl")

    assert callers.mode(settings) is mode


def test_at_home_everybody_owns_the_machine(tmp_path):
    """Nothing is asked of anybody, whatever they show."""
    settings = Settings(tmp_path)

    assert callers.of_page(settings, asked()) == AT_HOME
    assert callers.of_program(settings, asked({"x-key": "made up"})) == AT_HOME


@pytest.mark.parametrize("values", [{"auth": AUTH}, {"share": True, "without_password": True}, HUB, {"on_space": True}])
def test_program_needs_a_key_wherever_people_are_told_apart(tmp_path, values):
    """Without a good key the published API’s own words come back; a cookie is none."""
    settings = Settings(tmp_path, **values)
    cookie = sessions.of_password(settings, *AUTH[0])

    for request in (asked(), asked({"x-key": "ft_0"}), carrying(settings, cookie), by_hub()):
        with pytest.raises(DeniedError) as denied:
            callers.of_program(settings, request)
        assert str(denied.value) == "Not authenticated - Invalid Authentication"


@pytest.mark.parametrize("header", ["x-key", "X-Key", "X-KEY"])
def test_program_is_known_by_its_key(tmp_path, header):
    """However the header’s name is written."""
    settings = Settings(tmp_path)
    key = keys.new(settings, "carl")

    assert callers.of_program(settings, asked({header: key})) == Caller("carl")


def test_person_and_key_of_one_name_are_one_owner(tmp_path):
    """Who signs in on the page and who shows a key own the same runs, and the machine alike."""
    settings = Settings(tmp_path, auth=AUTH)
    key = keys.new(settings, "ann")

    on_page = callers.of_page(settings, carrying(settings, sessions.of_password(settings, "ann", "one")))

    assert on_page == callers.of_program(settings, asked({"x-key": key})) == Caller("ann", owns_machine=True)


def test_visitor_is_known_again_and_owns_nothing_else(tmp_path):
    """Each browser that comes by is somebody of its own."""
    settings = Settings(tmp_path, on_space=True)
    names = []
    for _ in range(2):
        cookie = f"{sessions.visitor_cookie(settings)}={sessions.of_visitor(settings)}"
        caller = callers.of_page(settings, asked({"Cookie": cookie}))
        assert caller == callers.of_page(settings, asked({"Cookie": cookie}))
        assert caller.is_visitor and not caller.owns_machine
        names.append(caller.name)

    assert names[0] != names[1]
    assert callers.of_page(settings, asked()) is None


def test_hub_says_who_somebody_is_on_a_space(tmp_path):
    """The name is that of the account, and the Space’s author owns the machine."""
    settings = Settings(tmp_path, **HUB, admins=("ann",))

    assert callers.of_page(settings, by_hub("ann")) == Caller("ann", owns_machine=True)
    assert callers.of_page(settings, by_hub("bob")) == Caller("bob")
    assert callers.of_page(settings, by_hub("bob", seconds=-1)) is None
    assert callers.of_page(settings, asked()) is None


@pytest.mark.parametrize("name", ["local", "visitor-0123456789abcdef"])
def test_account_s_name_never_takes_what_is_somebody_else_s(tmp_path, name):
    """An account may be called as runs without an owner are, or as a visitor; it does not get theirs."""
    assert callers.of_page(Settings(tmp_path, **HUB), by_hub(name)).name == f"{name}@huggingface.co"


@pytest.mark.parametrize("values", [{"auth": AUTH}, {"share": True, "without_password": True}, {"on_space": True}])
def test_hub_s_session_says_nothing_elsewhere(tmp_path, values):
    """Off a Space with that sign-in, Gradio would make an identity up: it is not believed."""
    assert callers.of_page(Settings(tmp_path, **values), by_hub()) is None


@pytest.mark.parametrize(
    ("values", "headers", "root"),
    [
        ({}, {"Host": "localhost:7860"}, "http://localhost:7860"),
        ({"root_path": "/lora/"}, {"Host": "x.org"}, "http://x.org/lora"),
        ({"root_path": "https://x.org/lora"}, {"Host": "inner"}, "https://x.org/lora"),
        ({"root_path": "/lora", "public_url": "https://y.org/a"}, {"Host": "inner"}, "https://y.org/a"),
        ({}, {"Host": "inner", "X-Forwarded-Host": "x.org, inner", "X-Forwarded-Proto": "https,http"}, "https://x.org"),
        ({}, {"Host": "[::1]:7860"}, "http://[::1]:7860"),
        ({}, {}, "http://127.0.0.1:7860"),
    ],
)
def test_public_root_is_where_who_asks_reaches_the_service(tmp_path, values, headers, root):
    """The owner’s word comes first, then what a proxy says, then what the browser asked for."""
    assert callers.public_root(Settings(tmp_path, **values), asked(headers)) == root


@pytest.mark.parametrize("host", ["x.org/evil", "a@b", 'x"onload=', "x.org:99999999", "", "x y", "ü.org", "x\r\ny"])
def test_host_that_is_none_never_gets_into_a_link(tmp_path, host):
    """A hostile header is replaced by the service’s own address."""
    request = asked({"Host": host, "X-Forwarded-Host": host})

    assert callers.public_root(Settings(tmp_path), request) == "http://127.0.0.1:7860"


def test_scheme_that_is_none_is_http(tmp_path):
    """A proxy’s word about the scheme is one of two."""
    request = asked({"Host": "x.org", "X-Forwarded-Proto": "javascript"})

    assert callers.public_root(Settings(tmp_path), request) == "http://x.org"
