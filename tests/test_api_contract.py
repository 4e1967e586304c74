"""Our specification against the published one: route by route, field by field, limit by limit.

contract.json holds the facts of the published specification, and of the klein endpoints as the contract has them;
`python tests/contract.py` makes it. What differs on purpose stands in DIFFERENCES, with its reason; nothing else may.
"""

import json
from fnmatch import fnmatchcase

import contract
import pretend
import pytest

from finetune import api
from finetune.api import openapi
from finetune.queue import Queue
from finetune.settings import Settings

THEIRS = json.loads(contract.TABLE.read_text(encoding="utf-8"))
NOTHING, FIELD = None, "field"
RECORDED = "programs in use read it, so the original must have sent it"
FILE_NAME = "the name and the trigger word go into file names and into every caption"
DIFFERENCES = [
    # place, what is published, what is ours, why
    ("ResultResponse.preview", NOTHING, FIELD, RECORDED),
    ("ResultResponse.error", NOTHING, FIELD, RECORDED),
    ("FinetuneInputs.captioner", NOTHING, FIELD, "a run's pictures can be described by a model of one's choice"),
    ("FinetuneDetailResponse.finetune_comment", NOTHING, FIELD, RECORDED),
    ("FinetuneDetailResponse.status", NOTHING, FIELD, RECORDED),
    ("FinetuneDetailResponse.created_at", NOTHING, FIELD, RECORDED),
    ("MyFinetunesResponse.finetunes.items", {"types": ["any"]}, {"types": ["string"]}, "they are ids"),
    ("POST /v1/finetune gives_200", [], ["FinetuneResponse"], "what it answers was left open"),
    *((f"Async*Response.{name}", NOTHING, FIELD, RECORDED) for name in ("cost", "input_mp", "output_mp")),
    ("AsyncWebhookResponse.polling_url", NOTHING, FIELD, "who names a webhook may ask all the same"),
    ("FinetuneInputs.finetune_comment.minLength", NOTHING, 1, FILE_NAME),
    ("FinetuneInputs.finetune_comment.maxLength", NOTHING, 200, FILE_NAME),
    ("FinetuneInputs.trigger_word.minLength", NOTHING, 1, FILE_NAME),
    ("FinetuneInputs.trigger_word.maxLength", NOTHING, 64, FILE_NAME),
    ("FinetuneInputs.webhook_secret.maxLength", NOTHING, 256, "it is kept in each run’s folder"),
    ("FinetuneInputs.base_model", NOTHING, FIELD, "this service has several base models"),
    ("FinetuneInputs.seed", NOTHING, FIELD, "a run can be repeated here"),
    ("FinetuneInputs.sample_prompts", NOTHING, FIELD, "this service draws while it trains"),
]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    queue = Queue(Settings(home=tmp_path_factory.mktemp("home")), pretend.StillExecutor())
    made = contract.of(openapi.document(api.router(queue).routes))
    queue.close()
    return made


def _differences(route, ours):
    """What differs between the published route and ours: (theirs, ours) by place."""
    published, own = THEIRS["routes"][route], ours["routes"].get(route)
    if own is None:
        return {route: (published, NOTHING)}
    found = _between(route, {"asks_for_key": published["asks_for_key"]}, {"asks_for_key": own["asks_for_key"]})
    found |= _of_fields(route, published["parameters"], own["parameters"])
    for kind in ("takes", "gives_200", "gives_422"):
        if len(published[kind]) != len(own[kind]):
            found[f"{route} {kind}"] = (published[kind], own[kind])
        for name, own_name in zip(published[kind], own[kind], strict=False):
            found |= _of_fields(name, THEIRS["objects"][name], ours["objects"][own_name])
    return found


def _of_fields(name, theirs, ours):
    """A field that only one of them has is one difference; of others, each fact may be one."""
    found = {}
    for field in theirs | ours:
        if field in theirs and field in ours:
            found |= _between(f"{name}.{field}", theirs[field], ours[field])
        else:
            found[f"{name}.{field}"] = ("field", NOTHING) if field in theirs else (NOTHING, "field")
    return found


def _between(place, theirs, ours):
    facts = {fact: (theirs.get(fact), ours.get(fact)) for fact in theirs | ours}
    return {f"{place}.{fact}": pair for fact, pair in facts.items() if pair[0] != pair[1]}


def _fits(known, place, pair):
    pattern, theirs, own, _ = known
    return fnmatchcase(place, pattern) and pair == (theirs, own)


@pytest.mark.parametrize("route", THEIRS["routes"])
def test_route_is_as_published(ours, route):
    """Each field, type, limit, choice and default is the published one, or differs for a reason that is told."""
    found = _differences(route, ours)

    assert not {place: pair for place, pair in found.items() if not any(_fits(one, place, pair) for one in DIFFERENCES)}


@pytest.mark.parametrize("known", DIFFERENCES, ids=lambda known: known[0])
def test_known_difference_is_still_one(ours, known):
    """The list of reasons names nothing that is gone."""
    found = [item for route in THEIRS["routes"] for item in _differences(route, ours).items()]

    assert [place for place, pair in found if _fits(known, place, pair)]
