"""Drawing with the model in memory; that it equals diffusers' pipeline is tested with the families."""

import fakes
import pytest

from finetune import lora, preview, registry
from finetune.families import Sampler


@pytest.fixture(scope="module")
def model():
    """A toy model."""
    return fakes.tiny_model()


SAMPLER = Sampler(3, 3.0)


def _draw(model, prompts, seed, sampler=SAMPLER):
    rows = [model.encode_prompts([prompt]) for prompt in prompts]
    return preview.draw(model, rows, model.encode_prompts([""]), seed, size=(32, 48), sampler=sampler)


def test_picture_does_not_depend_on_its_company(model):
    """A picture drawn in a batch is the one that is drawn alone."""
    together = _draw(model, ["a pear", "two plums"], 4)

    assert preview.difference(_draw(model, ["two plums"], 4)[0], together[1]) <= 1
    assert together[0].size == (32, 48)


def test_seed_and_guidance_have_effect(model):
    """Another seed or guidance gives another picture, the same ones the same."""
    first = _draw(model, ["a pear"], 3)[0]

    assert preview.difference(first, _draw(model, ["a pear"], 3)[0]) == 0
    assert preview.difference(first, _draw(model, ["a pear"], 4)[0]) > 10
    assert preview.difference(first, _draw(model, ["a pear"], 3, Sampler(3, 1.0))[0]) > 0


def test_guidance_of_one_is_no_guidance(model):
    """At guidance 1 the prompt alone counts, at half the cost: nearly the same as guiding by 1.0001."""
    plain, guided = (_draw(model, ["a pear"], 3, Sampler(3, scale))[0] for scale in (1.0, 1.0001))

    assert preview.difference(plain, guided) <= 1


def test_drawing_shows_the_adapter_as_it_is():
    """With the adapter switched off the base model draws, with it on the trained one."""
    model = fakes.tiny_model()
    base = _draw(model, ["a pear"], 3)[0]
    for weight in lora.add(model.transformer, registry.families()[fakes.FAMILY].lora_targets, 16, 0).values():
        weight.data += 0.1

    trained = _draw(model, ["a pear"], 3)[0]
    model.transformer.disable_lora()

    assert preview.difference(trained, base) > 10
    assert preview.difference(_draw(model, ["a pear"], 3)[0], base) <= 1


def test_size_between_patches_is_a_mistake(model):
    """A size that the model cannot draw is refused instead of silently changed."""
    with pytest.raises(ValueError, match="multiples of 16"):
        preview.draw(model, [model.encode_prompts(["a"])], model.encode_prompts([""]), 1, (30, 32), Sampler(2, 1.0))


def test_each_step_is_told(model):
    """Whoever waits for a picture can see how far it is."""
    told = []
    rows = [model.encode_prompts(["a pear"])]

    preview.draw(model, rows, model.encode_prompts([""]), 1, (32, 32), SAMPLER, lambda: told.append(1))

    assert len(told) == SAMPLER.steps
