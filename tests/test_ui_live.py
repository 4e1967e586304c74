"""What the tabs Run and Runs are told, without a browser."""

import pretend
import pytest

from finetune import dataset, inputs, runs
from finetune.errors import FinetuneError
from finetune.owners import AT_HOME
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.ui import library, live
from finetune.ui import run as run_tab
from finetune.ui.handlers import Visit

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


def test_resumed_run_does_not_draw_steps_twice():
    """Steps that were done again after an interruption replace those before it."""
    steps = [(1, 0.9), (2, 0.8), (3, 0.7), (2, 0.6), (3, 0.5)]
    events = [{"kind": "step", "step": step, "loss": loss} for step, loss in steps]

    assert live.points(events) == [[1, 0.9], [2, 0.6], [3, 0.5]]


def test_long_curve_is_thinned_out_and_keeps_its_ends():
    """However long a run is, a first answer stays small."""
    events = [{"kind": "step", "step": step, "loss": 1.0} for step in range(1, 5001)]

    points = live.points(events)

    assert len(points) == live.MOST_POINTS
    assert (points[0][0], points[-1][0]) == (1, 5000)


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


def test_waiting_run_says_how_many_are_before_it(visit, run, tmp_path):
    """The place in the queue is told in words."""
    other = runs.create(visit.settings.runs)
    dataset.unpack(tmp_path / "in.zip", other)
    visit.queue.submit(other, REQUEST)

    assert live.news(visit, {"run": other.id})["notice"] == "Waiting for its turn; 1 before it in the queue."


@pytest.mark.parametrize("asked", [{}, {"run": None}, {"run": "../x"}, {"run": 7}])
def test_unknown_run_is_an_error(visit, asked):
    """What a page makes up is answered with an error, not with a file."""
    with pytest.raises(FinetuneError):
        live.news(visit, asked)


def test_stop_and_continue_from_the_page(visit, run):
    """The two buttons do what the queue does."""
    run_tab.stop(visit, {"run": run.id})
    assert visit.queue.state(run) == "stopped"

    run_tab.resume(visit, {"run": run.id})
    assert visit.queue.state(run) == "queued"


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


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.6, "1 min 0 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")]
)
def test_duration_reads_well(seconds, words):
    """Times are told in the two largest units."""
    assert live.duration(seconds) == words
