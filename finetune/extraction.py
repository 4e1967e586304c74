"""From a full finetune to a LoRA: layer by layer against the base on disk, weighted by what the layers see.

A LoRA cannot hold all that changed. What matters is not how near it comes to the changed weights but what the network
then predicts: so inputs that are large in use weigh more, the result is measured, and where it recovers too little, the
LoRA is healed: trained for a moment to predict what the full finetune did. No second model is ever in memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from finetune import fidelity, flow, lora, parts
from finetune.encodings import Encoded, Progress
from finetune.families import Encoding, Model
from finetune.fidelity import Comparison, Curve, Fidelity, Kept
from finetune.lora import AllWeights
from finetune.memory import Fit
from finetune.optimiser import Optimiser
from finetune.recipe import TrainConfig

# Measured on the demo base at rank 16, which recovers 0.923 of the held-out loss before healing: 48 steps at 1e-4, 3e-4
# and 1e-3 make it 0.958, 0.972 and 0.982, but at 1e-3 and rank 32 the LoRA moves away from the full finetune. Twice as
# many lessons make it 0.978 instead of 0.975.
LESSONS = 24
HEALING_STEPS = 48
HEALING_RATE = 3e-4
WEIGHTING = 0.5
"""How much the sizes of inputs count: 0 not at all, 1 as if inputs were independent, which they are not. On the demo
base, 0, 0.5 and 1 recover 0.963, 0.962 and 0.959 at rank 32; 0.5 comes nearest to what the full finetune predicts."""
LEAST_SCALE = 1e-2
"""Of the mean: an input that was silent while it was measured may speak elsewhere."""
OVERSAMPLED, ROUNDS = 16, 6  # the error is then at most 1e-5 above the least possible, in a tenth of the time
EXACT_UP_TO = 4
"""Times the directions that are looked for: a matrix with no more rows or columns is decomposed exactly."""

Trained = Callable[[str], Tensor]
"""Gives a trained weight by its layer's name, in float32."""


@dataclass(frozen=True)
class Lesson:
    """A batch to predict, and what the full finetune predicted of it. All on the processor."""

    noisy: Tensor
    t: Tensor
    captions: Encoding
    velocity: Tensor


def finish(
    model: Model,
    trainee: AllWeights,
    trained: Trained,
    encoded: Encoded,
    held_out: Encoded,
    config: TrainConfig,
    progress: Progress,
    healing_rate: float = HEALING_RATE,
) -> tuple[lora.State, Fidelity]:
    """Put the base's weights back, with the LoRA that comes nearest to the full finetune, and say how near that is.

    The lessons are taken from the full finetune whether or not the LoRA will need them: when that is known, the
    finetune is gone. They cost no pass of their own, because the passes that measure the layers' inputs give them.
    """

    def measure(what: str) -> tuple[Curve, Curve]:
        progress(f"Measuring {what}", 0, 2)
        first = fidelity.grid(model, held_out, config.seed, config.fit.micro_batch)
        progress(f"Measuring {what}", 1, 2)
        return first, fidelity.grid(model, encoded, config.seed, config.fit.micro_batch)

    full = measure("the full finetune")
    lessons, scales = take_lessons(model, list(trainee.parameters), encoded, config, progress)
    state, layers = extract(model, trainee, trained, scales, config.lora_rank, progress)
    base = measure("the base model")
    parameters = lora.add(model.transformer, trainee.targets, config.lora_rank, config.seed)
    lora.load(model.transformer, state)
    extracted = measure("the LoRA")
    held, known = (Comparison(*curves) for curves in zip(base, full, extracted, strict=True))
    if held.recovered >= fidelity.ENOUGH:
        return state, Fidelity(config.lora_rank, held, known, layers)

    heal(model, parameters, lessons, healing_rate, config.fit.micro_batch, progress)
    healed = measure("the healed LoRA")
    held, known = (Comparison(*curves) for curves in zip(base, full, extracted, healed, strict=True))
    if is_healed := held.recovered_by_healing > held.recovered:
        state = lora.state(model.transformer)
    lora.load(model.transformer, state)
    return state, Fidelity(config.lora_rank, held, known, layers, HEALING_STEPS, is_healed)


def take_lessons(
    model: Model, layers: Sequence[str], encoded: Encoded, config: TrainConfig, progress: Progress
) -> tuple[list[Lesson], dict[str, Tensor]]:
    """Let the full finetune predict the batches that would have come next, and watch how large the layers' inputs are.

    Returns the lessons, and by layer the root of each input's mean square. Shapes: (in,) each.
    """
    lessons = []
    after = islice(encoded.plan(config.seed, config.batch_size), config.iterations, config.iterations + LESSONS)
    with _watched(model.transformer, layers) as scales, torch.no_grad():
        for number, (latents, captions) in enumerate(after):
            progress("Measuring what the layers see", number, LESSONS)
            step = config.iterations + number
            t = flow.draw_times(config.seed, step, len(latents), config.time_shift)
            noisy = flow.noise_latents(latents, flow.draw_noise(config.seed, step, latents.shape), t)
            velocity = fidelity.predict(model, noisy, t, captions, config.fit.micro_batch)
            lessons.append(Lesson(noisy, t, captions, velocity))
    return lessons, scales


@contextmanager
def _watched(transformer: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Give a dictionary that is filled with the size of each layer's inputs when all passes through it are done."""
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)
    scales: dict[str, Tensor] = {}

    def watch(name: str, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].detach().float().flatten(0, -2)
        counts[name] += len(rows)
        sums[name] = sums.get(name, 0.0) + rows.square().sum(0)

    hooks = [
        transformer.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: watch(name, inputs))
        for name in layers
    ]
    try:
        yield scales
    finally:
        for hook in hooks:
            hook.remove()
    scales.update({name: (total / counts[name]).sqrt() for name, total in sums.items()})


@torch.no_grad()
def extract(
    model: Model,
    trainee: AllWeights,
    trained: Trained,
    scales: Mapping[str, Tensor],
    rank: int,
    progress: Progress,
) -> tuple[lora.State, dict[str, Kept]]:
    """Find the LoRA for each layer's change, and put the base's weight back. A layer without scales is unweighted."""
    state, layers = {}, {}
    for number, name in enumerate(trainee.parameters):
        progress("Extracting the LoRA", number, len(trainee.parameters))
        original = model.original(f"{name}.weight")
        change = trained(name) - trainee.as_loaded(name, original).float()
        trainee.put_back(name, original)
        a, b, layers[name] = approximate(change, scales.get(name, change.new_ones(change.shape[1])), rank)
        state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = a.cpu(), b.cpu()
    return state, layers


def approximate(change: Tensor, scales: Tensor, rank: int) -> tuple[Tensor, Tensor, Kept]:
    """Find the two factors of a rank whose product is closest to a change for inputs of these sizes.

    The rows of A and the columns of B have equal norms in pairs, so that neither loses precision when stored. No values
    are clamped, unlike in other programs: that only adds error.
    Shapes: change (out, in), scales (in,); returns A (rank, in) and B (out, rank).
    Source: Eckart and Young 1936 for equal scales; Yuan et al. 2023, "ASVD" (arXiv 2312.05821) for unequal ones, there
    too with the power 0.5.
    """
    scales = scales.to(change).clamp(min=LEAST_SCALE * scales.mean().item())
    weights = scales**WEIGHTING
    u, s, v = _leading(change * weights, rank)
    a, b = v.T / weights, u * s
    norms = (b.norm(dim=0) / a.norm(dim=1)).sqrt()
    a, b = a * norms[:, None], torch.where(norms > 0, b / norms, 0.0)
    left = change - b @ a
    kept = Kept(
        error=_ratio(left.norm(), change.norm(), 0.0),
        weighted_error=_ratio((left * scales).norm(), (change * scales).norm(), 0.0),
        energy=_ratio(s.square().sum(), (change * weights).square().sum(), 1.0),
    )
    return _padded(a, rank, 0), _padded(b, rank, 1), kept


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular vectors and values. Shapes: (out, rank), (rank,), (in, rank), or fewer in a small matrix.

    A large matrix is first projected on a few more directions than are asked for, found by chance and a few rounds of
    multiplication. Source: Halko et al. 2011, "Finding structure with randomness" (arXiv 0909.4061).
    """
    sought = rank + OVERSAMPLED
    if min(matrix.shape) <= EXACT_UP_TO * sought:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], vh[:rank].T
    with torch.random.fork_rng(devices=[matrix.device] if matrix.device.type == "cuda" else []):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(matrix, q=sought, niter=ROUNDS)
    return u[:, :rank], s[:rank], v[:, :rank]


def _ratio(part: Tensor, whole: Tensor, of_nothing: float) -> float:
    return (part / whole).item() if whole > 0 else of_nothing


def _padded(factor: Tensor, rank: int, dim: int) -> Tensor:
    """Fill up with zeros where a layer is smaller than the rank: files hold one rank for all layers."""
    missing = list(factor.shape)
    missing[dim] = rank - factor.shape[dim]
    return torch.cat([factor, factor.new_zeros(missing)], dim).contiguous()


def heal(
    model: Model,
    parameters: Mapping[str, nn.Parameter],
    lessons: Sequence[Lesson],
    rate: float,
    at_once: int,
    progress: Progress,
) -> None:
    """Train the LoRA to predict what the full finetune did, a few times over the lessons; the rate falls to zero."""
    optimiser = Optimiser(parameters, weight_decay=0.0, fit=Fit())
    for step in range(HEALING_STEPS):
        progress("Healing the LoRA", step, HEALING_STEPS)
        lesson = lessons[step % len(lessons)]
        optimiser.move(_distances(model, lesson, at_once), rate * (1 - step / HEALING_STEPS))


def _distances(model: Model, lesson: Lesson, at_once: int) -> Iterator[Tensor]:
    """The loss of a lesson, as a sum over the parts of it that go through the network at once."""
    for part in torch.arange(len(lesson.noisy)).split(at_once):
        rows = {name: tensor[part] for name, tensor in lesson.captions.items()}
        with parts.autocast(model.device):
            predicted = model.predict_velocity(lesson.noisy[part], lesson.t[part], rows)
        away = predicted.float() - lesson.velocity[part].to(predicted.device)
        yield away.square().mean() * (len(part) / len(lesson.noisy))
