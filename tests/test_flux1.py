"""FLUX.1 against diffusers' own pipeline, around the same toy parts."""

import fakes
import numpy
import pytest
import torch

from finetune import preview


@pytest.fixture(scope="module")
def model():
    """A toy FLUX.1."""
    return fakes.tiny_model("flux1")


@pytest.fixture(scope="module")
def pipeline(model):
    """diffusers' own pipeline around the same parts."""
    from diffusers import FluxPipeline

    pipeline = FluxPipeline(**model._parts)
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
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]


def drawn(model, size):
    """The same as we draw it."""
    pear, empty = model.encode_prompts(["a pear"]), model.encode_prompts([""])
    return preview.draw(model, [pear], empty, 3, size, model.base.sampler)[0]


def test_latents_are_those_of_the_pipeline(model, pipeline):
    """Shift, scale and the order of patches agree with diffusers, there and back."""
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1

    latents = model.encode_images(pixels)

    vae = pipeline.vae
    plain = vae.encode(pixels).latent_dist.mode()
    packed = pipeline._pack_latents((plain - vae.config.shift_factor) * vae.config.scaling_factor, 2, 4, 4, 6)
    assert torch.allclose(latents.flatten(2).mT, packed, atol=1e-6)
    assert torch.allclose(model.decode_latents(latents), vae.decode(plain).sample, atol=1e-4)


def test_prompts_are_those_of_the_pipeline(model, pipeline):
    """Both encoders, padding and truncation agree with diffusers, also for a prompt that is far too long."""
    prompts = ["a pear", "", "a prompt that is far too long to be read whole by either of the two"]

    encoding = model.encode_prompts(prompts)

    text, pooled, _ = pipeline.encode_prompt(prompts, max_sequence_length=model.base.text_tokens)
    assert torch.allclose(encoding["text"], text, atol=1e-6)
    assert torch.allclose(encoding["pooled"], pooled, atol=1e-6)


def test_end_that_t5_does_not_read_is_told(model):
    """Of a long prompt the end that is cut off is named; a short prompt is read whole."""
    assert model.cut_off("a pear") == ""
    assert model.cut_off("a red apple in the style of TOK") == "le of TOK"


@pytest.mark.parametrize("size", [(64, 64), (48, 32)])
def test_network_is_given_what_the_pipeline_gives_it(model, pipeline, size):
    """Tokens, ids, time, guidance and text are equal at every step, up to rounding."""
    with fakes.handed_over(model.transformer) as expected:
        drawn_by(pipeline, model, size)

    with fakes.handed_over(model.transformer) as given:
        drawn(model, size)

    assert len(given) == model.base.sampler.steps
    fakes.assert_same_rows(given, expected, {"guidance", "pooled_projections", "txt_ids"})


@pytest.mark.parametrize("size", [(64, 64), (48, 32)])
def test_picture_is_that_of_the_pipeline(model, pipeline, size):
    """The same prompt, seed, steps and guidance give the same picture as diffusers, to 1/255."""
    ours, theirs = drawn(model, size), drawn_by(pipeline, model, size)

    assert ours.size == size
    assert numpy.asarray(ours).std() > 20, "a flat picture would prove nothing"
    assert preview.difference(ours, theirs) <= 1
