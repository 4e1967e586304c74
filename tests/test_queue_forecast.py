"""How long runs will take, as arithmetic on what is known of them."""

import pytest

from finetune.queue import forecast
from finetune.queue.history import History
from finetune.runs import State

AT_WORK = {"state": State.RUNNING, "began": 1000.0}


def ready(expected, took, began=0.0):
    return History(State.READY, expected_seconds=expected, took_seconds=took, began=began)


def test_plans_are_corrected_by_what_runs_took():
    """The median of the latest counts, of runs that had a plan and one worker."""
    known = [ready(100, 200), ready(100, 210), ready(100, 900), ready(None, 5), ready(100, None)]

    assert forecast.pace(known) == pytest.approx(2.1)
    assert forecast.pace([]) == 1.0


def test_only_the_latest_runs_correct_plans():
    """A machine that became faster is believed after a few runs."""
    old = [ready(100, 900, began=number) for number in range(20)]
    new = [ready(100, 50, began=100 + number) for number in range(forecast.LATEST)]

    assert forecast.pace([*new, *old]) == 0.5


def test_run_that_steps_ends_after_its_steps_and_what_follows():
    """What the worker said is counted down since, and a share of the whole is added."""
    stepping = History(**AT_WORK, expected_seconds=200, is_stepping=True, seconds_left=50, at=1100.0)

    assert forecast.left(stepping, pace=1.0, now=1110.0) == pytest.approx(40 + 0.15 * 200)


def test_run_that_does_not_step_yet_ends_by_its_plan():
    """The time since its start is taken off; of a late one a little is always left."""
    starting = History(**AT_WORK, expected_seconds=200)

    assert forecast.left(starting, pace=2.0, now=1100.0) == 300
    assert forecast.left(starting, pace=2.0, now=9000.0) == forecast.LEAST_SECONDS


def test_fetching_comes_on_top_of_the_plan():
    """A plan does not count what is downloaded first."""
    fetching = History(**AT_WORK, expected_seconds=200, seconds_left=600, at=1000.0)

    assert forecast.left(fetching, pace=1.0, now=1010.0) == 800


def test_resumed_run_needs_what_is_left_of_it():
    """Of a run that has done two thirds, one third is expected."""
    waiting = History(State.QUEUED, expected_seconds=300, step=200, of=300)

    assert forecast.times([], [waiting], 1.0, 0.0) == ([0.0], [pytest.approx(100)])


def test_run_without_a_plan_hides_what_comes_after_it():
    """Its own start is known, the next one's is not."""
    unknown, planned = History(State.QUEUED), History(State.QUEUED, expected_seconds=100)

    assert forecast.times([], [planned, unknown, planned], 1.0, 0.0) == ([0.0, 100.0, None], [100.0, None, None])


def test_asking_again_is_worth_it_when_the_first_has_ended():
    """In whole seconds, never at once, and after a minute where nobody can tell."""
    assert forecast.retry_after([None, 99.5, 20.2]) == 21
    assert forecast.retry_after([0.0]) == forecast.LEAST_SECONDS
    assert forecast.retry_after([None]) == 60
