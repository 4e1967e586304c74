"""This machine: the worker is a process of its own that outlives the service that started it."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from finetune import settings
from finetune.errors import ExecutorError
from finetune.executors import Task
from finetune.runs import Run

PROJECT = Path(__file__).parent.parent.parent
SECONDS_TO_END = 5.0
SAME_START_SECONDS = 2.0


class Local:
    """Starts `python -m finetune work` detached, in each system's way."""

    id = "local"
    title = "This machine"

    def check(self) -> None:
        """Raises: ExecutorError when workers cannot be started from here."""
        if not (PROJECT / "finetune" / "__main__.py").exists():
            raise ExecutorError(f"The worker's program is missing from {PROJECT}.", "Fetch the project again.")

    def measure(self) -> None:
        """Measure in a process of its own, because that loads torch."""
        subprocess.Popen(
            [sys.executable, "-m", "finetune", "measure"],
            cwd=PROJECT,
            env=settings.read().worker_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def start(self, run: Run, task: Task) -> None:
        """Start a worker for a run. Raises: ExecutorError."""
        if self.is_running(run):
            raise ExecutorError("A worker is already busy with this run.", "Wait until it is done, or stop it.")
        try:
            with open(run.worker_log, "ab") as log:
                process = psutil.Popen(
                    self.command(run, task),
                    cwd=PROJECT,
                    env=settings.read().worker_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    **_detached(),
                )
        except OSError as error:
            raise ExecutorError(f"The worker could not be started: {error}.", "Is the disk or memory full?") from error
        created = process.create_time() if psutil.pid_exists(process.pid) else time.time()
        run.write("worker.json", {"pid": process.pid, "created": created, "task": task})

    def command(self, run: Run, task: Task) -> list[str]:
        """What is started."""
        return [sys.executable, "-m", "finetune", "work", str(run.folder), "--task", task]

    def is_running(self, run: Run) -> bool:
        """Whether the run's worker is still there."""
        return _worker(run) is not None

    def stop(self, run: Run) -> None:
        """End the run's worker at once, and whatever it started."""
        if not (worker := _worker(run)):
            return
        try:
            family = [worker, *worker.children(recursive=True)]
        except psutil.Error:
            family = [worker]
        for process in family:
            _send(process.terminate)
        _, alive = psutil.wait_procs(family, timeout=SECONDS_TO_END)
        for process in alive:
            _send(process.kill)
        psutil.wait_procs(alive, timeout=SECONDS_TO_END)


def _worker(run: Run) -> psutil.Process | None:
    """The worker's process; a process id that another program has by now is not it."""
    known = run.read("worker.json")
    try:
        process = psutil.Process(known["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:
            process.wait(timeout=0)
            return None
        return process if _is_same(process, known["created"], run) else None
    except (KeyError, psutil.Error):
        return None


def _is_same(process: psutil.Process, created: float, run: Run) -> bool:
    """Whether it started when the worker did; a clock that was set since then must not hide it."""
    if abs(process.create_time() - created) < SAME_START_SECONDS:
        return True
    try:
        return any(run.id in word for word in process.cmdline())
    except psutil.Error:
        return False


def _send(signal: Any) -> None:
    with suppress(psutil.NoSuchProcess):
        signal()


def _detached() -> dict[str, Any]:
    """What makes a process outlive the one that started it."""
    if sys.platform != "win32":
        return {"start_new_session": True}
    flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
    return {"creationflags": flags}


EXECUTOR = Local()
