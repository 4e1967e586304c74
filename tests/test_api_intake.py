"""The body of a request as it comes in."""

import asyncio

import pytest

from finetune.api import intake
from finetune.api.intake import Intake, SlowError
from finetune.errors import StorageError, TooLargeError


def sending(*pieces):
    """Receive these pieces and then nothing for ever."""
    left = list(pieces)

    async def receive():
        if not left:
            await asyncio.Event().wait()
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left) or body == b"..."}

    return receive


def room(_):
    """There is always room."""


async def _read(body):
    pieces = []
    while (message := await body())["type"] == "http.request":
        pieces.append(message["body"])
        if not message["more_body"]:
            break
    return b"".join(pieces)


def read(body):
    return asyncio.run(_read(body))


def test_body_comes_through_as_it_is():
    """What is neither too large nor too slow is only counted."""
    body = Intake(sending(b"ab", b"", b"c"), 3, room)

    assert (read(body), body.size, body.refusal) == (b"abc", 3, None)


def test_body_that_is_too_large_is_ended_where_it_is():
    """Whatever its headers said, no more is read than may be sent, and the limit is named."""
    body = Intake(sending(b"x" * 2**20, b"x", b"never read"), 2**20, room)

    read(body)

    assert isinstance(body.refusal, TooLargeError) and "1 MiB" in str(body.refusal)
    assert body.size == 2**20 + 1


def test_body_that_stops_coming_is_ended(monkeypatch):
    """A pause that is too long frees what the request holds."""
    monkeypatch.setattr(intake, "IDLE_SECONDS", 0.01)
    body = Intake(sending(b"..."), 100, room)

    read(body)

    assert isinstance(body.refusal, SlowError)


def test_body_that_trickles_is_ended(monkeypatch):
    """Pieces that come often enough, but next to nothing in each, do not hold a request for ever."""
    monkeypatch.setattr(intake, "PATIENCE_SECONDS", 0.05)

    async def receive():
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b".", "more_body": True}

    body = Intake(receive, 10**6, room)

    read(body)

    assert isinstance(body.refusal, SlowError)
    assert 0 < body.size < 50


def test_disk_is_looked_at_while_a_body_comes_in(monkeypatch):
    """What fills the disk is ended before it has."""
    monkeypatch.setattr(intake, "CHECK_BYTES", 4)
    seen = []

    def check(more):
        seen.append(more)
        if len(seen) == 2:
            raise StorageError("full")

    body = Intake(sending(*[b"xx"] * 10), 100, check)
    read(body)

    assert isinstance(body.refusal, StorageError)
    assert body.size == 8


def test_after_the_body_the_route_waits_as_long_as_it_likes(monkeypatch):
    """A route that listens for the browser’s leaving is not disturbed."""
    monkeypatch.setattr(intake, "IDLE_SECONDS", 0.01)
    body = Intake(sending(b"all"), 100, room)

    async def listen():
        await body()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(body(), 0.1)

    asyncio.run(listen())

    assert body.refusal is None
