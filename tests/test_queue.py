"""The queue, step by step: who goes next, and what became of those that were running."""

import dataclasses
import json
import time

import pretend
import pytest

from finetune import dataset, images, inputs, machine, runs
from finetune.errors import BusyError, ExecutorError, FinetuneError, StorageError
from finetune.machine import Machine
from finetune.queue import SECONDS_TO_STOP, Queue, drafts
from finetune.runs import State
from finetune.settings import Settings

REQUEST = inputs.read({"finetune_comment": "pears", "mode": "style"})
NO_ROOM = 2**30
"""GiB that no disk has."""


class Bench:
    """A queue over an empty data folder, with an executor that only takes notes."""

    def __init__(self, folder, **limits):
        self.executor = pretend.StillExecutor()
        self.later = 0.0
        self.ended = []
        self.settings = Settings(home=folder / "home", **limits)
        self.queue = self.another()

    def another(self, **limits):
        """Another service on the same data folder, perhaps with other limits."""
        settings = dataclasses.replace(self.settings, **limits)
        now, after_tick = (lambda: time.time() + self.later), (lambda ended: self.ended.append(ended))
        return Queue(settings, self.executor, now=now, after_tick=after_tick)

    def draft(self, owner="local"):
        run = runs.create(self.settings.runs, owner)
        dataset.unpack(pretend.zip_of_pictures(run.folder / "in.zip", with_captions=0), run)
        return run

    def submitted(self, owner="local"):
        run = self.draft(owner)
        self.queue.submit(run, REQUEST)
        return run

    def image(self, run):
        order = images.Order(
            owner="local",
            created=time.time(),
            finetune_id=run.id,
            endpoint="flux-pro-finetuned",
            prompt="a pear",
            seed=7,
            width=64,
            height=64,
            strength=1.0,
        )
        return images.create(self.settings, order)

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


@pytest.mark.parametrize("has_gpu", [True, False])
def test_captioner_leaves_the_gpu_to_a_run(bench, has_gpu):
    """When a run starts, a draft's captioner goes on on the processor; where there is no GPU, it is left alone."""
    about = Machine("cuda:0" if has_gpu else "cpu", "-", 1, 1, 1, 1.0, 1, False)
    (bench.settings.home / "machine.json").write_text(json.dumps(dataclasses.asdict(about)))
    draft = bench.draft()
    bench.queue.describe(draft, "style", "demo", captioner="smolvlm-500m")
    bench.queue.tick()
    assert not draft.read("draft.json")["on_processor"]

    run = bench.submitted()
    bench.queue.tick()

    again = [(draft.id, "caption")] if has_gpu else []
    assert bench.executor.started == [(draft.id, "caption"), *again, (run.id, "train")]
    assert draft.read("draft.json")["on_processor"] == has_gpu
    assert draft.read("draft.json")["captioner"] == "smolvlm-500m"


def test_forgotten_draft_is_thrown_away(bench):
    """A draft that nobody came back to for a day is deleted; a run of that age stays."""
    draft, run = bench.draft(), bench.submitted()
    bench.later = 2 * 86400

    bench.queue.tick()

    assert not draft.folder.exists()
    assert run.folder.exists()


def test_run_whose_worker_was_lost_keeps_its_place(bench):
    """It goes on before those that came after it."""
    first, _ = bench.submitted(), bench.submitted()
    bench.queue.tick()

    bench.lose_worker(first)

    assert bench.executor.started == [(first.id, "train")] * 2


def test_run_that_a_person_lets_go_on_goes_to_the_end(bench):
    """Who was stopped waits behind those that have waited since."""
    first, second = bench.submitted(), bench.submitted()
    bench.queue.stop(first)

    bench.queue.resume(first)

    assert bench.queue.waiting() == [second, first]


def test_owner_has_only_so_many_runs_at_a_time(tmp_path):
    """The run beyond the limit is refused with a time to come back, and another owner's is taken."""
    bench = Bench(tmp_path, waiting_each=2)
    for _ in range(2):
        bench.submitted("me")

    with pytest.raises(BusyError, match="2 of your runs") as refused:
        bench.submitted("me")

    assert refused.value.retry_after_seconds >= 5
    assert bench.submitted("you")


def test_queue_takes_only_so_many_runs_of_all(tmp_path):
    """Runs at work count; one that is over makes room."""
    bench = Bench(tmp_path, waiting=2)
    first = bench.submitted("me")
    bench.submitted("you")
    bench.queue.tick()

    with pytest.raises(BusyError, match="full: 2 runs"):
        bench.submitted("somebody")
    first.tell("ready", files=[])

    assert bench.submitted("somebody")


def test_run_that_goes_on_needs_room_too(tmp_path):
    """A stopped run does not slip past the limits."""
    bench = Bench(tmp_path, waiting=1)
    stopped = bench.submitted()
    bench.queue.stop(stopped)
    bench.submitted()

    with pytest.raises(BusyError):
        bench.queue.resume(stopped)

    assert bench.queue.state(stopped) is State.STOPPED


def test_refused_run_can_come_back_when_the_one_at_work_has_ended(tmp_path):
    """The time to come back is what the run at work still needs."""
    bench = Bench(tmp_path, waiting=1)
    run = bench.submitted()
    bench.queue.tick()
    run.tell("step", step=10, of=100, loss=1.0, seconds_left=1000.0)

    with pytest.raises(BusyError) as refused:
        bench.submitted()

    assert 1000 <= refused.value.retry_after_seconds <= 1200


def test_oldest_of_too_many_drafts_is_thrown_away(bench):
    """Somebody who drops ZIP after ZIP fills no disk; drafts of others stay."""
    theirs = bench.queue.create("them")
    mine = [bench.draft("me") for _ in range(drafts.EACH)]
    bench.later = drafts.SECONDS_SAFE + 1

    made = bench.queue.create("me")

    assert [draft for draft in mine if not draft.folder.exists()] == [mine[0]]
    assert made.folder.exists()
    assert theirs.folder.exists()


def test_draft_that_is_still_being_made_is_not_thrown_away(bench):
    """Many uploads at once are refused instead; one that was given up makes room."""
    for _ in range(drafts.EACH):
        bench.queue.create("me")

    with pytest.raises(BusyError, match=f"{drafts.EACH} uploads"):
        bench.queue.create("me")
    bench.later = drafts.SECONDS_TO_UPLOAD + 1

    assert bench.queue.create("me").folder.exists()


def test_full_disk_takes_no_draft(tmp_path):
    """What must stay free stays free."""
    bench = Bench(tmp_path, disk_reserve_gib=NO_ROOM)

    with pytest.raises(StorageError, match="no room"):
        bench.queue.create()


def test_run_on_a_full_disk_waits_and_says_why(bench):
    """It is not started to fail in the middle."""
    run = bench.submitted()
    full = bench.another(disk_reserve_gib=NO_ROOM)

    full.tick()

    assert bench.executor.started == []
    assert "disk is too full" in full.outlook(run).hindrance
    full.close()


def test_run_says_that_workers_cannot_be_started(tmp_path):
    """What the executor's check finds is why nothing starts."""

    class Broken(pretend.StillExecutor):
        def check(self):
            raise ExecutorError("The worker’s program is missing.", "Fetch the project again.")

    bench = Bench(tmp_path)
    run = bench.submitted()

    outlook = Queue(bench.settings, Broken()).outlook(run)

    assert outlook.hindrance == "The worker’s program is missing. Fetch the project again."
    assert outlook.seconds is None


def test_run_says_that_another_service_starts_it(bench):
    """Where somebody else holds the data folder, that is why nothing happens here."""
    bench.queue.tick()
    second = bench.another()
    second.tick()
    run = bench.submitted()

    assert "Another service" in second.outlook(run).hindrance
    assert bench.queue.outlook(run).hindrance == ""


def test_outlook_counts_all_runs_before_it(bench):
    """The run at work is one of them; once a run is at work itself, there is nothing to wait for."""
    first, second, third = (bench.submitted() for _ in range(3))
    bench.queue.tick()

    assert [bench.queue.outlook(run).before for run in (first, second, third)] == [0, 1, 2]


def test_outlook_adds_up_what_comes_before(bench):
    """What is left of the run at work, and the plans of those that wait before it."""
    bench.settings.home.mkdir(exist_ok=True)
    measured = Machine("cpu", "A processor", 2**33, 2**33, 2**33, 0.1, cores=2, can_pack=False)
    (bench.settings.home / machine.FILE).write_text(json.dumps(dataclasses.asdict(measured)))
    first, second, third = (bench.submitted() for _ in range(3))
    bench.queue.tick()
    expected = bench.told(second, "queued")[0]["expected_seconds"]
    first.tell("step", step=10, of=300, loss=1.0, seconds_left=100.0)

    starts = [bench.queue.outlook(run).seconds for run in (second, third)]

    assert expected > 5
    assert starts[0] == pytest.approx(100 + 0.15 * expected, abs=2)
    assert starts[1] - starts[0] == pytest.approx(expected, abs=1)


def test_outlook_knows_no_time_where_nobody_can_tell(bench):
    """A machine that was not measured has no plan."""
    bench.submitted()
    second = bench.submitted()
    bench.queue.tick()

    assert bench.queue.outlook(second).seconds is None


def test_progress_says_how_far_a_run_is(bench):
    """Stage, step and time left while it runs; the reason once it failed."""
    run = bench.submitted()
    bench.queue.tick()
    run.tell("stage", name="train", title="Training")
    run.tell("step", step=10, of=100, loss=1.0, seconds_left=30.0)
    running = bench.queue.progress(run)
    run.tell("failed", message="There is not enough memory.", hint="")

    assert running == {
        "state": State.RUNNING,
        "stage": "Training",
        "step": 10,
        "of": 100,
        "seconds_left": 30.0,
        "error": None,
    }
    assert bench.queue.progress(run)["error"] == "There is not enough memory."
    assert bench.queue.progress(run)["seconds_left"] is None


def test_damaged_run_holds_up_nobody(bench, capsys):
    """Events that cannot be read are said once, and the others go on."""
    (bench.draft().folder / "events.jsonl").write_text("no JSON\n")
    run = bench.submitted()

    bench.queue.tick()
    bench.queue.tick()

    assert bench.executor.started == [(run.id, "train")]
    assert capsys.readouterr().err.count("cannot be read") == 1


def test_each_end_is_told_once(bench):
    """After the step that sees it; a run that goes on and ends again is told again."""
    run = bench.submitted()
    bench.queue.tick()
    run.tell("failed", message="x")
    for _ in range(2):
        bench.lose_worker(run)
    bench.queue.resume(run)
    run.tell("ready", files=[])
    for _ in range(2):
        bench.queue.tick()

    assert bench.ended == [[], [run], [], [run], []]


def test_end_is_told_again_where_telling_failed(bench):
    """What is told of a run is not lost with an error of who was told."""
    run = bench.submitted()
    run.tell("ready", files=[])
    failing = iter([StorageError("The disk is full.")])

    def after_tick(ended):
        bench.ended.append(ended)
        for error in failing:
            raise error

    queue = Queue(bench.settings, bench.executor, after_tick=after_tick)
    with pytest.raises(StorageError):
        queue.tick()
    queue.tick()
    queue.close()

    assert bench.ended == [[run], [run]]


def test_images_of_a_deleted_run_are_given_up(bench):
    """Nobody waits for what cannot be drawn any more."""
    run = bench.submitted()
    run.tell("ready", files=[])
    image = bench.image(run)
    bench.executor.running.add(images.studio(bench.settings).id)
    bench.queue.tick()

    bench.queue.delete(run)
    bench.queue.tick()

    assert image.status()["status"] == "Error"


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
