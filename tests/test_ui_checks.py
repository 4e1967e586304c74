"""The panel of checks, handler by handler, without a browser."""

import pictures as made
import pretend
import pytest

from finetune import dataset
from finetune.dataset import edits, intake
from finetune.errors import DeniedError, FinetuneError, MissingError
from finetune.owners import AT_HOME, Caller
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.ui import checks, new
from finetune.ui.handlers import Visit

FORM = {"mode": "style", "trigger_word": "TOK", "captioning": False, "base_model": "demo"}
FORM |= {"iterations": 300, "priority": "quality"}


@pytest.fixture
def visit(tmp_path):
    queue = Queue(Settings(home=tmp_path / "home"), pretend.StillExecutor())
    yield Visit(queue, AT_HOME)
    queue.close()


@pytest.fixture
def asked(visit, tmp_path):
    """A draft of pictures of which two are alike and one says the trigger word twice."""
    files = {f"{number}.png": made.picture(number, 64, 64) for number in range(5)}
    files |= {"0-again.png": made.picture(0, 128, 128), "1.txt": "TOK and TOK", "2.txt": "a <b>TOK</b>"}
    run = visit.queue.create(AT_HOME.name)
    dataset.unpack(made.zip_of(tmp_path / "some.zip", files), run, take=intake.take)
    return {"run": run.id, **FORM}


def kinds(told):
    return {one["kind"]: one for one in told["findings"]}


def test_findings_come_with_pictures_and_mends(visit, asked):
    """Each has a severity, words, thumbnails by signed link, and what its button says."""
    told = checks.panel(visit, asked)

    found = kinds(told)["near_twins"]
    assert found["severity"] == "warning" and found["mend"] == "Leave 1 picture out and keep the best"
    assert [one["name"] for one in found["pictures"]] == ["0-again.png", "0.png"]
    assert all("thumbnails/" in one["url"] for one in found["pictures"])
    assert told["passes"] == "Each of the 6 pictures is seen about 200 times: 300 steps of 4."


def test_panel_follows_the_form(visit, asked):
    """Other iterations, another trigger word and another mode are checked at once; a wrong field counts as empty."""
    told = checks.panel(visit, {**asked, "iterations": 100, "trigger_word": "fox", "mode": None})

    assert "ordinary_trigger" in kinds(told) and "trigger_repeated" not in kinds(told)
    assert "100 steps" in told["passes"]
    assert "300 steps" in checks.panel(visit, {**asked, "iterations": 7, "base_model": "nonsense"})["passes"]


def test_description_counts_as_a_caption(visit, asked):
    """What the captioner said is checked like what people wrote, as long as captioning is on."""
    run = visit.run(asked["run"])
    silent = [one.file for one in dataset.read(run).images if not one.caption]
    run.write("descriptions.json", {"style": dict.fromkeys(silent, "a dot")})

    assert "no_caption" not in kinds(checks.panel(visit, {**asked, "captioning": True}))
    assert len(kinds(checks.panel(visit, asked))["no_caption"]["pictures"]) == len(silent)


def test_mend_is_one_change_that_can_be_taken_back(visit, asked):
    """The button leaves the copy out at once; Undo brings it back."""
    told = checks.mend(visit, {**asked, "kind": "near_twins"})
    assert "near_twins" not in kinds(told)
    assert told["mended"] == told["undo"] == "Leave 1 picture out and keep the best"
    assert len(dataset.read(visit.run(asked["run"])).images) == 5

    told = checks.undo(visit, {**asked, "title": told["mended"]})

    assert "near_twins" in kinds(told)
    assert len(dataset.read(visit.run(asked["run"])).images) == 6


def test_mend_of_what_is_no_longer_so_is_refused(visit, asked):
    """A page that is behind, or a stranger's words, change nothing."""
    checks.mend(visit, {**asked, "kind": "near_twins"})

    for kind in ("near_twins", "few", "nonsense", None):
        with pytest.raises(FinetuneError, match="no longer"):
            checks.mend(visit, {**asked, "kind": kind})


def test_undo_takes_back_no_other_change(visit, asked):
    """What was changed since among the pictures is undone there."""
    told = checks.mend(visit, {**asked, "kind": "near_twins"})
    run = visit.run(asked["run"])
    edits.change(run, edits.Change("Write a caption", captions={"0003.png": "a dot"}))

    with pytest.raises(FinetuneError, match="Something else"):
        checks.undo(visit, {**asked, "title": told["mended"]})


def test_run_that_was_started_is_not_mended(visit, asked):
    """Its pictures stay as they are, and the panel offers no button."""
    new.train(visit, None, asked, finetune_comment="x", **{**FORM, "trigger_word": "TOK"})

    assert not checks.panel(visit, asked)["is_draft"]
    for act in (checks.mend, checks.undo):
        with pytest.raises(FinetuneError, match="started already"):
            act(visit, {**asked, "kind": "near_twins"})


def test_unchanged_dataset_is_not_told_again(visit, asked):
    """A page that knows all is answered in a word, until something is edited."""
    known = checks.panel(visit, asked)["known"]
    assert checks.panel(visit, {**asked, "known": known}) == {"is_same": True}

    edits.change(visit.run(asked["run"]), edits.Change("x", captions={"0003.png": "a dot"}))

    assert "findings" in checks.panel(visit, {**asked, "known": known})


def test_strangers_see_and_mend_nothing(visit, asked):
    """The handlers reach runs only through the visit."""
    stranger = Visit(visit.queue, Caller("somebody", owns_machine=False))

    for act in (checks.panel, checks.mend, checks.undo):
        with pytest.raises((MissingError, DeniedError)):
            act(stranger, {**asked, "kind": "near_twins"})
