"""The request: its defaults, its limits, and what is said when they are broken."""

import pytest

from finetune import inputs
from finetune.errors import ConfigError
from finetune.inputs import FinetuneInputs, FinetuneType, Priority, Request

LEAST = {"finetune_comment": "pears", "mode": "style"}


def test_defaults_are_those_of_the_service_it_replaces():
    """A request of the two required fields alone means what it meant there."""
    request = inputs.read(LEAST)

    assert (request.trigger_word, request.iterations, request.captioning) == ("TOK", 300, True)
    assert (request.priority, request.finetune_type, request.lora_rank) == (Priority.QUALITY, FinetuneType.FULL, 32)


@pytest.mark.parametrize(("kind", "rate"), [("lora", 1e-4), ("full", 1e-5)])
def test_learning_rate_follows_the_finetune_type(kind, rate):
    """A rate that is not given is the type's own; one that is given wins."""
    assert inputs.read({**LEAST, "finetune_type": kind}).rate == rate
    assert inputs.read({**LEAST, "finetune_type": kind, "learning_rate": 2e-4}).rate == 2e-4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("finetune_comment", "  "),
        ("mode", "portrait"),
        ("trigger_word", " "),
        ("trigger_word", "x" * 65),
        ("iterations", 99),
        ("iterations", 1001),
        ("learning_rate", 5.1e-3),
        ("learning_rate", 9e-7),
        ("learning_rate", "fast"),
        ("lora_rank", 8),
        ("priority", "fast"),
        ("finetune_type", "dreambooth"),
        ("webhook_url", "ftp://example.com"),
        ("webhook_url", "example"),
        ("seed", -1),
        ("sample_prompts", ("x",) * 9),
        ("steps", 3),
    ],
)
def test_wrong_value_is_told_by_field(field, value):
    """The message is found under the field's name, and reading raises an error that names it."""
    values = {**LEAST, field: value}

    assert list(inputs.check(values)) == [field]
    with pytest.raises(ConfigError) as error:
        inputs.read(values)
    assert error.value.field == field


def test_all_that_is_wrong_is_told_at_once():
    """Three mistakes make three messages."""
    assert set(inputs.check({"mode": "x", "iterations": 5})) == {"finetune_comment", "mode", "iterations"}


def test_secret_is_not_repeated_in_a_message():
    """What is said about a webhook secret does not contain it."""
    problems = inputs.check({**LEAST, "webhook_secret": ["hunter2"]})

    assert "hunter2" not in problems["webhook_secret"]


def test_number_is_a_name_too():
    """Programs sent numbers as the comment; they are read as text."""
    assert inputs.read({**LEAST, "finetune_comment": 42}).finetune_comment == "42"


def test_every_field_explains_itself():
    """The form, the REST schema and the command line show these, so none may be missing."""
    for name, field in FinetuneInputs.model_fields.items():
        assert field.title and field.description, name


def test_request_for_programs_adds_the_pictures_only():
    """There is one definition: the REST request is the page's request with the ZIP."""
    assert set(FinetuneInputs.model_fields) - set(Request.model_fields) == {"file_data"}
