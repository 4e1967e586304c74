"""The training loop, readable from top to bottom.

It knows neither families nor what is trained: latents and captions go in, a velocity comes out, a trainee's parameters
move. The pictures, times and noise of a step derive from the seed and the step, so a resumed run is exactly the same.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from statistics import mean, median

import torch
from torch import Tensor

from finetune import checkpoints, flow, parts
from finetune.encodings import Encoded
from finetune.errors import DivergedError, OutOfMemoryError
from finetune.families import Encoding, Model
from finetune.lora import Trainee
from finetune.optimiser import Optimiser
from finetune.recipe import TrainConfig
from finetune.runs import Run

BAD_STEPS = 3  # steps in a row without a finite loss that end a run


@dataclass(frozen=True)
class Outcome:
    """How far training came."""

    step: int
    is_complete: bool
    """False when it was asked to stop."""
    seconds: float


def train(
    model: Model,
    trainee: Trainee,
    encoded: Encoded,
    config: TrainConfig,
    run: Run,
    draw_samples: Callable[[int], None],
) -> Outcome:
    """Train, from the newest checkpoint on, until all steps are done or a stop is asked for.

    Raises: DivergedError, OutOfMemoryError.
    """
    optimiser = Optimiser(trainee.parameters, trainee.weight_decay, config.fit)
    first = checkpoints.load(
        run.checkpoints, trainee.parameters, optimiser, warn=lambda text: run.tell("warning", message=text, hint="")
    )
    pace, bad_steps = Pace(config, first), 0
    with memory_in_words():
        if first == 0:
            pace.measure_samples(draw_samples, 0)
        batches = enumerate(encoded.plan(config.seed, config.batch_size))
        for step, (latents, captions) in islice(batches, first, config.iterations):
            if run.is_asked_to_stop():
                checkpoints.save(run.checkpoints, step, trainee.parameters, optimiser)
                run.tell("checkpoint", step=step)
                return Outcome(step, False, pace.seconds)
            t = flow.draw_times(config.seed, step, len(latents), config.time_shift)
            noise = flow.draw_noise(config.seed, step, latents.shape)

            loss = optimiser.move(_losses(model, latents, captions, noise, t, config), rate(step, config))
            bad_steps = 0 if math.isfinite(loss) else bad_steps + 1

            done = step + 1
            pace.count_step()
            run.tell(
                "step",
                step=done,
                of=config.iterations,
                loss=loss if math.isfinite(loss) else None,
                rate=rate(step, config),
                seconds_left=round(pace.seconds_left(done), 1),
            )
            if bad_steps == BAD_STEPS:
                raise DivergedError(
                    f"The loss was not a number in {BAD_STEPS} steps in a row, the last of them step {done}.",
                    f"Train again with a lower learning rate than {config.learning_rate:g}.",
                )
            if _is_due(done, config.sample_every, config.iterations):
                pace.measure_samples(draw_samples, done)
            if _is_due(done, config.checkpoint_every, config.iterations):
                checkpoints.save(run.checkpoints, done, trainee.parameters, optimiser)
                run.tell("checkpoint", step=done)
    return Outcome(config.iterations, True, pace.seconds)


def rate(step: int, config: TrainConfig) -> float:
    """The learning rate of a step: up in a line while warming up, then level."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


def _losses(
    model: Model, latents: Tensor, captions: Encoding, noise: Tensor, t: Tensor, config: TrainConfig
) -> Iterator[Tensor]:
    """The loss of a batch, as a sum over the parts of it that go through the network at once."""
    for part in torch.arange(len(latents)).split(config.fit.micro_batch):
        rows = {name: tensor[part] for name, tensor in captions.items()}
        with parts.autocast(config.device):
            predicted = model.predict_velocity(flow.noise_latents(latents[part], noise[part], t[part]), t[part], rows)
        loss = flow.loss(predicted, latents[part].to(predicted.device), noise[part].to(predicted.device))
        yield loss * (len(part) / len(latents))


@contextmanager
def memory_in_words() -> Iterator[None]:
    """Turn torch's out-of-memory errors into one with a hint. Raises: OutOfMemoryError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(
            "There is not enough memory for this run.",
            "Close other programs, or choose the priority “speed”: it trains smaller pictures in smaller batches.",
        ) from error


@dataclass
class Pace:
    """How fast training goes, and so how long it will take, the samples that are still to be drawn included."""

    config: TrainConfig
    first: int
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=30))
    _samples: deque[float] = field(default_factory=lambda: deque(maxlen=5))
    _started: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since training began."""
        return time.monotonic() - self._started

    def count_step(self) -> None:
        """A step has ended."""
        now = time.monotonic()
        self._steps.append(now - self._last)
        self._last = now

    def measure_samples(self, draw_samples: Callable[[int], None], step: int) -> None:
        """Draw samples; the time goes to them, not to the next step."""
        before = time.monotonic()
        draw_samples(step)
        self._last = time.monotonic()
        self._samples.append(self._last - before)

    def seconds_left(self, done: int) -> float:
        """Until training ends; the median of recent steps, because single ones are slow."""
        later = range(done, self.config.iterations)
        samples = sum(_is_due(step + 1, self.config.sample_every, self.config.iterations) for step in later)
        if _is_due(done, self.config.sample_every, self.config.iterations):
            samples += 1  # those of this very step are drawn after it is told
        return median(self._steps) * len(later) + (mean(self._samples) * samples if self._samples else 0.0)


def _is_due(done: int, every: int, last: int) -> bool:
    return done == last or (every > 0 and done % every == 0)
