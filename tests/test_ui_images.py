"""The card “Try it”: what may be ordered, by whom, and what is shown of it."""

import pretend
import pytest

from finetune import dataset, images, inputs, runs
from finetune.errors import BusyError, ConfigError, DeniedError, FinetuneError, MissingError
from finetune.owners import AT_HOME, Caller
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.ui import images as card
from finetune.ui import live
from finetune.ui.handlers import Visit

REQUEST = inputs.read({"finetune_comment": "pears", "mode": "style"})
SQUARE = "64x64"


@pytest.fixture
def visit(tmp_path):
    queue = Queue(Settings(home=tmp_path / "home", images_waiting_each=3), pretend.StillExecutor())
    yield Visit(queue, AT_HOME)
    queue.close()


@pytest.fixture
def run(visit, tmp_path):
    """A run that is ready."""
    made = runs.create(visit.settings.runs)
    dataset.unpack(pretend.zip_of_pictures(tmp_path / "in.zip"), made)
    visit.queue.submit(made, REQUEST)
    pretend.pretend(made, "train", steps=5, pause=0)
    return made


def _draw(visit, run, **asked):
    card.draw(visit, {"run": run.id, "prompt": "a pear", "strength": 1, "seed": "7", "size": SQUARE, **asked})


def _orders(visit):
    return [image.order() for image in images.all_in(visit.settings)]


def _finish(image):
    """Do what the studio does."""
    (image.folder / "image.png").write_bytes(b"png")
    image.tell(status="Ready", file="image.png", start_time=1.0, end_time=2.0)


def test_picture_is_ordered_as_it_was_asked_for(visit, run):
    """Prompt, seed, strength and size go into the order, in the caller's name."""
    _draw(visit, run, prompt=" a  red\npear ", strength=0.45, seed="42")

    (order,) = _orders(visit)
    assert (order.owner, order.finetune_id, order.prompt) == ("local", run.id, "a red pear")
    assert (order.seed, order.strength, order.width, order.height) == (42, 0.45, 64, 64)


def test_empty_seed_is_a_random_one(visit, run):
    """Two pictures without a seed differ, and each says which one it had."""
    _draw(visit, run, seed="")
    _draw(visit, run, seed=None)

    first, second = (order.seed for order in _orders(visit))
    assert first != second


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": ""},
        {"prompt": " \n"},
        {"prompt": None},
        {"prompt": ["a pear"]},
        {"prompt": "\ud800"},
        {"prompt": "x" * 2001},
        {"strength": 2.01},
        {"strength": -0.1},
        {"strength": float("nan")},
        {"strength": "1"},
        {"strength": None},
        {"seed": "-1"},
        {"seed": "1.5"},
        {"seed": "seven"},
        {"seed": "٧"},
        {"seed": "9" * 5000},
        {"seed": str(2**63)},
        {"size": "4096x4096"},
        {"size": None},
        {"size": ["64x64"]},
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_refused_in_words(visit, run, asked):
    """What a page makes up orders nothing."""
    with pytest.raises(ConfigError):
        _draw(visit, run, **asked)

    assert not _orders(visit)


def test_run_without_a_lora_draws_nothing(visit, run):
    """There is no card, and no order, until there is something to draw with."""
    run.lora.unlink()

    assert card.told(visit, run) is None
    with pytest.raises(FinetuneError, match="no LoRA yet"):
        _draw(visit, run)


def test_too_many_pictures_are_refused_in_words(visit, run):
    """Who has enough waiting is told so."""
    for _ in range(3):
        _draw(visit, run)

    with pytest.raises(BusyError, match="3 of your images wait"):
        _draw(visit, run)


def test_card_offers_sizes_that_suit_the_base_and_the_first_sample_prompt(visit, run):
    """The base's own resolution, a wide and a tall one; and a prompt that shows what was learned."""
    run.write("config.json", {"sample_prompts": ["a plum", "a fig"]})

    told = card.told(visit, run)

    assert told["prompt"] == "a plum"
    assert [size["title"].split(",")[0] for size in told["sizes"]] == ["Square", "Wide", "Tall"]
    assert told["sizes"][0] == {"value": SQUARE, "title": "Square, 64 × 64"}


def test_every_size_that_is_offered_can_be_ordered(visit, run):
    """What the page lets choose is taken as it is."""
    offered = [size["value"] for size in card.told(visit, run)["sizes"]]

    for size in offered:
        _draw(visit, run, size=size)

    assert {f"{order.width}x{order.height}" for order in _orders(visit)} == set(offered)


def test_pictures_are_listed_newest_first_with_what_became_of_them(visit, run):
    """One is drawn and has a link, one failed and says why, one waits."""
    for prompt in ("drawn", "failed", "waits"):
        _draw(visit, run, prompt=prompt)
    drawn, failed, _ = images.waiting(visit.settings)
    _finish(drawn)
    failed.fail("Out of memory.")

    waits, failed, drawn = card.told(visit, run)["images"]

    assert [one["prompt"] for one in (waits, failed, drawn)] == ["waits", "failed", "drawn"]
    assert drawn["url"].startswith(f"v1/images/{drawn['id']}/image.png?")
    assert failed["error"] == "Out of memory."
    assert (waits["words"], waits["progress"]) == ("Waiting; it is next.", None)


def test_seed_reaches_the_script_whole(visit, run):
    """A seed may be larger than a script's numbers are exact."""
    _draw(visit, run, seed=str(2**63 - 1))

    assert card.told(visit, run)["images"][0]["seed"] == "9223372036854775807"


def test_comparison_is_the_same_picture_without_the_lora(visit, run):
    """One click orders what the base draws with the same prompt, seed and size."""
    _draw(visit, run, strength=1.2)
    (image,) = images.waiting(visit.settings)

    card.compare(visit, {"run": run.id, "image": image.id})

    other = next(order for order in _orders(visit) if order.strength == 0)
    mine = image.order()
    assert (other.prompt, other.seed, other.width, other.height) == (mine.prompt, mine.seed, mine.width, mine.height)


def test_removed_picture_is_gone(visit, run):
    """A picture that nobody wants is deleted; one that waits is not drawn any more."""
    _draw(visit, run)
    (image,) = images.waiting(visit.settings)

    card.remove(visit, {"run": run.id, "image": image.id})

    assert (card.told(visit, run)["images"], images.waiting(visit.settings)) == ([], [])


@pytest.mark.parametrize("handler", [card.compare, card.remove])
@pytest.mark.parametrize("asked", ["", None, "../../x", "00000000-0000-4000-8000-000000000000"])
def test_picture_that_is_none_is_not_found(visit, run, handler, asked):
    """What a page makes up changes nothing."""
    with pytest.raises(MissingError):
        handler(visit, {"run": run.id, "image": asked})


@pytest.mark.parametrize("handler", [card.compare, card.remove])
def test_picture_of_another_run_is_not_found(visit, run, handler):
    """An image belongs to the run it was drawn with."""
    order = images.Order("local", 1.0, runs.create(visit.settings.runs).id, "page", "a pear", 1, 64, 64, 1.0)
    other = images.create(visit.settings, order)

    with pytest.raises(MissingError):
        handler(visit, {"run": run.id, "image": other.id})

    assert _orders(visit) == [order]


def test_pictures_of_others_are_not_shown(visit, run):
    """Whose the run is, is shown their own pictures; an owner of the machine sees all of the run."""
    run.write("run.json", {**run.read("run.json"), "owner": "anna"})
    anna = Visit(visit.queue, Caller("anna"))
    _draw(visit, run, prompt="by the owner of the machine")
    _draw(anna, run, prompt="by anna")

    assert [one["prompt"] for one in card.told(anna, run)["images"]] == ["by anna"]
    assert len(card.told(visit, run)["images"]) == 2


@pytest.mark.parametrize(("caller", "error"), [(Caller("somebody else"), MissingError), (None, DeniedError)])
@pytest.mark.parametrize("handler", [card.draw, card.compare, card.remove])
def test_only_the_owner_draws(visit, run, handler, caller, error):
    """Somebody else is told that there is no such run, a visitor who has not signed in to do so."""
    _draw(visit, run)
    (image,) = images.waiting(visit.settings)
    asked = {"run": run.id, "prompt": "x", "strength": 1, "seed": "", "size": SQUARE, "image": image.id}

    with pytest.raises(error):
        handler(Visit(visit.queue, caller), asked)

    assert len(_orders(visit)) == 1


def test_live_view_brings_the_card_of_a_finished_run(visit, run):
    """The pictures come with the news that the page asks for anyway, so they are there again after a refresh."""
    _draw(visit, run)

    told = live.news(visit, {"run": run.id})

    assert [one["prompt"] for one in told["drawing"]["images"]] == ["a pear"]
