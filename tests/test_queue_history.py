"""What the events of a run say so far, and that only new ones are read."""

import pytest

from finetune import runs
from finetune.queue.history import Histories
from finetune.runs import State


@pytest.fixture
def run(tmp_path):
    return runs.create(tmp_path / "runs")


@pytest.fixture
def histories(tmp_path):
    return Histories(tmp_path / "runs")


def overwrite(run, byte=b"x"):
    """Put something else of the same size in the place of a run's events."""
    events = run.folder / "events.jsonl"
    events.write_bytes(byte * events.stat().st_size)


def test_what_was_read_is_not_read_again(run, histories):
    """A run whose events have not grown costs a look at their size: what they say is remembered."""
    run.tell("ready", files=[])
    histories.every()
    overwrite(run)

    assert [history.state for _, history in histories.every()] == [State.READY]


def test_what_others_write_is_seen(run, histories):
    """A worker, the command line or another service may write at any time, also into a run that was over."""
    run.tell("failed", message="x")
    histories.of(run)

    run.tell("queued")

    assert histories.of(run).state is State.QUEUED
    assert histories.of(run).error is None


def test_folder_that_came_back_with_less_is_read_anew(run, histories):
    """What another folder said in this place is forgotten."""
    run.tell("queued")
    run.tell("ready", files=[])
    histories.of(run)
    (run.folder / "events.jsonl").unlink()
    run.tell("queued")

    assert histories.of(run).state is State.QUEUED


def test_what_was_given_out_does_not_change(run, histories):
    """Who holds a history sees one moment, whatever happens meanwhile."""
    run.tell("queued")
    before = histories.of(run)

    run.tell("started")
    histories.of(run)

    assert before.state is State.QUEUED


def test_folder_that_is_no_run_is_left_out(run, histories, tmp_path):
    """Neither a folder without its record nor a hidden one is a run, and neither is a file."""
    (tmp_path / "runs" / "half-made").mkdir()
    (tmp_path / "runs" / ".hidden").mkdir()
    (tmp_path / "runs" / "file").touch()

    assert [found for found, _ in histories.every()] == [run]


def test_losses_are_counted_until_the_run_gets_somewhere(run, histories):
    """A checkpoint forgives them; so does an end."""
    counted = []
    for kind in ("interrupted", "queued", "interrupted", "checkpoint", "interrupted", "stopped"):
        run.tell(kind, step=1)
        counted.append(histories.of(run).losses)

    assert counted == [1, 1, 2, 0, 1, 0]


def test_time_of_a_run_that_several_workers_did_is_not_known(tmp_path, histories):
    """What the last of them took says little about the whole."""
    whole, resumed = runs.create(tmp_path / "runs"), runs.create(tmp_path / "runs")
    for run, workers in ((whole, 1), (resumed, 2)):
        for pid in range(workers):
            run.tell("started", pid=pid)
        run.tell("ready", files=[], summary={"seconds": 30.0})

    assert histories.of(whole).took_seconds == 30.0
    assert histories.of(resumed).took_seconds is None
