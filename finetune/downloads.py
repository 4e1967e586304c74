"""Fetch large files of the Hub into its cache, several at a time, each from where it was left.

Separate from huggingface_hub, which throws a file of ten gigabytes away when its connection breaks. The files get the
names that its cache gives them, so that it, and every other program, finds them.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from finetune import hub
from finetune.errors import ModelError

CONNECTIONS = 4
SECONDS_BETWEEN_LOOKS = 0.3
TRIES_WITHOUT_A_BYTE = 5
SECONDS_BEFORE_A_TRY = 1.0
"""Doubled with every try that brought nothing."""
PART = ".finetune-part"
TRIED_AGAIN = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class File:
    """A large file on the Hub, and where it goes."""

    name: str
    size: int
    sha256: str
    url: str
    blob: Path

    @property
    def part(self) -> Path:
        """What has arrived of it."""
        return self.blob.with_name(f"{self.blob.name}{PART}")

    @property
    def there(self) -> int:
        """How much has arrived. Units: bytes."""
        return self.size if self.blob.exists() else min(_size(self.part), self.size)


def fetch(files: Sequence[File], look: Callable[[], None]) -> None:
    """Fetch what is missing of files. `look` is called about three times a second; what it raises ends the download.

    Whatever ends it, what has arrived is kept. Raises: ModelError, and what the network, the Hub and the disk raise.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="download") as pool:
        jobs = [pool.submit(_fetch, file, stop) for file in files if not file.blob.exists()]
        try:
            look()
            while True:
                done, others = wait(jobs, SECONDS_BETWEEN_LOOKS, FIRST_EXCEPTION)
                look()
                for job in done:
                    job.result()
                if not others:
                    return
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def pace(looks: Sequence[tuple[float, int]], total: int) -> tuple[float, float | None]:
    """Bytes a second, and seconds left, from the last looks at a download: (time, bytes there), oldest first.

    Seconds are None as long as nothing arrives.
    """
    (start, before), (end, there) = looks[0], looks[-1]
    rate = max(0, there - before) / (end - start) if end > start else 0.0
    return rate, (max(0, total - there) / rate if rate else None)


def _fetch(file: File, stop: threading.Event) -> None:
    """Fetch the rest of a file, trying again as long as something arrives, and check it."""
    file.blob.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while (before := _size(file.part)) < file.size and not stop.is_set():
        problem = _receive(file, stop)
        failures = 0 if _size(file.part) > before else failures + 1
        if failures == TRIES_WITHOUT_A_BYTE:
            raise problem or ModelError(f"The Hub sends nothing of {file.name}.", hub.RESUMES)
        if problem is not None:
            stop.wait(SECONDS_BEFORE_A_TRY * 2**failures)
    if not stop.is_set():
        _settle(file)


def _receive(file: File, stop: threading.Event) -> Exception | None:
    """Append to a file what the Hub sends of its rest; returns what went wrong, if it may go better the next time."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    there = _size(file.part)
    wishes = {"Range": f"bytes={there}-", "Accept-Encoding": "identity"}
    ask = get_session().stream(
        "GET", file.url, headers={**build_hf_headers(), **wishes}, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    )
    try:
        with ask as answer, open(file.part, "ab") as out:
            hf_raise_for_status(answer)
            if answer.status_code == 200:  # all of it is sent, and not the rest
                out.truncate(0)
            for chunk in answer.iter_bytes():
                out.write(chunk)
                if stop.is_set():
                    break
    except httpx2.LocalProtocolError:
        raise
    except httpx2.TransportError as error:
        return error
    except HfHubHTTPError as error:
        if error.response.status_code not in TRIED_AGAIN:
            raise
        return error
    return None


def _settle(file: File) -> None:
    """Give a file that has arrived its name. Raises: ModelError when it is not what the Hub announced."""
    with open(file.part, "rb") as arrived:
        found = hashlib.file_digest(arrived, "sha256").hexdigest()
    if found != file.sha256:
        file.part.unlink()
        raise ModelError(f"{file.name} arrived damaged.", "Start again: it is fetched anew.")
    os.replace(file.part, file.blob)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
