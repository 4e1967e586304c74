"""What stands around the whole service: who may reach which route, and what may be sent to it.

Routes check for themselves who asks. This is the second wall, which does not depend on any of them: nothing that is
not listed here is reached without signing in, no cookie is believed when another site sends it, and no body is taken
in that is too large, too slow, or for which there is no room.
"""

import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.api import addresses, answers, callers, intake, sessions
from finetune.api.callers import Mode
from finetune.api.intake import Intake, SlowError
from finetune.api.throttle import Throttle
from finetune.errors import BusyError, DeniedError, FinetuneError
from finetune.owners import Caller
from finetune.settings import Settings

UPLOAD = "/gradio_api/upload"
FOR_ALL = re.compile(
    r"/(v1/.*|login|logout|login/(huggingface|callback)|docs|openapi\.json|"
    r"(assets|static|svelte)/.*|theme\.css|favicon\.ico|manifest\.json|robots\.txt|pwa_icon(/\d+)?|"
    r"gradio_api/(startup-events|theme\.css))",
    re.DOTALL,
)
"""What needs no sign-in, or sees to it itself."""
FOR_CALLERS = re.compile(
    r"/(|config|gradio_api/(app_id|call/.+|cancel|component_server|file=(?!\w\w+:/).+|heartbeat/.+|info|login_check|"
    r"queue/(join|data|status)|reset|run/.+|upload|upload_progress|user))/?",
    re.DOTALL,
)
"""What the page uses of Gradio. The rest (recordings, streams, deep links, a proxy for any address) is not there."""
HEADERS = {"Content-Security-Policy": "frame-ancestors 'self'", "Referrer-Policy": "same-origin"}
SIGNED_OUT = "Please sign in first: load the page again to get there."
MOST_OTHER_BYTES = 8 * 2**20
"""The largest body of what is no upload: Gradio holds it in memory as a whole."""
MOST_LOGIN_BYTES = 16 * 2**10
SLACK_BYTES = 64 * 2**10
"""What a form adds around a file."""
UPLOADS_AT_ONCE = 3
UPLOADS_AN_HOUR = 10
"""How often the largest upload may be sent in an hour, by one caller."""
LEFT_OVER_SECONDS = 600


class Uploads:
    """What each caller is uploading, and has uploaded in this hour."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._at_once: Counter[str] = Counter()
        self._hour = 0
        self._bytes: Counter[str] = Counter()

    def begin(self, name: str, size: int) -> None:
        """Raises: BusyError when it is one too many."""
        if self._hour != int(time.time() // 3600):
            self._hour = int(time.time() // 3600)
            self._bytes.clear()
        if self._at_once[name] >= UPLOADS_AT_ONCE:
            raise BusyError("Too many uploads at once.", "Try again when one of them has ended.", 10)
        if self._bytes[name] + size > self._most_bytes:
            seconds = 3600 - int(time.time() % 3600)
            raise BusyError("Too much was uploaded in this hour.", f"Try again in {seconds // 60 + 1} min.", seconds)
        self._at_once[name] += 1

    def end(self, name: str, size: int) -> None:
        """Count what was sent."""
        self._bytes[name] += size
        self._at_once[name] -= 1
        if not self._at_once[name]:
            del self._at_once[name]


@dataclass
class Guard:
    """The middleware, around every route of one service."""

    app: ASGIApp
    settings: Settings
    throttle: Throttle

    def __post_init__(self) -> None:
        self.uploads = Uploads(UPLOADS_AN_HOUR * self.settings.upload_mib * 2**20)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "websocket":  # there is none here
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = _path(scope)
        try:
            scope = await self._own(scope)
            if path.startswith("/v1/"):
                send = self._counted(scope, receive, send)
            elif not FOR_ALL.fullmatch(path):
                scope, send = await self._known(path, scope, send)
            await self._pass(path, scope, receive, send)
        except _Answer as answer:
            await answer.response(scope, receive, send)
        except FinetuneError as error:
            await _told(path, error)(scope, receive, send)

    async def _own(self, scope: Scope) -> Scope:
        """The request, without what another site’s page makes a browser add to it."""
        request = HTTPConnection(scope)
        is_foreign = addresses.is_foreign(self.settings, request)
        is_known = addresses.is_known_host(self.settings, request)
        if (is_foreign or not is_known) and await run_in_threadpool(callers.mode, self.settings) is Mode.AT_HOME:
            raise DeniedError(*_stranger(request, is_known))
        return _without_cookies(scope) if is_foreign else scope

    async def _known(self, path: str, scope: Scope, send: Send) -> tuple[Scope, Send]:
        """A request by somebody who may use the page. Raises: _Answer for anybody else."""
        if not FOR_CALLERS.fullmatch(path):
            raise _Answer(JSONResponse({"detail": "Not Found"}, 404))
        is_page = path == "/" and scope["method"] in ("GET", "HEAD")
        if is_page:
            send = _with(send, HEADERS if not self.settings.on_space else {})
        if await self._caller(scope):
            return scope, send
        mode = await run_in_threadpool(callers.mode, self.settings)
        if mode is Mode.HUB and path != UPLOAD:  # there, the page can be looked at, and its handlers say no
            return scope, send
        if is_page and mode is Mode.OPEN and not addresses.is_foreign(self.settings, HTTPConnection(scope)):
            return self._welcomed(scope, send)
        if is_page:
            raise _Answer(RedirectResponse(self._login(HTTPConnection(scope)), 303, {"Cache-Control": "no-store"}))
        raise _Answer(JSONResponse({"detail": SIGNED_OUT}, 401))

    def _welcomed(self, scope: Scope, send: Send) -> tuple[Scope, Send]:
        """A visitor’s first request, with the name that the browser carries from now on."""
        name, value = sessions.visitor_cookie(self.settings), sessions.of_visitor(self.settings)
        cookie = sessions.header(self.settings, HTTPConnection(scope), name, value, sessions.VISITOR_DAYS)
        carried = HTTPConnection(scope).headers.get("cookie")
        cookies = f"{carried}; {name}={value}" if carried else f"{name}={value}"
        headers = [(key, text) for key, text in scope["headers"] if key != b"cookie"]
        return {**scope, "headers": [*headers, (b"cookie", cookies.encode("latin-1"))]}, _with(
            send, {"Set-Cookie": cookie}
        )

    def _login(self, request: HTTPConnection) -> str:
        """Where to sign in: relative, unless it is known below which path the service is reached."""
        prefix = urlsplit(callers.public_root(self.settings, request)).path
        page = f"{prefix}/login" if prefix else "login"
        return f"{page}?{request.url.query}" if request.url.query else page

    async def _caller(self, scope: Scope) -> Caller | None:
        return await run_in_threadpool(callers.of_page, self.settings, HTTPConnection(scope))

    async def _pass(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through with its body watched."""
        if path != UPLOAD:
            return await self._watched(path, scope, Intake(receive, self._most(path), _always), send)
        request = HTTPConnection(scope)
        told = request.headers.get("content-length", "")
        size = int(told) if told.isdecimal() else 0
        intake.check_size(size, self._most(path))
        self.settings.check_room(size, self.settings.uploads)
        body = Intake(receive, self._most(path), lambda more: self.settings.check_room(more, self.settings.uploads))
        caller = await self._caller(scope)
        if caller is None:  # a key that was revoked this very moment
            raise _Answer(JSONResponse({"detail": SIGNED_OUT}, 401))
        if caller.owns_machine:
            return await self._watched(path, scope, body, send)
        name = addresses.network(self.settings, request) if caller.is_visitor else caller.name
        self.uploads.begin(name, size)
        try:
            await self._watched(path, scope, body, send)
        finally:
            self.uploads.end(name, body.size)

    async def _watched(self, path: str, scope: Scope, body: Intake, send: Send) -> None:
        has_begun = False

        async def sent(message: Message) -> None:
            nonlocal has_begun
            if has_begun or not body.refusal:
                has_begun = True
                await send(message)

        try:
            await self.app(scope, body, sent)
        except ClientDisconnect:
            if not body.refusal:
                raise
        finally:
            if path == UPLOAD:
                await run_in_threadpool(clear_left_over, self.settings.uploads)
        if body.refusal and not has_begun:
            response = _told(path, body.refusal)
            response.headers["Connection"] = "close"  # else what is left of the body would be read to its end
            await response(scope, body, send)

    def _most(self, path: str) -> int:
        """The largest body that a route takes. Units: bytes."""
        if path.startswith("/v1/"):
            return self.settings.request_mib * 2**20 + SLACK_BYTES
        if path == UPLOAD:
            return self.settings.upload_mib * 2**20 + SLACK_BYTES
        return MOST_LOGIN_BYTES if path in ("/login", "/logout") else MOST_OTHER_BYTES

    def _counted(self, scope: Scope, receive: Receive, send: Send) -> Send:
        """Count keys that are refused; who has tried many is told to wait instead."""
        request = HTTPConnection(scope)
        if "x-key" not in request.headers:
            return send
        where = ("key", addresses.network(self.settings, request))
        is_replaced = False

        async def sent(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start" and message["status"] == 403:
                try:
                    self.throttle.check(where, where)
                    self.throttle.wrong(where, where)
                except BusyError as error:
                    is_replaced = True
                    await answers.of_error(error)(scope, receive, send)
            if not is_replaced:
                await send(message)

        return sent


class _Answer(Exception):
    """An answer of the guard's own."""

    def __init__(self, response: Response) -> None:
        self.response = response


def clear_left_over(uploads: Path) -> None:
    """Delete parts of uploads that broke off, which Gradio leaves behind."""
    for path in uploads.glob("tmp*"):
        if path.is_file() and time.time() - path.stat().st_mtime > LEFT_OVER_SECONDS:
            path.unlink(missing_ok=True)


def _path(scope: Scope) -> str:
    """The path below where the service is mounted, as its routes see it."""
    path, root = scope["path"], scope.get("root_path", "")
    is_below = root and (path == root or path.startswith(f"{root}/"))
    return (path[len(root) :] if is_below else path) or "/"


def _without_cookies(scope: Scope) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
    return {**scope, "headers": headers, "session": {}}


def _stranger(request: HTTPConnection, is_known: bool) -> tuple[str, str]:
    if not is_known:
        name = re.sub(r"[^\w.:-]", "?", request.headers.get("host", "")[:100])
        return f"This service does not know itself as “{name}”.", (
            f"If that is right, start it with FINETUNE_PUBLIC_URL=http://{name}, or let it ask who comes: --auth."
        )
    return "Another site’s page asked for this, and here nobody is asked who they are.", (
        "Open the service by itself. If it is behind a proxy, FINETUNE_PUBLIC_URL says where it is reached; programs "
        "in a page need a key."
    )


def _told(path: str, error: FinetuneError) -> Response:
    """An error as an answer: in the contract's shape for programs, as plain words for the page, which shows them."""
    response = answers.problem(408, str(error)) if isinstance(error, SlowError) else answers.of_error(error)
    if path.startswith("/v1/"):
        return response
    kept = {"Retry-After": response.headers["retry-after"]} if "retry-after" in response.headers else None
    return PlainTextResponse(str(error), response.status_code, kept)


def _with(send: Send, headers: dict[str, str]) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            for name, value in headers.items():
                MutableHeaders(scope=message).append(name, value)
        await send(message)

    return sent


def _always(_: Any) -> None:
    """There is always room for what is not kept."""
