"""Executors: where a worker runs, one file each.

An executor starts the worker as a process of its own and never imports it. What it needs to find the worker again
(a process id, a job id) is kept in the run folder, so that a restarted service goes on where the last one was.
"""

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from finetune.runs import Run

Task = Literal["caption", "train", "draw"]


class Executor(Protocol):
    """What a file in this folder offers as EXECUTOR."""

    id: str
    title: str

    def check(self) -> None:
        """Raises: ExecutorError, with a hint, if no worker can be started now."""

    def measure(self) -> None:
        """Begin to measure the machine that workers run on; what is found is kept where `machine.read` looks."""

    def start(self, run: "Run", task: Task) -> None:
        """Start a worker for a run. Raises: ExecutorError."""

    def is_running(self, run: "Run") -> bool:
        """Whether the run's worker is still there."""

    def stop(self, run: "Run") -> None:
        """End the run's worker at once; a worker that is asked to stop first gets `Run.ask_to_stop`."""
