"""Quick LoRA layers compute what peft's own do, and leave to peft what they are not made for."""

import fakes
import pytest
import torch
from peft.tuners.lora import Linear

from finetune import lora, registry


def _layer():
    """A LoRA layer of a toy network, with effect."""
    network = fakes.tiny_model().transformer
    lora.add(network, registry.families()[fakes.FAMILY].lora_targets, 16, seed=0)
    layer = network.single_transformer_blocks[0].attn.to_out
    layer.lora_B["default"].weight.data.normal_(generator=torch.Generator().manual_seed(1))
    return layer


def _input(layer):
    shape = (2, 3, layer.in_features)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).requires_grad_()


def _gradients(layer, forward):
    x = _input(layer)
    forward(x).square().sum().backward()
    found = [x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad]
    layer.zero_grad()
    return [gradient.clone() for gradient in found]


def test_quick_layer_computes_what_peft_computes():
    """The output and all gradients equal those of peft's layer within float32 rounding."""
    layer = _layer()
    x = _input(layer)

    torch.testing.assert_close(layer(x), Linear.forward(layer, x))

    for ours, theirs in zip(
        _gradients(layer, layer), _gradients(layer, lambda x: Linear.forward(layer, x)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("change", ["off", "half", "second"])
def test_what_is_not_plain_is_left_to_peft(change):
    """Switched off, scaled, or with another adapter active, the layer gives exactly what peft gives."""
    layer = _layer()
    before = layer(_input(layer))
    if change == "off":
        layer.enable_adapters(False)
    elif change == "half":
        layer.scaling["default"] = 0.5
    else:
        layer.update_layer("second", r=4, lora_alpha=4, config=lora.LoraConfig(r=4))
        layer.set_adapter("second")

    x = _input(layer)

    assert torch.equal(layer(x), Linear.forward(layer, x))
    assert not torch.allclose(layer(x), before)


def test_quick_layers_train_in_the_precision_of_the_network():
    """Where the network computes in 16 bits, the layer gives 16 bits and its own weights keep their 32."""
    layer = _layer()
    layer.base_layer.bfloat16()

    with torch.autocast("cpu", torch.bfloat16):
        out = layer(_input(layer).bfloat16())

    assert out.dtype == torch.bfloat16
    assert layer.lora_A["default"].weight.dtype == torch.float32
