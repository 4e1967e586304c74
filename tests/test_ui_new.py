"""The tab New finetune, handler by handler, without a browser."""

import fakes
import gradio as gr
import pictures as images
import pretend
import pytest
from PIL import Image

from finetune import dataset, runs
from finetune.dataset import edits
from finetune.errors import FinetuneError
from finetune.owners import AT_HOME
from finetune.queue import Queue
from finetune.runs import State
from finetune.settings import Settings
from finetune.ui import handlers, new, pictures
from finetune.ui.handlers import Visit

FIELDS = {"finetune_comment": "pears", "mode": "style", "trigger_word": "TOK", "base_model": "demo"}


@pytest.fixture
def visit(tmp_path):
    queue = Queue(Settings(home=tmp_path / "home"), pretend.StillExecutor())
    yield Visit(queue, AT_HOME)
    queue.close()


def _receive(visit, zip_path, name=""):
    return new.receive(
        visit, [(zip_path.name, str(zip_path))], name, "style", "TOK", True, "demo", progress=fakes.ignore
    )


@pytest.fixture
def panel(visit, tmp_path):
    return _receive(visit, pretend.zip_of_pictures(tmp_path / "things.zip"))[0]


def test_upload_becomes_a_draft(visit, tmp_path):
    """A good ZIP makes a draft with its pictures, and gives a name to a form that has none."""
    value, problem, name = _receive(visit, pretend.zip_of_pictures(tmp_path / "things.zip"))

    run = runs.find(visit.settings.runs, value["run"])
    assert (problem, name) == (None, "things")
    assert len(dataset.read(run).images) == 4
    assert visit.queue.state(run) is State.DRAFT


def test_bad_zip_is_explained_and_leaves_nothing(visit, tmp_path):
    """What is no ZIP is said beside the field, the name stays, and no run is left over."""
    path = tmp_path / "things.zip"
    path.write_bytes(b"not a zip")

    value, problem, name = _receive(visit, path, "mine")

    assert (value, name) == (None, "mine")
    assert problem["message"] and problem["hint"]
    assert not list(runs.all_in(visit.settings.runs))


def _read_anew(visit, panel, path, ground):
    files = [(path.name, str(path))]
    return new.read_anew(visit, panel, files, "mine", "style", "TOK", True, "demo", ground, progress=fakes.ignore)


def test_other_ground_reads_transparent_pictures_anew(visit, tmp_path):
    """A draft with something transparent is made again on the ground that is chosen."""
    path = images.zip_of(tmp_path / "clear.zip", {"a.png": Image.new("RGBA", (32, 32), (0, 0, 0, 0))})
    panel = _receive(visit, path)[0]

    value, problem, _ = _read_anew(visit, panel, path, "black")

    assert problem is None and value["run"] != panel["run"]
    assert dataset.read(runs.find(visit.settings.runs, value["run"])).ground == "black"


def test_other_ground_changes_nothing_else(visit, panel, tmp_path):
    """Without anything transparent, the draft stays as it is."""
    assert _read_anew(visit, panel, tmp_path / "things.zip", "black") == (gr.skip(),) * 3
    assert new.read_anew(visit, None, None, "", "", "", True, "demo", "black") == (gr.skip(),) * 3


def test_other_ground_does_not_cost_edits(visit, tmp_path):
    """Who has changed captions is told that they would go, and keeps them."""
    path = images.zip_of(tmp_path / "clear.zip", {"a.png": Image.new("RGBA", (32, 32), (0, 0, 0, 0))})
    panel = _receive(visit, path)[0]
    edits.change(runs.find(visit.settings.runs, panel["run"]), edits.Change("Write", {"0001.png": "a dot"}))

    with pytest.raises(FinetuneError, match="You changed captions"):
        _read_anew(visit, panel, path, "black")


def test_example_fills_the_form(visit):
    """One click gives pictures, name, mode and trigger word."""
    zip_path, panel, problem, *filled = new.load_example(visit, True, "demo", lambda *told, **more: None)

    assert zip_path[0].endswith("twemoji.zip") and problem is None
    assert filled == ["twemoji", "style", "TWEMO"]
    assert len(dataset.read(runs.find(visit.settings.runs, panel["run"])).images) == 16


def test_train_puts_the_draft_into_the_queue(visit, panel):
    """The run of the panel is queued with what the form says, and opened."""
    tabs, id, *emptied = new.train(visit, None, panel, **FIELDS)

    run = runs.find(visit.settings.runs, panel["run"])
    assert visit.queue.state(run) is State.QUEUED
    assert run.request().finetune_comment == "pears"
    assert (tabs.selected, id, emptied) == ("run", run.id, [None, None, None])


def test_missing_pictures_and_wrong_fields_are_said_together(visit):
    """Every field gets its own message, in the order in which the page passes the fields."""
    values = {name: None for name in new.form.names()}

    told = new.check(visit, None, None, **values)

    wrong = [name for name, one in zip(("pictures", "panel", *values), told, strict=True) if not one["is_valid"]]
    assert wrong == ["pictures", "finetune_comment", "mode"]


def test_panel_shows_captions_as_they_will_be_trained(visit, panel):
    """Captions from the ZIP carry the trigger word; the others are being described."""
    told = pictures.panel(visit, panel)

    assert told["pictures"][0]["caption"] == "a thing of kind 0 in the style of TOK"
    assert [picture["origin"] for picture in told["pictures"]] == ["zip", "zip", "waiting", "waiting"]
    assert told["counts"] == "4 pictures, 2 with captions from the ZIP, 2 will be described"


def test_panel_follows_the_form(visit, panel):
    """Another trigger word, another mode and no captioning change what is shown at once."""
    told = pictures.panel(visit, {**panel, "mode": "product", "trigger": "MUG", "captioning": False})

    assert told["pictures"][0]["caption"] == "MUG, a thing of kind 0"
    assert told["pictures"][3] | {"caption": "a picture of MUG", "origin": "plain"} == told["pictures"][3]
    assert not told["is_waiting"]


def test_descriptions_are_shown_as_they_come(visit, panel):
    """A picture that was described shows it, though others still wait."""
    run = runs.find(visit.settings.runs, panel["run"])
    run.write("descriptions.json", {"style": {"0003.png": "a blue square"}})

    told = pictures.panel(visit, panel)

    assert told["pictures"][2]["caption"] == "a blue square in the style of TOK"
    assert told["is_waiting"]


def test_captioner_that_failed_is_named(visit, panel):
    """When no description can come any more, the panel says why, and what is trained instead."""
    run = runs.find(visit.settings.runs, panel["run"])
    pictures.panel(visit, panel)
    visit.queue.tick()
    run.tell("caption_failed", message="The captioner is missing.", hint="Fetch the project again.")
    visit.queue._executor.running.clear()

    told = pictures.panel(visit, panel)

    assert not told["is_waiting"]
    assert "The captioner is missing." in told["warnings"][-1]
    assert told["pictures"][3]["caption"] == "a picture in the style of TOK"


def test_draft_is_found_again_by_its_address(visit, panel):
    """A page that is loaded again with ?draft= shows the same pictures; a run is no draft."""
    assert new.reopen(visit, panel["run"])["run"] == panel["run"]
    new.train(visit, None, panel, **FIELDS)
    assert new.reopen(visit, panel["run"]) is None
    assert new.reopen(visit, "../x") is None


def test_error_reaches_the_page_in_plain_words(visit, capsys):
    """A known error keeps message and hint; an unexpected one is not shown but logged."""

    def known(visit, asked):
        raise FinetuneError("No.", "Do this.")

    def unexpected(visit, asked):
        raise RuntimeError("secret detail")

    told = handlers.server(known, visit.queue, "known")(fakes.page_request(), {})
    assert told == {"error": {"message": "No.", "hint": "Do this."}}
    told = handlers.server(unexpected, visit.queue, "unexpected")(fakes.page_request(), {})
    assert "secret detail" not in str(told)
    assert "secret detail" in capsys.readouterr().err
