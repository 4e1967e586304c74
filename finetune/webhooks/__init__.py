"""Signed deliveries: each end of a run or an image is told to the address that its request names.

At least once: what is told is settled, signed and kept in index.db when the end is noticed, before anything is sent,
and so is what came of each attempt. A service that dies in between finds there what is still to be sent; what was
sent without its answer being noted is sent again under the same `X-Delivery-Id`, by which a receiver can tell. The
secret that signs is in no database, event or log. `calls.py` sends to strangers' addresses safely.
"""

import hashlib
import hmac
import json
import sqlite3
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from finetune import images, index
from finetune.errors import MissingError, StorageError
from finetune.queue import SECRET
from finetune.runs import Run, State
from finetune.settings import Settings
from finetune.webhooks import calls
from finetune.webhooks.calls import Answer

WAITS_SECONDS = (1, 5, 30)
AT_ONCE, AT_ONCE_EACH = 8, 2
"""So many deliveries are sent at once, and so many of one owner: nobody's slow receivers hold up those of others."""
NEWS_DAYS = 7.0
"""An end that is older is told to nobody any more: of a run that was brought back, say."""
KEPT_DAYS = 30.0
ENDS = ("ready", "failed", "stopped")
Send = Callable[[str, bytes, dict[str, str]], Answer]


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


@dataclass(frozen=True)
class _Notice:
    """What is to be told of one end."""

    task: str
    owner: str
    ended: float
    url: str
    body: bytes
    signature: str

    @property
    def id(self) -> str:
        """The same each time that this end is noticed."""
        return str(uuid.uuid5(uuid.UUID(self.task), f"{self.ended:.3f}"))


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


def sign(body: bytes, secret: str) -> str:
    """The signature that the receiver compares with its own."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


class Deliveries:
    """Notices ends and tells them, each in a thread of its own, because an address may take half a minute to answer."""

    def __init__(self, settings: Settings, send: Send | None = None, now: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._send = send or partial(calls.post, allows_private=settings.allow_private_webhooks)
        self._now = now
        self._sending: dict[str, tuple[str, threading.Thread]] = {}
        self._changing = threading.Lock()

    def tick(self, ended: Sequence[Run] = ()) -> None:
        """Note what has ended, these runs and images that are over, and send what is due. Raises: StorageError."""
        self.note(ended)
        with index.opened(self._settings) as database:
            due = database.execute(
                "SELECT id, owner FROM deliveries WHERE next_time <= ? ORDER BY next_time", (self._now(),)
            ).fetchall()
        with self._changing:
            at_work = Counter(owner for owner, _ in self._sending.values())
            for id, owner in due:
                if id in self._sending or at_work.total() >= AT_ONCE or at_work[owner] >= AT_ONCE_EACH:
                    continue
                at_work[owner] += 1
                thread = threading.Thread(target=self._deliver, args=(id,), name="webhook", daemon=True)
                self._sending[id] = (owner, thread)
                thread.start()

    def note(self, ended: Sequence[Run]) -> None:
        """Keep what is to be told of these runs, and of images that are over; noted twice, it is told once."""
        over = images.untold(self._settings)
        notices = [notice for run in ended for notice in self._of_run(run)]
        notices += [notice for image in over if (notice := self._of_image(image))]
        if notices:
            with index.opened(self._settings) as database:
                database.executemany(
                    "INSERT OR IGNORE INTO deliveries VALUES (?, ?, ?, ?, ?, ?, ?, '[]', ?, 0)",
                    [(n.id, n.task, n.owner, n.ended, n.url, n.body, n.signature, self._now()) for n in notices],
                )
                long_ago = self._now() - KEPT_DAYS * 86400
                database.execute("DELETE FROM deliveries WHERE next_time IS NULL AND ended < ?", (long_ago,))
        for image in over:
            images.told(image)
        for run in ended:
            if (run.folder / SECRET).exists() and run.state() is State.READY:  # it does not end again
                (run.folder / SECRET).unlink()

    def wait(self, seconds: float) -> None:
        """Wait for what is being sent, so that it need not be sent again by the next service."""
        until = time.monotonic() + seconds
        for _, thread in list(self._sending.values()):
            thread.join(max(0.0, until - time.monotonic()))

    def _of_run(self, run: Run) -> Iterator[_Notice]:
        try:
            since = max(self._now() - NEWS_DAYS * 86400, _told_by_last_version(run))
            if (run.folder / "events.jsonl").stat().st_mtime < since:
                return
            request = run.request()
            if request is None or request.webhook_url is None:
                return
            ends = [event for event in run.events()[0] if event["kind"] in ENDS and event["time"] > since]
        except (OSError, ValueError, KeyError) as error:
            print(f"The end of {run.folder} cannot be told: {error!r}.", file=sys.stderr)
            return
        secret = run.read(SECRET).get("secret") or request.webhook_secret or ""
        for event in ends:
            status, words = _of_end(event)
            about = {"id": run.id, "task_id": run.id, "finetune_id": run.id}
            body = self._body(about, status, None, words, event["time"])
            signature = sign(body, secret) if secret else ""
            yield _Notice(run.id, run.owner, event["time"], str(request.webhook_url), body, signature)

    def _of_image(self, image: images.Image) -> _Notice | None:
        if not (told := images.message(self._settings, image)):
            return None
        about = {"id": told.id, "task_id": told.id}
        body = self._body(about, told.status, told.result, told.error or "The image is ready.", told.ended)
        signature = sign(body, told.secret) if told.secret else ""
        return _Notice(told.id, told.owner, told.ended, told.url, body, signature)

    def _body(self, about: dict[str, str], status: str, result: Any, words: str, ended: float) -> bytes:
        is_ready = status == "Ready"
        if self._settings.webhooks_say_success:
            status = "SUCCESS" if is_ready else "FAILED"
        message = {
            **about,
            "status": status,
            "result": result,
            "progress": None,
            "error": None if is_ready else words,
            "message": words,
            "timestamp": datetime.fromtimestamp(ended, UTC).isoformat(),
        }
        return json.dumps(message).encode()

    def _deliver(self, id: str) -> None:
        """Try once, and note what came of it, and when to try again."""
        try:
            with index.opened(self._settings) as database:
                row = database.execute("SELECT * FROM deliveries WHERE id = ?", (id,)).fetchone()
            headers = {"Content-Type": "application/json", "User-Agent": "finetune", "X-Delivery-Id": id}
            if row["signature"]:
                headers["X-BFL-Signature"] = row["signature"]
            answer = self._send(row["url"], row["body"], headers)
            self._keep(row, answer)
        except StorageError as error:  # it stays among those that are being sent: nobody is called again and again
            print(
                f"What came of a webhook was not kept, so it will be sent again after a restart. {error}",
                file=sys.stderr,
            )
            return
        with self._changing:
            del self._sending[id]

    def _keep(self, row: sqlite3.Row, answer: Answer) -> None:
        attempts = [*json.loads(row["attempts"]), {"time": self._now(), "answer": answer.words}]
        is_delivered = answer.is_success or bool(row["is_delivered"])
        is_over = is_delivered or len(attempts) > len(WAITS_SECONDS)
        next_time = None if is_over else self._now() + WAITS_SECONDS[len(attempts) - 1]
        with index.opened(self._settings) as database:
            database.execute(
                "UPDATE deliveries SET attempts = ?, next_time = ?, is_delivered = ? WHERE id = ?",
                (json.dumps(attempts), next_time, is_delivered, row["id"]),
            )
        run = Run(self._settings.runs / row["task"])
        with suppress(OSError):  # it is an image, or was deleted meanwhile
            # No more of the address than its host: paths and queries hold secrets.
            run.tell("log", message=f"Webhook to {calls.host(row['url'])}, attempt {len(attempts)}: {answer.words}.")


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


def _of_end(event: dict[str, Any]) -> tuple[str, str]:
    """The status of a run by the event that ended it, and what to say of it."""
    match event["kind"]:
        case "ready":
            return "Ready", "The finetune is ready."
        case "stopped":
            return "Error", f"The run was stopped at step {event.get('step', 0)}."
    return "Error", event.get("message") or "The run failed."


def _told_by_last_version(run: Run) -> float:
    """Until when ends of a run were told and noted in its folder, as was done before there was a database."""
    if not run.read("webhook.json").get("is_over"):
        return 0.0
    return (run.folder / "webhook.json").stat().st_mtime + 1  # times of files are coarser than those of events
