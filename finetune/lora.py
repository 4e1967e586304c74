"""Add LoRA layers to a network; extract a LoRA from a weight change.

What a finetune trains is a *trainee*: an `Adapter`, or `AllWeights` of the same layers. The trainer sees only its
parameters and its weight decay. `finish` ends both in the same way: the network holds its own weights and a LoRA,
which is exactly what the file will hold.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from finetune.inputs import FinetuneType

State = dict[str, Tensor]
"""LoRA tensors: "<layer>.lora_A.weight" (rank, in) and "<layer>.lora_B.weight" (out, rank)."""


@dataclass(frozen=True)
class Lora:
    """The LoRA that a finetune made. Its scale is always 1: alpha = rank, because programs disagree about alpha."""

    state: State
    energy: dict[str, float] = field(default_factory=dict)
    """By layer, how much of the squared weight change the LoRA holds; empty when a LoRA was trained."""
    captured_energy: float = 1.0
    """The same over all layers."""


class Trainee(Protocol):
    """What is trained."""

    parameters: dict[str, nn.Parameter]
    weight_decay: float

    def finish(self) -> Lora:
        """Leave the network with its own weights and the LoRA, and give the LoRA."""


class Adapter:
    """A LoRA is trained; the network's own weights stay as they are."""

    weight_decay = 1e-4  # pulls towards the base model

    def __init__(self, transformer: nn.Module, targets: str, rank: int, seed: int) -> None:
        self._transformer = transformer
        transformer.requires_grad_(False)
        self.parameters = add(transformer, targets, rank, seed)

    def finish(self) -> Lora:
        """Give the LoRA as it was trained."""
        return Lora(state(self._transformer))


class AllWeights:
    """The weights of all targeted layers are trained, and a LoRA is extracted from what changed.

    Norms, embedders and modulation stay frozen, so that the extraction loses nothing but rank.
    """

    weight_decay = 0.0  # would pull towards zero, away from the base model

    def __init__(self, transformer: nn.Module, targets: str, rank: int, seed: int) -> None:
        self._transformer, self._targets, self._rank, self._seed = transformer, targets, rank, seed
        transformer.requires_grad_(False)
        self.parameters = {name: transformer.get_submodule(name).weight for name in layers(transformer, targets)}
        self._before = {name: weight.detach().cpu().clone() for name, weight in self.parameters.items()}
        for weight in self.parameters.values():
            weight.requires_grad_(True)

    @torch.no_grad()
    def finish(self) -> Lora:
        """Extract the LoRA, put the network's own weights back and add the LoRA to them."""
        extracted = extract(self._before, self.parameters, self._rank)
        for name, weight in self.parameters.items():
            weight.requires_grad_(False).copy_(self._before[name])
        add(self._transformer, self._targets, self._rank, self._seed)
        load(self._transformer, extracted.state)
        return extracted


def prepare(transformer: nn.Module, targets: str, finetune_type: FinetuneType, rank: int, seed: int) -> Trainee:
    """Make a network ready to be trained; everything that is not trained is frozen."""
    kind = {FinetuneType.LORA: Adapter, FinetuneType.FULL: AllWeights}[finetune_type]
    return kind(transformer, targets, rank, seed)


def layers(transformer: nn.Module, targets: str) -> list[str]:
    """The names of the Linear layers that a pattern covers, in the network's order."""
    pattern = re.compile(targets)
    linear = (name for name, module in transformer.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linear if pattern.fullmatch(name)]


def add(transformer: nn.Module, targets: str, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Add LoRA layers that change nothing yet, and give their parameters; the seed alone decides where they start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    parameters = {name: weight for name, weight in transformer.named_parameters() if ".lora_" in name}
    for weight in parameters.values():
        weight.data = weight.data.float()  # whatever the network computes in: bfloat16 would round small steps away
    return parameters


def state(transformer: nn.Module) -> State:
    """A copy of the LoRA tensors in a network."""
    return {key: tensor.detach().cpu().clone() for key, tensor in get_peft_model_state_dict(transformer).items()}


def load(transformer: nn.Module, state: State) -> None:
    """Fill the LoRA layers of a network. Raises: KeyError when a tensor finds no layer or a layer no tensor."""
    if differing := set(get_peft_model_state_dict(transformer)) ^ set(state):
        raise KeyError(f"LoRA layers do not match: {', '.join(sorted(differing)[:3])}")
    set_peft_model_state_dict(transformer, dict(state))


@torch.no_grad()
def extract(before: Mapping[str, Tensor], after: Mapping[str, Tensor], rank: int) -> Lora:
    """Find the LoRA of that rank which is closest to a weight change, layer by layer.

    The singular values are shared evenly between the two factors. No values are clamped, unlike in other programs:
    that only adds error.
    Shapes: weights (out, in) by layer name.
    Source: Eckart and Young 1936: cutting off the singular value decomposition is the best approximation.
    """
    state, energy, kept, total = {}, {}, 0.0, 0.0
    for name, weight in after.items():
        change = weight.detach().float() - before[name].to(weight.device).float()
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        share = s[:rank].sqrt()
        state[f"{name}.lora_A.weight"] = _padded((share[:, None] * v[:rank]).cpu(), rank, 0)
        state[f"{name}.lora_B.weight"] = _padded((u[:, :rank] * share).cpu(), rank, 1)
        layer_kept, layer_total = s[:rank].square().sum().item(), s.square().sum().item()
        energy[name] = layer_kept / layer_total if layer_total else 1.0
        kept, total = kept + layer_kept, total + layer_total
    return Lora(state, energy, kept / total if total else 1.0)


def _padded(factor: Tensor, rank: int, dim: int) -> Tensor:
    """Fill up with zeros where a layer is smaller than the rank: files hold one rank for all layers."""
    missing = list(factor.shape)
    missing[dim] = rank - factor.shape[dim]
    return torch.cat([factor, factor.new_zeros(missing)], dim).contiguous()
