"""The panel “Your datasets”: what it shows, keeps, uses and deletes, and of whom."""

from types import SimpleNamespace

import browsing
import pretend
import pytest

from finetune import dataset, runs, shelf
from finetune.dataset import intake
from finetune.errors import ConfigError, DeniedError, MissingError
from finetune.owners import AT_HOME, Caller
from finetune.queue import Queue
from finetune.runs import State
from finetune.settings import Settings
from finetune.ui import shelf as panel
from finetune.ui.handlers import Visit

FORM = ("style", "TOK", True, "demo")


@pytest.fixture
def visit(tmp_path):
    queue = Queue(Settings(home=tmp_path / "home", disk_reserve_gib=0), pretend.StillExecutor())
    yield Visit(queue, AT_HOME)
    queue.close()


@pytest.fixture
def draft(visit, tmp_path):
    return _draft(visit, tmp_path)


def _draft(visit, folder):
    run = visit.queue.create(visit.caller.name)
    dataset.unpack(pretend.zip_of_pictures(folder / "things.zip"), run, take=intake.take)
    return run


def _keep(visit, run, name="things"):
    return panel.keep(visit, {"run": run.id, "name": name})


def _use(visit, name="", **asked):
    return panel.use(visit, name, *FORM, SimpleNamespace(dataset={"name": "things", **asked}))


def test_kept_dataset_is_shown(visit, draft):
    """With name, pictures, time, a thumbnail and its versions; at home without an owner."""
    kept = _keep(visit, draft)

    (told,) = panel.every(visit, {})["datasets"]

    assert (told["name"], told["pictures"], told["whose"]) == ("things", 4, "")
    assert told["picture"].startswith("v1/datasets/")
    assert told["versions"] == [kept]


def test_nothing_is_shown_where_nothing_was_kept(visit):
    """No datasets, and no name."""
    assert panel.every(visit, {"run": None}) == {"datasets": [], "origin": ""}


def test_used_dataset_fills_a_draft(visit, draft):
    """The page shows a new draft of it, as after an upload, and takes its name where the form has none."""
    kept = _keep(visit, draft)

    value, zip_file, problem, name = _use(visit)

    run = runs.find(visit.settings.runs, value["run"])
    assert value == {"run": run.id, "mode": "style", "trigger": "TOK", "captioning": True, "base": "demo"}
    assert (zip_file, problem, name) == (None, None, "things")
    assert (visit.queue.state(run), dataset.content_hash(run)) == (State.DRAFT, kept["hash"])
    assert panel.every(visit, {"run": run.id})["origin"] == "things"
    assert _use(visit, "mine")[-1] == "mine"


def test_dataset_that_is_gone_leaves_no_draft(visit):
    """Whoever presses Use on a list of yesterday is told so."""
    with pytest.raises(MissingError):
        _use(visit)

    assert not list(runs.all_in(visit.settings.runs))


def test_one_version_is_deleted_or_all(visit, draft):
    """By its hash, or by the name alone."""
    first = _keep(visit, draft)
    found = dataset.read(draft).as_dict()
    found["images"][0]["caption"] = "another"
    draft.write("dataset.json", found)
    second = _keep(visit, draft)

    panel.remove(visit, {"name": "things", "hash": first["hash"]})
    assert panel.every(visit, {})["datasets"][0]["versions"] == [second]
    _keep(visit, draft, "others")
    panel.remove(visit, {"name": "things"})
    assert [one["name"] for one in panel.every(visit, {})["datasets"]] == ["others"]


def test_name_is_needed(visit, draft):
    """Keeping under no name is refused in words."""
    with pytest.raises(ConfigError, match="needs a name"):
        _keep(visit, draft, None)


def test_what_is_somebody_else_s_is_out_of_reach(visit, draft):
    """Bob does not see, use, delete or keep what is Ann’s, even by her name; who owns the machine sees whose it is."""
    ann, bob = (Visit(visit.queue, Caller(name)) for name in ("ann", "bob"))
    draft.write("run.json", {**draft.read("run.json"), "owner": "ann"})
    _keep(ann, draft)

    assert panel.every(bob, {"run": draft.id}) == {"datasets": [], "origin": ""}
    for call in (
        lambda: _use(bob, owner="ann"),
        lambda: panel.remove(bob, {"name": "things", "owner": "ann"}),
        lambda: _keep(bob, draft),
    ):
        with pytest.raises(MissingError):
            call()
    (told,) = panel.every(visit, {})["datasets"]
    assert told["whose"] == "ann"
    assert panel.remove(visit, {"name": "things", "owner": told["owner"]}) == {"done": True}
    assert shelf.of(visit.settings, AT_HOME) == []


def test_stranger_is_told_to_sign_in(visit):
    """Nobody known gets a list."""
    with pytest.raises(DeniedError):
        panel.every(Visit(visit.queue, None), {})


@pytest.mark.parametrize("asked", [None, "things", {"name": {"a": 1}}, {"hash": "0000"}, {}])
def test_what_makes_no_sense_is_no_dataset(visit, draft, asked):
    """Whatever a page sends, it is not there."""
    _keep(visit, draft)

    with pytest.raises(MissingError):
        panel.use(visit, "", *FORM, SimpleNamespace(dataset=asked))


# --- in a real browser

MARKUP = "<img src=x onerror=hacked=1> {{hacked=1}}"


def _upload(page, path):
    page.locator("#pictures-zip input[type=file]").set_input_files(path)
    browsing.sync_api.expect(page.locator(".pictures .picture")).to_have_count(4)


def test_pictures_are_kept_used_and_deleted_on_the_page(pretended, open_page, tmp_path):
    """Kept by the keyboard, found after the page is loaded anew, used without an upload, deleted when asked twice."""
    expect = browsing.sync_api.expect
    page = open_page(pretended.url, viewport={"width": 390, "height": 800})
    _upload(page, pretend.zip_of_pictures(tmp_path / "things.zip"))
    page.get_by_label("Name of the dataset").fill(MARKUP)
    page.keyboard.press("Enter")
    expect(page.locator("#shelf [role=status]")).to_contain_text(f"“{MARKUP}” is kept: 4 pictures")

    page.goto(pretended.url)
    page.get_by_role("button", name="Use “").click()
    expect(page.locator(".pictures .picture")).to_have_count(4)
    expect(page.get_by_label("Name of the dataset")).to_have_value(MARKUP)
    assert "draft=" in page.url
    assert page.evaluate("document.documentElement.scrollWidth") == 390

    page.get_by_role("button", name="Delete “").click()
    page.get_by_role("button", name="Really delete? “").click()
    expect(page.get_by_role("button", name="Use “")).to_have_count(0)
    expect(page.locator("#shelf [role=status]")).to_contain_text("stay as they are")
    assert page.evaluate("typeof hacked") == "undefined"
