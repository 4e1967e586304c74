"""The body of a request -> its fields in memory and its pictures on the disk, while other requests go on.

A body of 200 MB is read in pieces, and each piece is dealt with in a thread and forgotten. For a route that takes JSON:

    fields = await bodies.read_json(request, settings, kept={"file_data": path}, dropped=("image", "mask"))

`kept` names texts of the outermost object that are decoded from base64 into a file, `dropped` texts that nobody needs.
Both stand in the fields as LEFT_OUT, or as "" where the text was empty; what is no text stays what it was. All else may
take a MiB together. Raises: RequestValidationError (422) for what is no JSON object or no base64, TooLargeError (413).
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from finetune.api import forms
from finetune.api.scanner import LEFT_OUT, REST_BYTES, Base64, Scanner, Sink, forget
from finetune.errors import BusyError, StorageError, TooLargeError
from finetune.settings import Settings

MIB = 2**20
PIECE_BYTES = MIB
SECONDS_A_PIECE = 60
"""Who takes longer to send a MiB is not waited for, so that nobody can keep a place for ever."""
AT_ONCE = 4
MOST_WAITING = 32
LEFTOVER_SECONDS = 3600
ZIP_KINDS = ("application/zip", "application/x-zip-compressed", "application/octet-stream")


@dataclass(frozen=True)
class Body:
    """What was sent: fields, and the ZIP. `file_data` is among the fields, as LEFT_OUT, if there is one."""

    fields: dict[str, Any]
    zip: Path


class Places:
    """How many large bodies are taken in at once; others wait, up to a point."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Have a place. Raises: BusyError when too many wait for one already."""
        if self._waiting >= MOST_WAITING:
            raise BusyError("Too many uploads at once.", "Try again in a minute.", 60)
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()


@asynccontextmanager
async def received(request: Request, settings: Settings) -> AsyncIterator[Body]:
    """Take a body with a ZIP: as base64 in JSON, in a form, or alone with the fields in the address.

    The ZIP is gone when this ends, however it ends.
    """
    _refuse_large(settings, _announced(request))
    await run_in_threadpool(settings.check_room, _announced(request))
    path = await run_in_threadpool(_new_file, settings)
    try:
        yield Body(await _read(request, settings, path), path)
    finally:
        path.unlink(missing_ok=True)


async def read_json(
    request: Request, settings: Settings, kept: Mapping[str, Path] | None = None, dropped: Collection[str] = ()
) -> dict[str, Any]:
    """The fields of a JSON object, without the texts that are kept in files or dropped."""
    with ExitStack() as files:
        decoders = {
            name: Base64(name, files.enter_context(_writer(settings, path))) for name, path in (kept or {}).items()
        }
        scanner = Scanner({**dict.fromkeys(dropped, forget), **{name: one.feed for name, one in decoders.items()}})
        await _feed(request, settings, scanner.feed)
        fields = await run_in_threadpool(scanner.end)
        for decoder in decoders.values():
            decoder.end()
        return fields


def sweep(settings: Settings) -> None:
    """Delete what a service that was killed had taken in; nothing that is being written now."""
    for path in _folder(settings).glob("*"):
        if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
            path.unlink(missing_ok=True)


def from_texts(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Fields of a form or an address: what is empty was not given, what stands there several times is a list."""
    found: dict[str, list[str]] = {}
    for name, text in pairs:
        if text:
            found.setdefault(name, []).append(text)
    return {name: texts[0] if len(texts) == 1 else texts for name, texts in found.items()}


async def _read(request: Request, settings: Settings, path: Path) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("", "application/json") or kind.endswith("+json"):
        return await read_json(request, settings, kept={"file_data": path})
    if kind == "multipart/form-data":
        return await _read_form(request, settings, path)
    if kind in ZIP_KINDS:
        with _writer(settings, path) as write:
            await _feed(request, settings, write)
        return {**from_texts(request.query_params.multi_items()), "file_data": LEFT_OUT}
    kinds = "application/json, multipart/form-data and application/zip"
    raise HTTPException(415, f"A body of this Content-Type cannot be read. Known are: {kinds}.")


async def _read_form(request: Request, settings: Settings, path: Path) -> dict[str, Any]:
    with _writer(settings, path) as write:
        form = forms.Form(request.headers["content-type"], "file_data", write)
        await _feed(request, settings, form.feed)
        return from_texts(form.end())


async def _feed(request: Request, settings: Settings, take: Sink) -> None:
    """Hand the body on in pieces, each in a thread. Raises: TooLargeError as soon as it is known to be too large."""
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HTTPException(415, "Compressed bodies are not read. Send it without Content-Encoding.")
    _refuse_large(settings, _announced(request))
    chunks, seen = request.stream(), 0
    while piece := await _piece(chunks):
        seen += len(piece)
        _refuse_large(settings, seen)
        await run_in_threadpool(take, piece)


async def _piece(chunks: AsyncIterator[bytes]) -> bytes:
    piece = bytearray()
    try:
        async with asyncio.timeout(SECONDS_A_PIECE):
            async for chunk in chunks:
                piece += chunk
                if len(piece) >= PIECE_BYTES:
                    break
    except TimeoutError as error:
        raise HTTPException(408, f"Less than a MiB of the body came in {SECONDS_A_PIECE} seconds.") from error
    return bytes(piece)


def _announced(request: Request) -> int:
    return int(request.headers.get("content-length") or 0)


def _refuse_large(settings: Settings, size: int) -> None:
    if size > settings.request_mib * MIB + REST_BYTES:  # so that pictures of the full size leave room for the rest
        hint = "Use fewer or smaller pictures. A ZIP sent as a file in a form is a quarter smaller than as base64."
        raise TooLargeError(f"The request is larger than {settings.request_mib} MiB.", hint)


@contextmanager
def _writer(settings: Settings, path: Path) -> Iterator[Sink]:
    """What writes bytes to the end of a file, while the disk has room."""
    with open(path, "wb") as file:

        def write(content: bytes) -> None:
            settings.check_room(len(content))
            try:
                file.write(content)
            except OSError as error:
                raise StorageError(f"The upload could not be stored: {error.strerror}.") from error

        yield write


def _new_file(settings: Settings) -> Path:
    folder = _folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(settings)
    handle, name = tempfile.mkstemp(".zip", dir=folder)  # readable by the owner alone
    open(handle, "wb").close()
    return Path(name)


def _folder(settings: Settings) -> Path:
    """Beside Gradio's folder of uploads and not in it, because what lies there can be fetched by its path."""
    return settings.home / "incoming"
