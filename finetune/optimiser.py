"""Move trained weights: one call a step, whatever the precision and the optimiser that memory allows.

A weight of 16 bits forgets steps that are smaller than half the way to its neighbour: at a rate of 1e-5, four fifths of
the movement. On the demo base, 300 such steps then gain 6 % of what float32 weights do. So a bfloat16 weight is stepped
as a float32 copy of itself, one weight at a time, by a library optimiser that keeps its moments for that copy; then it
is rounded back so that no steps are lost (99 to 100 %; with 8-bit moments 98 %). Plain rounding is not offered.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from finetune import flow
from finetune.errors import TrainingError
from finetune.memory import Fit

BETAS = (0.9, 0.99)  # a few hundred steps are too few for the usual 0.999
GRADIENT_NORM = 1.0
# Adafactor's guards against division by zero. The first is far below any squared gradient. The second is the size of a
# weight below which steps do not shrink with it: 1 makes them as large as the rate says, like AdamW's.
ADAFACTOR_EPS = (1e-16, 1.0)
LOW_BITS = 16  # that a float32 has more than a bfloat16


class Optimiser:
    """Moves a trainee's parameters down the gradient of a loss, as a Fit says.

    When fused, each weight moves during the backward pass, as soon as its gradient is there, so that only one gradient
    exists at a time. Gradients are then cut to their largest norm tensor by tensor instead of all together.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], weight_decay: float, fit: Fit, seed: int = 0) -> None:
        """Raises: ValueError for precisions that would lose steps; TrainingError when a library is missing."""
        self._is_fused, self._kind, self._steps = fit.is_fused, fit.optimiser, 0
        self._kept = {name: _keep(weight, fit.rounding, seed, name) for name, weight in parameters.items()}
        together = [list(self._kept)]
        if fit.is_fused or any(isinstance(kept, _Rounded) for kept in self._kept.values()):
            together = [[name] for name in self._kept]
        self._groups = [
            _Group({name: self._kept[name] for name in names}, _make(fit.optimiser), weight_decay) for names in together
        ]

    @property
    def trained(self) -> Callable[[str], Tensor]:
        """Gives a weight by its name in float32, with what its 16 bits leave out. Does not keep the moments alive."""
        kept = self._kept
        return lambda name: kept[name].value()

    def move(self, losses: Iterable[Tensor], rate: float) -> float:
        """Take one step down the sum of losses, each given when the one before it was dealt with; returns the sum.

        Where the sum or its gradient is not finite, nothing moves, and what is returned is not a number. When fused,
        that holds for each weight's own gradient. Raises: ValueError for several losses when fused.
        """
        total = self._move_in_backward(losses, rate) if self._is_fused else self._move_after_backward(losses, rate)
        self._steps += 1
        return total

    def _move_after_backward(self, losses: Iterable[Tensor], rate: float) -> float:
        total, weights = 0.0, [kept.weight for kept in self._kept.values()]
        for loss in losses:
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(weights, GRADIENT_NORM)
        if is_finite := math.isfinite(total) and math.isfinite(norm.item()):
            for group in self._groups:
                group.step(rate, self._steps)
        for weight in weights:
            weight.grad = None
        return total if is_finite else math.nan

    def _move_in_backward(self, losses: Iterable[Tensor], rate: float) -> float:
        remaining = iter(losses)
        loss = next(remaining)
        if next(remaining, None) is not None:
            raise ValueError("weights that move in the backward pass take the whole batch at once")
        if not math.isfinite(total := loss.item()):
            return math.nan
        are_finite = []

        def move(group: _Group, weight: Tensor) -> None:
            norm = torch.nn.utils.clip_grad_norm_([weight], GRADIENT_NORM)
            are_finite.append(math.isfinite(norm.item()))
            if are_finite[-1]:
                group.step(rate, self._steps)
            weight.grad = None

        with self._moving(move):
            loss.backward()
        return total if all(are_finite) else math.nan

    @contextmanager
    def _moving(self, move: "Callable[[_Group, Tensor], None]") -> Iterator[None]:
        """Let each weight move as soon as its gradient is there. The hooks go again: they keep the moments alive."""
        hooks = []
        for group in self._groups:
            (kept,) = group.kept.values()
            hooks.append(kept.weight.register_post_accumulate_grad_hook(lambda w, group=group: move(group, w)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """What resume needs."""
        return {
            "optimiser": self._kind,
            "steps": self._steps,
            "moments": {name: moments for group in self._groups for name, moments in group.moments().items()},
            "left_out": {name: kept.left_out for name, kept in self._kept.items() if isinstance(kept, _Kahan)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave.

        A run may go on with another Fit, in less memory: moments of another optimiser begin anew then.
        """
        self._steps = state["steps"]
        for group in self._groups:
            if state["optimiser"] == self._kind:
                group.put_back({name: state["moments"][name] for name in group.kept if name in state["moments"]})
        for name, kept in self._kept.items():
            if isinstance(kept, _Kahan) and name in state["left_out"]:
                kept.left_out.copy_(state["left_out"][name])


class _Kept(Protocol):
    """A trained weight, and the float32 parameter that the library's optimiser moves."""

    weight: nn.Parameter
    stepped: nn.Parameter

    def value(self) -> Tensor:
        """The weight in float32."""

    def begin(self) -> None:
        """Before the library's step: value and gradient into what is stepped."""

    def end(self, step: int) -> None:
        """After it: back into the weight."""


class _Master:
    """A float32 weight, which is stepped itself."""

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight = self.stepped = weight

    def value(self) -> Tensor:
        return self.weight.detach()

    def begin(self) -> None:
        pass

    def end(self, step: int) -> None:
        pass


class _Rounded:
    """A bfloat16 weight, stepped as a float32 copy that is there only during the step."""

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight = weight
        self._nothing = torch.empty(0, dtype=torch.float32, device=weight.device)
        self.stepped = nn.Parameter(self._nothing)

    def value(self) -> Tensor:
        return self.weight.detach().float()

    def begin(self) -> None:
        self.stepped.data = self.value()
        self.stepped.grad = self.weight.grad.float()
        self.weight.grad = None

    def end(self, step: int) -> None:
        with torch.no_grad():
            self._take(self.stepped.detach(), step)
        self.stepped.grad = None
        self.stepped.data = self._nothing

    def _take(self, value: Tensor, step: int) -> None:
        raise NotImplementedError


class _Kahan(_Rounded):
    """Keeps what rounding leaves out in another bfloat16: together they have about the 16 bits that a step needs.

    Source: Kahan 1965, "Further remarks on reducing truncation errors"; for training, Zamirai et al. 2020
    (arXiv 2010.06192).
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__(weight)
        self.left_out = torch.zeros_like(weight, requires_grad=False)

    def value(self) -> Tensor:
        return self.weight.detach().float() + self.left_out

    def _take(self, value: Tensor, step: int) -> None:
        self.weight.copy_(value)
        self.left_out.copy_(value - self.weight)


class _Stochastic(_Rounded):
    """Rounds up or down by chance, up the more often the nearer that is: right on average, without any memory.

    Chance derives from the seed, the step and the weight's name, so a resumed run rounds as it would have.
    """

    def __init__(self, weight: nn.Parameter, seed: int, name: str) -> None:
        super().__init__(weight)
        self._seed, self._name = seed, name

    def _take(self, value: Tensor, step: int) -> None:
        chance = flow.generator(self._seed, "rounding", step, self._name).initial_seed()
        generator = torch.Generator(value.device).manual_seed(chance)
        self.weight.copy_(round_by_chance(value, generator))


def round_by_chance(value: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 to bfloat16, to either neighbour with a chance that makes it right on average.

    A bfloat16 is the upper half of a float32: a random number is added to the lower half, which then is cut off.
    """
    low = torch.randint(0, 2**LOW_BITS, value.shape, generator=generator, dtype=torch.int32, device=value.device)
    bits = low.add_(value.contiguous().view(torch.int32)).bitwise_and_(-(2**LOW_BITS))
    return bits.view(torch.float32).bfloat16()


def _keep(weight: nn.Parameter, rounding: str, seed: int, name: str) -> _Kept:
    if weight.dtype == torch.float32:
        return _Master(weight)
    if weight.dtype == torch.bfloat16 and rounding == "kahan":
        return _Kahan(weight)
    if weight.dtype == torch.bfloat16 and rounding == "stochastic":
        return _Stochastic(weight, seed, name)
    raise ValueError(f"a weight of {weight.dtype} with rounding “{rounding}” would lose small steps: {name}")


class _Group:
    """Weights that move together, and the library's optimiser that moves them."""

    def __init__(
        self, kept: dict[str, _Kept], make: Callable[[list[nn.Parameter], float], torch.optim.Optimizer], decay: float
    ) -> None:
        self.kept = kept
        self._inner = make([one.stepped for one in kept.values()], decay)

    def step(self, rate: float, step: int) -> None:
        for one in self.kept.values():
            one.begin()
        for group in self._inner.param_groups:
            group["lr"] = rate
        self._inner.step()
        for one in self.kept.values():
            one.end(step)

    def moments(self) -> dict[str, Any]:
        """The optimiser's state by weight, whoever the weight moves together with."""
        state = self._inner.state_dict()["state"]
        return {name: state[number] for number, name in enumerate(self.kept) if number in state}

    def put_back(self, moments: dict[str, Any]) -> None:
        state = {number: moments[name] for number, name in enumerate(self.kept) if name in moments}
        self._inner.load_state_dict({**self._inner.state_dict(), "state": state})


def _make(kind: str) -> Callable[[list[nn.Parameter], float], torch.optim.Optimizer]:
    makers = {"adamw": _adamw, "adamw8bit": _adamw_8bit, "adafactor": _adafactor}
    if kind not in makers:
        raise ValueError(f"no optimiser “{kind}”; there are {', '.join(makers)}")
    return makers[kind]


def _adamw(weights: list[nn.Parameter], decay: float) -> torch.optim.Optimizer:
    """8 bytes for each value."""
    return torch.optim.AdamW(weights, betas=BETAS, weight_decay=decay, fused=True)  # on a processor too: 4 x as fast


def _adamw_8bit(weights: list[nn.Parameter], decay: float) -> torch.optim.Optimizer:
    """2 bytes for each value; weights of less than 4096 values keep 8. Raises: TrainingError.

    Source: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861).
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise TrainingError(
            f"The 8-bit optimiser needs the package bitsandbytes, which cannot be loaded ({error}).",
            "Install it with “pip install bitsandbytes”, or choose the optimiser adafactor, which needs less memory.",
        ) from error
    return bitsandbytes.optim.AdamW8bit(weights, betas=BETAS, weight_decay=decay)


def _adafactor(weights: list[nn.Parameter], decay: float) -> torch.optim.Optimizer:
    """A value for each row and column of a weight. Steps are as large as the rate says, not relative to the weight.

    Source: Shazeer and Stern 2018, "Adafactor" (arXiv 1804.04235).
    """
    return torch.optim.Adafactor(weights, eps=ADAFACTOR_EPS, weight_decay=decay)
