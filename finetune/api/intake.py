"""The body of one request as it comes in: ended when it is too large, too slow, or when the disk is full."""

import asyncio
import time
from collections.abc import Callable

from starlette.types import Message, Receive

from finetune.errors import FinetuneError, TooLargeError

IDLE_SECONDS = 30.0
"""The longest pause in a body."""
PATIENCE_SECONDS = 60.0
SLOWEST = 1024
"""Fewer bytes a second than these, after a minute's patience, are no upload but an attack. Units: bytes a second."""
CHECK_BYTES = 16 * 2**20
"""How much comes in between two looks at the disk."""


class SlowError(FinetuneError):
    """Nothing, or next to nothing, comes in any more."""


class Intake:
    """What a route receives instead of the bare body. Once it is refused, the browser seems to have gone."""

    def __init__(self, receive: Receive, most_bytes: int, check_room: Callable[[int], None]) -> None:
        self._receive = receive
        self._most_bytes = most_bytes
        self._check_room = check_room
        self._unchecked = 0
        self._waited = 0.0
        self._is_whole = False
        self.size = 0
        self.refusal: FinetuneError | None = None

    async def __call__(self) -> Message:
        """The next piece."""
        if self._is_whole or self.refusal:
            return await self._receive()
        try:
            message = await self._next()
            self._look_at(message)
        except FinetuneError as error:
            self.refusal = error
            return {"type": "http.disconnect"}
        return message

    async def _next(self) -> Message:
        started = time.monotonic()
        left = PATIENCE_SECONDS + self.size / SLOWEST - self._waited
        try:
            return await asyncio.wait_for(self._receive(), max(0.0, min(IDLE_SECONDS, left)))
        except TimeoutError:
            raise SlowError("The request stopped coming in.", "Send it again over a better connection.") from None
        finally:
            self._waited += (
                time.monotonic() - started
            )  # only our waiting: that a route takes its time is no one's fault

    def _look_at(self, message: Message) -> None:
        piece = len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        self.size += piece
        self._unchecked += piece
        check_size(self.size, self._most_bytes)
        if self._unchecked >= CHECK_BYTES:
            self._unchecked = 0
            self._check_room(0)


def check_size(size: int, most_bytes: int) -> None:
    """Raises: TooLargeError."""
    if size > most_bytes:
        most = f"{most_bytes / 2**20:.0f} MiB" if most_bytes >= 2**20 else f"{most_bytes // 1024} KiB"
        raise TooLargeError(f"This is more than the {most} that can be sent.", "Send less at once.")
