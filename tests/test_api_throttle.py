"""Guessing is slowed down."""

import pytest

from finetune.api import throttle
from finetune.api.throttle import FREE, FREE_OF_ADDRESS, LONGEST_SECONDS, Throttle
from finetune.errors import BusyError


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def counted(clock):
    return Throttle(clock)


def wait(counted, name="ann", address="1.1.1.1"):
    """How long who asks has to wait. Units: seconds."""
    try:
        counted.check(name, address)
    except BusyError as busy:
        return busy.retry_after_seconds
    return 0


def test_mistyping_costs_nothing(counted):
    """The first few wrong answers are free."""
    for _ in range(FREE - 1):
        counted.wrong("ann", "1.1.1.1")

    assert wait(counted) == 0


def test_each_further_wrong_answer_doubles_the_wait(counted, clock):
    """One second, two, four, and never more than some minutes; waiting it out is enough."""
    waits = []
    for _ in range(FREE + 12):
        counted.wrong("ann", "1.1.1.1")
        waits.append(wait(counted))
        clock.now += waits[-1]
        assert wait(counted) == 0

    assert waits[FREE - 1 : FREE + 2] == [2, 3, 5]
    assert waits[-1] == LONGEST_SECONDS + 1


def test_one_name_from_many_addresses_is_slowed_down(counted):
    """What is guessed at counts, wherever the guesses come from."""
    for number in range(FREE):
        counted.wrong("ann", f"1.1.1.{number}")

    assert wait(counted, "ann", "9.9.9.9") > 0
    assert wait(counted, "bob", "9.9.9.9") == 0


def test_many_names_from_one_address_are_slowed_down(counted):
    """Where guesses come from counts, whatever they are guesses at."""
    for number in range(FREE_OF_ADDRESS):
        counted.wrong(f"name{number}", "1.1.1.1")

    assert wait(counted, "other", "1.1.1.1") > 0


def test_right_answer_forgets_the_wrong_ones_for_its_name(counted):
    """Who has mistyped and then signs in starts anew, but their address does not: it may have guessed at others."""
    for _ in range(FREE_OF_ADDRESS):
        counted.wrong("ann", "1.1.1.1")

    counted.right("ann")

    assert wait(counted, "ann", "2.2.2.2") == 0
    assert wait(counted, "ann", "1.1.1.1") > 0


def test_wrong_answers_are_forgotten_after_an_hour(counted, clock):
    """What nobody has tried for long is free again."""
    for _ in range(FREE + 10):
        counted.wrong("ann", "1.1.1.1")

    clock.now += throttle.FORGOTTEN_SECONDS

    assert wait(counted) == 0


def test_flood_of_names_does_not_fill_the_memory(counted, monkeypatch):
    """The oldest entries make room."""
    monkeypatch.setattr(throttle, "MOST_ENTRIES", 10)

    for number in range(100):
        counted.wrong(f"name{number}", f"address{number}")

    assert len(counted._wrong) == 10
