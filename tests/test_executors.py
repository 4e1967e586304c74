"""Every executor, and the local one with real processes."""

import sys
import time

import pretend
import psutil
import pytest

from finetune import images, registry, runs
from finetune.errors import ExecutorError
from finetune.executors.local import PROJECT, Local
from finetune.settings import Settings


class Sleeper(Local):
    """The local executor with a worker that does what a test writes."""

    def __init__(self, program="import time; print('awake', flush=True); time.sleep(60)"):
        self.program = program

    def command(self, run, task):
        return [sys.executable, "-c", self.program, str(run.folder)]


@pytest.fixture
def run(tmp_path):
    made = runs.create(tmp_path)
    yield made
    Local().stop(made)


def _wait_until(statement, seconds=10):
    end = time.monotonic() + seconds
    while not statement() and time.monotonic() < end:
        time.sleep(0.05)
    assert statement()


@pytest.mark.parametrize("executor", registry.executors().values(), ids=lambda one: one.id)
def test_every_executor_keeps_the_contract(executor, run):
    """It has a name and a title, can be asked whether it works, and knows that a new run has no worker."""
    executor.check()

    assert executor.id and executor.title
    assert not executor.is_running(run)
    executor.stop(run)


def test_worker_is_found_again_by_another_service(run):
    """What is needed to find the worker is in the run folder, not in the executor."""
    Sleeper().start(run, "train")

    assert Sleeper().is_running(run)
    assert run.read("worker.json")["task"] == "train"


def test_worker_is_a_session_of_its_own(run):
    """Signals to the service's terminal do not reach the worker."""
    Sleeper().start(run, "train")
    pid = run.read("worker.json")["pid"]

    if hasattr(psutil.os, "getsid"):
        assert psutil.os.getsid(pid) == pid


def test_what_the_worker_prints_is_kept(run):
    """Standard output goes to worker.log, after what earlier workers wrote."""
    run.worker_log.write_text("before\n", encoding="utf-8")

    Sleeper().start(run, "train")

    _wait_until(lambda: run.worker_log.read_text(encoding="utf-8") == "before\nawake\n")


def test_worker_that_ended_is_not_running(run):
    """A worker that ended by itself is gone, though its process was never waited for."""
    Sleeper("pass").start(run, "train")

    _wait_until(lambda: not Sleeper().is_running(run))


def test_stop_ends_the_worker(run):
    """After stop the process is gone."""
    executor = Sleeper()
    executor.start(run, "train")

    executor.stop(run)

    assert not executor.is_running(run)


def test_second_worker_for_a_run_is_refused(run):
    """A run has one worker at a time."""
    executor = Sleeper()
    executor.start(run, "caption")

    with pytest.raises(ExecutorError):
        executor.start(run, "train")


def test_process_id_that_another_program_has_is_not_the_worker(run):
    """A process of the same id that started at another time, for another purpose, is left alone."""
    run.write("worker.json", {"pid": psutil.Process().pid, "created": 12345.0, "task": "train"})

    assert not Local().is_running(run)
    Local().stop(run)


def test_studio_is_a_worker_of_the_folder_of_images(tmp_path, monkeypatch):
    """The task “draw” is started and found like a run's, draws what waits, and goes when it is asked to."""
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    settings = Settings(home=tmp_path)
    image = images.order(settings, pretend.finetune(settings), "ann", "TOK", endpoint="e")
    folder, executor = images.studio(settings), pretend.PretendExecutor(seconds_per_step=0.0)

    executor.start(folder, "draw")
    was_running = executor.is_running(folder)
    _wait_until(lambda: image.is_over, seconds=60)
    folder.ask_to_stop()

    assert was_running and image.status()["status"] == "Ready"
    _wait_until(lambda: not executor.is_running(folder))


def test_studio_draws_with_a_real_model(tmp_path, monkeypatch):
    """The program that the service starts draws with a base in its own process, and stops when asked to."""
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    settings = Settings(home=tmp_path)
    run = pretend.finetune(settings)
    image = images.order(settings, run, "ann", "a red apple", endpoint="e", strength=0.0, steps=1)
    folder = images.studio(settings)

    Local().start(folder, "draw")
    _wait_until(lambda: image.is_over, seconds=100)
    folder.ask_to_stop()

    assert image.status()["status"] == "Ready", image.status()
    _wait_until(lambda: not Local().is_running(folder))
