"""Make a network take less memory, as a Fit says: recomputed activations, weights that are packed into fewer bits or
wait in the processor's memory. And count what it takes.

Packed and waiting weights go through one kind of layer, `Stored`. The layers that libraries offer for this keep more
than they save while training: bitsandbytes' 8-bit layer holds on to its inputs where recomputation should have freed
them, torchao's keeps every weight unpacked until the backward pass. So bitsandbytes only packs and unpacks here.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from finetune.errors import FinetuneError
from finetune.memory import PACKED_BLOCK, Fit

if TYPE_CHECKING:
    from types import ModuleType

BITSANDBYTES = "bitsandbytes==0.50.2"


def place(transformer: nn.Module, fit: Fit, device: str) -> nn.Module:
    """Move a transformer that was just loaded to its device, the weights of its blocks packed or left behind.

    Raises: FinetuneError when the library that packs is missing.
    """
    if fit.weight_bits < 16 or fit.is_offloaded:
        for block in blocks(transformer):
            for parent in block.modules():
                for name, child in list(parent.named_children()):
                    if type(child) is nn.Linear:
                        setattr(parent, name, Stored(child, fit, device))
    return transformer.to(device)


def apply(transformer: nn.Module, fit: Fit) -> None:
    """Let a network compute the activations of a share of its blocks, evenly spread, again in the backward pass."""
    if not fit.recomputed:
        transformer.disable_gradient_checkpointing()
        return
    chosen = {
        id(block)
        for number, block in enumerate(blocks(transformer))
        if int((number + 1) * fit.recomputed) > int(number * fit.recomputed)
    }

    def run(block: nn.Module, *inputs: Any) -> Any:
        if id(block) not in chosen:
            return block(*inputs)
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # nothing here is random

    transformer.enable_gradient_checkpointing(run)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks that a network repeats, in its order."""
    kinds = set(network._repeated_blocks)
    return [module for module in network.modules() if type(module).__name__ in kinds]


class Stored(nn.Linear):
    """A frozen Linear layer whose weight is packed, or waits in the processor's memory.

    The weight is made ready whenever the layer computes, in the forward pass and again in the backward pass, so that no
    more than one such weight is there at a time. Loss and gradients are those of a Linear layer with that weight.
    """

    def __init__(self, linear: nn.Linear, fit: Fit, device: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        weight = linear.weight.detach()
        packed = Packed.pack(weight.to(device), fit.weight_bits) if fit.weight_bits < 16 else Packed(weight, None)
        self._device = torch.device(device)
        self._stored = packed.waiting(self._device) if fit.is_offloaded else packed

    @property
    def weight(self) -> Tensor:
        """The weight as it computes, made ready anew each time."""
        return self._stored.on(self._device).unpacked()

    def forward(self, inputs: Tensor) -> Tensor:
        """Shapes: (..., in) to (..., out)."""
        return _Frozen.apply(inputs, self.bias, self)


class _Frozen(torch.autograd.Function):
    """A product with a weight that is not kept for the backward pass, but made ready again."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, bias: Tensor | None, layer: Stored) -> Tensor:
        ctx.layer = layer
        return functional.linear(inputs, layer.weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ ctx.layer.weight.to(gradient.dtype), None, None


@dataclass(frozen=True)
class Packed:
    """A weight in few bits, or as it was where `state` is None."""

    values: Tensor
    state: Any

    @classmethod
    def pack(cls, weight: Tensor, bits: int) -> "Packed":
        """Pack a weight into 8 or 4 bits a value and a scale for each block of values.

        8 bits are evenly spaced levels: on normally distributed weights they err by 0.6 %, the library's default
        levels by 0.95 %. 4 bits are NF4, 9 %. Source: Dettmers et al. 2023, "QLoRA" (arXiv 2305.14314).
        """
        library = _packer()
        if bits == 4:
            return cls(*library.quantize_4bit(weight, blocksize=PACKED_BLOCK, quant_type="nf4"))
        levels = library.create_linear_map(True, 8).to(weight.device)
        return cls(*library.quantize_blockwise(weight, code=levels, blocksize=PACKED_BLOCK))

    def on(self, device: torch.device) -> "Packed":
        """The same on a device."""
        if self.values.device == device:
            return self
        return Packed(self.values.to(device, non_blocking=True), _moved(self.state, device))

    def waiting(self, device: torch.device) -> "Packed":
        """The same in the processor's memory, from where it is quickly copied to a GPU."""
        here = self.on(torch.device("cpu"))
        if device.type == "cpu":
            return here
        if here.state is not None:
            here.state.absmax = here.state.absmax.pin_memory()
        return Packed(here.values.pin_memory(), here.state)

    def unpacked(self) -> Tensor:
        """The weight in the precision that it had. Shapes: (out, in)."""
        if self.state is None:
            return self.values
        library = _packer()
        is_nf4 = self.state.quant_type == "nf4"
        return (library.dequantize_4bit if is_nf4 else library.dequantize_blockwise)(self.values, self.state)


def _moved(state: Any, device: torch.device) -> Any:
    if state is None:
        return None
    moved = copy.copy(state)
    moved.to(device)
    return moved


def _packer() -> "ModuleType":
    try:
        from bitsandbytes import functional as packer
    except ImportError as error:
        raise FinetuneError(
            "Weights of 8 or 4 bits need the library bitsandbytes.", f"Run: pip install {BITSANDBYTES}"
        ) from error
    return packer


class Kept:
    """Counts what autograd keeps for the backward pass: every piece of memory once, the network's weights not at all.

    Units: bytes.
    """

    def __init__(self, network: nn.Module) -> None:
        self._weights = {_address(weight) for weight in (*network.parameters(), *network.buffers())}
        self._holders: dict[int, int] = {}
        self.now = 0
        self.peak = 0

    @contextmanager
    def counting(self) -> Iterator["Kept"]:
        """Count within this context."""
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Held(tensor, self), lambda held: held.tensor):
            yield self

    def hold(self, tensor: Tensor) -> None:
        """A tensor is kept."""
        address = _address(tensor)
        holders = self._holders[address] = self._holders.get(address, 0) + 1
        if holders == 1 and address not in self._weights:
            self.now += tensor.untyped_storage().nbytes()
            self.peak = max(self.peak, self.now)

    def let_go(self, tensor: Tensor) -> None:
        """A tensor is no longer kept."""
        address = _address(tensor)
        self._holders[address] -= 1
        if not self._holders[address]:
            del self._holders[address]
            if address not in self._weights:
                self.now -= tensor.untyped_storage().nbytes()


class _Held:
    """A kept tensor that tells when it is gone."""

    def __init__(self, tensor: Tensor, kept: Kept) -> None:
        kept.hold(tensor)  # may raise: then nothing is held that could be let go
        # Detached: what an operation keeps of its own output would otherwise hold on to itself, for ever if no backward
        # pass comes.
        self.tensor, self._kept = tensor.detach(), kept

    def __del__(self) -> None:
        if hasattr(self, "tensor"):
            self._kept.let_go(self.tensor)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def probe(step: Callable[[], None], network: nn.Module, device: str) -> int:
    """Do one forward and backward pass, and say how many bytes it took at its peak, weights included.

    On a processor only the weights and what autograd keeps are known.
    """
    if torch.device(device).type == "cpu":
        kept = Kept(network)
        with kept.counting():
            step()
        weights = {_address(weight): weight.untyped_storage().nbytes() for weight in network.parameters()}
        return sum(weights.values()) + kept.peak
    forget_peak(device)
    step()
    torch.cuda.synchronize(device)
    return peak(device)


def forget_peak(device: str) -> None:
    """Let `peak` begin anew; a processor's memory cannot forget."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: str) -> int:
    """The most bytes that were used: on a GPU by tensors since `forget_peak`, on a processor by the whole process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 2**10
