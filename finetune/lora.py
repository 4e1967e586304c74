"""Add LoRA layers to a network, and choose what is trained.

What a finetune trains is a *trainee*: an `Adapter`, or `AllWeights` of the same layers. The trainer sees only its
parameters and its weight decay. How a LoRA comes out of all weights is told in `extraction.py`.
"""

import re
from typing import Protocol

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from finetune import adapters
from finetune.inputs import FinetuneType

State = dict[str, Tensor]
"""LoRA tensors: "<layer>.lora_A.weight" (rank, in) and "<layer>.lora_B.weight" (out, rank). The scale is always 1:
alpha = rank, because programs disagree about alpha."""


class Trainee(Protocol):
    """What is trained."""

    parameters: dict[str, nn.Parameter]
    weight_decay: float


class Adapter:
    """A LoRA is trained; the network's own weights stay as they are."""

    weight_decay = 1e-4  # pulls towards the base model

    def __init__(self, transformer: nn.Module, targets: str, rank: int, seed: int) -> None:
        transformer.requires_grad_(False)
        self.parameters = add(transformer, targets, rank, seed)


class AllWeights:
    """The weights of all targeted layers are trained. Norms, embedders and modulation stay frozen.

    What the base had there is not kept in memory: it is still in the base's files.
    """

    weight_decay = 0.0  # would pull towards zero, away from the base model

    def __init__(self, transformer: nn.Module, targets: str, rounding: str = "float32") -> None:
        """Raises: ValueError for weights that are quantised."""
        self.targets = targets
        transformer.requires_grad_(False)
        self.parameters = {name: transformer.get_submodule(name).weight for name in layers(transformer, targets)}
        self._dtypes = {name: weight.dtype for name, weight in self.parameters.items()}
        for name, weight in self.parameters.items():
            if not weight.is_floating_point():
                raise ValueError(f"a quantised weight cannot be trained: {name}")
            if rounding == "float32":  # masters; on a GPU, autocast computes with 16-bit copies of them
                weight.data = weight.data.float()
            weight.requires_grad_(True)

    def as_loaded(self, name: str, original: Tensor) -> Tensor:
        """A weight of the base's files as it was in the network before training."""
        return original.to(self.parameters[name].device, self._dtypes[name])

    def put_back(self, name: str, original: Tensor) -> None:
        """Freeze a layer with a weight of the base's files."""
        weight = self.parameters[name]
        weight.requires_grad_(False)
        weight.data = self.as_loaded(name, original)


def prepare(
    transformer: nn.Module, targets: str, finetune_type: FinetuneType, rank: int, seed: int, rounding: str = "float32"
) -> Trainee:
    """Make a network ready to be trained; everything that is not trained is frozen."""
    if finetune_type is FinetuneType.FULL:
        return AllWeights(transformer, targets, rounding)
    return Adapter(transformer, targets, rank, seed)


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
    adapters.quicken(transformer)
    parameters = {name: weight for name, weight in transformer.named_parameters() if ".lora_" in name}
    for weight in parameters.values():
        weight.data = weight.data.float()  # whatever the network computes in: bfloat16 would round small steps away
    return parameters


def remove(transformer: nn.Module) -> None:
    """Take the LoRA layers out of a network's layers again."""
    if getattr(transformer, "peft_config", None):
        transformer.delete_adapters(list(transformer.peft_config))


def strengthen(transformer: nn.Module, strength: float) -> None:
    """Count a network's LoRA so many times: 0 leaves exactly what the base computes, 1 is what was trained."""
    transformer.enable_lora() if strength else transformer.disable_lora()
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            module.set_scale(adapters.OURS, strength)


def state(transformer: nn.Module) -> State:
    """A copy of the LoRA tensors in a network."""
    return {key: tensor.detach().cpu().clone() for key, tensor in get_peft_model_state_dict(transformer).items()}


def load(transformer: nn.Module, state: State) -> None:
    """Fill the LoRA layers of a network. Raises: KeyError when a tensor finds no layer or a layer no tensor."""
    if differing := set(get_peft_model_state_dict(transformer)) ^ set(state):
        raise KeyError(f"LoRA layers do not match: {', '.join(sorted(differing)[:3])}")
    set_peft_model_state_dict(transformer, dict(state))
