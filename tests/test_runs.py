"""Run folders: what is written, what is read back, and what the events say."""

import os
import time

import pytest

from finetune import inputs, runs
from finetune.errors import FinetuneError
from finetune.runs import State


@pytest.fixture
def run(tmp_path):
    return runs.create(tmp_path / "runs")


def test_new_run_is_a_draft(run):
    """It has an id of its own, a date, and no request yet."""
    assert run.state() is State.DRAFT
    assert run.request() is None
    assert run.created().tzinfo


def test_request_comes_back_as_it_was(run):
    """What was asked for is read back equal, its types included."""
    request = inputs.read({"finetune_comment": "x", "mode": "style", "webhook_url": "https://example.com/hook"})

    run.write("request.json", request.model_dump(mode="json"))

    assert run.request() == request


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_files_are_for_the_owner_alone(run):
    """A request may hold a secret, so nobody else on the machine reads it."""
    run.write("request.json", {"webhook_secret": "x"})

    assert (run.folder / "request.json").stat().st_mode & 0o077 == 0


def test_cursor_gives_only_what_is_new(run):
    """Reading on from a cursor gives the events after it, each once."""
    run.tell("queued")
    first, cursor = run.events()
    run.tell("started", pid=1)

    second, cursor = run.events(cursor)

    assert [event["kind"] for event in first + second] == ["queued", "started"]
    assert run.events(cursor) == ([], cursor)


def test_half_a_line_is_read_when_it_is_whole(run):
    """An event that is still being written is left for the next time."""
    run.tell("queued")
    with open(run.folder / "events.jsonl", "ab") as file:
        file.write(b'{"kind": "sta')
    events, cursor = run.events()
    with open(run.folder / "events.jsonl", "ab") as file:
        file.write(b'rted"}\n')

    assert [event["kind"] for event in events] == ["queued"]
    assert [event["kind"] for event in run.events(cursor)[0]] == ["started"]


@pytest.mark.parametrize(
    ("kinds", "state"),
    [
        ([], State.DRAFT),
        (["caption", "log"], State.DRAFT),
        (["queued"], State.QUEUED),
        (["queued", "started", "step"], State.RUNNING),
        (["queued", "started", "stopping", "step"], State.STOPPING),
        (["started", "stopping", "stopped"], State.STOPPED),
        (["started", "failed"], State.FAILED),
        (["started", "interrupted", "queued"], State.QUEUED),
        (["failed", "queued", "started", "ready", "log"], State.READY),
    ],
)
def test_state_is_what_the_last_event_says(run, kinds, state):
    """Events that say nothing about the state do not change it."""
    for kind in kinds:
        run.tell(kind)

    assert run.state() is state


def test_request_to_stop_can_be_taken_back(run):
    """Stopping is a file that the worker looks for."""
    run.ask_to_stop()
    assert run.is_asked_to_stop()

    run.forget_stop()
    assert not run.is_asked_to_stop()


@pytest.mark.parametrize("id", ["", "..", "../runs", "no-such-run", "00000000-0000-4000-8000-000000000000", None])
def test_unknown_run_is_an_error_with_a_hint(run, id):
    """What is no id, or no run's id, never becomes a path."""
    with pytest.raises(FinetuneError) as error:
        runs.find(run.folder.parent, id)

    assert error.value.hint


def test_deleted_run_comes_back(run, tmp_path):
    """Deleting moves the folder, restoring moves it back."""
    run.tell("ready")

    runs.delete(run, tmp_path / "trash")
    assert not list(runs.all_in(tmp_path / "runs"))
    back = runs.restore(run.id, tmp_path / "trash", tmp_path / "runs")

    assert back.state() is State.READY


def test_trash_is_emptied_of_what_is_old(tmp_path):
    """What was deleted 31 days ago is gone for good, what was deleted yesterday is not."""
    old, young = runs.create(tmp_path), runs.create(tmp_path)
    os.utime(old.folder, (0, time.time() - 31 * 86400))
    os.utime(young.folder, (0, time.time() - 86400))

    runs.empty_trash(tmp_path)

    assert (old.folder.exists(), young.folder.exists()) == (False, True)


def test_newest_run_is_listed_first(tmp_path):
    """Runs are listed by date."""
    made = [runs.create(tmp_path) for _ in range(3)]
    for day, run in enumerate(made):
        run.write("run.json", {"created": f"2026-01-0{day + 1}T00:00:00+00:00"})

    assert list(runs.all_in(tmp_path)) == made[::-1]


def test_run_that_is_deleted_while_runs_are_listed_is_left_out(tmp_path):
    """A folder whose description is gone already stops nobody who lists the others."""
    kept, going = runs.create(tmp_path), runs.create(tmp_path)
    going.write("run.json", {})

    assert list(runs.all_in(tmp_path)) == [kept]
