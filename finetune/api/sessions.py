"""What a browser carries: signed cookies that say who signed in, or which visitor this is.

Nothing is kept here, so that a sign-in outlives a restart: what stands in a cookie is believed if its signature is
ours, and if what was shown to sign in is still good.
"""

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import Any

from starlette.requests import HTTPConnection

from finetune import keys, owners
from finetune.api import addresses
from finetune.keys import Key
from finetune.owners import VISITOR, Caller
from finetune.settings import Settings

DAYS = 30
VISITOR_DAYS = 365


def of_password(settings: Settings, name: str, password: str) -> str:
    """What a browser carries for somebody who gave their password; another password ends it."""
    return _signed(settings, {"name": name, "password": _fingerprint(settings, name, password)}, DAYS)


def of_key(settings: Settings, key: Key) -> str:
    """What a browser carries for somebody who showed a key; revoking the key ends it."""
    return _signed(settings, {"name": key.owner, "key": key.id}, DAYS)


def of_visitor(settings: Settings) -> str:
    """What a browser carries that nobody knows. Its name alone opens nothing, because it is signed too."""
    return _signed(settings, {"name": VISITOR + secrets.token_hex(8)}, VISITOR_DAYS)


def signed_in(settings: Settings, request: HTTPConnection) -> Caller | None:
    """Who has signed in with this browser, if what they showed is still good."""
    values = _read(settings, request.cookies.get(session_cookie(settings), ""))
    if "key" in values:
        key = keys.by_id(settings, values["key"])
        return key.caller(settings) if key and key.owner == values["name"] else None
    for name, password in settings.auth:
        if name == values.get("name") and hmac.compare_digest(
            values.get("password", ""), _fingerprint(settings, name, password)
        ):
            return owners.person(settings, name)
    return None


def visitor(settings: Settings, request: HTTPConnection) -> Caller | None:
    """Which visitor this browser is, if it was here before."""
    name = _read(settings, request.cookies.get(visitor_cookie(settings), "")).get("name", "")
    return Caller(name) if name.startswith(VISITOR) else None


def session_cookie(settings: Settings) -> str:
    """The name of the cookie of who signed in: of this service alone, because all ports of a host share cookies."""
    return f"finetune-session-{_tag(settings)}"


def visitor_cookie(settings: Settings) -> str:
    """The name of the cookie of a visitor."""
    return f"finetune-visitor-{_tag(settings)}"


def header(settings: Settings, request: HTTPConnection, name: str, value: str, days: int) -> str:
    """The header that lets a browser carry a cookie, out of reach of scripts and of other sites; 0 days end it."""
    # A Space is shown inside a page of the Hub: there, only such a cookie comes back at all.
    where = "SameSite=None; Secure; Partitioned" if settings.on_space else "SameSite=Lax"
    if not settings.on_space and addresses.scheme(request) == "https":
        where += "; Secure"
    return f"{name}={value}; Path=/; Max-Age={days * 86400}; HttpOnly; {where}"


def _signed(settings: Settings, values: dict[str, Any], days: int) -> str:
    text = json.dumps({**values, "until": int(time.time()) + days * 86400})
    payload = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    return f"{payload}.{_signature(settings, payload)}"


def _read(settings: Settings, cookie: str) -> dict[str, Any]:
    """What a cookie of ours says; nothing if it is none, or too old."""
    payload, _, signature = cookie.partition(".")
    if not hmac.compare_digest(signature.encode(), _signature(settings, payload).encode()):
        return {}
    values = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return values if values["until"] > time.time() else {}


def _signature(settings: Settings, payload: str) -> str:
    return hmac.new(_secret(settings, "cookies"), payload.encode(), hashlib.sha256).hexdigest()


def _fingerprint(settings: Settings, name: str, password: str) -> str:
    """What tells that a password has changed, and nothing else of it."""
    return hmac.new(_secret(settings, "passwords"), f"{name}\n{password}".encode(), hashlib.sha256).hexdigest()


def _secret(settings: Settings, purpose: str) -> bytes:
    """A secret for one purpose, so that what was signed for another is never good for it."""
    return hmac.new(settings.secret, purpose.encode(), hashlib.sha256).digest()


def _tag(settings: Settings) -> str:
    return _secret(settings, "names").hex()[:8]
