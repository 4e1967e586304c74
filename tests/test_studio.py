"""The process that draws what was ordered: in which order, until when, and what it says when something fails."""

import time
from dataclasses import replace

import PIL.Image
import pretend
import pytest

from finetune import images, runs, studio
from finetune.errors import ModelError
from finetune.images import Order
from finetune.settings import Settings
from finetune.studio import Studio


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path, idle_minutes=1, images_waiting_each=200, disk_reserve_gib=0)


class Painter(pretend.PretendPainter):
    """Fails at prompts that say so."""

    def draw(self, run, order, progress):
        match order.prompt:
            case "fail":
                raise ModelError("The LoRA is broken.", "Train again.")
            case "crash":
                raise ZeroDivisionError("secret detail")
        return super().draw(run, order, progress)


def _order(settings, run, count=1, age=0.0, **changes):
    """Order images, the first ones the oldest."""
    made = []
    for number in range(count):
        created = time.time() - age + number / 1000
        values = {
            "owner": "ann",
            "created": created,
            "finetune_id": run.id,
            "endpoint": "e",
            "prompt": "TOK",
            "seed": 1,
        }
        values |= {"width": 64, "height": 48, "strength": 1.0, **changes}
        made.append(images.create(settings, Order(**values)))
    return made


def _work(settings, painter=None, rest=lambda seconds: None):
    """Let a studio work until it has nothing more to do, in no time."""
    painter = painter or Painter()
    Studio(settings, painter, rest).work()
    return painter


def test_everything_that_waits_is_drawn(settings):
    """Each image is ready, of the size that was ordered, with its times."""
    made = _order(settings, pretend.finetune(settings), 3)

    _work(settings)

    for image in made:
        told = image.status()
        assert told["status"] == "Ready" and told["start_time"] <= told["end_time"] <= time.time()
        with PIL.Image.open(image.file) as picture:
            assert picture.size == (64, 48)
    assert images.waiting(settings) == []


@pytest.mark.parametrize("kind", images.FORMATS)
def test_picture_is_stored_as_ordered_and_tells_nothing(settings, kind):
    """The file is of the kind that was asked for, and holds neither prompt nor seed."""
    [image] = _order(settings, pretend.finetune(settings), output_format=kind, prompt="my secret idea", seed=918273)

    _work(settings)

    with PIL.Image.open(image.file) as picture:
        assert picture.format == kind.upper() and not picture.getexif()
        assert not {"comment", "exif", "xmp", "parameters"} & set(picture.info)
    content = image.file.read_bytes()
    assert b"secret" not in content and b"918273" not in content


def test_first_come_is_first_drawn(settings):
    """On one base model, images are drawn in their order, whoever's finetune it is."""
    one, two = pretend.finetune(settings), pretend.finetune(settings, "bob")
    for age, run in ((3, one), (2, two), (1, one)):
        _order(settings, run, age=age, seed=age)

    painter = _work(settings)

    assert [order.seed for order in painter.drawn] == [3, 2, 1]
    assert painter.loaded == ["demo"]


def test_images_of_the_loaded_base_go_first(settings):
    """Two bases that take turns in the queue are loaded once each."""
    one, two = pretend.finetune(settings), pretend.finetune(settings, base_model="flux1-dev")
    for age in (6, 5, 4, 3):
        _order(settings, (one, two)[age % 2], age=age)

    assert _work(settings).loaded == ["demo", "flux1-dev"]


def test_nobody_is_overtaken_for_ever(settings):
    """However many wait for the loaded base, the one that waits longest is passed over ten times at most."""
    one, two = pretend.finetune(settings), pretend.finetune(settings, base_model="flux1-dev")
    _order(settings, one, age=100, prompt="first")
    _order(settings, two, age=50, prompt="patient")
    _order(settings, one, 30)

    painter = _work(settings)

    assert [order.prompt for order in painter.drawn].index("patient") == 1 + studio.OVERTAKEN
    assert len(painter.drawn) == 32


def test_progress_is_told_while_drawing(settings):
    """Whoever asks meanwhile sees how far it is; the studio's own count of attempts is kept."""
    [image] = _order(settings, pretend.finetune(settings))
    seen = []

    class Watched(Painter):
        def draw(self, run, order, progress):
            def look(share):
                progress(share)
                seen.append(image.status())

            return super().draw(run, order, look)

    _work(settings, Watched())

    assert [told["progress"] for told in seen] == [step / 10 for step in range(10)]
    assert {told["status"] for told in seen} == {"Pending"} and {told["attempts"] for told in seen} == {1}


def test_failure_is_told_in_words_and_the_next_is_drawn(settings):
    """What went wrong and what to do is the image's error; the model stays loaded."""
    run = pretend.finetune(settings)
    _order(settings, run, age=3)
    [failed] = _order(settings, run, age=2, prompt="fail")
    [fine] = _order(settings, run, age=1)

    painter = _work(settings)

    assert failed.status()["error"] == "The LoRA is broken. Train again."
    assert fine.status()["status"] == "Ready" and painter.loaded == ["demo"]


def test_unexpected_failure_is_told_without_its_details(settings, capsys):
    """The log has the traceback; the image says that something went wrong; the next one is drawn."""
    run = pretend.finetune(settings)
    [failed] = _order(settings, run, age=2, prompt="crash")
    [fine] = _order(settings, run, age=1)

    _work(settings)

    assert "unexpected" in failed.status()["error"] and "secret" not in failed.status()["error"]
    assert "secret detail" in capsys.readouterr().err
    assert fine.status()["status"] == "Ready"


def test_second_unexpected_failure_in_a_row_ends_the_process(settings):
    """A program that is broken does not go through the whole queue: the rest is left to a new process."""
    run = pretend.finetune(settings)
    failed = _order(settings, run, 2, age=9, prompt="crash")
    _order(settings, run)

    with pytest.raises(ZeroDivisionError):
        _work(settings)

    assert [image.status()["status"] for image in failed] == ["Error", "Error"]
    assert len(images.waiting(settings)) == 1


def test_finetune_that_was_deleted_is_said(settings):
    """An image whose finetune is gone by the time it is drawn ends in words."""
    run = pretend.finetune(settings)
    [image] = _order(settings, run)
    runs.delete(run, settings.trash)

    _work(settings)

    assert "was deleted" in image.status()["error"]


def test_order_that_cannot_be_read_is_given_up(settings):
    """A damaged order ends in words instead of blocking those behind it."""
    run = pretend.finetune(settings)
    [broken] = _order(settings, run, age=1)
    [fine] = _order(settings, run)
    (broken.folder / "order.json").write_text("[]", encoding="utf-8")

    _work(settings)

    assert "cannot be read" in broken.status()["error"]
    assert fine.status()["status"] == "Ready"


def test_picture_that_cannot_be_saved_is_said(settings):
    """When the disk does not take the picture, the image says so."""
    [image] = _order(settings, pretend.finetune(settings))
    (image.folder / "sample.jpeg").mkdir()

    _work(settings)

    assert "cannot be saved" in image.status()["error"]


def test_image_that_was_deleted_while_it_was_drawn_is_gone(settings):
    """Nothing of it comes back, and the next one is drawn."""
    run = pretend.finetune(settings)
    [first] = _order(settings, run, age=1, prompt="go")
    [second] = _order(settings, run)

    class Deleting(Painter):
        def draw(self, run, order, progress):
            if order.prompt == "go":
                images.discard(first)
            return super().draw(run, order, progress)

    _work(settings, Deleting())

    assert not first.folder.exists() and second.status()["status"] == "Ready"


def test_studio_finishes_the_picture_at_hand_when_asked_to_stop(settings):
    """What is begun is drawn, what waits goes on waiting."""
    made = _order(settings, pretend.finetune(settings), 3)

    class Asked(Painter):
        def draw(self, run, order, progress):
            images.studio(settings).ask_to_stop()
            return super().draw(run, order, progress)

    painter = _work(settings, Asked())

    assert len(painter.drawn) == 1
    assert images.waiting(settings) == made[1:]


def test_studio_that_is_asked_to_stop_begins_nothing(settings):
    """A request to stop that came while the process was starting is heeded."""
    [image] = _order(settings, pretend.finetune(settings))
    images.studio(settings).ask_to_stop()

    _work(settings)

    assert images.waiting(settings) == [image]


def test_studio_ends_after_minutes_with_nothing_to_do(settings):
    """So long it looks for orders; what comes in time is drawn, and the wait begins anew."""
    run, rested = pretend.finetune(settings), []

    def rest(seconds):
        rested.append(seconds)
        if len(rested) == 100:
            _order(settings, run)

    painter = _work(settings, rest=rest)

    assert len(painter.drawn) == 1
    assert sum(rested) == pytest.approx(60 + 100 * studio.SECONDS_BETWEEN_LOOKS, abs=1)


def test_studio_ends_when_its_folder_is_gone(settings):
    """Nobody waits for pictures in a data folder that was deleted."""
    settings = replace(settings, idle_minutes=10**6)

    def rest(seconds):
        images.studio(settings).folder.rmdir()

    assert _work(settings, rest=rest).drawn == []


def test_image_that_ended_the_studio_twice_is_not_tried_again(settings):
    """A new studio gives it up and draws the next one."""
    run = pretend.finetune(settings)
    [deadly] = _order(settings, run, age=1, prompt="deadly")
    [fine] = _order(settings, run)
    tried = []

    class Killed(BaseException):
        """The process is killed."""

    class Deadly(Painter):
        def draw(self, run, order, progress):
            if order.prompt == "deadly":
                tried.append(order)
                raise Killed
            return super().draw(run, order, progress)

    for _ in range(2):
        with pytest.raises(Killed):
            _work(settings, Deadly())
    _work(settings, Deadly())

    assert len(tried) == 2
    assert (deadly.status()["status"], fine.status()["status"]) == ("Error", "Ready")
