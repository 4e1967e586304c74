"""Signed links: what is signed is what is checked."""

import pytest

from finetune import links
from finetune.errors import DeniedError, ExpiredError
from finetune.settings import Settings

NOW = 1_800_000_000


@pytest.fixture
def at(monkeypatch):
    """Sets the clock."""
    clock = lambda seconds: monkeypatch.setattr(links.time, "time", lambda: NOW + seconds)  # noqa: E731
    clock(0)
    return clock


def taken_apart(link):
    address, _, query = link.partition("?")
    expires, signature = (part.partition("=")[2] for part in query.split("&"))
    return address, int(expires), signature


def test_link_opens_what_it_names_alone(tmp_path, at):
    """Another path, another time and another service refuse the same signature."""
    settings = Settings(home=tmp_path)
    address, expires, signature = taken_apart(links.sign(settings, "files/a ü.png", 60, 10))

    links.check(settings, "files/a ü.png", expires, signature)

    assert address == "v1/files/a%20%C3%BC.png"
    for changed in (("files/b.png", expires), ("files/a ü.png", expires + 1)):
        with pytest.raises(DeniedError):
            links.check(settings, *changed, signature)
    with pytest.raises(DeniedError):
        links.check(Settings(home=tmp_path / "other"), "files/a ü.png", expires, signature)


def test_link_lasts_and_stays_the_same_for_as_long_as_was_asked(tmp_path, at):
    """It is one and the same for a while, good for at least the time that was asked for, and then expired."""
    settings = Settings(home=tmp_path)
    link = links.sign(settings, "files/a", 60, 10)
    _, expires, signature = taken_apart(link)

    at(9)
    assert links.sign(settings, "files/a", 60, 10) == link
    at(60)
    links.check(settings, "files/a", expires, signature)
    at(71)
    with pytest.raises(ExpiredError):
        links.check(settings, "files/a", expires, signature)
