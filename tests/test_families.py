"""The contract of base-model families, on each family's toy model."""

import json
import re
from dataclasses import replace
from pathlib import Path

import fakes
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from finetune import extraction, formats, lora, preview, registry
from finetune.errors import ModelError
from finetune.inputs import FinetuneType
from finetune.memory import Fit

FAMILIES = registry.families()
BASES = [base for family in FAMILIES.values() for base in family.bases]
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
every_base = pytest.mark.parametrize("base", BASES, ids=lambda base: base.id)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each family's toy model as a folder, as base models are published: give the record by the family's id."""
    made = {}

    def save(family):
        if family.id not in made:
            made[family.id] = family.tiny().save(tmp_path_factory.mktemp(family.id) / "toy")
        return made[family.id]

    return save


def linear_layers(network):
    """The Linear layers of a network by name."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, torch.nn.Linear)}


def on_paper(base):
    """The network of a base model without weights."""
    kind = type(FAMILIES[base.family].tiny()).kinds()["transformer"]
    with torch.device("meta"):
        return kind(**base.architecture)


@every_base
def test_base_models_name_their_family(base):
    """Every record says where it is from, under which licence, and which family reads it."""
    assert base.family in FAMILIES
    assert base.source and base.licence and base.licence_url.startswith("https://")
    assert base.resolution_px % 16 == 0


def test_suggested_base_comes_first():
    """Of all bases that are fetched, the one that is suggested comes first, and it is free."""
    first = next(base for base in registry.base_models().values() if base.download_gib)

    assert first.is_commercial and not first.is_gated
    assert "suggested" in first.note


@every_family
def test_refused_models_have_a_base_to_take_instead(family):
    """Who asks for a distilled model is told why not, and which base to take."""
    for refused in family.refused:
        assert refused.reason
        assert refused.instead in {base.id for base in family.bases}
        assert refused.source not in {base.source for base in family.bases}


@every_base
def test_size_is_that_of_the_real_class(base):
    """Parameters, targeted weights and the LoRA's values are counted exactly, without building the network."""
    family, network = FAMILIES[base.family], on_paper(base)
    targeted = [layer for name, layer in linear_layers(network).items() if re.fullmatch(family.lora_targets, name)]

    size = family.size(base)

    assert size.parameters == sum(weight.numel() for weight in network.parameters())
    assert size.targeted == sum(layer.weight.numel() for layer in targeted)
    assert size.adapter_per_rank == sum(sum(layer.weight.shape) for layer in targeted)


@every_family
def test_kept_per_token_is_what_autograd_keeps(family):
    """The values kept for the backward pass grow with each token by what the size says, up to five percent.

    In 16 bits, with heads of 128, as in the real bases: the toy's tiny heads would show the norms' statistics.
    """
    model = family.tiny()
    wider = {"attention_head_dim": 128, "num_attention_heads": 1, "axes_dims_rope": real_axes(family)}
    base = replace(model.base, architecture={**model.base.architecture, **wider})
    model._parts["transformer"] = model.kinds()["transformer"](**base.architecture).bfloat16()
    encoding = model.encode_prompts(["a"])
    for weight in lora.add(model.transformer, family.lora_targets, rank=1, seed=0).values():
        weight.data = weight.data.bfloat16()

    few, many = (kept(model, encoding, side, times) for side, times in ((2, 1), (4, 4)))

    more_tokens = 16 - 4 + 3 * encoding["text"].shape[1]
    assert (many - few) / 2 / more_tokens == pytest.approx(family.size(base).kept_per_token, rel=0.05)


def real_axes(family):
    """How the real bases of a family share the 128 values of a head among the axes of positions."""
    network = on_paper(next(base for base in family.bases if base.resolution_px == 1024))
    return tuple(network.config.axes_dims_rope)


def kept(model, encoding, side, times):
    """Bytes kept by autograd, but for the network's own weights, for side x side latents and a text so many times."""
    longer = {**encoding, "text": encoding["text"].repeat(1, times, 1)}
    own = {weight.untyped_storage().data_ptr() for weight in model.transformer.parameters()}
    seen = {}

    def keep(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.predict_velocity(torch.randn(1, model.latent_channels, side, side), torch.tensor([0.5]), longer)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in seen.items() if place not in own)


@every_family
def test_targets_are_every_linear_layer_of_the_blocks_that_train(family):
    """LoRA goes to all Linear layers of the blocks, not to modulation, embedders and the last layer."""
    linear = linear_layers(family.tiny().transformer)

    targeted = set(lora.layers(family.tiny().transformer, family.lora_targets))

    in_blocks = {name for name in linear if re.search(r"blocks\.", name)}
    left_out = {name for name in in_blocks if ".norm" in name or "image_cond" in name}
    assert targeted == in_blocks - left_out
    assert targeted


@every_base
def test_published_names_cover_every_target_once(base):
    """Each layer that LoRA reaches belongs to exactly one layer of the published checkpoint."""
    family = FAMILIES[base.family]
    targets = [name for name in linear_layers(on_paper(base)) if re.fullmatch(family.lora_targets, name)]

    names = family.published_names(base)

    assert sorted(name for ours in names.values() for name in ours) == sorted(targets)


CONVERTERS = {"flux1": "flux", "flux2-klein": "flux2", "flux2-dev": "flux2", "flux3": "flux3"}


class Checkpoint(dict):
    """A published checkpoint: what a converter asks for besides the layers that matter here has any values."""

    def pop(self, key, *default):
        """Take a weight out."""
        return super().pop(key, torch.zeros(3 * 3072 + 12288))  # biases of the widest layer of FLUX.1


@every_family
def test_published_names_are_those_that_diffusers_converts(family):
    """A checkpoint with the published names, stacked as told, becomes our layers in diffusers' own converter."""
    from diffusers.loaders import single_file_utils

    convert = getattr(single_file_utils, f"convert_{CONVERTERS[family.id]}_transformer_checkpoint_to_diffusers")
    small = {**family.bases[0].architecture, "num_layers": 1, "num_single_layers": 1}
    layers = linear_layers(on_paper(replace(family.bases[0], architecture=small)))
    marked = {name: torch.full((layers[name].out_features, 1), float(n)) for n, name in enumerate(layers)}
    names = family.published_names(replace(family.bases[0], architecture=small))

    converted = convert(
        Checkpoint({f"{name}.weight": torch.cat([marked[layer] for layer in ours]) for name, ours in names.items()})
    )

    for layer in (name for ours in names.values() for name in ours):
        assert torch.equal(converted[f"{layer}.weight"], marked[layer]), layer


@every_family
def test_patch_is_known_before_a_model_is_loaded(family):
    """The page shows how pictures are cut without torch, by what the trainer cuts them by."""
    assert family.patch_px == family.tiny().patch_px


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
def test_guidance_matters_where_it_is_an_input(family):
    """A network into which guidance was distilled predicts another velocity with more of it; others ignore it."""
    model = family.tiny()
    noisy, t, text = torch.randn(1, model.latent_channels, 2, 2), torch.tensor([0.5]), model.encode_prompts(["a"])

    little, much = (model.predict_velocity(noisy, t, text, guidance) for guidance in (1.0, 4.0))

    assert torch.equal(little, much) != model.base.sampler.is_guidance_embedded


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


@every_base
def test_usage_is_python(base):
    """The lines that a user gets are valid Python, name the file and contain no path of this machine."""
    text = FAMILIES[base.family].usage(base, "x.safetensors", "a 'quoted' “pear”")

    compile(text, "usage", "exec")
    assert "x.safetensors" in text
    assert str(base.source) not in text or not base.source.startswith("/")
    assert base.distilled in text


@every_family
def test_saved_base_is_the_same_model(family, saved):
    """A base read from its folder predicts what the one in memory predicts."""
    base, toy = saved(family), family.tiny()
    model = family.load(base, Path(base.source), "cpu", Fit())
    noisy, t = torch.randn(1, model.latent_channels, 2, 2), torch.tensor([0.3])

    velocities = [it.predict_velocity(noisy, t, it.encode_prompts(["a pear"])) for it in (model, toy)]

    assert torch.allclose(*velocities, atol=1e-5)
    assert torch.equal(model.sampling_times((2, 2), 4), toy.sampling_times((2, 2), 4))


@every_family
def test_folder_is_described(family, saved):
    """A folder gives a record that loads it: its own name, its architecture, and no licence that nobody read."""
    base = saved(family)

    record = family.describe(Path(base.source))

    assert (record.id, record.source, record.title) == (base.source, base.source, "toy")
    assert record.architecture == base.architecture
    assert "unknown" in record.licence and not record.is_commercial
    assert json.loads(next(Path(base.source).glob("*index.json")).read_text())["_class_name"] in family.pipeline_classes


@pytest.mark.parametrize(
    ("id", "name", "change"),
    [
        ("flux1", "transformer/config.json", {"guidance_embeds": False}),
        ("flux2-klein", "model_index.json", {"is_distilled": True}),
        ("flux2-klein", "model_index.json", {"_class_name": "Flux2KleinKVPipeline"}),
        ("flux3", "transformer/config.json", {"flow_map": True}),
    ],
)
def test_folder_of_a_distilled_model_is_refused(id, name, change, saved, tmp_path):
    """A model that was distilled is refused with the reason and the base to take instead."""
    family = FAMILIES[id]
    source = Path(saved(family).source)
    for path in (*source.glob("*.json"), source / "transformer" / "config.json"):
        copy = tmp_path / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        values = json.loads(path.read_text())
        copy.write_text(json.dumps(values | change if copy == tmp_path / name else values))

    with pytest.raises(ModelError, match="distilled") as caught:
        family.describe(tmp_path)

    assert family.bases[0].title in caught.value.hint


@every_family
def test_folder_of_something_else_is_refused(family, tmp_path):
    """A folder without an index is an error that says what was looked for; so is another pipeline's, by its name."""
    with pytest.raises(ModelError, match="model_index.json"):
        family.describe(tmp_path)

    (tmp_path / "model_index.json").write_text('{"_class_name": "OtherPipeline"}')
    with pytest.raises(ModelError, match="OtherPipeline"):
        family.describe(tmp_path)


@every_family
def test_file_draws_what_the_model_in_memory_draws(family, saved, tmp_path):
    """A saved LoRA, loaded through the public pipeline, draws the trained model's picture and leaves no trace."""
    model, file = trained(family, saved(family), FinetuneType.LORA, tmp_path)
    pear, empty = model.encode_prompts(["a pear"]), model.encode_prompts([""])
    before = preview.draw(model, [pear], empty, 5, (32, 48), model.base.sampler)[0]

    drawn = model.draw_with_file(file, pear, empty, 5, (32, 48))

    assert preview.difference(drawn, before) <= 2
    assert preview.difference(preview.draw(model, [pear], empty, 5, (32, 48), model.base.sampler)[0], before) == 0
    model.transformer.disable_lora()
    assert preview.difference(preview.draw(model, [pear], empty, 5, (32, 48), model.base.sampler)[0], drawn) > 20


def test_extracted_file_draws_what_the_model_in_memory_draws(saved, tmp_path):
    """The same holds for a LoRA that is extracted from trained weights."""
    family = FAMILIES["flux2-klein"]
    model, file = trained(family, saved(family), FinetuneType.FULL, tmp_path)
    pear, empty = model.encode_prompts(["a pear"]), model.encode_prompts([""])

    drawn = model.draw_with_file(file, pear, empty, 5, (32, 48))

    assert preview.difference(drawn, preview.draw(model, [pear], empty, 5, (32, 48), model.base.sampler)[0]) <= 2


def trained(family, base, kind, folder):
    """A toy with every trained weight moved, and the LoRA file of it."""
    model = family.load(base, Path(base.source), "cpu", Fit())
    trainee = lora.prepare(model.transformer, family.lora_targets, kind, rank=16, seed=0)
    with torch.no_grad():
        for weight in trainee.parameters.values():
            weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    if kind is FinetuneType.FULL:
        weights = trainee.parameters
        state, _ = extraction.extract(model, trainee, lambda name: weights[name].detach(), {}, 16, fakes.ignore)
        lora.add(model.transformer, family.lora_targets, rank=16, seed=0)
        lora.load(model.transformer, state)
    config, about = fakes.config(finetune_type=kind), formats.About("0" * 32, pictures=4, steps=10)
    return model, formats.save(lora.state(model.transformer), folder, "x", config, base, about).diffusers


@every_family
def test_file_of_other_layers_is_refused(family, saved, tmp_path):
    """A LoRA with a layer that the base does not have is an error, not half a result."""
    base = saved(family)
    model = family.load(base, Path(base.source), "cpu", Fit())
    lora.add(model.transformer, family.lora_targets, rank=16, seed=0)
    foreign = {key.replace("blocks.0", "blocks.9"): value for key, value in lora.state(model.transformer).items()}
    save_file({f"transformer.{key}": tensor for key, tensor in foreign.items()}, tmp_path / "x.safetensors")
    pear, empty = model.encode_prompts(["a pear"]), model.encode_prompts([""])

    with pytest.raises(ModelError, match="x.safetensors"):
        model.draw_with_file(tmp_path / "x.safetensors", pear, empty, 5, (32, 32))

    assert list(model.transformer.peft_config) == ["default"]


def test_pictures_of_different_sizes_do_not_compare():
    """Comparing pictures of different sizes is a mistake, not a difference."""
    with pytest.raises(ValueError, match="different sizes"):
        preview.difference(Image.new("RGB", (8, 8)), Image.new("RGB", (16, 8)))
