"""Choose how a run fits this machine, and tell what it will take: memory, minutes, disk.

Pure arithmetic without torch, on what `machine.py` measured: the page shows it before a run starts. Times are estimates
until the first steps are done.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from finetune import memory
from finetune.errors import OutOfMemoryError
from finetune.families import BaseModel
from finetune.inputs import FinetuneType
from finetune.machine import Machine
from finetune.memory import GIB, Demand, Fit, Needs, Size

USABLE = 0.9
"""Of the free memory: what tensors leave between them, and other programs, want some of it."""
EFFICIENCY = {True: 0.45, False: 0.63}
"""Of the pace of large matrix products that a whole step reaches, on a GPU and on a CPU.

GPU: what public reports of FLUX training without compilation come to, 0.4 to 0.5. CPU: measured on the demo base,
together with the overhead: 80 ms a step at rank 16, batch 4 and 45 ms at batch 1, with 0.10 TFLOP/s on one thread."""
OVERHEAD_SECONDS = {True: 0.001, False: 0.005}
"""For each block and pass forth and back, whatever its size: starting so many small operations. On a GPU it is hidden
behind the arithmetic where there is enough of it."""
SLOWER = {4: 1.2, 8: 1.15}
"""How much longer a step takes when weights are unpacked for it, by bits. A judgement: unpacking only moves memory."""
BUS_BYTES_PER_SECOND = 12e9
"""From the processor's memory to a GPU. A judgement: PCIe 4 with 16 lanes reaches up to 25e9, often half of it."""
DISK_BYTES_PER_SECOND = 1e9
NETWORK_BYTES_PER_SECOND = 50e6
ENCODE_SECONDS = 0.1
"""For a picture or a caption."""
START_SECONDS = 10
"""Until a worker has loaded its libraries."""
DRAWN_AT_THE_END = 1
"""Samples drawn once more, through the file."""
CHECKPOINTS = 2
"""Kept in the run folder."""
LORA_FILES = 2
TEXT_VALUES = 3
"""Values of an encoded token of text, in multiples of the transformer's width: 1.3 to 3."""
LATENT_CHANNELS = 128


@dataclass(frozen=True)
class Order:
    """What is to be done in a run, as far as memory, time and disk depend on it."""

    base: BaseModel
    size: Size
    finetune_type: FinetuneType
    rank: int
    batch: int
    iterations: int
    resolutions_px: tuple[int, ...]
    pictures: int
    drawn: int
    """Samples in the whole run."""
    drawn_px: int
    """Side of a sample."""
    text_tokens: int = 512
    """Of the longest caption, where the family does not pad them."""

    @property
    def demand(self) -> Demand:
        """What memory depends on."""
        return Demand(
            size=self.size,
            finetune_type=self.finetune_type,
            rank=self.rank,
            batch=self.batch,
            pixels=max(self.resolutions_px) ** 2,
            drawn_pixels=self.drawn_px**2,
            text_tokens=min(self.text_tokens, self.base.text_tokens),
        )


@dataclass(frozen=True)
class Rung:
    """One way to fit, what it needs and what it costs."""

    fit: Fit
    needs: Needs
    seconds: float
    """For a step."""
    cost: str
    """In plain words, compared with a machine that is large enough; empty if it costs nothing."""


@dataclass(frozen=True)
class Plan:
    """How a run will fit, and all ways that there are."""

    rungs: tuple[Rung, ...]
    chosen: Rung | None
    """The first that fits; none if not even the smallest does."""
    usable_bytes: int
    text_bytes: int
    """The text encoders, which are loaded alone before the transformer; 0 where that is not known."""
    is_text_split: bool
    """Whether a part of the text encoders must wait in the processor's memory, so that captions take longer."""
    minutes: float
    """Of the whole run, without the download; of the smallest way where none fits."""
    download_bytes: int
    disk_bytes: int
    """What the run folder grows to."""
    explanation: str
    """What was chosen or why nothing fits, in one or two sentences."""

    def below(self, fit: Fit) -> Rung | None:
        """The next way whose steps need less than those of a fit that proved too large; none when there is none."""
        places = [place for place, rung in enumerate(self.rungs) if rung.fit == fit]
        rest = self.rungs[places[0] + 1 :] if places else self.rungs
        most = self.rungs[places[0]].needs.step if places else self.usable_bytes
        return next((rung for rung in rest if rung.needs.step < most), None)


def plan(order: Order, machine: Machine, alternatives: Mapping[str, Order] | None = None) -> Plan:
    """Choose the first way that fits nine tenths of the free memory.

    `alternatives` are other things that could be asked for, by what they are called: where nothing fits, the
    explanation names those that would.
    """
    usable, waiting = int(USABLE * machine.free_bytes), int(USABLE * machine.processor_free_bytes)
    rungs = tuple(_rung(order, fit, machine) for fit in memory.ladder(order.demand, machine.is_gpu, machine.can_pack))
    fitting = (rung for rung in rungs if rung.needs.total <= usable and rung.needs.waiting <= waiting)
    chosen = next(fitting, None)
    text_bytes = round(order.base.text_encoder_gib * GIB)
    measured = chosen or rungs[-1]
    return Plan(
        rungs=rungs,
        chosen=chosen,
        usable_bytes=usable,
        text_bytes=text_bytes,
        is_text_split=machine.is_gpu and text_bytes > usable,
        minutes=_run_seconds(order, measured, machine) / 60,
        download_bytes=round(order.base.download_gib * GIB),
        disk_bytes=_disk_bytes(order, machine.is_gpu),
        explanation=_in_words(chosen) if chosen else _lack_in_words(order, rungs, machine, alternatives or {}),
    )


def for_drawing(base: BaseModel, size: Size, pixels: int, machine: Machine) -> Fit:
    """Choose how the weights are kept so that pictures can be drawn. Raises: OutOfMemoryError when there is no way."""
    usable, waiting = int(USABLE * machine.free_bytes), int(USABLE * machine.processor_free_bytes)
    least = []
    for fit in memory.drawing_ladder(machine.is_gpu, machine.can_pack):
        need = memory.drawing_bytes(size, fit, pixels, base.text_tokens, machine.is_gpu)
        if need[0] <= usable and need[1] <= waiting:
            return fit
        least.append(need[0])
    raise OutOfMemoryError(
        f"Drawing with {base.title} takes at least {gib(min(least))}, and of {gib(machine.free_bytes)} that are free no"
        f" more than {USABLE:.0%} should be used.",
        "Close other programs, or order a smaller picture.",
    )


def room_for_text(base: BaseModel, size: Size, pixels: int, fit: Fit, machine: Machine) -> bool:
    """Whether the text encoders can stay in memory while a picture is drawn.

    Raises: OutOfMemoryError when there is no room for the picture itself.
    """
    usable = int(USABLE * machine.free_bytes)
    need, _ = memory.drawing_bytes(size, fit, pixels, base.text_tokens, machine.is_gpu)
    if need > usable:
        raise OutOfMemoryError(
            f"Drawing this picture takes about {gib(need)}, and {gib(usable)} can be used.", "Order a smaller one."
        )
    text_bytes = base.text_encoder_gib * GIB * (1 if machine.is_gpu else 2)  # 32 bits on a processor
    return need + text_bytes <= usable


def _rung(order: Order, fit: Fit, machine: Machine) -> Rung:
    demand = order.demand
    return Rung(
        fit=fit,
        needs=memory.needs(demand, fit, machine.is_gpu),
        seconds=step_seconds(order, fit, machine),
        cost=memory.cost(fit, demand),
    )


def step_seconds(order: Order, fit: Fit, machine: Machine) -> float:
    """Estimate the time of a step: its operations at the machine's pace, and what does not depend on its size."""
    tokens = [_tokens(order, side) for side in order.resolutions_px]
    flops = order.batch * mean(_step_flops(order, fit, count) for count in tokens)
    computing = flops / _pace(machine) * SLOWER.get(fit.weight_bits, 1.0)
    passes = -(-order.batch // fit.micro_batch)
    starting = passes * OVERHEAD_SECONDS[machine.is_gpu] * order.size.blocks
    seconds = max(computing, starting) if machine.is_gpu else computing + starting
    if fit.is_offloaded:  # forth, back, and once more for each block that is recomputed
        waiting = memory.needs(order.demand, fit, machine.is_gpu).waiting
        seconds += passes * (2 + fit.recomputed) * waiting / BUS_BYTES_PER_SECOND
    return seconds


def forward_flops(size: Size, tokens: int) -> tuple[float, float]:
    """Operations of a forward pass for one picture: in layers, and in attention.

    Two for each weight and token, four for each value and pair of tokens.
    """
    return 2.0 * size.passed * tokens, 4.0 * tokens**2 * size.hidden * size.blocks


def _step_flops(order: Order, fit: Fit, tokens: int) -> float:
    """Forth, back to the inputs, and for trained weights back to them; attention goes back in 2.5 times its way forth.

    Source: Dao 2023, "FlashAttention-2" (arXiv 2307.08691) for the backward pass of attention.
    """
    layers, attention = forward_flops(order.size, tokens)
    to_weights = layers if order.finetune_type is FinetuneType.FULL else 0.0
    return (1 + fit.recomputed) * (layers + attention) + layers + 2.5 * attention + to_weights


def _tokens(order: Order, side: int) -> int:
    return replace(order.demand, pixels=side**2).tokens


def _pace(machine: Machine) -> float:
    """Operations in a second."""
    return machine.teraflops * 1e12 * EFFICIENCY[machine.is_gpu]


def _run_seconds(order: Order, rung: Rung, machine: Machine) -> float:
    weights = 2 * order.size.parameters + order.base.text_encoder_gib * GIB
    encoding = ENCODE_SECONDS * 2 * order.pictures
    drawing = (order.drawn + DRAWN_AT_THE_END) * _drawing_seconds(order, rung.fit, machine)
    loading = weights / DISK_BYTES_PER_SECOND
    return START_SECONDS + loading + encoding + drawing + order.iterations * rung.seconds


def _drawing_seconds(order: Order, fit: Fit, machine: Machine) -> float:
    """One sample: a forward pass for each step of the sampler, two where it is guided by the empty prompt."""
    size = order.size
    flops = sum(forward_flops(size, order.demand.drawn_tokens))
    third = OVERHEAD_SECONDS[machine.is_gpu] * size.blocks / 3  # of the way forth and back
    once = flops / _pace(machine) * SLOWER.get(fit.weight_bits, 1.0) + third
    if fit.is_offloaded:
        once += memory.needs(order.demand, fit, machine.is_gpu).waiting / BUS_BYTES_PER_SECOND
    return order.base.sampler.passes * once


def _disk_bytes(order: Order, is_gpu: bool) -> int:
    """Encodings, checkpoints and LoRA files."""
    value = 2 if is_gpu else 4
    adapter = order.size.adapter_per_rank * order.rank
    trained = adapter if order.finetune_type is FinetuneType.LORA else order.size.targeted
    pictures = sum(LATENT_CHANNELS * (side // order.size.patch_px) ** 2 * 4 for side in order.resolutions_px)
    captions = order.demand.text_tokens * TEXT_VALUES * order.size.hidden * value
    checkpoint = trained * 12  # weights and two moments in 32 bits; smaller optimisers need less
    return round(order.pictures * (pictures + captions) + CHECKPOINTS * checkpoint + LORA_FILES * adapter * value)


def _in_words(rung: Rung) -> str:
    need = f"It will take about {gib(rung.needs.total)}."
    return f"{need} {rung.cost[0].upper()}{rung.cost[1:]}." if rung.cost else need


def _lack_in_words(order: Order, rungs: Sequence[Rung], machine: Machine, alternatives: Mapping[str, Order]) -> str:
    least = min(rung.needs.total for rung in rungs)
    missing = least - USABLE * machine.free_bytes
    where = "on this GPU" if machine.is_gpu else "on this computer"
    if missing > 0:
        lack = (
            f"{order.base.title} needs at least {gib(least)} {where} for this, and of {gib(machine.free_bytes)} that"
            f" are free no more than {USABLE:.0%} should be used: {gib(missing)} are missing."
        )
    else:
        waiting = min(rung.needs.waiting for rung in rungs if rung.needs.waiting)
        lack = (
            f"{order.base.title} fits {where} only with {gib(waiting)} of weights waiting in the processor's memory, of"
            f" which {gib(machine.processor_free_bytes)} are free."
        )
    would = [name for name, other in alternatives.items() if plan(other, machine).chosen]
    return f"{lack} What would fit: {', '.join(would)}." if would else lack


def gib(size: float) -> str:
    """A number of bytes in words."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"


@dataclass(frozen=True)
class Row:
    """One line of the table: how an order fits a GPU of a size."""

    title: str
    memory_gib: float
    rung: Rung | None
    minutes: float


def table(orders: Mapping[str, Order], memories_gib: Iterable[float], like: Machine) -> list[Row]:
    """How each order would fit GPUs of several sizes, all as fast as a machine and otherwise empty."""
    rows = []
    for memory_gib in memories_gib:
        size = round(memory_gib * GIB)
        machine = replace(like, device="cuda:0", total_bytes=size, free_bytes=size)
        for title, order in orders.items():
            made = plan(order, machine)
            rows.append(Row(title, memory_gib, made.chosen, made.minutes))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown: a line for each order, a column for each size."""
    sizes = list(dict.fromkeys(row.memory_gib for row in rows))
    lines = [["", *(f"{size:g} GB" for size in sizes)], ["---"] * (len(sizes) + 1)]
    for title in dict.fromkeys(row.title for row in rows):
        lines.append([title, *(_cell(row) for row in rows if row.title == title)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: Row) -> str:
    if row.rung is None:
        return "–"
    return f"{short(row.rung.fit)}, {row.rung.needs.total / GIB:.1f} GiB, {row.minutes:.0f} min"


def short(fit: Fit) -> str:
    """A fit in a few words."""
    words = []
    if fit.optimiser != "adamw" or fit.rounding != "float32":
        words.append(f"{fit.optimiser} {fit.rounding}{' fused' if fit.is_fused else ''}")
    words.append(f"{fit.weight_bits} bit{' offloaded' if fit.is_offloaded else ''}")
    if fit.recomputed:
        words.append("recomputed" if fit.recomputed == 1 else f"{fit.recomputed:.0%} recomputed")
    words.append(f"{fit.micro_batch} at once")
    return ", ".join(words)
