"""Request + base model + machine -> TrainConfig, in which every value is decided.

Separate so that the page can show all values before a run starts, and so that nothing is decided twice.
"""

from dataclasses import asdict, dataclass
from typing import Any

from finetune import plan, registry
from finetune.errors import ConfigError
from finetune.families import BaseModel
from finetune.inputs import FinetuneType, Mode, Priority, Request
from finetune.machine import Machine
from finetune.memory import Fit
from finetune.plan import Order, Plan

BATCH = {Priority.SPEED: 2, Priority.QUALITY: 4, Priority.HIGH_RES_ONLY: 4}
SMALL_PX = 256
"""The side of a base model whose pictures are drawn in no time, and that knows only one size."""
SAMPLES_ON_THE_WAY = {Priority.SPEED: 0, Priority.QUALITY: 5, Priority.HIGH_RES_ONLY: 5}


@dataclass(frozen=True)
class TrainConfig:
    """Every value that training needs. Written to the run folder and into the LoRA's metadata."""

    name: str
    base_model: str
    mode: Mode
    trigger_word: str
    finetune_type: FinetuneType
    lora_rank: int
    iterations: int
    learning_rate: float
    warmup_steps: int
    batch_size: int
    resolutions_px: tuple[int, ...]
    time_shift: float
    seed: int
    sample_every: int
    """Steps between samples; 0 draws only before the first and after the last step."""
    sample_prompts: tuple[str, ...]
    sample_px: int
    keeps_best: bool
    """Whether the weights are taken that did best on mirrored copies of the pictures, which are not trained."""
    checkpoint_every: int
    device: str
    fit: Fit

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """Read what `as_dict` gave. Raises: ConfigError for a key that is not known, or missing."""
    if differing := set(values) ^ set(TrainConfig.__dataclass_fields__):
        names = ", ".join(sorted(differing))
        raise ConfigError(f"Unknown or missing settings: {names}.", "This run was made by another version.")
    values = dict(values)
    values["mode"] = Mode(values["mode"])
    values["finetune_type"] = FinetuneType(values["finetune_type"])
    values["resolutions_px"] = tuple(values["resolutions_px"])
    values["sample_prompts"] = tuple(values["sample_prompts"])
    values["fit"] = Fit(**values["fit"])
    return TrainConfig(**values)


def order(request: Request, base: BaseModel, pictures: int) -> Order:
    """What memory, time and disk of a run depend on."""
    every = _every(request.iterations, SAMPLES_ON_THE_WAY[request.priority])
    looks = 2 + (-(-request.iterations // every) - 1 if every else 0)
    return Order(
        base=base,
        size=registry.families()[base.family].size(base),
        finetune_type=request.finetune_type,
        rank=request.lora_rank,
        batch=BATCH[request.priority],
        iterations=request.iterations,
        resolutions_px=resolutions(request.priority, base.resolution_px),
        pictures=pictures,
        drawn=looks * (len(request.sample_prompts) or prompt_count(request.priority, base)),
        drawn_px=_drawn_px(request.priority, base),
    )


def prompt_count(priority: Priority, base: BaseModel) -> int:
    """How many prompts are drawn if none were asked for: of a large base, one picture takes as long as many steps."""
    return 4 if base.resolution_px <= SMALL_PX and priority is not Priority.SPEED else 2


def _drawn_px(priority: Priority, base: BaseModel) -> int:
    """The side of samples: the largest that is trained, but for a base that knows only one size."""
    return base.resolution_px if base.resolution_px <= SMALL_PX else max(resolutions(priority, base.resolution_px))


def plan_for(request: Request, base: BaseModel, pictures: int, machine: Machine) -> Plan:
    """How a run would fit a machine; where it does not, what else would."""
    quick = request.model_copy(update={"priority": Priority.SPEED})
    adapter = quick.model_copy(update={"finetune_type": FinetuneType.LORA})
    others = {
        "the priority “speed”": order(quick, base, pictures),
        "the type “lora” with the priority “speed”": order(adapter, base, pictures),
        **{other.title: order(request, other, pictures) for other in registry.base_models().values()},
    }
    return plan.plan(order(request, base, pictures), machine, others)


def resolve(request: Request, base: BaseModel, sample_prompts: list[str], device: str, fit: Fit) -> TrainConfig:
    """Decide every value."""
    return TrainConfig(
        name=request.finetune_comment,
        base_model=base.id,
        mode=request.mode,
        trigger_word=request.trigger_word,
        finetune_type=request.finetune_type,
        lora_rank=request.lora_rank,
        iterations=request.iterations,
        learning_rate=request.rate,
        warmup_steps=min(15, request.iterations // 10),
        batch_size=BATCH[request.priority],
        resolutions_px=resolutions(request.priority, base.resolution_px),
        time_shift=base.time_shift,
        seed=request.seed,
        sample_every=_every(request.iterations, SAMPLES_ON_THE_WAY[request.priority]),
        sample_prompts=tuple(sample_prompts),
        sample_px=_drawn_px(request.priority, base),
        keeps_best=request.priority is not Priority.SPEED,
        checkpoint_every=max(25, request.iterations // 10),
        device=device,
        fit=fit,
    )


def resolutions(priority: Priority, full_px: int) -> tuple[int, ...]:
    """Sides of the squares whose areas pictures are trained at; multiples of 16."""
    three_quarters = max(16, full_px * 3 // 4 // 16 * 16)
    if priority is Priority.SPEED:
        return (three_quarters if full_px <= SMALL_PX else full_px // 2,)
    if priority is Priority.HIGH_RES_ONLY:
        return (full_px,)
    return (full_px,) if full_px <= SMALL_PX else (full_px // 2, three_quarters, full_px)


def _every(iterations: int, times: int) -> int:
    return max(1, iterations // times) if times else 0
