"""Sign in and out: a page of our own, by name and password or by key.

Instead of Gradio's, which forgets everybody at a restart and lets anybody guess without end. It needs no script, so
that it works wherever a form does, and all its links are relative, because a proxy or a share link decides the rest.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from html import escape
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

from finetune import keys
from finetune.api import addresses, callers, sessions
from finetune.api.callers import Mode
from finetune.api.throttle import Throttle
from finetune.errors import BusyError
from finetune.owners import MOST_LETTERS
from finetune.settings import ASSETS, Settings

FOLDER = ASSETS / "page"
MOST_FIELDS = 10
MOST_ADDRESS = 2000
"""The most letters of the page's address that are kept while somebody signs in."""
WRONG = "This name and password do not fit together."
WRONG_KEY = "There is no such key; it may have been revoked."
PASSWORD = (
    '<label>Password<input name="password" type="password" autocomplete="current-password" required{focus}></label>'
)
FOCUS = " autofocus"
KEY = (
    '<label>Key<input name="key" type="password" autocomplete="off" spellcheck="false" placeholder="ft_…" required>'
    "</label>"
)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{title} · Finetune</title>
<link rel="icon" href="favicon.ico">
<style>{style}</style>
</head>
<body>
<main>
<h1>Finetune</h1>
<p>Teach an image model your pictures.</p>
{content}
</main>
</body>
</html>
"""
FOREIGN = (
    "Another page sent this. Please sign in here. If this service is behind a proxy, FINETUNE_PUBLIC_URL has to say "
    "where it is reached."
)


def routes(settings: Settings, throttle: Throttle) -> APIRouter:
    """The routes of signing in and out; none where people sign in by the Hub, which has its own."""
    added = APIRouter(include_in_schema=False)
    if callers.mode(settings) is Mode.HUB:
        return added

    @added.get("/login")
    async def ask(request: Request) -> Response:
        """Show the page on which to sign in, or what is behind it."""
        then = _cleaned(request.url.query)
        if await run_in_threadpool(_is_in, settings, request):
            return _onward(then)
        return await run_in_threadpool(_page, settings, then)

    @added.post("/login")
    async def sign_in(request: Request) -> Response:
        """Take what was filled in: a name with its password, or a key."""
        given = dict(parse_qsl((await request.body()).decode(errors="replace")))
        then, where = _cleaned(given.get("then", "")), addresses.network(settings, request)
        if addresses.is_foreign(settings, request):  # else another site could sign somebody in as somebody else
            return await run_in_threadpool(_page, settings, then, FOREIGN, 403)
        is_by_key = "key" in given
        name = where if is_by_key else given.get("name", "").strip()[:MOST_LETTERS]
        try:
            throttle.check((is_by_key, name), where)
        except BusyError as busy:
            answer = await run_in_threadpool(_page, settings, then, str(busy), 429, given)
            answer.headers["Retry-After"] = str(busy.retry_after_seconds)
            return answer
        if is_by_key:
            cookie = await run_in_threadpool(_by_key, settings, given["key"].strip())
        else:  # without a pause between the check and the count, in which many could guess at once
            cookie = _by_password(settings, name, given.get("password", ""))
        if cookie is None:
            throttle.wrong((is_by_key, name), where)
            return await run_in_threadpool(_page, settings, then, WRONG_KEY if is_by_key else WRONG, 403, given)
        throttle.right((is_by_key, name))
        return _carrying(settings, request, _onward(then), cookie, sessions.DAYS)

    @added.get("/logout")
    def ask_out() -> Response:
        """Show a button, because following a link must not sign anybody out."""
        return _answer(_form("logout", "Sign out"), "Sign out")

    @added.post("/logout")
    def sign_out(request: Request) -> Response:
        """Let the browser forget who signed in."""
        if addresses.is_foreign(settings, request):
            return _answer(_notice(FOREIGN) + _form("logout", "Sign out"), "Sign out", 403)
        return _carrying(settings, request, _onward(""), "", 0)

    return added


def _is_in(settings: Settings, request: Request) -> bool:
    caller = callers.of_page(settings, request)
    return caller is not None and not caller.is_visitor


def _by_password(settings: Settings, name: str, password: str) -> str | None:
    """The cookie for a name with its password. A name that nobody has takes as long as one that somebody has."""
    given = hashlib.sha256(password.encode()).digest()
    known = dict(settings.auth).get(name)
    expected = hashlib.sha256((known or "").encode()).digest()
    is_right = hmac.compare_digest(given, expected) and known is not None
    return sessions.of_password(settings, name, password) if is_right else None


def _by_key(settings: Settings, shown: str) -> str | None:
    key = keys.find(settings, shown)
    return sessions.of_key(settings, key) if key else None


def _cleaned(query: str) -> str:
    """What the page's own address said after the question mark, written anew: it never leads anywhere else."""
    return urlencode(parse_qsl(query[:MOST_ADDRESS])[:MOST_FIELDS])


def _onward(then: str) -> Response:
    return RedirectResponse(f"./?{then}" if then else "./", 303)


def _carrying(settings: Settings, request: Request, answer: Response, cookie: str, days: int) -> Response:
    name = sessions.session_cookie(settings)
    answer.headers.append("Set-Cookie", sessions.header(settings, request, name, cookie, days))
    return answer


def _page(
    settings: Settings, then: str, problem: str = "", status: int = 200, given: Mapping[str, str] | None = None
) -> Response:
    """The page with as many ways to sign in as there are."""
    given = given or {}
    has_keys = keys.exist(settings)
    hidden = f'<input type="hidden" name="then" value="{escape(then)}">'
    name = given.get("name", "")
    by_password = _form("login", "Sign in", hidden, _name(name), PASSWORD.format(focus=FOCUS if name else ""))
    by_key = _form("login", "Sign in", hidden, KEY)
    if settings.auth and has_keys:
        is_open = " open" if "key" in given else ""
        ways = f"{by_password}<details{is_open}><summary>Sign in with a key</summary>{by_key}</details>"
    elif settings.auth or has_keys:
        ways = by_password if settings.auth else by_key
    else:
        ways = _notice("Nobody can sign in yet. Where this service runs: python -m finetune key new NAME")
    return _answer((_notice(problem) if problem else "") + ways, "Sign in", status)


def _form(action: str, button: str, *fields: str) -> str:
    return f'<form method="post" action="{action}">{"".join(fields)}<button>{button}</button></form>'


def _name(value: str) -> str:
    return (
        f'<label>Name<input name="name" value="{escape(value)}" autocomplete="username" autocapitalize="none" '
        f'spellcheck="false" maxlength="{MOST_LETTERS}" required{"" if value else FOCUS}></label>'
    )


def _notice(words: str) -> str:
    return f'<p class="notice" role="alert">{escape(words)}</p>'


def _answer(content: str, title: str, status: int = 200) -> HTMLResponse:
    style = (FOLDER / "login.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    headers = {
        "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{digest}'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'self'",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(PAGE.format(title=title, style=style, content=content), status, headers)
