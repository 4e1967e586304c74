"""Orders of images: the queue in folders, its limits, and what is kept for how long."""

import json
import os
import time
from dataclasses import replace

import pretend
import pytest

from finetune import images, links, registry, runs
from finetune.errors import BusyError, ConfigError, MissingError, ModelError, StorageError
from finetune.images import Order
from finetune.settings import Settings

DAY = 86400
DEMO = registry.base_model("demo")
HOOK = {"webhook_url": "https://example.org/hook", "webhook_secret": "hush"}


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path, images_waiting=5, images_waiting_each=3, disk_reserve_gib=0)


@pytest.fixture
def run(settings):
    return pretend.finetune(settings)


def _order(run, **changes):
    values = {
        "owner": "ann",
        "created": time.time(),
        "finetune_id": run.id,
        "endpoint": "e",
        "prompt": "TOK",
        "seed": 1,
    }
    return Order(**{**values, "width": 64, "height": 64, "strength": 1.0, **changes})


def _ready(image):
    (image.folder / "sample.png").write_bytes(b"a picture")
    image.tell(status="Ready", file="sample.png", start_time=10.0, end_time=12.5)


def test_image_waits_until_it_is_drawn(settings, run):
    """An order is in the queue from the start to the end of its drawing."""
    image = images.create(settings, _order(run))
    image.tell(status="Pending", progress=0.5)
    waited = images.waiting(settings)

    _ready(image)

    assert [one.id for one in waited] == [image.id]
    assert images.waiting(settings) == []
    assert image.is_over and image.ended == 12.5


def test_longest_wait_comes_first(settings, run):
    """Images wait in the order in which they came."""
    made = [images.create(settings, _order(run, created=time.time() - age)) for age in (1, 3, 2)]

    assert images.waiting(settings) == [made[1], made[2], made[0]]


def test_order_is_read_as_it_was_given(settings, run):
    """All values come back; what cannot be read says so."""
    asked = _order(run, steps=7, guidance=2.5, prompt="ein “Bild” 🍐")
    image = images.create(settings, asked)
    assert image.order() == asked

    (image.folder / "order.json").write_text("{", encoding="utf-8")
    with pytest.raises(MissingError, match="cannot be read"):
        image.order()


def test_queue_has_room_for_so_many(settings, run):
    """One owner may have so many waiting, all together may have more; a finished one makes room."""
    mine = [images.create(settings, _order(run)) for _ in range(3)]
    with pytest.raises(BusyError, match="3 of your images") as refused:
        images.create(settings, _order(run))
    for _ in range(2):
        images.create(settings, _order(run, owner="bob"))
    with pytest.raises(BusyError, match="5 images wait"):
        images.create(settings, _order(run, owner="cleo"))

    _ready(mine[0])

    assert refused.value.retry_after_seconds > 0
    assert images.create(settings, _order(run)) in images.waiting(settings)


def test_full_disk_is_said(settings, run):
    """Nothing is taken in that would fill the disk."""
    with pytest.raises(StorageError):
        images.create(replace(settings, disk_reserve_gib=2**30), _order(run))


def test_refused_order_leaves_nothing(settings, run):
    """What was refused is neither in the queue nor on the disk."""
    with pytest.raises(StorageError):
        images.create(replace(settings, disk_reserve_gib=2**30), _order(run))

    assert not list(images.all_in(settings)) and not images.waiting(settings)


def test_secret_is_kept_apart_and_forgotten(settings, run):
    """The order says nothing of it, only its owner's user may read it, and it is gone once the webhook is signed."""
    image = images.create(settings, _order(run, **HOOK))
    kept = image.folder / images.SECRET
    _ready(image)
    texts = [path.read_text(encoding="utf-8") for path in image.folder.glob("*.json")]
    told = images.message(settings, image)
    mode = kept.stat().st_mode & 0o777

    images.told(image)

    assert "hush" not in "".join(texts) + repr(told) + repr(_order(run, **HOOK))
    assert told.secret == "hush" and (os.name == "nt" or mode == 0o600)
    assert not kept.exists() and images.message(settings, image) is None


def test_webhook_is_told_once_of_what_is_over(settings, run):
    """An image with a webhook is untold from its end until it is said to be told; one without never is."""
    hooked, plain = images.create(settings, _order(run, **HOOK)), images.create(settings, _order(run))
    before = images.untold(settings)
    _ready(hooked)
    _ready(plain)
    after = images.untold(settings)

    images.told(hooked)

    assert (before, after, images.untold(settings)) == ([], [hooked], [])


def test_message_has_all_that_a_webhook_is_told(settings, run):
    """Who owns it, when it ended, where to send it, and a link that can be fetched from outside."""
    image = images.create(settings, _order(run, **HOOK, root="https://here.example/x", seed=42))
    _ready(image)

    told = images.message(settings, image)

    assert (told.id, told.owner, told.ended, told.status) == (image.id, "ann", 12.5, "Ready")
    assert (told.url, told.secret, told.error) == (HOOK["webhook_url"], "hush", "")
    assert told.result["sample"].startswith(f"https://here.example/x/v1/images/{image.id}/sample.png?exp=")
    assert (told.result["seed"], told.result["duration"]) == (42, 2.5)


def test_message_of_a_failure_has_its_words(settings, run):
    """There is no result, and the error is what is told."""
    image = images.create(settings, _order(run, **HOOK))

    image.fail("The finetune was deleted.")

    told = images.message(settings, image)
    assert (told.status, told.result, told.error) == ("Error", None, "The finetune was deleted.")
    assert told.ended == pytest.approx(time.time(), abs=5)


def test_result_is_there_when_the_picture_is(settings, run):
    """While an image waits, and when it failed, there is no result."""
    image = images.create(settings, _order(run))
    assert images.result(settings, image, "http://x") is None

    image.fail("no")

    assert images.result(settings, image, "http://x") is None


def test_link_stays_the_same_for_minutes(settings, run, monkeypatch):
    """A program that asks twice gets one link, which is good for an hour at least."""
    image = images.create(settings, _order(run))
    _ready(image)
    now = time.time() // 600 * 600
    monkeypatch.setattr(links.time, "time", lambda: now)
    first = images.link(settings, image)
    monkeypatch.setattr(links.time, "time", lambda: now + 300)

    assert images.link(settings, image) == first
    assert int(first.split("exp=")[1].split("&")[0]) - now - 300 >= 3600


def test_images_are_found_by_their_id_alone(settings, run):
    """Whatever else is asked for is no image, and no path."""
    image = images.create(settings, _order(run))

    assert images.find(settings, image.id) == image
    for id in ("", "..", ".studio", "../runs", "a" * 36, image.id[:-1], None):
        with pytest.raises(MissingError):
            images.find(settings, id)


def test_old_images_are_deleted(settings, run):
    """A day after its end an image is gone, with its marks; one that waits stays however long."""
    over, waits = images.create(settings, _order(run, **HOOK)), images.create(settings, _order(run))
    _ready(over)
    images.tidy(settings, time.time() + DAY - 60)
    kept = over.folder.exists()

    images.tidy(settings, time.time() + DAY + 60)

    assert kept and not over.folder.exists()
    assert waits in images.waiting(settings) and images.untold(settings) == []


def test_tidying_leaves_all_else_alone(settings, run):
    """The studio's folder, the marks and files of others stay; what was left half written goes."""
    images.studio(settings)
    images.create(settings, _order(run))
    (settings.images / "notes").mkdir()
    half = settings.images / ".3f2504e0-4f89-41d3-9a0c-0305e82c3301"
    half.mkdir()
    before = {path.name for path in settings.images.iterdir()}

    images.tidy(settings, time.time() + DAY + 60)

    assert before - {path.name for path in settings.images.iterdir()} == {half.name}


def test_tidying_before_the_first_order_is_fine(settings):
    """A service without images tidies nothing."""
    images.tidy(settings, time.time())

    assert images.waiting(settings) == [] and not settings.images.exists()


def test_image_of_a_deleted_finetune_is_given_up(settings, run):
    """Nobody waits for a picture that cannot come."""
    image = images.create(settings, _order(run))
    runs.delete(run, settings.trash)

    images.tidy(settings, time.time())

    assert image.status()["status"] == "Error"
    assert "was deleted" in image.status()["error"]


def test_image_that_was_begun_is_begun_again(settings, run):
    """When the studio is gone, what it had begun waits as before."""
    image = images.create(settings, _order(run))
    image.tell(status="Pending", attempts=1, progress=0.4, start_time=1.0)

    images.recover(settings)
    images.recover(settings)

    assert image.status() == {"status": "Pending", "attempts": 1}


def test_image_that_ends_the_studio_twice_is_given_up(settings, run):
    """It must not block the queue for ever."""
    image = images.create(settings, _order(run))
    image.tell(status="Pending", attempts=2, progress=0.4, start_time=1.0)

    images.recover(settings)

    assert image.status()["status"] == "Error"
    assert "ended the program 2 times" in image.status()["error"]


def test_image_is_not_blamed_for_a_studio_that_was_told_to_go(settings, run):
    """A run that needs the device may end the studio as often as it likes."""
    image = images.create(settings, _order(run))
    image.tell(status="Pending", attempts=2, progress=0.4, start_time=1.0)
    images.studio(settings).ask_to_stop()

    images.recover(settings)

    assert image.status() == {"status": "Pending", "attempts": 1}


def test_nothing_is_said_of_an_image_that_was_deleted(settings, run):
    """A studio that finishes a picture nobody wants any more leaves no folder behind."""
    image = images.create(settings, _order(run))

    images.discard(image)
    image.fail("too late")

    assert not image.folder.exists() and not images.waiting(settings)


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [
        ((None, None, 1.0), (64, 64)),
        ((0, 0, 4 / 3), (64, 48)),
        ((None, None, 21 / 9), (96, 32)),
        ((None, None, 9 / 21), (32, 96)),
        ((1000, 500, 1.0), (992, 496)),
        ((1024, None, 4 / 3), (1024, 768)),
        ((None, 768, 4 / 3), (1024, 768)),
        ((1, 1, 1.0), (16, 16)),
        ((2048, 2048, 1.0), (2048, 2048)),
        ((None, 2048, 21 / 9), (2048, 2048)),
    ],
)
def test_size_is_what_was_asked_for_in_whole_patches(asked, drawn):
    """Rounded down to the base's patches; what is not given follows from the other side, or from the base."""
    assert images.size(DEMO, *asked) == drawn


@pytest.mark.parametrize(("sides", "field"), [((2049, 64), "width"), ((64, 4096), "height")])
def test_picture_that_is_too_large_is_refused(sides, field):
    """The error names the side."""
    with pytest.raises(ConfigError, match="too large") as refused:
        images.size(DEMO, *sides)

    assert refused.value.field == field


@pytest.mark.parametrize(("seed", "drawn"), [(7, 7), (0, 0), (2**63 - 1, 2**63 - 1), (2**63 + 5, 5), (-2, 2**63 - 2)])
def test_any_seed_is_folded_into_63_bits(settings, run, seed, drawn):
    """Huge and negative seeds are as good as others; the one that is used is kept."""
    image = images.order(settings, run, "ann", "TOK", endpoint="e", seed=seed)

    assert image.order().seed == drawn


@pytest.mark.parametrize("seed", [None, -1])
def test_seed_is_drawn_by_chance(settings, run, seed):
    """Two orders without a seed have two, and programs in any language can read them."""
    seeds = {images.order(settings, run, "ann", "TOK", endpoint="e", seed=seed).order().seed for _ in range(2)}

    assert len(seeds) == 2 and all(0 <= one < 2**32 for one in seeds)


def test_prompt_of_any_length_is_not_kept(settings, run):
    """A prompt that no model reads is refused by its name."""
    with pytest.raises(ConfigError) as refused:
        images.order(settings, run, "ann", "x" * 10_001, endpoint="e")

    assert refused.value.field == "prompt"


def test_base_that_is_not_here_any_more_is_said(settings):
    """Who orders hears at once that the base model of the finetune is gone."""
    run = pretend.finetune(settings, base_model="/nowhere/toy")

    with pytest.raises(ModelError):
        images.order(settings, run, "ann", "TOK", endpoint="e")


def test_damaged_order_does_not_stop_others(settings, run):
    """The queue is read, and takes orders, beside one that somebody has broken."""
    broken = images.create(settings, _order(run))
    (broken.folder / "order.json").write_text(json.dumps({"owner": "ann"}), encoding="utf-8")

    made = images.create(settings, _order(run))

    assert images.waiting(settings)[-1] == made
