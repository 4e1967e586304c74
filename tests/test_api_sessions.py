"""What a browser carries."""

import pytest
from requests_made import asked

from finetune import keys
from finetune.api import sessions
from finetune.owners import AT_HOME, Caller
from finetune.settings import Settings

AUTH = (("ann", "one"), ("bob", "two"))


@pytest.fixture
def settings(tmp_path):
    return Settings(tmp_path, auth=AUTH)


def signed_in(settings, cookie):
    return sessions.signed_in(settings, asked({"Cookie": f"{sessions.session_cookie(settings)}={cookie}"}))


def test_sign_in_outlives_a_restart(settings):
    """Another process with the same folder believes the cookie."""
    cookie = sessions.of_password(settings, "bob", "two")

    assert signed_in(Settings(settings.home, auth=AUTH), cookie) == Caller("bob")


def test_new_password_ends_a_sign_in(settings):
    """Whoever has signed in with the old one has to do so again."""
    cookie = sessions.of_password(settings, "bob", "two")

    assert signed_in(Settings(settings.home, auth=(("ann", "one"), ("bob", "new"))), cookie) is None
    assert signed_in(Settings(settings.home, auth=(("ann", "one"),)), cookie) is None


def test_revoked_key_ends_a_sign_in(settings):
    """The cookie of somebody who showed a key is as good as the key."""
    key = keys.find(settings, keys.new(settings, "carl"))
    cookie = sessions.of_key(settings, key)
    assert signed_in(settings, cookie) == Caller("carl")

    keys.revoke(settings, key.id, AT_HOME)

    assert signed_in(settings, cookie) is None


def test_sign_in_ends_after_a_month(settings, monkeypatch):
    """A cookie that a browser kept for longer is not believed."""
    cookie = sessions.of_password(settings, "bob", "two")
    now = sessions.time.time()
    monkeypatch.setattr(sessions.time, "time", lambda: now + 31 * 86400)

    assert signed_in(settings, cookie) is None


@pytest.mark.parametrize(
    "cookie", ["", ".", "e30.", "a.b", "é.é", "e30.e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934c"]
)
def test_cookie_that_is_not_ours_says_nothing(settings, cookie):
    """What others write is no error and no sign-in."""
    assert signed_in(settings, cookie) is None


def test_changed_cookie_says_nothing(settings):
    """Neither another name under an old signature nor the cookie of another service."""
    payload, _, signature = sessions.of_password(settings, "bob", "two").partition(".")
    other = sessions.of_password(Settings(settings.home / "other", auth=AUTH), "bob", "two")

    assert signed_in(settings, f"{payload[:-2]}.{signature}") is None
    assert signed_in(settings, other) is None


def test_visitor_s_cookie_is_no_sign_in(settings):
    """A signature is good for what it was made for."""
    cookie = sessions.of_visitor(settings)

    assert signed_in(settings, cookie) is None
    assert sessions.visitor(settings, asked({"Cookie": f"{sessions.visitor_cookie(settings)}=visitor-1"})) is None


def test_cookie_does_not_hold_the_password(settings):
    """Neither as it is nor as a hash that could be tried out without our secret."""
    first = sessions.of_password(settings, "bob", "two").partition(".")[0]
    other = sessions.of_password(Settings(settings.home / "other"), "bob", "two").partition(".")[0]

    assert first != other


@pytest.mark.parametrize(
    ("values", "headers", "expected"),
    [
        ({}, {}, "Path=/; Max-Age=86400; HttpOnly; SameSite=Lax"),
        ({}, {"X-Forwarded-Proto": "https"}, "Path=/; Max-Age=86400; HttpOnly; SameSite=Lax; Secure"),
        ({"on_space": True}, {}, "Path=/; Max-Age=86400; HttpOnly; SameSite=None; Secure; Partitioned"),
    ],
)
def test_cookie_stays_with_our_page(tmp_path, values, headers, expected):
    """No script reads it and no other site sends it, and over https it never goes without; a Space lives in a frame."""
    header = sessions.header(Settings(tmp_path, **values), asked(headers), "name", "value", 1)

    assert header == f"name=value; {expected}"


def test_services_on_one_host_do_not_take_each_other_s_cookies(tmp_path):
    """Browsers share cookies between ports, so their names differ."""
    names = {sessions.session_cookie(Settings(tmp_path / name)) for name in "ab"}

    assert len(names) == 2
