"""FLUX.3 against diffusers' own modular pipeline, around the same toy parts."""

import fakes
import numpy
import pytest
import torch

from finetune import preview

LONG = "a lighthouse by the sea at dusk, " * 4  # needs a wider window than the empty prompt


@pytest.fixture(scope="module")
def model():
    """A toy FLUX.3."""
    return fakes.tiny_model("flux3")


@pytest.fixture(scope="module")
def pipeline(model):
    """diffusers' own pipeline around the same parts, drawing prompts as they are written."""
    from diffusers import ClassifierFreeGuidance, Flux3AutoBlocks

    blocks = Flux3AutoBlocks()
    blocks.sub_blocks.pop("prompt_upsampler")
    pipeline = blocks.init_pipeline()
    parts = {name: part for name, part in model._parts.items() if name not in ("tokenizer", "scheduler")}
    pipeline.update_components(
        **parts,
        tokenizer=fakes.text_processor(model.part("tokenizer")),
        guider=ClassifierFreeGuidance(guidance_scale=model.base.sampler.guidance_scale),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by(pipeline, model, prompt, size):
    """The picture of seed 3 as diffusers draws it."""
    return pipeline(
        prompt=prompt,
        width=size[0],
        height=size[1],
        num_inference_steps=model.base.sampler.steps,
        max_sequence_length=model.base.text_tokens,
        text_encoder_out_layers=model.base.text_layers,
        generator=torch.Generator("cpu").manual_seed(3),
        output="images",
    )[0]


def drawn(model, prompt, size):
    """The same as we draw it."""
    return preview.draw(
        model, [model.encode_prompts([prompt])], model.encode_prompts([""]), 3, size, model.base.sampler
    )[0]


def test_latents_are_those_of_the_pipeline(model, pipeline):
    """Patches and whitening agree with diffusers' encoder of reference pictures."""
    from diffusers.modular_pipelines.flux3.encoders import Flux3VaeEncoderStep

    pixels = torch.rand(1, 3, 32, 48) * 2 - 1

    latents = model.encode_images(pixels)

    step = Flux3VaeEncoderStep().init_pipeline()
    step.update_components(vae=model.part("vae"))
    [expected] = step(condition_images=[pixels], output="image_cond_latents")
    assert torch.allclose(latents, expected, atol=1e-6)


@pytest.mark.parametrize("prompt", ["", "a pear", LONG, "word " * 60], ids=["empty", "short", "long", "too long"])
def test_prompts_are_those_of_the_pipeline(model, prompt):
    """Window, places of padding and stacked layers agree with diffusers, also for a prompt that is cut off."""
    from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep

    encoding = model.encode_prompts([prompt])

    with torch.no_grad():
        expected = Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(
            model.part("text_encoder"),
            fakes.text_processor(model.part("tokenizer")),
            prompt,
            max_sequence_length=model.base.text_tokens,
            hidden_states_layers=model.base.text_layers,
        )
    assert torch.allclose(encoding["text"], expected, atol=1e-6)


def test_prompts_of_different_windows_are_encoded_one_by_one(model):
    """Rows of one tensor have one length: what does not fit together is a mistake."""
    with pytest.raises(ValueError, match=r"\[80, 160\]"):
        model.encode_prompts(["a pear", LONG])


def test_end_that_is_not_read_is_told(model):
    """Of a prompt beyond the longest window the end is named; others are read whole."""
    assert model.cut_off(LONG) == ""
    assert model.cut_off("word " * 39 + "the last words") == "last words"


@pytest.mark.parametrize(("prompt", "size"), [("a pear", (64, 64)), (LONG, (48, 32))], ids=["one window", "two"])
def test_network_is_given_what_the_pipeline_gives_it(model, pipeline, prompt, size):
    """Tokens, scaled ids, time and text are equal at every step, with the prompt and without it."""
    with fakes.handed_over(model.transformer) as expected:
        drawn_by(pipeline, model, prompt, size)

    with fakes.handed_over(model.transformer) as given:
        drawn(model, prompt, size)

    assert len(given) == 2 * model.base.sampler.steps
    in_their_order = [row for pair in zip(given[1::2], given[::2], strict=True) for row in pair]
    fakes.assert_same_rows(in_their_order, expected, {"encoder_hidden_states", "img_ids", "txt_ids"})


@pytest.mark.parametrize(("prompt", "size"), [("a pear", (64, 64)), (LONG, (48, 32))], ids=["one window", "two"])
def test_picture_is_that_of_the_pipeline(model, pipeline, prompt, size):
    """The same prompt, seed, steps and guidance give the same picture as diffusers, to 1/255."""
    ours, theirs = drawn(model, prompt, size), drawn_by(pipeline, model, prompt, size)

    assert ours.size == size
    assert numpy.asarray(ours).std() > 20, "a flat picture would prove nothing"
    assert preview.difference(ours, theirs) <= 1
