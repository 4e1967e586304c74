"""Request + base model + machine -> TrainConfig, in which every value is decided.

Separate so that the page can show all values before a run starts, and so that nothing is decided twice.
"""

from dataclasses import asdict, dataclass
from typing import Any

from finetune.errors import ConfigError
from finetune.families import BaseModel
from finetune.inputs import FinetuneType, Mode, Priority, Request
from finetune.memory import Fit

BATCH = {Priority.SPEED: 2, Priority.QUALITY: 4, Priority.HIGH_RES_ONLY: 4}
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


def resolve(
    request: Request, base: BaseModel, sample_prompts: list[str], device: str, fit: Fit | None = None
) -> TrainConfig:
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
        resolutions_px=_resolutions(request.priority, base.resolution_px),
        time_shift=base.time_shift,
        seed=request.seed,
        sample_every=_every(request.iterations, SAMPLES_ON_THE_WAY[request.priority]),
        sample_prompts=tuple(sample_prompts),
        checkpoint_every=max(25, request.iterations // 10),
        device=device,
        fit=fit or Fit(micro_batch=BATCH[request.priority]),
    )


def _resolutions(priority: Priority, full_px: int) -> tuple[int, ...]:
    """Sides of the squares whose areas pictures are trained at; multiples of 16."""
    three_quarters = max(16, full_px * 3 // 4 // 16 * 16)
    if priority is Priority.SPEED:
        return (three_quarters,)
    if priority is Priority.HIGH_RES_ONLY:
        return (full_px,)
    return (full_px,) if full_px <= 256 else (full_px // 2, three_quarters, full_px)


def _every(iterations: int, times: int) -> int:
    return max(1, iterations // times) if times else 0
