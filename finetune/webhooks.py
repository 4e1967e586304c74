"""Signed deliveries: a run's end is told once to the address that its request names.

Deliveries are kept in the run folder (webhook.json), so that they survive a restart of the service. Anyone can name
the address; therefore only public addresses are called, at the very address that was checked, without redirects.
"""

import hashlib
import hmac
import http.client
import ipaddress
import json
import socket
import sqlite3
import ssl
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from finetune import index, runs, settings
from finetune.errors import FinetuneError, MissingError
from finetune.runs import Run, State
from finetune.settings import Settings

WAITS_SECONDS = (1, 5, 30)
TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Delivery:
    """One end of a task, and what came of telling it."""

    id: str
    task: str
    ended: float
    url: str
    attempts: tuple[dict[str, Any], ...]
    """{"time", "answer"} of each."""
    next_time: float | None
    """When it is tried again; None once it is over."""
    is_delivered: bool


def of_task(settings: Settings, task: str) -> list[Delivery]:
    """What was told, or will be, of a run or an image: the newest end first."""
    with index.opened(settings) as database:
        rows = database.execute("SELECT * FROM deliveries WHERE task = ? ORDER BY ended DESC", (task,)).fetchall()
    return [_delivery(row) for row in rows]


def send_again(settings: Settings, id: str) -> None:
    """Let a delivery be tried once more, at once. Raises: MissingError."""
    with index.opened(settings) as database:
        changed = database.execute("UPDATE deliveries SET next_time = ? WHERE id = ?", (time.time(), id)).rowcount
    if not changed:
        raise MissingError("There is no such delivery.")


def _delivery(row: sqlite3.Row) -> Delivery:
    return Delivery(
        row["id"],
        row["task"],
        row["ended"],
        row["url"],
        tuple(json.loads(row["attempts"])),
        row["next_time"],
        bool(row["is_delivered"]),
    )


class Deliveries:
    """Tells the ends of runs, in a thread beside the queue's, because an address may take half a minute to answer."""

    def __init__(self, runs_folder: Path) -> None:
        self._runs_folder = runs_folder
        self._thread: threading.Thread | None = None

    def tick(self) -> None:
        """Start a round if something is due and none is under way."""
        if self._thread and self._thread.is_alive():
            return
        due = [run for run in runs.all_in(self._runs_folder) if is_due(run, time.time())]
        ended = [(run, state) for run in due if (state := run.state()) in (State.READY, State.FAILED)]
        if ended:
            self._thread = threading.Thread(target=_deliver_all, args=(ended,), name="webhooks", daemon=True)
            self._thread.start()


def _deliver_all(ended: list[tuple[Run, State]]) -> None:
    for run, state in ended:
        deliver(run, state)


def is_due(run: Run, now: float) -> bool:
    """Whether a finished run still has to be told to someone at this time."""
    request = run.request()
    if request is None or request.webhook_url is None:
        return False
    record = run.read("webhook.json")
    return not record.get("is_over") and now >= record.get("next_time", 0)


def deliver(run: Run, state: State) -> None:
    """Try once; what came of it is kept, and when to try again."""
    request = run.request()
    body = json.dumps(_message(run, state)).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "finetune"}
    if request.webhook_secret:
        headers["X-BFL-Signature"] = sign(body, request.webhook_secret)
    record = run.read("webhook.json") or {"attempts": []}
    answer = _post(str(request.webhook_url), body, headers)
    record["attempts"].append({"time": time.time(), "answer": answer})
    tried = len(record["attempts"])
    record["is_over"] = answer.startswith("2") or tried > len(WAITS_SECONDS)
    if not record["is_over"]:
        record["next_time"] = time.time() + WAITS_SECONDS[tried - 1]
    run.write("webhook.json", record)
    run.tell("log", message=f"Webhook, attempt {tried}: {answer}.")


def sign(body: bytes, secret: str) -> str:
    """The signature that the receiver compares with its own."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _message(run: Run, state: State) -> dict[str, Any]:
    events, _ = run.events()
    error = next((event["message"] for event in reversed(events) if event["kind"] == "failed"), None)
    is_ready = state is State.READY
    return {
        "id": run.id,
        "task_id": run.id,
        "finetune_id": run.id,
        "status": "Ready" if is_ready else "Error",
        "result": None,
        "progress": None,
        "error": None if is_ready else error or f"The run was {state}.",
        "message": "The finetune is ready." if is_ready else error or f"The run was {state}.",
        "timestamp": datetime.now(UTC).isoformat(),
    }


def _post(url: str, body: bytes, headers: dict[str, str]) -> str:
    """Send once; returns the status line or, in words, why nothing was sent."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        address = checked_address(parts.hostname, port)
        with closing(http.client.HTTPConnection(address, port)) as connection:
            connection.sock = socket.create_connection((address, port), TIMEOUT_SECONDS)
            if parts.scheme == "https":
                context = ssl.create_default_context()
                connection.sock = context.wrap_socket(connection.sock, server_hostname=parts.hostname)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", target, body, {"Host": parts.netloc.rpartition("@")[2], **headers})
            answer = connection.getresponse()
            return f"{answer.status} {answer.reason}"[:200]
    except (FinetuneError, OSError, UnicodeError, http.client.HTTPException) as error:
        return f"not delivered: {error}"


def checked_address(host: str, port: int) -> str:
    """Resolve a host to an address that may be called. Raises: FinetuneError unless all its addresses are public."""
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not all(_is_public(address) for address in found) and not settings.read().allow_private_webhooks:
        raise FinetuneError(
            f"{host} is not a public address.",
            "Set FINETUNE_PRIVATE_WEBHOOKS=1 to allow addresses of your own network.",
        )
    return found[0]


def _is_public(address: str) -> bool:
    checked = ipaddress.ip_address(address)
    return checked.is_global and not checked.is_multicast
