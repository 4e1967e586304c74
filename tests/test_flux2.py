"""FLUX.2 klein against diffusers' own pipeline, around the same toy parts; and its demo base."""

from pathlib import Path

import fakes
import numpy
import pytest
import torch

from finetune import preview, registry, settings


@pytest.fixture(scope="module")
def model():
    """A toy FLUX.2 klein."""
    return fakes.tiny_model("flux2-klein")


@pytest.fixture(scope="module")
def pipeline(model):
    """diffusers' own pipeline around the same parts."""
    from diffusers import Flux2KleinPipeline

    pipeline = Flux2KleinPipeline(**model._parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by(pipeline, model, prompt, size):
    """The picture of seed 3 as diffusers draws it."""
    return pipeline(
        prompt=prompt,
        width=size[0],
        height=size[1],
        num_inference_steps=model.base.sampler.steps,
        guidance_scale=model.base.sampler.guidance_scale,
        max_sequence_length=model.base.text_tokens,
        text_encoder_out_layers=model.base.text_layers,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]


def drawn(model, prompts, size):
    """The same as we draw it."""
    rows = [model.encode_prompts([prompt]) for prompt in prompts]
    return preview.draw(model, rows, model.encode_prompts([""]), 3, size, model.base.sampler)


def test_latents_are_those_of_the_pipeline(model, pipeline):
    """Patches and whitening agree with diffusers, there and back."""
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1

    latents = model.encode_images(pixels)

    with torch.no_grad():
        expected = pipeline._encode_vae_image(pixels, generator=None)
    assert torch.allclose(latents, expected, atol=1e-6)
    back = pipeline.vae.decode(pipeline.vae.encode(pixels).latent_dist.mode()).sample
    assert torch.allclose(model.decode_latents(latents), back, atol=1e-4)


def test_prompts_are_those_of_the_pipeline(model, pipeline):
    """Template, padding, truncation and layers agree with diffusers."""
    prompts = ["a pear", "", "a prompt that is far too long to be read whole"]

    encoding = model.encode_prompts(prompts)

    expected, _ = pipeline.encode_prompt(
        prompts, max_sequence_length=model.base.text_tokens, text_encoder_out_layers=model.base.text_layers
    )
    assert torch.allclose(encoding["text"], expected, atol=1e-6)


def test_end_that_is_not_read_is_told(model):
    """Of a long prompt the end that is cut off is named; a short prompt is read whole."""
    assert model.cut_off("a pear") == ""
    assert model.cut_off("a red apple in the style of TOK") == "style of TOK"


@pytest.mark.parametrize("size", [(64, 64), (48, 32)])
def test_network_is_given_what_the_pipeline_gives_it(model, pipeline, size):
    """Tokens, ids, time and text are equal at every step, with the prompt and without it."""
    with fakes.handed_over(model.transformer) as expected:
        drawn_by(pipeline, model, "a pear", size)

    with fakes.handed_over(model.transformer) as given:
        drawn(model, ["a pear"], size)

    in_their_order = [row for pair in zip(given[1::2], given[::2], strict=True) for row in pair]
    assert len(given) == 2 * model.base.sampler.steps
    fakes.assert_same_rows(in_their_order, expected, {"encoder_hidden_states", "img_ids", "txt_ids"})


@pytest.mark.parametrize("size", [(64, 64), (48, 32)])
def test_pictures_are_those_of_the_pipeline(model, pipeline, size):
    """The same prompts, seed, steps and guidance give the same pictures as diffusers, to 1/255."""
    prompts = ["a pear", "two plums"]

    ours = drawn(model, prompts, size)

    for prompt, image in zip(prompts, ours, strict=True):
        assert image.size == size
        assert numpy.asarray(image).std() > 20, "a flat picture would prove nothing"
        assert preview.difference(image, drawn_by(pipeline, model, prompt, size)) <= 1


def test_demo_base_is_described_by_its_own_record():
    """The folder of the demo base gives the demo base; its record has the architecture that its files have."""
    family = registry.families()["flux2-klein"]

    record = family.describe(settings.read().demo_base)

    assert record == registry.base_model("demo")
    assert record.architecture == family.bases[-1].architecture != {}


def test_copy_of_the_demo_base_keeps_its_text_settings(tmp_path):
    """A base of the demo's architecture somewhere else is read with the demo's text layers and length."""
    for name in ("model_index.json", "transformer/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(Path(settings.DEMO_BASE, name).read_bytes())

    record = registry.families()["flux2-klein"].describe(tmp_path)

    demo = registry.base_model("demo")
    assert (record.id, record.title) == (str(tmp_path), tmp_path.name)
    assert (record.text_layers, record.text_tokens) == (demo.text_layers, demo.text_tokens)
