"""What the tabs Run and Runs are told, without a browser."""

import pretend
import pytest

from finetune import dataset, inputs, owners, runs
from finetune.errors import DeniedError, ExecutorError, FinetuneError, MissingError
from finetune.owners import AT_HOME, Caller
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.ui import library, live
from finetune.ui.handlers import Visit
from finetune.webhooks import Deliveries
from finetune.webhooks.calls import Answer

REQUEST = inputs.read({"finetune_comment": "<b>pears</b>", "mode": "style"})


@pytest.fixture
def visit(tmp_path):
    queue = Queue(Settings(home=tmp_path / "home"), pretend.StillExecutor())
    yield Visit(queue, AT_HOME)
    queue.close()


@pytest.fixture
def run(visit, tmp_path):
    made = runs.create(visit.settings.runs)
    dataset.unpack(pretend.zip_of_pictures(tmp_path / "in.zip"), made)
    visit.queue.submit(made, REQUEST)
    return made


def _finish(run):
    pretend.pretend(run, "train", steps=10, pause=0)


def test_first_answer_tells_all_and_the_next_only_what_is_new(visit, run):
    """From the start the whole story comes; from the cursor on only what happened since."""
    run.tell("started", pid=1)
    run.tell("step", step=1, of=10, loss=0.5, seconds_left=9)
    first = live.news(visit, {"run": run.id, "since": 0})
    run.tell("step", step=2, of=10, loss=0.4, seconds_left=8)

    second = live.news(visit, {"run": run.id, "since": first["cursor"]})

    assert (first["name"], first["points"], first["state"]) == ("<b>pears</b>", [[1, 0.5]], "running")
    assert (second["points"], "name" in second) == ([[2, 0.4]], False)
    assert second["progress"] == {"title": "Training", "done": 2, "of": 10, "seconds_left": 8}


def test_finished_run_offers_its_files(visit, run):
    """The result names each file with a signed link, figures in words, and lines that use the LoRA."""
    _finish(run)

    told = live.news(visit, {"run": run.id, "since": 0})

    assert told["state"] == "ready"
    assert told["result"]["files"][0]["url"].startswith(f"v1/files/{run.id}/results/pretend.safetensors?")
    assert ["Peak memory", "12 MiB"] in told["result"]["figures"]
    assert "pretend.safetensors" in told["result"]["usage"]
    assert len(told["samples"]) == 12


def test_failed_run_says_why_and_what_to_do(visit, run):
    """Message and hint of the failure come with every answer, so that a refresh keeps them."""
    run.tell("failed", message="Out of memory.", hint="Choose speed.")

    told = live.news(visit, {"run": run.id, "since": live.news(visit, {"run": run.id})["cursor"]})

    assert (told["failure"]["message"], told["failure"]["hint"]) == ("Out of memory.", "Choose speed.")


class _Unplugged(pretend.StillExecutor):
    """An executor that cannot start anything."""

    def check(self):
        raise ExecutorError("There is no GPU any more.", "Plug it in.")


def test_waiting_run_says_why_it_cannot_start(visit, run):
    """What keeps the next run from starting is told with what to do about it; nothing is told while all is well."""
    queue = Queue(visit.settings, _Unplugged())

    told = live.news(Visit(queue, AT_HOME), {"run": run.id})

    assert (told["notice"], told["hindrance"]) == (
        "Waiting for its turn; it is next.",
        "There is no GPU any more. Plug it in.",
    )
    assert live.news(visit, {"run": run.id})["hindrance"] == ""
    queue.close()


@pytest.mark.parametrize("asked", [{}, {"run": None}, {"run": "../x"}, {"run": 7}])
def test_unknown_run_is_an_error(visit, asked):
    """What a page makes up is answered with an error, not with a file."""
    with pytest.raises(FinetuneError):
        live.news(visit, asked)


def test_list_shows_runs_but_no_drafts(visit, run):
    """A run is listed with name, state and its last sample; a draft is not listed."""
    runs.create(visit.settings.runs)
    _finish(run)

    told = library.every(visit, {})

    assert [one["name"] for one in told["runs"]] == ["<b>pears</b>"]
    assert told["runs"][0]["badge"] == "Ready"
    assert "samples/step000010-0.png" in told["runs"][0]["picture"]


def test_deleted_run_is_listed_apart_and_comes_back(visit, run):
    """Deleting has a way back."""
    library.remove(visit, {"run": run.id})
    told = library.every(visit, {})
    assert (told["runs"], [one["id"] for one in told["deleted"]]) == ([], [run.id])

    library.restore(visit, {"run": run.id})
    assert [one["id"] for one in library.every(visit, {})["runs"]] == [run.id]


def test_list_tells_the_place_of_runs_that_wait(visit, run, tmp_path):
    """Which of the waiting runs is next is seen in the list."""
    other = runs.create(visit.settings.runs)
    dataset.unpack(tmp_path / "in.zip", other)
    visit.queue.submit(other, REQUEST)

    assert {one["id"]: one["place"] for one in library.every(visit, {})["runs"]} == {run.id: 1, other.id: 2}


def _owned(visit, tmp_path, owner):
    """A waiting run of somebody's."""
    made = visit.queue.create(owner)
    dataset.unpack(pretend.zip_of_pictures(tmp_path / f"{owner}.zip"), made)
    visit.queue.submit(made, REQUEST)
    return made


def test_owner_of_the_machine_sees_whose_each_run_is(visit, tmp_path):
    """Once there are runs of several owners, the list and the run say whose they are."""
    anna, ben = (_owned(visit, tmp_path, name) for name in ("anna", "ben"))

    listed = {one["id"]: one["owner"] for one in library.every(visit, {})["runs"]}

    assert listed == {anna.id: "anna", ben.id: "ben"}
    assert "owned by ben" in live.news(visit, {"run": ben.id})["facts"]


def test_nobody_else_sees_a_name(visit, tmp_path):
    """Who does not own the machine sees neither others' runs nor names; nor is a name said where there is only one."""
    anna = _owned(visit, tmp_path, "anna")
    alone = library.every(visit, {})["runs"]
    _owned(visit, tmp_path, "ben")
    by_anna = Visit(visit.queue, Caller("anna"))

    told = library.every(by_anna, {})["runs"]

    assert [(one["id"], one["owner"]) for one in told] == [(anna.id, None)]
    assert [one["owner"] for one in alone] == [None]
    assert not [fact for fact in live.news(by_anna, {"run": anna.id})["facts"] if "owned" in fact]


def test_run_without_a_webhook_has_no_card(visit, run):
    """Nobody is to be told, so there is nothing to show."""
    assert live.news(visit, {"run": run.id})["webhook"] is None


def _with_webhook(visit, tmp_path, url):
    made = visit.queue.create()
    dataset.unpack(pretend.zip_of_pictures(tmp_path / "in.zip"), made)
    visit.queue.submit(made, inputs.read({**REQUEST.model_dump(mode="json"), "webhook_url": url}))
    return made


def test_webhook_is_shown_by_host_and_path_alone(visit, tmp_path):
    """What may be a password stays out of the page."""
    made = _with_webhook(visit, tmp_path, "https://me:pw@hooks.example:8443/a?token=b#c")

    assert live.news(visit, {"run": made.id})["webhook"] == {"address": "hooks.example:8443/a", "deliveries": []}


def test_attempts_of_a_webhook_are_told(visit, tmp_path):
    """Each try is shown with its time and answer, and when the next one is."""
    made = _with_webhook(visit, tmp_path, "https://hooks.example/a?token=b")
    made.tell("ready", files=[])
    deliveries = Deliveries(visit.settings, send=lambda *_: Answer("500 Internal Server Error"))
    deliveries.tick([made])
    deliveries.wait(10)

    (delivery,) = live.news(visit, {"run": made.id})["webhook"]["deliveries"]

    (attempt,) = delivery["attempts"]
    assert (delivery["address"], attempt["answer"]) == ("hooks.example/a", "500 Internal Server Error")
    assert (delivery["is_delivered"], delivery["next_time"] > attempt["time"]) == (False, True)


def test_live_view_is_for_those_who_may_use_the_run(visit, run):
    """Who is not signed in, or has no right to a run, learns nothing here, with or without a link to watch."""
    key = owners.allow_watching(run)

    with pytest.raises(DeniedError):
        live.news(Visit(visit.queue, None), {"run": run.id, "watch": key})
    with pytest.raises(MissingError):
        live.news(Visit(visit.queue, Caller("anna")), {"run": run.id, "watch": key})


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.6, "1 min 0 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")]
)
def test_duration_reads_well(seconds, words):
    """Times are told in the two largest units."""
    assert live.duration(seconds) == words
