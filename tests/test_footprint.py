"""Less memory, the same result: recomputed activations, packed weights, weights that wait elsewhere."""

import sys
from dataclasses import replace

import fakes
import pytest
import torch
from small_card import small_card
from torch import nn

from finetune import flow, footprint, formats, lora, preview, registry
from finetune.errors import FinetuneError
from finetune.memory import Fit

PLAIN = Fit(weight_bits=32)


def _placed(fit):
    """The toy model, its transformer placed as a fit says, with LoRA layers that do something."""
    model = fakes.tiny_model()
    footprint.place(model.transformer, fit, "cpu")
    return model, _adapter(model, fit)


def _adapter(model, fit):
    parameters = lora.add(model.transformer, registry.families()[fakes.FAMILY].lora_targets, 4, seed=0)
    generator = torch.Generator().manual_seed(1)
    for weight in parameters.values():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    footprint.apply(model.transformer, fit)
    return parameters


def _loss(model, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    latents, noise = (torch.randn(batch, model.latent_channels, 4, 4, generator=generator) for _ in range(2))
    t = torch.full((batch,), 0.6)
    text = {name: rows.expand(batch, -1, -1) for name, rows in model.encode_prompts(["a pear"]).items()}
    return flow.loss(model.predict_velocity(flow.noise_latents(latents, noise, t), t, text), latents, noise)


def _learned(fit):
    """The loss and the gradients of all LoRA layers."""
    model, parameters = _placed(fit)
    loss = _loss(model)
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in parameters.items()}


@pytest.mark.parametrize(
    "fit",
    [
        replace(PLAIN, recomputed=0.5),
        replace(PLAIN, recomputed=1.0),
        replace(PLAIN, is_offloaded=True),
        replace(PLAIN, is_offloaded=True, recomputed=0.5),
    ],
    ids=["half recomputed", "all recomputed", "offloaded", "offloaded and half recomputed"],
)
def test_less_memory_gives_the_same_gradients(fit):
    """Recomputed activations and waiting weights change neither the loss nor one gradient by one bit."""
    loss, gradients = _learned(PLAIN)

    other_loss, other = _learned(fit)

    assert torch.equal(loss, other_loss)
    assert all(torch.equal(gradient, other[name]) for name, gradient in gradients.items())


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_weights_that_wait_give_the_same_gradients(bits):
    """Where packed weights are between two uses makes no difference."""
    loss, gradients = _learned(replace(PLAIN, weight_bits=bits))

    other_loss, other = _learned(replace(PLAIN, weight_bits=bits, is_offloaded=True, recomputed=1.0))

    assert torch.equal(loss, other_loss)
    assert all(torch.equal(gradient, other[name]) for name, gradient in gradients.items())


@pytest.mark.parametrize(("bits", "at_most"), [(8, 0.01), (4, 0.12)])
def test_packed_weights_are_near(bits, at_most):
    """Eight bits change a product by less than 1 %, four by less than 12 %."""
    torch.manual_seed(0)
    linear, inputs = nn.Linear(256, 128), torch.randn(32, 256)
    linear.requires_grad_(False)

    packed = footprint.Stored(linear, replace(PLAIN, weight_bits=bits), "cpu")(inputs)

    exact = linear(inputs) - linear.bias
    assert 0 < (packed - linear(inputs)).norm() / exact.norm() < at_most


@pytest.mark.parametrize(("bits", "bytes_per_value"), [(8, 1 + 4 / 64), (4, 0.5 + 4 / 64)])
def test_packed_weights_take_as_little_as_planned(bits, bytes_per_value):
    """A packed value takes its bits and its share of a scale."""
    stored = footprint.Packed.pack(torch.randn(256, 128), bits)

    assert stored.values.nbytes + stored.state.absmax.nbytes == bytes_per_value * 256 * 128


@pytest.mark.parametrize("bits", [8, 4])
def test_lora_learns_through_packed_weights(bits):
    """Gradients reach every LoRA layer through 8-bit and 4-bit weights, and the loss falls."""
    model, parameters = _placed(replace(PLAIN, weight_bits=bits, recomputed=1.0))
    optimiser = torch.optim.AdamW(parameters.values(), lr=5e-2)
    losses = []

    for _ in range(15):
        losses.append(_loss(model))
        losses[-1].backward()
        assert all(weight.grad.abs().sum() > 0 for weight in parameters.values())
        optimiser.step()
        optimiser.zero_grad()

    assert losses[-1] < 0.8 * losses[0]


def test_only_blocks_are_packed():
    """Embedders, modulation and the final layer keep their precision."""
    model, _ = _placed(replace(PLAIN, weight_bits=8))

    stored = [name for name, module in model.transformer.named_modules() if isinstance(module, footprint.Stored)]

    assert all("transformer_blocks." in name for name in stored)
    assert len(stored) == len(_placed(PLAIN)[1]) // 2


def test_nothing_of_a_stored_weight_is_kept():
    """Between forward and backward pass, autograd holds no weight of a layer whose weight is stored."""
    linear = nn.Linear(64, 64, bias=False).requires_grad_(False)
    inputs = torch.randn(2, 64, requires_grad=True)
    stored = footprint.Stored(linear, replace(PLAIN, weight_bits=8), "cpu")
    kept = footprint.Kept(nn.Identity())

    with kept.counting():
        output = stored(inputs)

    output.sum().backward()
    assert kept.peak == 0
    assert torch.allclose(inputs.grad, stored.weight.sum(0).expand(2, -1), atol=1e-6)


def test_mixed_precision_gives_the_same_gradients():
    """Under autocast, as on a GPU, a waiting 16-bit weight gives a Linear layer's gradients."""
    torch.manual_seed(0)
    linear = nn.Linear(32, 16).bfloat16().requires_grad_(False)
    stored = footprint.Stored(linear, Fit(weight_bits=16, is_offloaded=True), "cpu")
    found = []

    for layer in (linear, stored):
        inputs = torch.linspace(-1, 1, 2 * 32).view(2, 32).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(inputs)
        output.float().square().sum().backward()
        found.append((output, inputs.grad))

    assert found[0][0].dtype == found[1][0].dtype == torch.bfloat16
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("fit", [Fit(weight_bits=8), Fit(weight_bits=32, is_offloaded=True)], ids=["8 bits", "waiting"])
def test_base_is_loaded_as_its_fit_says(fit, tmp_path):
    """A base model from a folder has its weights stored, and draws through its LoRA file what the trainer draws."""
    base = fakes.tiny_model().save(tmp_path / "base")
    model = registry.families()[fakes.FAMILY].load(base, tmp_path / "base", "cpu", fit)
    _adapter(model, fit)
    about = formats.About("0" * 32, pictures=4, steps=10)
    formats.save(lora.state(model.transformer), tmp_path, "x", fakes.config(lora_rank=4), base, about)
    prompt, empty = model.encode_prompts(["a pear"]), model.encode_prompts([""])

    drawn = preview.draw(model, [prompt], empty, 3, (32, 32), base.sampler)[0]
    through_file = model.draw_with_file(tmp_path / "x.safetensors", prompt, empty, 3, (32, 32))

    assert any(isinstance(module, footprint.Stored) for module in model.transformer.modules())
    assert preview.difference(drawn, through_file) <= 1


def test_missing_library_is_told(monkeypatch):
    """Without bitsandbytes, the error says what to install."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)

    with pytest.raises(FinetuneError) as error:
        footprint.Packed.pack(torch.zeros(2, 64), 8)

    assert "pip install bitsandbytes" in error.value.hint


def test_more_recomputation_keeps_less():
    """Each share of recomputed blocks keeps less than the one before."""
    kept = []
    for share in (0.0, 0.5, 1.0):
        model, _ = _placed(replace(PLAIN, recomputed=share))
        weights = sum(weight.nbytes for weight in model.transformer.parameters())
        kept.append(footprint.probe(lambda model=model: _loss(model).backward(), model.transformer, "cpu") - weights)

    assert kept[0] > 1.2 * kept[1] > 1.4 * kept[2] > 0


def test_kept_memory_is_let_go():
    """After the backward pass nothing is counted as kept, and every piece of memory was counted once."""
    model, _ = _placed(PLAIN)
    kept = footprint.Kept(model.transformer)

    with kept.counting():
        _loss(model).backward()

    assert kept.peak > 0
    assert kept.now == 0


def test_small_card_runs_out_unless_blocks_are_recomputed():
    """The test device has room for what a forward pass keeps when blocks are recomputed, and else has not."""
    model, _ = _placed(replace(PLAIN, recomputed=1.0))
    with small_card(model.transformer, 2**40) as card:
        _loss(model).backward()

    with small_card(model.transformer, card.peak):
        _loss(model).backward()
    footprint.apply(model.transformer, PLAIN)
    with pytest.raises(torch.OutOfMemoryError), small_card(model.transformer, card.peak):
        _loss(model).backward()
