"""Adding LoRA layers and extracting them, on a tiny transformer and against plain algebra."""

import fakes
import pytest
import torch

from finetune import lora, registry
from finetune.inputs import FinetuneType

TARGETS = registry.families()[fakes.FAMILY].lora_targets


def _velocity(model):
    noisy = torch.randn(1, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.predict_velocity(noisy, torch.tensor([0.5]), model.encode_prompts(["a pear"]))


def test_new_adapter_changes_nothing():
    """Before the first step, the model with LoRA predicts what it predicted without."""
    model = fakes.tiny_model()
    before = _velocity(model)

    lora.add(model.transformer, TARGETS, rank=16, seed=0)

    assert torch.equal(_velocity(model), before)


def test_adapter_starts_by_its_seed_alone():
    """The global generator's state has no influence, and is left as it was."""
    first, second, other = fakes.tiny_model(), fakes.tiny_model(), fakes.tiny_model()
    torch.manual_seed(1)
    expected = torch.rand(1)

    torch.manual_seed(1)
    lora.add(first.transformer, TARGETS, rank=16, seed=5)
    seen = torch.rand(1)
    lora.add(second.transformer, TARGETS, rank=16, seed=5)
    lora.add(other.transformer, TARGETS, rank=16, seed=6)

    states = [lora.state(model.transformer) for model in (first, second, other)]
    assert torch.equal(seen, expected)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_only_the_adapter_is_trained():
    """With a LoRA, exactly the two factors of each targeted layer take gradients."""
    transformer = fakes.tiny_model().transformer

    trainee = lora.prepare(transformer, TARGETS, FinetuneType.LORA, rank=16, seed=0)

    moving = {name for name, weight in transformer.named_parameters() if weight.requires_grad}
    assert moving == set(trainee.parameters)
    assert len(moving) == 2 * 16
    assert all(".lora_A." in name or ".lora_B." in name for name in moving)


def test_full_trains_the_same_layers():
    """A full finetune trains the weights of the layers that a LoRA would touch, and nothing else."""
    transformer = fakes.tiny_model().transformer

    trainee = lora.prepare(transformer, TARGETS, FinetuneType.FULL, rank=16, seed=0)

    moving = {name for name, weight in transformer.named_parameters() if weight.requires_grad}
    assert moving == {f"{name}.weight" for name in lora.layers(transformer, TARGETS)}
    assert len(trainee.parameters) == 16


@pytest.mark.parametrize(("rounding", "kept"), [("float32", torch.float32), ("kahan", torch.bfloat16)])
def test_full_trains_masters_or_rounded_weights(rounding, kept):
    """On a 16-bit base, trained weights become float32 or stay as they are; the others stay in any case."""
    transformer = fakes.tiny_model().transformer.bfloat16()

    trainee = lora.prepare(transformer, TARGETS, FinetuneType.FULL, rank=16, seed=0, rounding=rounding)

    assert {weight.dtype for weight in trainee.parameters.values()} == {kept}
    others = {weight.dtype for weight in transformer.parameters() if not weight.requires_grad}
    assert others == {torch.bfloat16}


@pytest.mark.parametrize("rounding", ["float32", "kahan"])
def test_weights_are_put_back_as_they_were_loaded(rounding):
    """A layer gets the weight of the base's files in the precision of the network, bit for bit, and is frozen."""
    in_files = fakes.tiny_model().transformer
    transformer = fakes.tiny_model().transformer.bfloat16()
    before = {name: weight.clone() for name, weight in transformer.state_dict().items()}
    trainee = lora.AllWeights(transformer, TARGETS, rounding)
    with torch.no_grad():
        for weight in trainee.parameters.values():
            weight.add_(1.0)

    for name in trainee.parameters:
        trainee.put_back(name, in_files.get_submodule(name).weight.detach())

    after = transformer.state_dict()
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert not any(weight.requires_grad for weight in transformer.parameters())


def test_quantised_weights_cannot_be_trained():
    """A weight of whole numbers has no gradient: that is a mistake in the plan, and said."""
    transformer = torch.nn.ModuleDict({"layer": torch.nn.Linear(4, 4)})
    transformer["layer"].weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)

    with pytest.raises(ValueError, match="quantised"):
        lora.AllWeights(transformer, "layer")


def test_state_of_other_layers_is_refused():
    """A LoRA whose layers are not those of the network is an error, not silently ignored."""
    transformer = fakes.tiny_model().transformer
    lora.add(transformer, TARGETS, rank=16, seed=0)

    with pytest.raises(KeyError, match="elsewhere"):
        lora.load(transformer, {**lora.state(transformer), "elsewhere.lora_A.weight": torch.zeros(1)})


def _changed(model, rank=16):
    """A toy with a LoRA that changes much."""
    for weight in lora.add(model.transformer, TARGETS, rank, seed=0).values():
        weight.data += 0.1
    return model


def test_strength_multiplies_what_the_adapter_adds():
    """Each layer adds so many times what was trained; at 0 the base's own output is left, to the last bit."""
    model = fakes.tiny_model()
    base = _velocity(model)
    _changed(model)
    layer = model.transformer.get_submodule(lora.layers(fakes.tiny_model().transformer, TARGETS)[0])
    inputs = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))

    def added(strength):
        lora.strengthen(model.transformer, strength)
        with torch.no_grad():
            return layer(inputs) - layer.base_layer(inputs)

    whole = added(1.0)
    for strength in (0.5, 2.0, 1.0):
        assert torch.allclose(added(strength), strength * whole, atol=1e-5)
    lora.strengthen(model.transformer, 0.0)
    assert torch.equal(_velocity(model), base)
    assert whole.abs().max() > 0.1


def test_adapter_that_is_removed_makes_room_for_another():
    """What is left is the base, and an adapter of another rank can be added."""
    model = fakes.tiny_model()
    base = _velocity(model)
    _changed(model)

    lora.remove(model.transformer)
    lora.remove(model.transformer)

    assert torch.equal(_velocity(model), base)
    assert not torch.equal(_velocity(_changed(model, 32)), base)
    assert {value.shape[0] for key, value in lora.state(model.transformer).items() if "lora_A" in key} == {32}
