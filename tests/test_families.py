"""The contract of base-model families, on each family's toy model, and FLUX.2 klein against diffusers' own code."""

import shutil
from pathlib import Path

import fakes
import numpy
import pytest
import torch
from PIL import Image

from finetune import formats, lora, parts, preview, registry
from finetune.errors import ModelError
from finetune.inputs import FinetuneType
from finetune.memory import Fit

FAMILIES = list(registry.families().values())
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.id)


@pytest.fixture(scope="module")
def klein():
    """A toy FLUX.2 klein."""
    return registry.families()["flux2-klein"].tiny()


@pytest.fixture(scope="module")
def pipeline(klein):
    """diffusers' own pipeline around the same parts."""
    from diffusers import Flux2KleinPipeline

    pipeline = Flux2KleinPipeline(**klein._parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def saved(klein, tmp_path_factory):
    """The toy FLUX.2 klein as a folder, as base models are kept."""
    return klein.save(tmp_path_factory.mktemp("base"))


@every_family
def test_base_models_name_their_family(family):
    """Every record says where it is from, under which licence, and which family reads it."""
    for base in family.bases:
        assert base.family == family.id
        assert base.source and base.licence and base.licence_url.startswith("https://")
        assert base.resolution_px % 16 == 0


@every_family
def test_latents_and_velocity_have_one_shape(family):
    """What goes into the network comes out of it in the same shape, for pictures of any aspect."""
    model = family.tiny()
    pixels = torch.zeros(2, 3, 2 * model.patch_px, 3 * model.patch_px)

    latents = model.encode_images(pixels)
    velocity = model.predict_velocity(latents, torch.tensor([0.1, 0.9]), model.encode_prompts(["a", "b"]))

    assert latents.shape == (2, model.latent_channels, 2, 3)
    assert velocity.shape == latents.shape
    assert model.decode_latents(latents).shape == pixels.shape


@every_family
def test_prompt_is_encoded_the_same_in_any_company(family):
    """A prompt's row does not depend on the prompts beside it."""
    model = family.tiny()

    alone, together = model.encode_prompts(["a pear"]), model.encode_prompts(["a very long prompt of words", "a pear"])

    for name in alone:
        assert torch.allclose(alone[name][0], together[name][1], atol=1e-5)


@every_family
def test_sampling_goes_from_noise_to_the_image(family):
    """Sampling times begin at 1, fall, and end at 0."""
    times = family.tiny().sampling_times((4, 4), 6)

    assert len(times) == 7
    assert times[0] == 1 and times[-1] == 0
    assert (times.diff() < 0).all()


@every_family
def test_gradients_reach_every_lora_layer(family):
    """No targeted layer is left out of what the loss reaches."""
    model = family.tiny()
    parameters = lora.add(model.transformer, family.lora_targets, rank=16, seed=0)

    noisy = torch.randn(1, model.latent_channels, 2, 2)
    model.predict_velocity(noisy, torch.tensor([0.5]), model.encode_prompts(["a"])).square().sum().backward()

    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        assert parameter.grad.any() == (".lora_B." in name), name


@every_family
def test_usage_is_python(family):
    """The lines that a user gets are valid Python, name the file and contain no path of this machine."""
    for base in family.bases:
        text = family.usage(base, "x.safetensors", "a 'quoted' “pear”")

        compile(text, "usage", "exec")
        assert "x.safetensors" in text
        assert str(base.source) not in text or not base.source.startswith("/")


def test_targets_are_every_linear_layer_of_the_blocks(klein):
    """LoRA goes to all Linear layers of the blocks, not to modulation, embedders and the last layer."""
    linear = {name for name, module in klein.transformer.named_modules() if isinstance(module, torch.nn.Linear)}

    targeted = set(lora.layers(klein.transformer, registry.families()["flux2-klein"].lora_targets))

    assert targeted == {name for name in linear if "transformer_blocks." in name}
    assert len(targeted) == 12 + 2 * 2


def test_klein_latents_are_those_of_the_pipeline(klein, pipeline):
    """Patches and whitening agree with diffusers, there and back."""
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1

    latents = klein.encode_images(pixels)

    with torch.no_grad():
        expected = pipeline._encode_vae_image(pixels, generator=None)
    assert torch.allclose(latents, expected, atol=1e-6)
    back = pipeline.vae.decode(pipeline.vae.encode(pixels).latent_dist.mode()).sample
    assert torch.allclose(klein.decode_latents(latents), back, atol=1e-4)


def test_klein_prompts_are_those_of_the_pipeline(klein, pipeline):
    """Template, padding, truncation and layers agree with diffusers."""
    prompts = ["a pear", "", "a prompt that is far too long to be read whole"]

    encoding = klein.encode_prompts(prompts)

    expected, _ = pipeline.encode_prompt(
        prompts, max_sequence_length=klein.base.text_tokens, text_encoder_out_layers=klein.base.text_layers
    )
    assert torch.allclose(encoding["text"], expected, atol=1e-6)


def test_klein_tells_what_it_does_not_read(klein):
    """Of a long prompt the end that is cut off is named; a short prompt is read whole."""
    assert klein.cut_off("a pear") == ""
    assert klein.cut_off("a red apple in the style of TOK") == "style of TOK"


@pytest.mark.parametrize("size", [(64, 64), (48, 32)])
def test_klein_draws_what_the_pipeline_draws(klein, pipeline, size):
    """The same prompt, seed, steps and guidance give the same picture as diffusers, to 1/255."""
    prompts = ["a pear", "two plums"]

    drawn = preview.draw(
        klein, [klein.encode_prompts([p]) for p in prompts], klein.encode_prompts([""]), 3, size, klein.base.sampler
    )

    for prompt, seed, image in zip(prompts, [3, 3], drawn, strict=True):
        expected = pipeline(
            prompt=prompt,
            width=size[0],
            height=size[1],
            num_inference_steps=klein.base.sampler.steps,
            guidance_scale=klein.base.sampler.guidance_scale,
            max_sequence_length=klein.base.text_tokens,
            text_encoder_out_layers=klein.base.text_layers,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        assert image.size == size
        assert numpy.asarray(image).std() > 20, "a flat picture would prove nothing"
        assert preview.difference(image, expected) <= 1


@pytest.mark.parametrize("kind", list(FinetuneType))
def test_file_draws_what_the_model_in_memory_draws(saved, tmp_path, kind):
    """A saved LoRA, loaded through the public pipeline, draws the trained model's picture."""
    family = registry.families()["flux2-klein"]
    model = family.load(saved, Path(saved.source), "cpu", Fit())
    trainee = lora.prepare(model.transformer, family.lora_targets, kind, rank=16, seed=0)
    with torch.no_grad():
        for weight in trainee.parameters.values():
            weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    result = trainee.finish()
    formats.save(result.state, tmp_path / "x.safetensors", fakes.config(finetune_type=kind), saved)

    drawn = model.draw_with_file(
        tmp_path / "x.safetensors", model.encode_prompts(["a pear"]), model.encode_prompts([""]), 5, (32, 48)
    )

    empty, pear = model.encode_prompts([""]), model.encode_prompts(["a pear"])
    assert preview.difference(drawn, preview.draw(model, [pear], empty, 5, (32, 48), saved.sampler)[0]) <= 2
    model.transformer.disable_lora()
    assert preview.difference(drawn, preview.draw(model, [pear], empty, 5, (32, 48), saved.sampler)[0]) > 20


def test_file_of_other_layers_is_refused(saved, tmp_path):
    """A LoRA with a layer that the base does not have is an error, not half a result."""
    family = registry.families()["flux2-klein"]
    model = family.load(saved, Path(saved.source), "cpu", Fit())
    lora.add(model.transformer, family.lora_targets, rank=16, seed=0)
    state = lora.state(model.transformer)
    foreign = {key.replace("blocks.0", "blocks.9"): value for key, value in state.items()}
    formats.save(foreign, tmp_path / "x.safetensors", fakes.config(), saved)

    with pytest.raises(ModelError, match="x.safetensors"):
        model.draw_with_file(
            tmp_path / "x.safetensors", model.encode_prompts(["a pear"]), model.encode_prompts([""]), 5, (32, 32)
        )


def test_missing_weights_are_an_error_in_words(saved, tmp_path):
    """A base model without its files says so and what to do."""
    model = registry.families()["flux2-klein"].load(saved, tmp_path / "nothing", "cpu", Fit())

    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        _ = model.transformer
    assert caught.value.hint


def test_saved_base_is_the_same_model(klein, saved):
    """A base read from its folder predicts what the one in memory predicts."""
    model = registry.families()["flux2-klein"].load(saved, Path(saved.source), "cpu", Fit())
    noisy, t = torch.randn(1, 16, 2, 2), torch.tensor([0.3])

    again = model.predict_velocity(noisy, t, model.encode_prompts(["a pear"]))

    assert torch.allclose(again, klein.predict_velocity(noisy, t, klein.encode_prompts(["a pear"])), atol=1e-5)


def test_released_part_is_loaded_again_when_needed(saved):
    """Freeing a part makes room, and costs a reload and nothing else."""
    model = registry.families()["flux2-klein"].load(saved, Path(saved.source), "cpu", Fit())
    before = model.encode_prompts(["a pear"])

    model.release("text", "vae")

    assert torch.allclose(model.encode_prompts(["a pear"])["text"], before["text"], atol=1e-6)


def test_pictures_of_different_sizes_do_not_compare():
    """Comparing pictures of different sizes is a mistake, not a difference."""
    with pytest.raises(ValueError, match="different sizes"):
        preview.difference(Image.new("RGB", (8, 8)), Image.new("RGB", (16, 8)))


def test_fingerprint_survives_a_copy_and_sees_a_new_name(saved, tmp_path):
    """A copied folder is the same, although its times are not; a renamed file is another one."""
    first, second = tmp_path / "a", tmp_path / "b"
    shutil.copytree(Path(saved.source, "vae"), first)
    shutil.copytree(first, second, copy_function=shutil.copyfile)
    assert parts.fingerprint(first) == parts.fingerprint(second) != ""

    (second / "config.json").rename(second / "other.json")

    assert parts.fingerprint(first) != parts.fingerprint(second)


def test_fingerprint_of_a_large_file_reads_blocks_from_all_over_it(tmp_path):
    """Other weights anywhere in a file of 100 MiB are seen, though not each byte is read."""
    path, size = tmp_path / "x.safetensors", 100 * 2**20
    with open(path, "wb") as file:
        file.truncate(size)
    seen = {parts.fingerprint(tmp_path)}

    for start in range(0, size, 10 * 2**20):
        with open(path, "r+b") as file:
            file.seek(start)
            file.write(bytes([1]) * 10 * 2**20)
        seen.add(parts.fingerprint(tmp_path))

    assert len(seen) == 11
