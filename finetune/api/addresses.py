"""Where the service is reached, and where a request comes from, as far as headers can be believed.

Separate, because sign-in, links and the guard must agree on it.
"""

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from finetune.settings import Settings

HOST = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?", re.ASCII)
"""What may stand in the header Host: a name or an address, and a port."""
OF_A_NETWORK = (".localhost", ".local", ".lan", ".home", ".internal", ".home.arpa")
"""How names end that only a network of one's own gives: nobody elsewhere can point one at this machine."""


def scheme(request: HTTPConnection) -> str:
    """The scheme that the browser used, as a proxy tells it."""
    told = _first(request, "x-forwarded-proto").lower() or request.scope.get("scheme", "http")
    return "https" if told in ("https", "wss") else "http"


def host(request: HTTPConnection) -> str:
    """The host and port that the browser asked for, as a proxy tells it; our own where that is no host at all."""
    for told in (_first(request, "x-forwarded-host"), request.headers.get("host", "")):
        if HOST.fullmatch(told):
            return told.lower()
    name, port = request.scope.get("server") or ("127.0.0.1", None)
    name = f"[{name}]" if ":" in name else name
    return f"{name}:{port}" if port else name


def network(settings: Settings, request: HTTPConnection) -> str:
    """Where a request comes from: an address of IPv4, or the half of one of IPv6 that a household has whole."""
    told = request.headers.get("x-forwarded-for", "").split(",")[-1].strip() if settings.on_space else ""
    name = told or (request.client.host if request.client else "")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name
    return str(ipaddress.ip_network(f"{address}/64", strict=False)) if address.version == 6 else name


def is_foreign(settings: Settings, request: HTTPConnection) -> bool:
    """Whether another site’s page makes a browser send this; programs, which say nothing of it, do not.

    Following a link is not foreign, because nothing is changed by it; being shown inside another page is, but on a
    Space, which the Hub shows inside its own.
    """
    headers = request.headers
    told = headers.get("sec-fetch-site", "")  # no page can forge it; browsers leave it out on plain http in a network
    if told:
        is_link = request.scope.get("method") == "GET" and headers.get("sec-fetch-mode") == "navigate"
        is_whole = headers.get("sec-fetch-dest") == "document" or settings.on_space
        return told not in ("same-origin", "none") and not (is_link and is_whole)
    origin = headers.get("origin")
    return origin is not None and _host_of(origin) not in _ours(settings, request)


def is_known_host(settings: Settings, request: HTTPConnection) -> bool:
    """Whether the browser asked for a name that nobody elsewhere can point at this machine, or its owner told of.

    A page that lets its own name resolve to an address in here is no other site to the browser (DNS rebinding).
    """
    asked = request.headers.get("host", "").lower()
    if not asked or asked in _told(settings):  # only old programs leave it out
        return True
    if not HOST.fullmatch(asked):
        return False
    name = (urlsplit(f"//{asked}").hostname or "").rstrip(".")
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return "." not in name or name.endswith(OF_A_NETWORK) or name == socket.gethostname().lower()


def _ours(settings: Settings, request: HTTPConnection) -> set[str]:
    """Hosts with ports at which this very request may have been meant to reach us."""
    return {host(request), request.headers.get("host", "").lower(), *_told(settings)} - {""}


def _told(settings: Settings) -> set[str]:
    """Hosts with ports that the owner told of."""
    return {_host_of(settings.public_url), _host_of(settings.root_path)} - {""}


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:  # what claims to be an address of IPv6
        return ""


def _first(request: HTTPConnection, header: str) -> str:
    """The first value of a header that each proxy on the way may have added to."""
    return request.headers.get(header, "").split(",")[0].strip()
