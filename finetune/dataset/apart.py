"""Read an upload in a process of its own, which has limits of memory and time and knows no secret.

Separate, because what strangers send goes through libraries in C: a picture that makes one of them crash, hang or ask
for all memory then ends that process and not the service. It says what it does in lines of JSON: how many files are
done, and at last the dataset or what is wrong.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune import settings
from finetune.dataset import intake
from finetune.dataset.archive import MIB, Limits, Upload
from finetune.dataset.intake import Dataset, Tell
from finetune.errors import BusyError, DatasetError

PROJECT = Path(__file__).parent.parent.parent
AT_ONCE = 2
SECONDS_TO_WAIT = 60.0
ASKED = "asked.json"
LARGEST_FILE_BYTES = 64 * MIB
"""That it may write: a picture of 2048 px takes 12 MiB."""
BY_NAME = "Files are counted in the order of their names. Leave it out, or save it anew as PNG or JPEG."
_places = threading.BoundedSemaphore(AT_ONCE)


def take(
    upload: Upload,
    folder: Path,
    tell: Tell,
    limits: Limits,
    ground: str = "white",
    patience_seconds: float = SECONDS_TO_WAIT,
) -> Dataset:
    """Do what `intake.take` does, elsewhere. Raises: DatasetError, BusyError, StorageError, OSError."""
    if not _places.acquire(timeout=patience_seconds):
        raise BusyError("Other people’s pictures are being read just now.", "Try again in a minute.")
    try:
        with _process(upload, folder, limits, ground) as process:
            return _followed(process, folder, tell, limits)
    finally:
        _places.release()


@contextmanager
def _process(upload: Upload, folder: Path, limits: Limits, ground: str) -> Iterator[subprocess.Popen]:
    """The process that reads; it does not outlive this context."""
    if isinstance(upload, Path):
        asked: Any = str(upload.absolute())
    else:  # thousands of names are too long for a command line
        asked = [(name, str(path.absolute())) for name, path in upload]
    values = {"upload": asked, "limits": asdict(limits), "ground": ground}
    (folder / ASKED).write_text(json.dumps(values), encoding="utf-8")
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder.absolute())],
            cwd=PROJECT,
            env=settings.bare_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _followed(process: subprocess.Popen, folder: Path, tell: Tell, limits: Limits) -> Dataset:
    """Pass on what it says until it gives the dataset."""
    done, of = 0, 0
    machine = settings.read()
    end = time.monotonic() + limits.seconds
    while True:
        machine.check_room(folder=folder)
        last = time.monotonic()
        said = _next_line(process, min(limits.file_seconds, end - last))
        match said:
            case {"done": done, "of": of}:
                tell(done, of)
            case {"dataset": values}:
                return intake.from_dict(values)
            case {"error": [message, hint, file]}:
                raise DatasetError(message, hint, file)
            case {"system": [number, words]}:
                raise OSError(number, words)
            case None if time.monotonic() >= end:
                raise DatasetError(
                    f"Reading the upload took longer than {limits.seconds / 60:.2g} minutes.",
                    "Use fewer or smaller pictures.",
                )
            case None if time.monotonic() >= last + limits.file_seconds:
                raise DatasetError(f"{_place(done, of)} took longer than {limits.file_seconds} seconds.", BY_NAME)
            case _:
                sys.stderr.write((folder / "log").read_text(errors="replace")[-4000:])
                place = _place(done, of, intake.AT_ONCE)
                raise DatasetError(f"{place} cannot be read: it ended the program that tried.", BY_NAME)


def _next_line(process: subprocess.Popen, seconds: float) -> dict[str, Any] | None:
    """What it says next; None when it ended, or is ended because it says nothing for so long."""
    timer = threading.Timer(max(0.0, seconds), process.kill)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    return json.loads(line) if line.endswith(b"\n") else None


def _place(done: int, of: int, at_once: int = 1) -> str:
    """Which file it may be, when so many are read at once."""
    if not of:
        return "The list of files"
    last = min(done + at_once, of)
    return f"File {done + 1} of {of}" if last <= done + 1 else f"One of the files {done + 1} to {last} of {of}"


def _main(folder: str) -> None:
    asked = json.loads((Path(folder) / ASKED).read_text(encoding="utf-8"))
    allowed, upload = Limits(**asked["limits"]), asked["upload"]
    upload = Path(upload) if isinstance(upload, str) else [(name, Path(path)) for name, path in upload]
    limit(allowed)
    try:
        found = intake.take(upload, Path(folder), lambda done, of: _say(done=done, of=of), allowed, asked["ground"])
        _say(dataset=found.as_dict())
    except DatasetError as error:
        _say(error=[error.message, error.hint, error.file])
    except OSError as error:
        _say(system=[error.errno, error.strerror or str(error)])
    except MemoryError:
        _say(error=["Reading the pictures takes more memory than it may.", "Use fewer or smaller files.", ""])


def limit(limits: Limits) -> None:
    """Have the system enforce on this process what it can; Windows knows no such limits."""
    with suppress(ImportError):
        import resource

        for kind, most in (
            (resource.RLIMIT_AS, limits.process_bytes),
            (resource.RLIMIT_CPU, limits.seconds * intake.AT_ONCE),  # should the service end first
            (resource.RLIMIT_FSIZE, LARGEST_FILE_BYTES),
            (resource.RLIMIT_CORE, 0),
        ):
            with suppress(ValueError, OSError):  # macOS takes only some
                resource.setrlimit(kind, (most, most))


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
