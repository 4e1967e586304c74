"""LoRA layers that add their part while it is multiplied, instead of in passes of its own over the whole output.

peft copies the input to the adapter's precision, multiplies the result by the scale and adds it, each in a pass that
the backward pass repeats; the scale is always 1 here. Separate from `lora.py`, because only the time differs.
"""

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import linear

OURS = "default"
"""The adapter that is trained. One that is loaded from a file to verify it is computed by peft itself."""


class QuickLinear(Linear):
    """peft's LoRA layer, quicker in the one case that training needs; all other cases are left to peft."""

    def forward(self, x: Tensor, *arguments: object, **named: object) -> Tensor:
        """Shapes: x (..., in); returns (..., out)."""
        if arguments or named or not self._is_plain(x):
            return super().forward(x, *arguments, **named)
        out = self.base_layer(x)
        low = linear(x, self.lora_A[OURS].weight)
        return torch.addmm(out.flatten(0, -2), low.flatten(0, -2), self.lora_B[OURS].weight.t()).view(out.shape)

    def _is_plain(self, x: Tensor) -> bool:
        if self.disable_adapters or self.merged or self.active_adapters != [OURS]:
            return False
        is_one_precision = x.dtype == self.lora_A[OURS].weight.dtype or torch.is_autocast_enabled(x.device.type)
        is_bare = isinstance(self.lora_dropout[OURS], nn.Identity) and OURS not in self.lora_variant
        return is_one_precision and is_bare and self.scaling[OURS] == 1.0 and not self.lora_bias[OURS]


def quicken(network: nn.Module) -> None:
    """Make the LoRA layers of a network quick, in place; those around quantised layers stay as they are."""
    for module in network.modules():
        if type(module) is Linear:
            module.__class__ = QuickLinear
