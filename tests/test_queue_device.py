"""The rule by which images and training share the one device, step by step."""

import pytest
from test_queue import Bench

from finetune import images
from finetune.errors import ExecutorError
from finetune.queue.device import SECONDS_FOR_IMAGES, SECONDS_TO_FINISH, TRIES_TO_DRAW
from finetune.runs import State


class Shared(Bench):
    """A queue with a finetune that is ready, so that images can be ordered from it."""

    def __init__(self, folder):
        super().__init__(folder)
        self.finetune = self.draft()
        self.finetune.tell("ready", files=[])
        self.studio = images.studio(self.settings)
        self.draw = (self.studio.id, "draw")

    def ordered(self):
        return self.image(self.finetune)

    @property
    def is_drawing(self):
        return self.executor.is_running(self.studio)

    def finish(self, *drawn):
        for image in drawn:
            image.tell(status="Ready", file="image.jpeg", start_time=1.0, end_time=2.0)

    def end_studio(self):
        self.executor.running.discard(self.studio.id)


@pytest.fixture
def shared(tmp_path):
    made = Shared(tmp_path)
    yield made
    made.queue.close()


def test_images_are_drawn_while_no_run_waits(shared):
    """One studio is started for all, and left alone however long it takes."""
    shared.ordered()
    shared.ordered()

    shared.queue.tick()
    shared.later = 10 * SECONDS_FOR_IMAGES
    shared.queue.tick()

    assert shared.executor.started == [shared.draw]
    assert not shared.studio.is_asked_to_stop()


def test_run_at_work_is_not_interrupted_by_an_image(shared):
    """The image waits, and says for what."""
    run = shared.submitted()
    shared.queue.tick()
    image = shared.ordered()

    shared.queue.tick()

    assert shared.executor.started == [(run.id, "train")]
    assert "A run is at work" in shared.queue.image_outlook(image).hindrance


def test_images_go_before_a_run_that_waits(shared):
    """The run says why it waits, and starts when they are drawn and the studio is gone."""
    image, run = shared.ordered(), shared.submitted()

    shared.queue.tick()
    assert shared.executor.started == [shared.draw]
    assert "Images are drawn first" in shared.queue.outlook(run).hindrance
    assert 0 < shared.queue.outlook(run).seconds <= SECONDS_FOR_IMAGES

    shared.finish(image)
    shared.queue.tick()
    assert shared.studio.is_asked_to_stop()
    assert "being finished" in shared.queue.outlook(run).hindrance
    assert shared.queue.state(run) is State.QUEUED

    shared.end_studio()
    shared.queue.tick()
    assert shared.executor.started[-1] == (run.id, "train")
    assert not shared.studio.is_asked_to_stop()


def test_images_without_end_delay_a_run_for_a_while_only(shared):
    """After their time the studio is asked to go though images wait, and those that come now say why they wait."""
    run = shared.submitted()
    shared.ordered()
    shared.queue.tick()
    shared.later = SECONDS_FOR_IMAGES + 1

    shared.queue.tick()
    late = shared.ordered()
    shared.queue.tick()
    assert shared.studio.is_asked_to_stop()
    assert "about to start" in shared.queue.image_outlook(late).hindrance

    shared.end_studio()
    shared.queue.tick()
    assert shared.executor.started == [shared.draw, (run.id, "train")]


def test_after_a_run_it_is_the_turn_of_images_again(shared):
    """Images that waited through a run are drawn before the next one, for as long as the first time."""
    first, second = shared.submitted(), shared.submitted()
    shared.queue.tick()
    shared.ordered()
    shared.later = 3600
    first.tell("ready", files=[])

    shared.lose_worker(first)

    assert shared.executor.started == [(first.id, "train"), shared.draw]
    assert shared.queue.state(second) is State.QUEUED


def test_idle_studio_goes_at_once_when_a_run_waits(shared):
    """A model that is only kept for later gives its memory back."""
    image = shared.ordered()
    shared.queue.tick()
    shared.finish(image)
    run = shared.submitted()

    shared.queue.tick()
    assert shared.studio.is_asked_to_stop()
    assert shared.queue.state(run) is State.QUEUED


def test_studio_that_does_not_go_is_ended(shared):
    """A picture that takes for ever, or a program that hangs, keeps no run waiting for good."""
    shared.ordered()
    run = shared.submitted()
    shared.queue.tick()
    shared.later = SECONDS_FOR_IMAGES + 1
    shared.queue.tick()
    was_left_alone = shared.is_drawing
    shared.later += SECONDS_TO_FINISH + 1

    shared.queue.tick()
    shared.queue.tick()

    assert was_left_alone
    assert shared.executor.started[-1] == (run.id, "train")


def test_run_that_is_stopped_while_the_studio_goes_gives_the_device_back(shared):
    """Images that wait are drawn again by another studio."""
    shared.ordered()
    run = shared.submitted()
    shared.queue.tick()
    shared.later = SECONDS_FOR_IMAGES + 1
    shared.queue.tick()
    shared.queue.stop(run)

    shared.queue.tick()
    shared.end_studio()
    shared.queue.tick()

    assert shared.executor.started == [shared.draw, shared.draw]
    assert not shared.studio.is_asked_to_stop()


def test_restarted_service_knows_that_a_studio_is_at_work(shared):
    """It starts no run beside it, and no second studio."""
    shared.ordered()
    run = shared.submitted()
    shared.queue.tick()
    shared.queue.close()
    anew = shared.another()

    anew.tick()
    assert shared.executor.started == [shared.draw]

    shared.later = SECONDS_FOR_IMAGES + 1
    anew.tick()
    shared.end_studio()
    anew.tick()
    anew.close()
    assert shared.executor.started == [shared.draw, (run.id, "train")]


def test_studio_beside_a_run_of_the_command_line_goes(shared):
    """A run that did not come by the queue has the device all the same."""
    shared.ordered()
    shared.queue.tick()
    run = shared.draft()
    shared.executor.running.add(run.id)
    run.tell("started", pid=1)

    shared.queue.tick()

    assert shared.studio.is_asked_to_stop()


def test_image_that_a_lost_studio_had_begun_is_drawn_by_the_next(shared):
    """It is put back before another studio is started."""
    image = shared.ordered()
    shared.queue.tick()
    image.tell(status="Pending", progress=0.5, attempts=1, start_time=1.0)
    shared.end_studio()

    shared.queue.tick()

    assert shared.executor.started == [shared.draw, shared.draw]
    assert "progress" not in image.status()


def test_studio_that_cannot_begin_is_not_started_for_ever(shared):
    """After a few tries the image is given up with the program's last words, and the next has its turn."""
    first, second = shared.ordered(), shared.ordered()
    shared.studio.worker_log.write_text("ImportError: no such library\n", encoding="utf-8")

    for _ in range(TRIES_TO_DRAW + 1):
        shared.queue.tick()
        shared.end_studio()

    assert first.status()["status"] == "Error"
    assert "no such library" in first.status()["error"]
    assert second.status()["status"] == "Pending"


def test_image_says_that_no_studio_can_be_started(shared):
    """What the executor says is the image's error."""
    image = shared.ordered()

    def refuse(run, task):
        raise ExecutorError("The worker could not be started.", "Is the disk full?")

    shared.executor.start = refuse
    shared.queue.tick()

    assert image.status()["error"] == "The worker could not be started. Is the disk full?"


def test_image_knows_how_many_are_before_it(shared):
    """And that it is next, where nothing is in its way."""
    first, second = shared.ordered(), shared.ordered()

    assert [shared.queue.image_outlook(image).before for image in (first, second)] == [0, 1]
    assert shared.queue.image_outlook(first).seconds == 0.0
