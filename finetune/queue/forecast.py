"""How long runs will take: the plan of each, corrected by what runs of this machine took, and by what the worker says.

Pure arithmetic but for `expected_seconds`, which reads what was measured of the machine. Times are seconds; None where
nobody can tell.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import median

from finetune import bases, dataset, machine, recipe
from finetune.errors import FinetuneError
from finetune.inputs import Request
from finetune.queue.history import History
from finetune.runs import Run, State
from finetune.settings import Settings

LATEST = 5
"""So many runs that are ready tell how plans must be corrected."""
AFTER_THE_STEPS = 0.15
"""Of a whole run, what follows its last step: measuring, saving, reading back. Measured on the demo base."""
LEAST_SECONDS = 5
Times = tuple[list[float | None], list[float | None]]
"""When each waiting run starts, and when each run ends, those at work before those that wait."""


def expected_seconds(settings: Settings, run: Run, request: Request) -> float | None:
    """What a run is expected to take by its plan alone."""
    try:
        base, found = bases.check(request.base_model), machine.read(settings.home)
        if base is None or found is None:
            return None
        return round(60 * recipe.plan_for(request, base, len(dataset.read(run).images), found).minutes, 1)
    except FinetuneError:  # the worker will say what is wrong
        return None


def pace(histories: Iterable[History]) -> float:
    """What plans must be multiplied with: what the latest runs took, by what was expected of them."""
    known = [history for history in histories if history.state is State.READY and history.took_seconds]
    known = sorted((one for one in known if one.expected_seconds), key=lambda one: one.began)[-LATEST:]
    return median(one.took_seconds / one.expected_seconds for one in known) if known else 1.0


def left(history: History, pace: float, now: float) -> float | None:
    """Until the end of a run that is at work."""
    whole = None if history.expected_seconds is None else history.expected_seconds * pace
    if history.is_stepping and history.seconds_left is not None:
        steps = max(0.0, history.seconds_left - (now - history.at))
        return max(LEAST_SECONDS, steps + AFTER_THE_STEPS * (whole or history.seconds_left))
    if whole is None:
        return None
    if history.seconds_left is not None:  # of fetching the base model, which no plan counts
        return whole + history.seconds_left
    return max(LEAST_SECONDS, whole * history.share_left - (now - history.began))


def times(at_work: Sequence[History], waiting: Sequence[History], pace: float, now: float) -> Times:
    """Starts and ends of runs that follow each other."""
    ends = [left(history, pace, now) for history in at_work]
    free: float | None = None if None in ends else max(ends, default=0.0)
    starts = []
    for history in waiting:
        starts.append(free)
        if free is not None and history.expected_seconds is not None:
            free += history.expected_seconds * pace * history.share_left
        else:
            free = None
        ends.append(free)
    return starts, ends


def retry_after(ends: Iterable[float | None], otherwise: int = 60) -> int:
    """When it is worth asking again: when the first of these ends. Units: whole seconds."""
    known = [end for end in ends if end is not None]
    return max(LEAST_SECONDS, math.ceil(min(known))) if known else otherwise
