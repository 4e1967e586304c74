"""Who asks over HTTP: a program by its key, a visitor of the page by what the browser carries."""

import time
from enum import StrEnum
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from finetune import keys, owners
from finetune.api import addresses, sessions
from finetune.errors import DeniedError
from finetune.owners import AT_HOME, VISITOR, Caller
from finetune.runs import LOCAL
from finetune.settings import Settings

UNKNOWN = "Not authenticated - Invalid Authentication"
"""What the published API answers to a request without a good key."""


class Mode(StrEnum):
    """How somebody says who they are."""

    AT_HOME = "at home"  # nobody is asked, and everyone owns the machine
    CLOSED = "closed"  # by a name with its password, or by a key
    OPEN = "open"  # nobody is asked, and each browser has runs of its own
    HUB = "hub"  # by their account on the Hugging Face Hub


def mode(settings: Settings) -> Mode:
    """How people say who they are, as things are now: the first key that is made closes a service at once."""
    is_open = settings.on_space or settings.share
    if settings.auth:
        return Mode.CLOSED
    if settings.has_hub_login:
        return Mode.HUB
    if is_open and settings.without_password:
        return Mode.OPEN
    if keys.exist(settings):
        return Mode.CLOSED
    if settings.on_space:
        return Mode.OPEN
    return Mode.CLOSED if settings.share else Mode.AT_HOME  # a public link never opens for lack of a key


def of_program(settings: Settings, request: HTTPConnection) -> Caller:
    """Who sends a request to a route, by the header x-key alone: never by a cookie. Raises: DeniedError."""
    if found := by_key(settings, request):
        return found
    if mode(settings) is Mode.AT_HOME:
        return AT_HOME
    raise DeniedError(UNKNOWN)


def by_key(settings: Settings, request: HTTPConnection) -> Caller | None:
    """Whom the key in the header speaks for, if there is one and it is good."""
    shown = request.headers.get("x-key", "")
    key = keys.find(settings, shown) if shown else None
    return key.caller(settings) if key else None


def of_page(settings: Settings, request: HTTPConnection) -> Caller | None:
    """Who uses the page; None for somebody who has to sign in first."""
    match mode(settings):
        case Mode.AT_HOME:
            return AT_HOME
        case Mode.CLOSED:
            return sessions.signed_in(settings, request)
        case Mode.OPEN:
            return sessions.signed_in(settings, request) or sessions.visitor(settings, request)
        case Mode.HUB:
            return _of_hub(settings, request)


def public_root(settings: Settings, request: HTTPConnection) -> str:
    """Where who asks reaches this service, without a slash at the end: what absolute links begin with."""
    if settings.public_url:
        return settings.public_url
    if urlsplit(settings.root_path).netloc:  # Gradio allows a whole address
        return settings.root_path.rstrip("/")
    path = settings.root_path.strip("/")
    return f"{addresses.scheme(request)}://{addresses.host(request)}" + (f"/{path}" if path else "")


def _of_hub(settings: Settings, request: HTTPConnection) -> Caller | None:
    """Who signed in with their account, as Gradio’s session tells; it is believed on a Space alone."""
    told = request.scope.get("session", {}).get("oauth_info") or {}
    name = told.get("userinfo", {}).get("preferred_username")
    if not name or told.get("expires_at", 0) < time.time():
        return None
    is_taken = name == LOCAL or name.startswith(VISITOR)
    return Caller(f"{name}@huggingface.co") if is_taken else owners.person(settings, name)
