"""One POST to an address that anyone may have named: only to the public internet, and never for longer than a limit.

The name is resolved once, all its addresses are checked, and the connection goes to the very addresses that were
checked, so that a name cannot point elsewhere in between. Redirects are not followed. Of the answer only its status
is kept, in our own words: nothing that the receiver wrote is shown or stored. Any port may be called: on a public
address it is open to everybody anyway, and what is sent is one line of JSON.
"""

import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import SplitResult, urlsplit

from finetune.errors import FinetuneError

SECONDS = 30.0
"""For all of it: name, connection, TLS, sending and the answer."""
MOST_BYTES = 4096
"""Of an answer that are read."""
SECONDS_FOR_THE_REST = 1.0
"""To let a receiver finish its answer, once its status is known."""
UNICAST = ipaddress.ip_network("2000::/3")
NAT64 = ipaddress.ip_network("64:ff9b::/96")
SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # answers to virtual machines of Azure from inside, whatever it looks like
        "192.0.0.0/24",  # of protocols; has metadata of Oracle's machines
        "192.88.99.0/24",  # relays into 6to4
    )
)
"""Addresses that Python's ipaddress takes for public ones in some of its versions."""
Resolve = Callable[..., list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Answer:
    """What came of it."""

    words: str
    is_success: bool = False


class _RefusedError(FinetuneError):
    """It was not sent, or not answered, for a reason of ours."""


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    allows_private: bool = False,
    seconds: float = SECONDS,
    resolve: Resolve = socket.getaddrinfo,
) -> Answer:
    """Send once, and say what came of it."""
    until = time.monotonic() + seconds
    try:
        parts = _checked(url)
        found = addresses(parts.hostname, _port(parts), allows_private, _left(until), resolve)
        with closing(_connected(found, parts, until)) as connection:
            connection.settimeout(_left(until))
            connection.sendall(_head(parts, body, headers) + body)
            status = _status(connection, until)
    except TimeoutError:
        return Answer(f"not delivered: no answer within {seconds:g} s")
    except (FinetuneError, OSError, UnicodeError) as error:
        return Answer(f"not delivered: {_in_words(error)}")
    return Answer(_named(status), 200 <= status < 300)


def addresses(
    host: str, port: int, allows_private: bool, seconds: float = SECONDS, resolve: Resolve = socket.getaddrinfo
) -> list[tuple[Any, ...]]:
    """The addresses of a name, as `socket.getaddrinfo` gives them.

    Raises: FinetuneError unless all may be called; OSError for a name that is not known.
    """
    found = _resolved(host, port, seconds, resolve)
    if not allows_private and not all(is_public(str(entry[4][0])) for entry in found):
        raise _RefusedError(
            f"{host} is not a public address.",
            "Set FINETUNE_PRIVATE_WEBHOOKS=1 to allow addresses of your own network.",
        )
    return found


def host(url: str) -> str:
    """Whom an address names, also one that is not called."""
    return urlsplit(url).hostname or "nobody"


def is_public(address: str) -> bool:
    """Whether an address is one of the internet: not of this machine, its network, its provider, or many at once.

    An address of version 6 that stands for one of version 4 is what that one is.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if found.version == 6:
        inner = found.ipv4_mapped or found.sixtofour
        if found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        return is_public(str(inner)) if inner else found.is_global and found in UNICAST
    return found.is_global and not found.is_multicast and not any(found in network for network in SPECIAL)


def _checked(url: str) -> SplitResult:
    """The parts of an address. Raises: FinetuneError for one that is not called."""
    if not re.fullmatch(r"[\x21-\x7e]+", url):
        raise _RefusedError("the address has characters that no address has")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise _RefusedError("the address is none") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _RefusedError("the address is none of http or https")
    if parts.username is not None or parts.password is not None:
        raise _RefusedError("addresses with a name or a password in them are not called; sign with a secret instead")
    return parts


def _port(parts: SplitResult) -> int:
    try:
        return parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise _RefusedError("the address has a port that no address has") from error


def _resolved(host: str, port: int, seconds: float, resolve: Resolve) -> list[tuple[Any, ...]]:
    """Ask in a thread, because a resolver that hangs cannot be called off."""
    answers: SimpleQueue[list[tuple[Any, ...]] | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(resolve(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except Empty as error:
        raise TimeoutError from error
    if isinstance(answer, Exception):
        raise answer
    return answer


def _connected(found: list[tuple[Any, ...]], parts: SplitResult, until: float) -> socket.socket:
    """A connection to the first of these addresses that takes one; each gets its share of the time."""
    for tries_left in range(len(found), 0, -1):
        try:
            return _connected_to(found[-tries_left], parts, until, _left(until) / tries_left)
        except OSError:
            if tries_left == 1:
                raise
    raise _RefusedError("the name has no address")


def _connected_to(entry: tuple[Any, ...], parts: SplitResult, until: float, seconds: float) -> socket.socket:
    family, kind, protocol, _, address = entry
    connection = socket.socket(family, kind, protocol)
    try:
        connection.settimeout(seconds)
        connection.connect(address)
        if parts.scheme != "https":
            return connection
        connection.settimeout(_left(until))  # of TLS: a certificate that is trusted, and names the host
        return ssl.create_default_context().wrap_socket(connection, server_hostname=parts.hostname)
    except OSError:
        connection.close()
        raise


def _head(parts: SplitResult, body: bytes, headers: Mapping[str, str]) -> bytes:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    fixed = {"Host": parts.netloc, "Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in {**fixed, **headers}.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def _status(connection: socket.socket, until: float) -> int:
    """The status of the answer, without those that only announce it."""
    read = b""
    while len(read) < MOST_BYTES:
        connection.settimeout(_left(until))
        new = connection.recv(MOST_BYTES - len(read))
        if not new:
            break
        read += new
        for line in re.findall(rb"(?:\A|\n\r?\n)([^\n]*)(?=\n)", read):
            if not (found := re.match(rb"HTTP/1\.[01] ([1-9]\d\d)\b", line)):
                raise _RefusedError("what answers there does not speak HTTP")
            if (status := int(found[1])) >= 200:
                _let_finish(connection, MOST_BYTES - len(read), min(until, time.monotonic() + SECONDS_FOR_THE_REST))
                return status
    raise _RefusedError("the connection was closed without an answer" if not read else "the answer has no status")


def _let_finish(connection: socket.socket, most_bytes: int, until: float) -> None:
    """Read a little more, so that who answers at once and in full is not cut off in the middle."""
    with suppress(OSError):
        while most_bytes > 0:
            connection.settimeout(_left(until))
            if not (new := connection.recv(most_bytes)):
                return
            most_bytes -= len(new)


def _left(until: float) -> float:
    """Seconds that are left. Raises: TimeoutError."""
    if (seconds := until - time.monotonic()) <= 0:
        raise TimeoutError
    return seconds


def _named(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _in_words(error: Exception) -> str:
    match error:
        case FinetuneError():
            return str(error).rstrip(".")
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted ({error.verify_message})"
        case ssl.SSLError():
            return "it does not speak TLS"
        case socket.gaierror() | UnicodeError():
            return "the name is not known"
        case ConnectionRefusedError():
            return "nobody listens there"
        case ConnectionError():
            return "the connection broke"
    return getattr(error, "strerror", None) or "the connection failed"
