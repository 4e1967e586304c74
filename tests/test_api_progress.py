"""How a run stands, in words and numbers."""

import pytest

from finetune import runs
from finetune.api import progress
from finetune.queue import Outlook

STORY = [{"kind": "log", "message": "one"}, {"kind": "log", "message": "two ü"}]


def test_resumed_run_does_not_draw_steps_twice():
    """Steps that were done again after an interruption replace those before it."""
    steps = [(1, 0.9), (2, 0.8), (3, 0.7), (2, 0.6), (3, 0.5)]
    events = [{"kind": "step", "step": step, "loss": loss} for step, loss in steps]

    assert progress.points(events) == [[1, 0.9], [2, 0.6], [3, 0.5]]


def test_long_curve_is_thinned_out_and_keeps_its_ends():
    """However long a run is, a first answer stays small."""
    events = [{"kind": "step", "step": step, "loss": 1.0} for step in range(1, 5001)]

    points = progress.points(events)

    assert len(points) == progress.MOST_POINTS
    assert (points[0][0], points[-1][0]) == (1, 5000)


@pytest.mark.parametrize(
    ("outlook", "words"),
    [
        (Outlook(0), "Waiting for its turn; it is next."),
        (Outlook(2, 700), "Waiting for its turn; 2 before it. Expected to start in about 12 min."),
        (Outlook(1, 5), "Waiting for its turn; 1 before it. Expected to start in about 1 min."),
        (Outlook(9, 7300), "Waiting for its turn; 9 before it. Expected to start in about 2 h."),
        (Outlook(9, 9000), "Waiting for its turn; 9 before it. Expected to start in about 2 h 30 min."),
    ],
)
def test_waiting_is_told_with_place_and_start(outlook, words):
    """How many are before it, and when it is expected to start, as exactly as anybody knows."""
    assert progress.waiting(outlook) == words


@pytest.fixture
def run(tmp_path):
    made = runs.create(tmp_path)
    for event in STORY:
        made.tell(**event)
    return made


@pytest.mark.parametrize("since", [None, -1, "1", 1.5, 3, 10**9, [], True])
def test_made_up_cursor_does_no_harm(run, since):
    """A cursor that is none, or that points into a line, starts again or finds nothing."""
    events, cursor = progress.read_on(run, since)

    assert [event["message"] for event in events] in (["one", "two ü"], [])
    assert cursor >= 0


def test_cursor_goes_on_where_it_was(run):
    """Reading on from the cursor that was given finds only what is new."""
    _, cursor = progress.read_on(run, 0)
    run.tell("log", message="three")

    events, _ = progress.read_on(run, cursor)

    assert [event["message"] for event in events] == ["three"]
