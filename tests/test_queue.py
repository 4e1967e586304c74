"""The queue, step by step: who goes next, and what became of those that were running."""

import time

import pretend
import pytest

from finetune import dataset, inputs, runs
from finetune.errors import FinetuneError
from finetune.queue import SECONDS_TO_STOP, Queue
from finetune.runs import State
from finetune.settings import Settings

REQUEST = inputs.read({"finetune_comment": "pears", "mode": "style"})


class Bench:
    """A queue over an empty data folder, with an executor that only takes notes."""

    def __init__(self, folder):
        self.executor = pretend.StillExecutor()
        self.later = 0.0
        self.settings = Settings(home=folder / "home")
        self.queue = Queue(self.settings, self.executor, now=lambda: time.time() + self.later)

    def draft(self, with_captions=0):
        run = runs.create(self.settings.runs)
        dataset.unpack(pretend.zip_of_pictures(run.folder / "in.zip", with_captions=with_captions), run)
        return run

    def submitted(self):
        run = self.draft()
        self.queue.submit(run, REQUEST)
        return run

    def lose_worker(self, run):
        self.executor.running.discard(run.id)
        self.queue.tick()

    def told(self, run, kind):
        return [event for event in run.events()[0] if event["kind"] == kind]


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.queue.close()


def test_run_that_waits_longest_goes_first_and_alone(bench):
    """Of two runs the one that was submitted first is started; the other waits until it is over."""
    first, second = bench.submitted(), bench.submitted()

    bench.queue.tick()
    bench.queue.tick()
    assert bench.executor.started == [(first.id, "train")]
    assert [run.id for run in bench.queue.waiting()] == [second.id]

    first.tell("ready", files=[])
    bench.lose_worker(first)
    assert bench.executor.started[-1] == (second.id, "train")


def test_run_is_submitted_once_and_with_pictures(bench):
    """A run without pictures, and one that was started already, are refused with a hint."""
    started = bench.submitted()

    with pytest.raises(FinetuneError, match="already"):
        bench.queue.submit(started, REQUEST)
    with pytest.raises(FinetuneError, match="no pictures"):
        bench.queue.submit(runs.create(bench.settings.runs), REQUEST)


def test_lost_worker_is_replaced_and_the_reason_is_kept(bench):
    """A run whose worker is gone without a word is interrupted, queued again and started again."""
    run = bench.submitted()
    bench.queue.tick()
    run.worker_log.write_text("Loading\nKilled\n", encoding="utf-8")

    bench.lose_worker(run)

    assert "Killed" in bench.told(run, "interrupted")[0]["reason"]
    assert bench.executor.started == [(run.id, "train")] * 2
    assert bench.queue.state(run) is State.RUNNING


def test_run_that_gets_nowhere_fails_after_three_lost_workers(bench):
    """Three workers lost without a checkpoint between them end the run, with a hint."""
    run = bench.submitted()
    bench.queue.tick()

    for _ in range(3):
        bench.lose_worker(run)

    assert bench.queue.state(run) is State.FAILED
    assert bench.told(run, "failed")[0]["hint"]
    assert len(bench.executor.started) == 3


def test_checkpoint_forgives_lost_workers(bench):
    """A run that gets further between losses is resumed as often as it takes."""
    run = bench.submitted()
    bench.queue.tick()

    for step in range(5):
        run.tell("checkpoint", step=step)
        bench.lose_worker(run)

    assert bench.queue.state(run) is State.RUNNING


def test_last_words_count_though_the_worker_is_gone(bench):
    """A worker that said “ready” before it ended was not lost."""
    run = bench.submitted()
    bench.queue.tick()
    run.tell("ready", files=[])

    bench.lose_worker(run)

    assert bench.queue.state(run) is State.READY
    assert not bench.told(run, "interrupted")


def test_waiting_run_is_stopped_at_once_and_can_go_on(bench):
    """A queued run that is stopped is not started; resumed, it waits again."""
    run = bench.submitted()

    bench.queue.stop(run)
    bench.queue.tick()
    assert (bench.queue.state(run), bench.executor.started) == (State.STOPPED, [])

    bench.queue.resume(run)
    bench.queue.tick()
    assert bench.executor.started == [(run.id, "train")]


def test_running_run_is_asked_to_stop(bench):
    """The worker is asked, not ended; the run is stopping until it answers."""
    run = bench.submitted()
    bench.queue.tick()

    bench.queue.stop(run)
    bench.queue.tick()

    assert run.is_asked_to_stop()
    assert bench.queue.state(run) is State.STOPPING
    assert bench.executor.is_running(run)


def test_worker_that_does_not_stop_is_ended(bench):
    """After a minute of patience the worker is ended, and the run is stopped, not lost."""
    run = bench.submitted()
    bench.queue.tick()
    bench.queue.stop(run)
    bench.later = SECONDS_TO_STOP + 1

    bench.queue.tick()
    bench.queue.tick()

    assert bench.queue.state(run) is State.STOPPED
    assert not bench.executor.is_running(run)


def test_run_that_is_ready_cannot_go_on(bench):
    """Only what was stopped or failed is resumed."""
    run = bench.submitted()
    run.tell("ready", files=[])

    with pytest.raises(FinetuneError):
        bench.queue.resume(run)


def test_deleted_run_is_stopped_and_comes_back_whole(bench):
    """Deleting ends the worker; restoring brings back request, pictures and events."""
    run = bench.submitted()
    bench.queue.tick()

    bench.queue.delete(run)
    assert not bench.executor.is_running(run)
    assert not run.folder.exists()

    back = bench.queue.restore(run.id)
    assert back.request() == REQUEST
    assert bench.queue.state(back) is State.STOPPED


def test_draft_is_described_once_for_a_mode(bench):
    """Asking twice for the same mode starts one captioner; another mode starts another in its place."""
    run = bench.draft()

    for mode in ("style", "style", "product"):
        bench.queue.describe(run, mode, "demo")
        bench.queue.tick()

    assert bench.executor.started == [(run.id, "caption")] * 2
    assert run.read("draft.json")["mode"] == "product"


def test_one_captioner_works_at_a_time(bench):
    """The second draft's captioner waits for the first, and then starts."""
    first, second = bench.draft(), bench.draft()
    for run in (first, second):
        bench.queue.describe(run, "style", "demo")

    bench.queue.tick()
    bench.queue.tick()
    assert bench.executor.started == [(first.id, "caption")]
    assert bench.queue.is_describing(second)

    bench.lose_worker(first)
    assert bench.executor.started[-1] == (second.id, "caption")


def test_captioner_of_a_draft_makes_way_for_its_training(bench):
    """Training started while pictures are still described ends the captioner first: a run has one worker."""
    run = bench.draft()
    bench.queue.describe(run, "style", "demo")
    bench.queue.tick()

    bench.queue.submit(run, REQUEST)
    bench.queue.tick()

    assert bench.executor.started == [(run.id, "caption"), (run.id, "train")]


def test_forgotten_draft_is_thrown_away(bench):
    """A draft that nobody came back to for a day is deleted; a run of that age stays."""
    draft, run = bench.draft(), bench.submitted()
    bench.later = 2 * 86400

    bench.queue.tick()

    assert not draft.folder.exists()
    assert run.folder.exists()


def test_second_service_leaves_the_queue_alone(bench):
    """Of two services on one data folder only the first takes steps; the second takes over when it ends."""
    bench.queue.tick()
    second = Queue(bench.settings, pretend.StillExecutor())

    assert second.tick() is False
    bench.queue.close()
    assert second.tick() is True
    second.close()


def test_restarted_service_goes_on_with_a_running_run(bench):
    """A service that starts anew neither restarts nor loses a run whose worker lived on."""
    run = bench.submitted()
    bench.queue.tick()
    bench.queue.close()

    anew = Queue(bench.settings, bench.executor)
    anew.tick()
    anew.close()

    assert anew.state(run) is State.RUNNING
    assert bench.executor.started == [(run.id, "train")]
