"""Signed links: whoever holds one may fetch the one thing that it names, without a key, until it expires."""

import hashlib
import hmac
import time
from urllib.parse import quote, urlencode

from finetune.errors import DeniedError, ExpiredError
from finetune.settings import Settings


def sign(settings: Settings, path: str, lasts_seconds: int, same_seconds: int) -> str:
    """A link to a path below /v1, relative to where the service is reached.

    It lasts at least so long, and stays the same for a while, so that browsers keep what they have fetched.
    """
    expires = (int(time.time()) + lasts_seconds) // same_seconds * same_seconds + same_seconds
    return f"v1/{quote(path)}?{urlencode({'exp': expires, 'sig': _signature(settings, path, expires)})}"


def check(settings: Settings, path: str, expires: int, signature: str) -> None:
    """Raises: DeniedError when a link is not one of ours, ExpiredError when it is too old."""
    if not hmac.compare_digest(signature.encode(), _signature(settings, path, expires).encode()):
        raise DeniedError("This link is not valid.")
    if expires < time.time():
        raise ExpiredError("This link has expired.", "Load the page, or ask for the result, again for a new one.")


def _signature(settings: Settings, path: str, expires: int) -> str:
    return hmac.new(settings.secret, f"link\n{path}\n{expires}".encode(), hashlib.sha256).hexdigest()
