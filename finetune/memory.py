"""How a run fits the device: what it needs, and the ladder of ways to need less.

Pure arithmetic on the size of a base model, so that the page can show the plan before a run starts. `footprint.py`
does to a network what a Fit says, `plan.py` chooses one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from finetune.inputs import FinetuneType

GIB = 2**30
PACKED_BLOCK = 64
"""Packed weights that share one scale of 32 bits."""
LARGEST_RANK = 32
GPU_BITS, CPU_BITS = 16, 32
"""Of a value as training computes: on a CPU, 16 bits are emulated and about a hundred times slower."""


@dataclass(frozen=True)
class Size:
    """How large a transformer is. Units: numbers of values."""

    parameters: int
    targeted: int
    """Weights of the layers that receive LoRA; `full` trains them."""
    in_blocks: int
    """Weights of all Linear layers of the blocks: those that can be packed, or wait in the processor's memory."""
    passed: int
    """Of the targeted weights, those that one token is multiplied with: where image and text have layers of their own,
    only the half."""
    adapter_per_rank: int
    """Values of a LoRA of rank 1: inputs and outputs of all targeted layers."""
    blocks: int
    hidden: int
    """Values of one token between two blocks."""
    kept_per_token: int
    """Values kept for the backward pass of a LoRA for each token, when nothing is recomputed."""
    kept_around: int = 0
    """Of these, the ones outside the blocks, which are kept in any case."""
    patch_px: int = 16

    @property
    def kept_per_block(self) -> float:
        """Values that one block keeps for each token."""
        return (self.kept_per_token - self.kept_around) / self.blocks


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


@dataclass(frozen=True)
class Demand:
    """What is to be trained, as far as memory depends on it."""

    size: Size
    finetune_type: FinetuneType
    rank: int
    batch: int
    pixels: int
    """Of the largest picture that is trained on."""
    drawn_pixels: int
    """Of a sample."""
    text_tokens: int

    @property
    def tokens(self) -> int:
        """Of the largest picture and its caption."""
        return self.pixels // self.size.patch_px**2 + self.text_tokens

    @property
    def drawn_tokens(self) -> int:
        """Of a sample and its prompt."""
        return self.drawn_pixels // self.size.patch_px**2 + self.text_tokens


@dataclass(frozen=True)
class Needs:
    """The memory that training takes on the device, by what takes it. Units: bytes."""

    weights: int
    """Frozen."""
    trained: int
    """LoRA or trained weights, with their gradients and what the optimiser knows of them."""
    activations: int
    """Kept for the backward pass."""
    workspace: int
    """What comes and goes while a step is computed."""
    drawing: int
    """The same while a sample is drawn, when there are no activations."""
    waiting: int
    """In the processor's memory, not the device's."""

    @property
    def step(self) -> int:
        """While a step is computed."""
        return self.weights + self.trained + self.activations + self.workspace

    @property
    def total(self) -> int:
        """At the peak."""
        return self.weights + self.trained + max(self.activations + self.workspace, self.drawing)


BYTES_TRAINED = {
    ("adamw", "float32", False): 18,  # weight 4, its 16-bit copy 2, gradient 4, two moments 8
    ("adamw", "kahan", False): 14,  # weight 2, what it leaves out 2, gradient 2, two moments 8
    ("adamw8bit", "stochastic", False): 6.1,  # weight 2, gradient 2, two moments 2 and a scale for every 256
    ("adamw8bit", "stochastic", True): 4.1,
    ("adafactor", "stochastic", True): 2.1,  # moments of rows and columns only
}
"""Bytes for each trained value, by optimiser, rounding and whether it is fused.

Source: Shazeer and Stern 2018 (arXiv 1804.04235) for adafactor; Dettmers et al. 2022 (arXiv 2110.02861) for 8 bits.
"""
BYTES_KEPT = {FinetuneType.LORA: 2.35, FinetuneType.FULL: 2.05}
"""Bytes for each kept value when 16 bits are mixed with 32. Measured on toy models of all families with saved-tensor
hooks: 2.0 to 2.05 without LoRA layers, 2.1 to 2.34 with them, because each has a 16-bit copy of its input."""
IN_FLIGHT = 0.7
"""Gradients and intermediate values of a step, as a share of what a block keeps. Measured on toy models of FLUX.1, 2
and 3 by counting every tensor that is alive: 0.3 to 0.65; with recomputation a whole block comes on top, 1.1 to 1.5."""
VALUES_PER_DRAWN_PIXEL = 1250
"""Values that are alive while the VAE decodes a picture. Measured on diffusers' `AutoencoderKLFlux2` at 64 and 128 px:
830 to 1030; convolutions on a GPU take some more."""
RESERVE = {True: 0.3 * GIB, False: 0.05 * GIB}
"""Libraries' own workspace, and memory that lies between tensors, by whether it is a GPU."""


def needs(demand: Demand, fit: Fit, is_gpu: bool) -> Needs:
    """Compute what training takes with a fit."""
    size, is_lora = demand.size, demand.finetune_type is FinetuneType.LORA
    value = (GPU_BITS if is_gpu else CPU_BITS) / 8
    kept_value = BYTES_KEPT[demand.finetune_type] if is_gpu else value
    at_once = min(fit.micro_batch, demand.batch) * demand.tokens

    packable = size.in_blocks if is_lora else 0  # `full` packs nothing
    stored = packable * bits_per_weight(fit.weight_bits) / 8
    on_device = stored / size.blocks if fit.is_offloaded else stored  # one layer at a time, at most a block's
    others = size.parameters - (size.in_blocks if is_lora else size.targeted)

    passing = IN_FLIGHT + (fit.recomputed > 0)
    unpacked = value * packable / size.blocks if fit.weight_bits < GPU_BITS else 0
    fused_gradient = 4 * size.targeted / size.blocks if fit.is_fused else 0
    drawn = max(
        VALUES_PER_DRAWN_PIXEL * value * demand.drawn_pixels,
        2 * demand.drawn_tokens * size.kept_per_block * value,  # with and without the prompt
    )
    return Needs(
        weights=round(on_device + others * value),
        trained=round(_trained_bytes(demand, fit, is_gpu)),
        activations=round(at_once * _kept_values(size, fit) * kept_value),
        workspace=round(at_once * size.kept_per_block * passing * kept_value + unpacked + fused_gradient)
        + round(RESERVE[is_gpu]),
        drawing=round(drawn + unpacked + RESERVE[is_gpu]),
        waiting=round(stored) if fit.is_offloaded else 0,
    )


def bits_per_weight(weight_bits: int) -> float:
    """The bits that a frozen weight takes, with its share of a scale if it is packed."""
    return weight_bits + 32 / PACKED_BLOCK if weight_bits < GPU_BITS else weight_bits


def _kept_values(size: Size, fit: Fit) -> float:
    """Values kept for each token: all of a block that is not recomputed, only its input of one that is."""
    recomputed = int(fit.recomputed * size.blocks)
    return size.kept_around + (size.blocks - recomputed) * size.kept_per_block + recomputed * size.hidden


def _trained_bytes(demand: Demand, fit: Fit, is_gpu: bool) -> float:
    if demand.finetune_type is FinetuneType.LORA:
        count, how = demand.size.adapter_per_rank * demand.rank, ("adamw", "float32", False)
    else:
        count, how = demand.size.targeted, (fit.optimiser, fit.rounding, fit.is_fused)
    copy = 0 if is_gpu or how[1] != "float32" else 2  # on a CPU, weights compute as they are
    return count * (BYTES_TRAINED[how] - copy)


def ladder(demand: Demand, is_gpu: bool, can_pack: bool) -> tuple[Fit, ...]:
    """The ways to fit, the fastest and most precise first; each costs more time or precision than those before it."""
    if not is_gpu:
        return tuple(_less_at_once(Fit(weight_bits=CPU_BITS), demand.batch))
    start = Fit(weight_bits=GPU_BITS)
    if demand.finetune_type is FinetuneType.FULL:
        return tuple(_full_rungs(start, demand.batch, can_pack))
    return tuple(_lora_rungs(start, demand.batch, can_pack))


def _less_at_once(start: Fit, batch: int) -> Iterator[Fit]:
    """Fewer pictures at a time, then more and more blocks recomputed."""
    yield replace(start, micro_batch=batch)
    for micro_batch in (2, 1):
        if micro_batch < batch:
            yield replace(start, micro_batch=micro_batch)
    yield from _recomputing(replace(start, micro_batch=1))


def _recomputing(start: Fit) -> Iterator[Fit]:
    return (replace(start, recomputed=share) for share in (0.5, 1.0))


def _lora_rungs(start: Fit, batch: int, can_pack: bool) -> Iterator[Fit]:
    yield from _less_at_once(start, batch)
    single = replace(start, micro_batch=1)
    for weight_bits in (8, 4) if can_pack else ():
        packed = replace(single, weight_bits=weight_bits)
        yield from (packed, *_recomputing(packed))
    for weight_bits in (8, 4) if can_pack else (GPU_BITS,):  # packed weights come faster, and take less where they wait
        yield replace(single, weight_bits=weight_bits, recomputed=1.0, is_offloaded=True)


def _full_rungs(start: Fit, batch: int, can_pack: bool) -> Iterator[Fit]:
    yield from _less_at_once(start, batch)
    optimisers = [key for key in BYTES_TRAINED if can_pack or key[0] != "adamw8bit"]
    for optimiser, rounding, is_fused in optimisers[1:]:
        less = replace(start, optimiser=optimiser, rounding=rounding, is_fused=is_fused)
        if is_fused:  # weights move during the backward pass, so there is only one for the whole batch
            yield replace(less, micro_batch=batch, recomputed=1.0)
        else:
            single = replace(less, micro_batch=1)
            yield from (single, *_recomputing(single))


def drawing_ladder(is_gpu: bool, can_pack: bool) -> tuple[Fit, ...]:
    """The ways to keep weights while pictures are drawn, the fastest and most precise first."""
    if not is_gpu:
        return (Fit(weight_bits=CPU_BITS),)
    bits = (GPU_BITS, 8, 4) if can_pack else (GPU_BITS,)
    smallest = Fit(weight_bits=bits[-1], is_offloaded=True)
    return (*(Fit(weight_bits=count) for count in bits), smallest)


def drawing_bytes(size: Size, fit: Fit, pixels: int, text_tokens: int, is_gpu: bool) -> tuple[int, int]:
    """What the transformer, a LoRA of the largest rank and the drawing of a picture take together: on the device, and
    in the processor's memory."""
    demand = Demand(size, FinetuneType.LORA, LARGEST_RANK, 1, pixels, pixels, text_tokens)
    found = needs(demand, fit, is_gpu)
    return found.weights + 4 * size.adapter_per_rank * LARGEST_RANK + found.drawing, found.waiting


def cost(fit: Fit, demand: Demand) -> str:
    """What a fit costs, compared with having all memory that one could wish for, in plain words."""
    costs = []
    if fit.micro_batch < demand.batch:
        at_once = "one picture" if fit.micro_batch == 1 else f"{fit.micro_batch} pictures"
        costs.append(f"{at_once} at a time: the result is the same")
    if fit.recomputed:
        share = {0.5: "half of the blocks are", 1.0: "every block is"}[fit.recomputed]
        costs.append(f"{share} computed twice: the result is the same")
    if fit.weight_bits < GPU_BITS:
        error = {8: "0.6 %", 4: "9 %"}[fit.weight_bits]
        costs.append(f"frozen weights of {fit.weight_bits} bits: each product is off by about {error}")
    if fit.is_offloaded:
        costs.append("frozen weights come from the processor's memory in every step: slow, the result is the same")
    if fit.rounding == "kahan":
        costs.append("trained weights of 16 bits with what rounding leaves out: hardly a difference")
    if fit.rounding == "stochastic":
        costs.append("trained weights of 16 bits, rounded by chance: right on average, a little noise")
    if fit.optimiser == "adamw8bit":
        costs.append("the optimiser's memory has 8 bits: hardly a difference")
    if fit.optimiser == "adafactor":
        costs.append("the optimiser knows rows and columns instead of single weights: steps are less exact")
    if fit.is_fused:
        costs.append("weights move during the backward pass: gradients are cut one by one instead of together")
    return "; ".join(costs)
