"""How a run fits the device: what it needs, and the ladder of ways to need less.

Pure arithmetic on the size of a base model, so that the page can show the plan before a run starts. `footprint.py`
does to a network what a Fit says.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """How large a transformer is. Units: numbers of values."""

    parameters: int
    targeted: int
    """Weights of the layers that receive LoRA; `full` trains them."""
    adapter_per_rank: int
    """Values of a LoRA of rank 1: inputs and outputs of all targeted layers."""
    blocks: int
    hidden: int
    """Values of one token between two blocks."""
    kept_per_token: int
    """Values kept for the backward pass of a LoRA for each token, when nothing is recomputed."""
    patch_px: int = 16


@dataclass(frozen=True)
class Fit:
    """How a run is made to fit; every step down costs time or precision. Written into the run's settings."""

    micro_batch: int = 4
    """Pictures that go through the network at once; the batch is gathered from them."""
    recomputed: float = 0.0
    """Share of the blocks whose activations are computed again in the backward pass instead of being kept."""
    weight_bits: int = 32
    """Of the frozen weights: 32 on a processor, 16 on a GPU, 8 or 4 quantised."""
    is_offloaded: bool = False
    """Frozen weights stay in the processor's memory and come to the device layer by layer."""
    optimiser: str = "adamw"
    """adamw, adamw8bit or adafactor."""
    rounding: str = "float32"
    """How trained weights keep steps too small for 16 bits: float32, kahan or stochastic."""
    is_fused: bool = False
    """Whether each weight moves during the backward pass, so that gradients are never all there at once."""
    is_compiled: bool = False
