"""The form: made from the request's definition, and read back into it."""

import gradio as gr
import pytest

from finetune.errors import ConfigError
from finetune.inputs import FinetuneType, Request
from finetune.ui import form


@pytest.fixture
def fields():
    with gr.Blocks():
        return form.build()


def _values(fields, **changes):
    values = {name: component.value for name, component in fields.items()}
    return {**values, "finetune_comment": "pears", "mode": "style", **changes}


def test_every_field_of_the_request_is_on_the_form(fields):
    """A field that is added to the request appears by itself, with its title and its help."""
    assert set(fields) == set(Request.model_fields)
    for name, component in fields.items():
        assert component.label == Request.model_fields[name].title
        assert component.info == Request.model_fields[name].description


def test_untouched_form_is_the_default_request(fields):
    """What nobody changed means what the definition says."""
    assert form.read(_values(fields)) == Request(finetune_comment="pears", mode="style")


def test_what_is_typed_becomes_values(fields):
    """Text in a number's field is read as a number, lines as prompts, an empty field as nothing."""
    typed = {"learning_rate": " 2e-4 ", "sample_prompts": "a boat\n\n a pear \n", "seed": 7, "webhook_url": ""}

    request = form.read(_values(fields, **typed))

    assert (request.learning_rate, request.seed, request.webhook_url) == (2e-4, 7, None)
    assert request.sample_prompts == ("a boat", "a pear")


def test_what_is_wrong_is_said_by_field(fields):
    """Each message belongs to its field and reads as a sentence."""
    problems = form.check(_values(fields, mode=None, learning_rate="fast", base_model="none"))

    assert set(problems) == {"mode", "learning_rate", "base_model"}
    assert all(text[0].isupper() and text.endswith(".") for text in problems.values())


def test_unknown_base_model_is_refused(fields):
    """A request for a base model that is not there does not get through."""
    with pytest.raises(ConfigError):
        form.read(_values(fields, base_model="none"))


def test_secret_is_typed_unseen(fields):
    """The webhook's secret is a password field."""
    assert fields["webhook_secret"].type == "password"


def test_line_says_what_the_defaults_become(fields):
    """The learning rate that an empty field stands for is shown before anything starts."""
    full = form.in_words(_values(fields, finetune_type=FinetuneType.FULL))
    adapter = form.in_words(_values(fields, finetune_type=FinetuneType.LORA))

    assert "learning rate 1e-5" in full and "300 steps" in full
    assert "learning rate 1e-4" in adapter
    assert form.in_words(_values(fields, learning_rate="fast")) == ""
