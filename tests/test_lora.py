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


def test_extraction_finds_a_change_of_low_rank_exactly():
    """A change that is itself of the rank comes back whole, with its energy captured to the last bit."""
    before = {"layer": torch.randn(40, 30)}
    change = torch.randn(40, 4) @ torch.randn(4, 30)

    found = lora.extract(before, {"layer": before["layer"] + change}, rank=4)

    product = found.state["layer.lora_B.weight"] @ found.state["layer.lora_A.weight"]
    assert torch.allclose(product, change, atol=1e-4)
    assert found.energy["layer"] == pytest.approx(1.0, abs=1e-6)


def test_extraction_is_the_best_approximation():
    """The error of a cut extraction is the energy of the singular values that were cut off."""
    before, change = {"layer": torch.randn(40, 30)}, torch.randn(40, 30)

    found = lora.extract(before, {"layer": before["layer"] + change}, rank=8)

    values = torch.linalg.svdvals(change).square()
    product = found.state["layer.lora_B.weight"] @ found.state["layer.lora_A.weight"]
    assert (change - product).square().sum().item() == pytest.approx(values[8:].sum().item(), rel=1e-3)
    assert found.captured_energy == pytest.approx((values[:8].sum() / values.sum()).item(), rel=1e-3)


def test_extracted_factors_are_balanced():
    """Both factors of an extraction have the same size, so that neither loses precision when stored."""
    found = lora.extract({"layer": torch.zeros(40, 30)}, {"layer": torch.randn(40, 30)}, rank=8)

    norms = [found.state[f"layer.lora_{factor}.weight"].norm().item() for factor in "AB"]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_layer_smaller_than_the_rank_is_filled_up():
    """A layer with fewer rows than the rank still gets factors of that rank."""
    change = torch.randn(8, 30)

    found = lora.extract({"layer": torch.zeros(8, 30)}, {"layer": change}, rank=16)

    a, b = found.state["layer.lora_A.weight"], found.state["layer.lora_B.weight"]
    assert (a.shape, b.shape) == ((16, 30), (8, 16))
    assert torch.allclose(b @ a, change, atol=1e-4)


def test_finished_full_is_the_base_with_the_extracted_lora():
    """When a full finetune ends, the network is as before, plus a LoRA that does nearly what training did."""
    model = fakes.tiny_model()
    before = _velocity(model)
    trainee = lora.prepare(model.transformer, TARGETS, FinetuneType.FULL, rank=16, seed=0)
    with torch.no_grad():
        for number, weight in enumerate(trainee.parameters.values()):
            rows, columns = weight.shape
            draw = torch.Generator().manual_seed(number)
            weight += 0.05 * torch.randn(rows, 4, generator=draw) @ torch.randn(4, columns, generator=draw)
    trained = _velocity(model)

    result = trainee.finish()

    assert torch.allclose(_velocity(model), trained, atol=1e-4)
    model.transformer.disable_lora()
    assert torch.equal(_velocity(model), before)
    assert len(result.energy) == 16
    assert result.captured_energy > 0.999


def test_state_of_other_layers_is_refused():
    """A LoRA whose layers are not those of the network is an error, not silently ignored."""
    transformer = fakes.tiny_model().transformer
    lora.add(transformer, TARGETS, rank=16, seed=0)

    with pytest.raises(KeyError, match="elsewhere"):
        lora.load(transformer, {**lora.state(transformer), "elsewhere.lora_A.weight": torch.zeros(1)})
