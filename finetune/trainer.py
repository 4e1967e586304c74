"""The training loop, readable from top to bottom.

It knows neither families nor what is trained: latents and captions go in, a velocity comes out, a trainee's parameters
move. The pictures, times and noise of a step derive from the seed and the step, so a resumed run is exactly the same.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import mean, median

import torch
from torch import Tensor

from finetune import checkpoints, encodings, flow, footprint, parts
from finetune.encodings import Encoded
from finetune.errors import DivergedError, OutOfMemoryError
from finetune.families import Encoding, Model
from finetune.lora import Trainee
from finetune.optimiser import Optimiser
from finetune.recipe import TrainConfig
from finetune.runs import Run

SAVING_SHARE = 20  # times as long as a checkpoint takes must pass before the next one
BAD_STEPS = 3  # steps in a row without a finite loss that end a run
PLACED_SHARE = 0.05  # of the memory that is free once the model is loaded: activations need the rest


@dataclass(frozen=True)
class Outcome:
    """How far training came."""

    step: int
    is_complete: bool
    """False when it was asked to stop."""
    seconds: float
    trained: Callable[[str], Tensor]
    """Gives a trained weight by its name, in float32."""


def train(
    model: Model,
    trainee: Trainee,
    encoded: Encoded,
    config: TrainConfig,
    run: Run,
    look: Callable[[int], None],
) -> Outcome:
    """Train, from the newest checkpoint on, until all steps are done or a stop is asked for.

    `look` is called with the step when samples are due. Raises: DivergedError; OutOfMemoryError, with all steps before
    that one kept.
    """
    optimiser = Optimiser(trainee.parameters, trainee.weight_decay, config.fit, config.seed)
    first = checkpoints.load(
        run.checkpoints, trainee.parameters, optimiser, warn=lambda text: run.tell("warning", message=text, hint="")
    )
    pace, bad_steps, done = Pace(config, first), 0, first

    def save() -> None:
        checkpoints.save(run.checkpoints, done, trainee.parameters, optimiser)
        run.tell("checkpoint", step=done)

    with _kept_when_memory_ends(lambda: save() if done else None), memory_in_words(), tensor_cores(config.device):
        if first == 0:
            pace.measure_look(look, 0)
        if config.fit.is_compiled:
            model.transformer.compile_repeated_blocks()
        at_hand = placed(encoded, config.device, _free_bytes(config.device))
        batches = enumerate(at_hand.plan(config.seed, config.batch_size))
        for step, (latents, captions) in islice(batches, first, config.iterations):
            if run.is_asked_to_stop():
                save()
                return Outcome(step, False, pace.seconds, optimiser.trained)
            t = flow.draw_times(config.seed, step, len(latents), config.time_shift)
            noise = flow.draw_noise(config.seed, step, latents.shape)

            parts_of_it = losses(model, latents, captions, noise, t, config.fit.micro_batch)
            loss = optimiser.move(parts_of_it, rate(step, config))
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
                pace.measure_look(look, done)
            if _is_due(done, config.checkpoint_every, config.iterations) and pace.can_save():
                pace.measure_save(save)
    return Outcome(config.iterations, True, pace.seconds, optimiser.trained)


def probe(model: Model, trainee: Trainee, encoded: Encoded, config: TrainConfig) -> int:
    """Try a forward and backward pass on the largest pictures, and say what it took. Units: bytes.

    Raises: OutOfMemoryError.
    """
    largest = max((latents for row in encoded.latents for latents in row), key=lambda latents: latents.numel())
    longest = max(encoded.captions, key=lambda row: sum(tensor.numel() for tensor in row.values()))
    count = config.fit.micro_batch
    latents, captions = largest.expand(count, -1, -1, -1), encodings.stack([longest] * count)
    noise, t = flow.draw_noise(config.seed, 0, latents.shape), torch.full((count,), 0.5)

    def step() -> None:
        for loss in losses(model, latents, captions, noise, t, count):
            loss.backward()

    hooks = []
    if config.fit.is_fused:  # then gradients are never all there at once
        hooks = [w.register_post_accumulate_grad_hook(_forget_gradient) for w in trainee.parameters.values()]
    try:
        with memory_in_words(), tensor_cores(config.device):
            return footprint.probe(step, model.transformer, config.device)
    finally:
        for hook in hooks:
            hook.remove()
        for weight in trainee.parameters.values():
            weight.grad = None


def _forget_gradient(weight: Tensor) -> None:
    weight.grad = None


def rate(step: int, config: TrainConfig) -> float:
    """The learning rate of a step: up in a line while warming up, then level."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


def losses(
    model: Model, latents: Tensor, captions: Encoding, noise: Tensor, t: Tensor, micro_batch: int
) -> Iterator[Tensor]:
    """The loss of a batch, as a sum over the parts of it that go through the network at once.

    Shapes: latents and noise (B, C, h, w); t (B,); captions of B rows; none of them need be on the model's device.
    """
    latents, noise, t = (_sent(tensor, model.device) for tensor in (latents, noise, t))
    captions = {name: _sent(tensor, model.device) for name, tensor in captions.items()}
    for start in range(0, len(latents), micro_batch):
        part = slice(start, start + micro_batch)  # of a slice, no number has to come from the device
        clean, noises, rows = latents[part], noise[part], {name: tensor[part] for name, tensor in captions.items()}
        with parts.autocast(model.device):
            predicted = model.predict_velocity(flow.noise_latents(clean, noises, t[part]), t[part], rows)
        yield flow.loss(predicted, clean, noises) * (len(clean) / len(latents))


def placed(encoded: Encoded, device: str, free_bytes: int) -> Encoded:
    """Bring all that training reads to the device once, where it is small beside the memory that is free there.

    Where it is not, each step sends its batch, while the device still computes the step before.
    """
    if _bytes(encoded) > PLACED_SHARE * free_bytes:
        return encoded
    rows = {id(row): {name: tensor.to(device) for name, tensor in row.items()} for row in encoded.captions}
    return replace(
        encoded,
        latents=tuple(tuple(latents.to(device) for latents in row) for row in encoded.latents),
        captions=tuple(rows[id(row)] for row in encoded.captions),  # pictures with one caption share it
    )


def _free_bytes(device: str) -> int:
    return 0 if torch.device(device).type == "cpu" else torch.cuda.mem_get_info(device)[0]


def _bytes(encoded: Encoded) -> int:
    captions = {id(row): row for row in encoded.captions}.values()
    tensors = [latents for row in encoded.latents for latents in row]
    tensors += [tensor for row in captions for tensor in row.values()]
    return sum(tensor.nbytes for tensor in tensors)


def _sent(tensor: Tensor, device: str) -> Tensor:
    """A tensor on the device, without waiting until it is there."""
    if tensor.device.type == torch.device(device).type:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def tensor_cores(device: str) -> Iterator[None]:
    """Let what is left in float32 while training use a GPU's tensor cores; afterwards it is as exact as before."""
    before = torch.get_float32_matmul_precision()
    if torch.device(device).type != "cpu":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _kept_when_memory_ends(save: Callable[[], None]) -> Iterator[None]:
    """Keep what was learned before the step that memory did not suffice for."""
    try:
        yield
    except OutOfMemoryError:
        save()
        raise


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
    _saved: float = field(default_factory=time.monotonic)
    _saving: float = 0.0

    @property
    def seconds(self) -> float:
        """Since training began."""
        return time.monotonic() - self._started

    def count_step(self) -> None:
        """A step has ended."""
        now = time.monotonic()
        self._steps.append(now - self._last)
        self._last = now

    def measure_look(self, look: Callable[[int], None], step: int) -> None:
        """Draw samples and what else is looked at; the time goes to that, not to the next step."""
        before = time.monotonic()
        look(step)
        self._last = time.monotonic()
        self._samples.append(self._last - before)

    def measure_save(self, save: Callable[[], None]) -> None:
        """Write a checkpoint, and remember what it took."""
        before = time.monotonic()
        save()
        self._last = self._saved = time.monotonic()
        self._saving = self._saved - before

    def can_save(self) -> bool:
        """Whether a checkpoint would take a small share of the time: those of a large `full` have tens of gigabytes."""
        return self._saving < 1 or time.monotonic() - self._saved > SAVING_SHARE * self._saving

    def seconds_left(self, done: int) -> float:
        """Until training ends; the median of recent steps, because single ones are slow."""
        every, last = self.config.sample_every, self.config.iterations
        before = done - 1  # those of this very step are drawn after it is told
        samples = last // every - before // every + (last % every > 0) if every else 1
        return median(self._steps) * (last - done) + (mean(self._samples) * samples if self._samples else 0.0)


def _is_due(done: int, every: int, last: int) -> bool:
    return done == last or (every > 0 and done % every == 0)
