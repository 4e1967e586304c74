"""Bodies of requests: what lands in a file, what in memory, what is refused, and that nothing is left behind."""

import asyncio
import base64
import json
import os
import stat
import time
import tracemalloc

import pytest
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from starlette.requests import ClientDisconnect, Request

from finetune.api import bodies
from finetune.api.scanner import LEFT_OUT, REST_BYTES
from finetune.errors import BusyError, StorageError, TooLargeError
from finetune.settings import Settings

MIB = 2**20
CONTENT = bytes(range(256)) * 100


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path, request_mib=2, disk_reserve_gib=0)


def request(chunks, query="", ends=True, **headers):
    """A request whose body comes in chunks; without an end, its sender is gone after them."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b""} if ends else {"type": "http.disconnect"})
    told = iter(messages)

    async def receive():
        return next(told)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": query.encode(), "headers": raw}
    return Request(scope, receive)


def in_chunks(body, size=60_000):
    """A body as it comes over a network."""
    return [body[place : place + size] for place in range(0, len(body), size)]


def read_json(settings, body, **options):
    """The fields of a JSON body."""
    return asyncio.run(bodies.read_json(request(in_chunks(body)), settings, **options))


def received(settings, asked):
    """The fields of a request, the bytes of its ZIP, and the rights of the file."""

    async def take():
        async with bodies.received(asked, settings) as body:
            return body.fields, body.zip.read_bytes(), stat.S_IMODE(body.zip.stat().st_mode)

    return asyncio.run(take())


def left(settings):
    """What lies in the folder of what comes in."""
    return list((settings.home / "incoming").glob("*"))


def as_json(content=CONTENT, **fields):
    """A body as programs of the published API send it."""
    return json.dumps({"file_data": base64.b64encode(content).decode(), **fields}).encode()


def as_form(content=CONTENT, **fields):
    """A form with a file, and its Content-Type."""
    parts = [(f'name="{name}"', text.encode()) for name, text in fields.items()]
    parts.append(('name="file_data"; filename="a.zip"', content))
    heads = [(f"--x\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode(), value) for head, value in parts]
    return b"".join(head + value + b"\r\n" for head, value in heads) + b"--x--\r\n", "multipart/form-data; boundary=x"


def test_kept_text_is_decoded_into_its_file_and_a_dropped_one_is_forgotten(settings, tmp_path):
    """The fields say that both were there."""
    body = json.dumps({"a": base64.b64encode(CONTENT).decode(), "mask": "m" * MIB, "b": 1}).encode()

    fields = read_json(settings, body, kept={"a": tmp_path / "a"}, dropped=("mask", "image"))

    assert fields == {"a": LEFT_OUT, "mask": LEFT_OUT, "b": 1}
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_large_body_is_never_in_memory(tmp_path):
    """Of 24 MiB, a few at a time."""
    piece = base64.b64encode(os.urandom(3 * MIB // 64 * 3))
    body = [b'{"file_data":"', *[piece] * (24 * MIB // len(piece)), b'","mode":"style"}']
    asked = request(body)
    tracemalloc.start()

    asyncio.run(bodies.read_json(asked, Settings(tmp_path), kept={"file_data": tmp_path / "a"}))

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MIB


def test_json_form_and_zip_say_the_same(settings):
    """Base64 in JSON is one of three ways to send pictures."""
    form, kind = as_form(mode="style", iterations="300")
    ways = [
        request(in_chunks(as_json(mode="style", iterations="300")), content_type="application/json; charset=utf-8"),
        request(in_chunks(form), content_type=kind),
        request(in_chunks(CONTENT), "mode=style&iterations=300", content_type="application/zip"),
        request(in_chunks(CONTENT), "mode=style&iterations=300&seed=", content_type="application/octet-stream"),
    ]

    answers = [received(settings, asked) for asked in ways]

    expected = {"mode": "style", "iterations": "300", "file_data": LEFT_OUT}
    assert answers == [(expected, CONTENT, 0o600)] * 4
    assert not left(settings)


def test_body_without_content_type_is_json(settings):
    """Programs that forget it mean the published API's."""
    assert received(settings, request([as_json()]))[1] == CONTENT


def test_texts_of_a_form_that_are_empty_were_not_given():
    """A form sends all its fields; one that stands twice is a list."""
    pairs = [("seed", ""), ("a", "1"), ("p", "x"), ("p", "y")]

    assert bodies.from_texts(pairs) == {"a": "1", "p": ["x", "y"]}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/x-7z-compressed"])
def test_other_kinds_of_body_are_refused_in_words(settings, kind):
    """Whoever sends something else learns what is read."""
    with pytest.raises(HTTPException) as error:
        received(settings, request([b"abc"], content_type=kind))

    assert error.value.status_code == 415
    assert "multipart/form-data" in error.value.detail


def test_compressed_body_is_refused(settings):
    """A small one could become a very large one."""
    with pytest.raises(HTTPException) as error:
        received(settings, request([b"abc"], content_encoding="gzip"))

    assert error.value.status_code == 415


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x", "application/zip"])
def test_body_of_the_full_size_is_taken_with_its_fields(settings, kind):
    """The limit is meant for the pictures: what else there is to say does not count."""
    content = bytes(2 * MIB - 3) if kind != "application/json" else bytes(2 * MIB // 4 * 3 - 3)
    body = as_json(content, a="b") if "json" in kind else as_form(content, a="b")[0] if "form" in kind else content

    assert len(received(settings, request(in_chunks(body), content_type=kind))[1]) == len(content)


def test_body_that_says_it_is_too_large_is_not_read(settings):
    """The answer comes before the first byte."""
    with pytest.raises(TooLargeError):
        received(settings, request(iter(()), content_length=str(2 * MIB + REST_BYTES + 1)))

    assert not left(settings)


def test_body_that_becomes_too_large_is_not_read_to_its_end(settings):
    """Who sends in chunks, or lies about the length, gets no further."""

    def chunks():
        yield from [bytes(MIB)] * 4
        raise AssertionError("read on")

    asked = request([])
    told = chunks()

    async def receive():
        return {"type": "http.request", "body": next(told), "more_body": True}

    asked._receive = receive
    asked.scope["headers"] = [(b"content-type", b"application/zip"), (b"content-length", b"5")]

    with pytest.raises(TooLargeError):
        received(settings, asked)
    assert not left(settings)


def test_disk_that_would_fall_below_its_reserve_takes_nothing(tmp_path):
    """A full disk ends other people's runs."""
    with pytest.raises(StorageError):
        received(Settings(tmp_path, disk_reserve_gib=10**6), request([as_json()]))

    assert not left(Settings(tmp_path))


def test_fields_alone_are_read_on_a_full_disk(tmp_path):
    """Otherwise nothing could be deleted any more."""
    assert read_json(Settings(tmp_path, disk_reserve_gib=10**6), b'{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (request([as_json()[:500]], ends=False), ClientDisconnect),
        (request([b'{"file_data": "!"}']), RequestValidationError),
        (request([as_form()[0][:500]], content_type="multipart/form-data; boundary=x"), RequestValidationError),
    ],
    ids=["gone", "broken", "cut"],
)
def test_nothing_is_left_of_a_body_that_failed(settings, asked, error):
    """Whether its sender went away, or sent something else."""
    with pytest.raises(error):
        received(settings, asked)

    assert not left(settings)


def test_nothing_is_left_when_the_service_stops(settings):
    """What was taken in goes when the request is cancelled."""

    async def stop():
        reading, stalls = asyncio.Event(), asyncio.Event()
        asked = request([])

        async def receive():
            reading.set()
            await stalls.wait()

        asked._receive = receive
        task = asyncio.create_task(take(asked))
        await reading.wait()
        before = left(settings)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return before

    async def take(asked):
        async with bodies.received(asked, settings):
            pass

    assert len(asyncio.run(stop())) == 1
    assert not left(settings)


def test_who_sends_too_slowly_is_not_waited_for(settings, monkeypatch):
    """Otherwise a few of them could keep all places."""
    monkeypatch.setattr(bodies, "SECONDS_A_PIECE", 0.01)
    asked = request([])

    async def receive():
        await asyncio.Event().wait()

    asked._receive = receive

    with pytest.raises(HTTPException) as error:
        received(settings, asked)
    assert error.value.status_code == 408


def test_leftovers_of_a_killed_service_are_swept(settings):
    """What nobody writes any more is deleted, what is being written stays."""
    folder = settings.home / "incoming"
    folder.mkdir()
    for name, age in (("old.zip", 2 * bodies.LEFTOVER_SECONDS), ("new.zip", 0)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)

    bodies.sweep(settings)

    assert [path.name for path in left(settings)] == ["new.zip"]


def test_few_bodies_are_taken_in_at_once():
    """Others wait their turn, and beyond a number of them nobody does."""

    async def crowd():
        places, leave, inside = bodies.Places(), asyncio.Event(), []

        async def come():
            async with places.one():
                inside.append(1)
                await leave.wait()

        tasks = [asyncio.create_task(come()) for _ in range(bodies.AT_ONCE + bodies.MOST_WAITING)]
        await asyncio.sleep(0)
        begun = len(inside)
        with pytest.raises(BusyError):
            await come()
        leave.set()
        await asyncio.gather(*tasks)
        return begun, len(inside)

    assert asyncio.run(crowd()) == (bodies.AT_ONCE, bodies.AT_ONCE + bodies.MOST_WAITING)
