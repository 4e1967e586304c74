"""Slow down who guesses: after a few wrong answers each further one costs twice the wait of the one before.

Counted by what is guessed at and by where it comes from, so that neither many names from one place nor one name from
many places can be tried quickly. It forgets, and keeps only so much: no flood of names fills the memory.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from finetune.errors import BusyError

FREE = 5
"""Wrong answers that cost nothing: people mistype."""
FREE_OF_ADDRESS = 20
"""The same of one address, behind which many people may sit."""
LONGEST_SECONDS = 300
FORGOTTEN_SECONDS = 3600
MOST_ENTRIES = 10_000


class Throttle:
    """Counts of wrong answers, of one service."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._wrong: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()  # how many, and when the last one was

    def check(self, name: Hashable, address: Hashable) -> None:
        """Raises: BusyError while one has to wait, whatever the answer would be."""
        with self._lock:
            wait = max(self._wait(("name", name), FREE), self._wait(("address", address), FREE_OF_ADDRESS))
        if wait > 0:
            seconds = int(wait) + 1
            raise BusyError("There were too many wrong tries.", f"Try again in {seconds} s.", seconds)

    def wrong(self, name: Hashable, address: Hashable) -> None:
        """Count a wrong answer."""
        with self._lock:
            for entry in (("name", name), ("address", address)):
                count, _ = self._of(entry)
                self._wrong[entry] = (count + 1, self._clock())
                self._wrong.move_to_end(entry)
            while len(self._wrong) > MOST_ENTRIES:
                self._wrong.popitem(last=False)

    def right(self, name: Hashable) -> None:
        """Forget wrong answers for a name once the right one was given; those of an address stay."""
        with self._lock:
            self._wrong.pop(("name", name), None)

    def _of(self, entry: Hashable) -> tuple[int, float]:
        count, last = self._wrong.get(entry, (0, 0.0))
        return (count, last) if self._clock() - last < FORGOTTEN_SECONDS else (0, 0.0)

    def _wait(self, entry: Hashable, free: int) -> float:
        count, last = self._of(entry)
        if count < free:
            return 0.0
        return last + min(LONGEST_SECONDS, 2.0 ** min(count - free, 20)) - self._clock()
