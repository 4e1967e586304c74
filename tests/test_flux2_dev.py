"""FLUX.2 dev against diffusers' own pipeline, around the same toy parts."""

import json

import fakes
import numpy
import pytest
import torch
from transformers import LlamaTokenizerFast

from finetune import preview, registry
from finetune.memory import Fit

WORDS = ["a pear", "", "an AI that reasons about image descriptions", "two [IMG] plums", "long " * 60]


@pytest.fixture(scope="module")
def model():
    """A toy FLUX.2 dev."""
    return fakes.tiny_model("flux2-dev")


@pytest.fixture(scope="module")
def pipeline(model):
    """diffusers' own pipeline around the same parts."""
    from diffusers import Flux2Pipeline

    tokenizer = fakes.text_processor(model.part("tokenizer"))
    pipeline = Flux2Pipeline(**{**model._parts, "tokenizer": tokenizer})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by(pipeline, model, size):
    """The picture of “a pear” and seed 3 as diffusers draws it."""
    return pipeline(
        prompt="a pear",
        width=size[0],
        height=size[1],
        num_inference_steps=model.base.sampler.steps,
        guidance_scale=model.base.sampler.guidance_scale,
        max_sequence_length=model.base.text_tokens,
        text_encoder_out_layers=model.base.text_layers,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]


def drawn(model, size):
    """The same as we draw it."""
    pear, empty = model.encode_prompts(["a pear"]), model.encode_prompts([""])
    return preview.draw(model, [pear], empty, 3, size, model.base.sampler)[0]


@pytest.mark.parametrize("is_begun", [True, False], ids=["first token in the template", "first token added"])
def test_prompts_are_those_of_the_pipeline(pipeline, is_begun):
    """The tokenizer alone gives the states that the pipeline gets through a processor, system message included."""
    model = fakes.tiny_model("flux2-dev")
    tokenizer = model.part("tokenizer")
    if not is_begun:
        tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    processor = fakes.text_processor(tokenizer)

    encoding = model.encode_prompts(WORDS)

    expected = pipeline._get_mistral_3_small_prompt_embeds(
        model.part("text_encoder"),
        processor,
        WORDS,
        max_sequence_length=model.base.text_tokens,
        hidden_states_layers=model.base.text_layers,
    )
    assert torch.allclose(encoding["text"], expected, atol=1e-6)


def test_tokenizer_is_read_as_the_processor_reads_it(tmp_path):
    """Published files name a class that splits words differently; the file of the tokenizer itself counts."""
    model = fakes.tiny_model("flux2-dev")
    base = model.save(tmp_path)
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tokenizer_class": "LlamaTokenizerFast"}))

    loaded = registry.families()["flux2-dev"].load(base, tmp_path, "cpu", Fit())

    other = LlamaTokenizerFast.from_pretrained(config.parent)
    assert other("two pears")["input_ids"] != model.part("tokenizer")("two pears")["input_ids"]
    assert torch.equal(loaded.encode_prompts(WORDS)["text"], model.encode_prompts(WORDS)["text"])


def test_end_that_is_not_read_is_told(model):
    """Of a long prompt the end that is cut off is named, though the system message holds words of it."""
    assert model.cut_off("an AI that reasons") == ""
    assert model.cut_off("object relationships, " * 4).endswith("relationships,")


@pytest.mark.parametrize("size", [(64, 64), (48, 32)])
def test_network_is_given_what_the_pipeline_gives_it(model, pipeline, size):
    """Tokens, ids, time, guidance and text are equal at every step, up to rounding."""
    with fakes.handed_over(model.transformer) as expected:
        drawn_by(pipeline, model, size)

    with fakes.handed_over(model.transformer) as given:
        drawn(model, size)

    assert len(given) == model.base.sampler.steps
    fakes.assert_same_rows(given, expected, {"guidance", "encoder_hidden_states", "txt_ids"})


@pytest.mark.parametrize("size", [(64, 64), (48, 32)])
def test_picture_is_that_of_the_pipeline(model, pipeline, size):
    """The same prompt, seed, steps and guidance give the same picture as diffusers, to 1/255."""
    ours, theirs = drawn(model, size), drawn_by(pipeline, model, size)

    assert ours.size == size
    assert numpy.asarray(ours).std() > 20, "a flat picture would prove nothing"
    assert preview.difference(ours, theirs) <= 1
