"""Moving weights: no step is lost to 16 bits, whichever the optimiser, and a resumed run goes on exactly."""

import gc
import importlib.util
import itertools
import math
import sys
import weakref

import pytest
import torch

from finetune import checkpoints
from finetune.errors import TrainingError
from finetune.memory import Fit
from finetune.optimiser import BETAS, GRADIENT_NORM, Optimiser, round_by_chance

HAS_8BIT = importlib.util.find_spec("bitsandbytes") is not None  # optional, as in a machine that runs the service
OPTIMISERS = ("adamw", "adafactor", "adamw8bit") if HAS_8BIT else ("adamw", "adafactor")
ROUNDINGS = {"float32": torch.float32, "kahan": torch.bfloat16, "stochastic": torch.bfloat16}
COMBINATIONS = list(itertools.product(OPTIMISERS, ROUNDINGS, (False, True)))


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(rounding="float32"):
    """Two weights of a network that predicts (B, 8) from (B, 64); the first is large enough for 8 bits."""
    dtype = ROUNDINGS[rounding]
    values = {"first": 0.1 * drawn(0, 80, 64), "second": 0.1 * drawn(1, 8, 80)}
    return {name: torch.nn.Parameter(value.to(dtype)) for name, value in values.items()}


def loss(parameters, step=0, rows=slice(None), scale=1e-3):
    """The loss of some rows of a batch; its gradients are too small to be cut."""
    inputs, wanted = drawn(10 + step, 4, 64)[rows], drawn(50 + step, 4, 8)[rows]
    found = (inputs @ parameters["first"].float().T).tanh() @ parameters["second"].float().T
    return scale * (found - wanted).square().mean()


def copies(parameters):
    return {name: weight.detach().clone() for name, weight in parameters.items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("is_fused", [True, False])
def test_float32_is_torch_adamw(is_fused):
    """With float32 weights, each step is that of AdamW behind a cut of the gradient's norm: of the library's fused form
    to the last bit, of its plain one within rounding."""
    ours, theirs = weights(), weights()
    optimiser = Optimiser(ours, 0.1, Fit())
    reference = torch.optim.AdamW(theirs.values(), betas=BETAS, weight_decay=0.1, fused=is_fused)

    for step in range(5):
        optimiser.move([loss(ours, step, scale=100.0)], rate=1e-3 * (step + 1))
        loss(theirs, step, scale=100.0).backward()
        assert torch.nn.utils.clip_grad_norm_(theirs.values(), GRADIENT_NORM) > GRADIENT_NORM, "nothing was cut"
        reference.param_groups[0]["lr"] = 1e-3 * (step + 1)
        reference.step()
        reference.zero_grad()

    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0 if is_fused else 1e-5, atol=0 if is_fused else 1e-7)


@pytest.mark.parametrize("rounding", ["kahan", "stochastic"])
def test_small_steps_arrive_where_plain_rounding_loses_four_fifths(rounding):
    """Of steps of 1e-5 on weights of 0.02, about all is applied on average; rounded plainly, about 19 % would be."""
    weight = torch.nn.Parameter((0.02 * drawn(0, 300, 300)).bfloat16())
    before, plain, up = weight.detach().float(), weight.detach().clone(), drawn(1, 300, 300).sign()
    optimiser = Optimiser({"weight": weight}, 0.0, Fit(rounding=rounding))

    for _ in range(20):
        optimiser.move([-(weight.float() * up).sum() * 1e-6], rate=1e-5)  # AdamW's steps are as large as the rate
        plain = (plain.float() + 1e-5 * up).bfloat16()

    asked = 20 * 1e-5
    assert ((optimiser.trained("weight") - before) * up).mean().item() / asked == pytest.approx(1.0, abs=0.02)
    assert ((weight.detach().float() - before) * up).mean().item() / asked == pytest.approx(1.0, abs=0.1)
    assert ((plain.float() - before) * up).mean().item() / asked == pytest.approx(0.19, abs=0.03)


def test_chance_rounds_to_a_neighbour_and_right_on_average():
    """Each result is one of the two bfloat16 around the value, and their mean is the value."""
    value = torch.tensor([0.02003, -0.02003, 1.0, -7.001, 3e-8]).expand(20_000, 5)

    rounded = round_by_chance(value, torch.Generator().manual_seed(0)).double()

    exact, low = value[0].double(), rounded.min(0).values
    spacing = rounded.max(0).values - low
    assert (low <= exact).all() and (exact <= low + spacing).all()
    assert all(len(column.unique()) <= 2 for column in rounded.T)
    assert ((rounded.mean(0) - exact).abs() <= 0.015 * spacing).all()


@pytest.mark.parametrize(("kind", "rounding"), list(itertools.product(OPTIMISERS, ROUNDINGS)))
def test_moving_in_the_backward_pass_changes_nothing(kind, rounding):
    """As long as no gradient is cut, fused and separate steps end in the same weights."""
    fused, separate = weights(rounding), weights(rounding)
    optimisers = {
        True: Optimiser(fused, 0.01, Fit(optimiser=kind, rounding=rounding, is_fused=True)),
        False: Optimiser(separate, 0.01, Fit(optimiser=kind, rounding=rounding)),
    }

    told = [
        [optimisers[is_fused].move([loss(parameters, step)], rate=1e-3) for step in range(3)]
        for is_fused, parameters in ((True, fused), (False, separate))
    ]

    assert told[0] == told[1]
    assert same(fused, separate) and not same(fused, weights(rounding))


def test_gradients_are_never_all_there_when_fused():
    """When a weight's gradient arrives, the one before it is gone already; afterwards none is left."""
    parameters, there = weights(), []
    optimiser = Optimiser(parameters, 0.0, Fit(is_fused=True))
    for weight in parameters.values():
        weight.register_post_accumulate_grad_hook(
            lambda _: there.append(sum(weight.grad is not None for weight in parameters.values()))
        )

    optimiser.move([loss(parameters)], rate=1e-3)

    assert there == [1, 1]
    assert all(weight.grad is None for weight in parameters.values())


def test_fused_cuts_each_gradient_by_its_own_norm():
    """The moments after one step show it: each gradient had norm 1, where separate steps cut both to 1 together."""
    fused, separate = weights(), weights()
    moments = {}

    for name, parameters in (("fused", fused), ("separate", separate)):
        optimiser = Optimiser(parameters, 0.0, Fit(is_fused=name == "fused"))
        optimiser.move([loss(parameters, scale=1e4)], rate=1e-3)
        firsts = [state["exp_avg"] / (1 - BETAS[0]) for state in optimiser.state_dict()["moments"].values()]
        moments[name] = [first.norm().item() for first in firsts]

    assert moments["fused"] == pytest.approx([1.0, 1.0], rel=1e-4)
    assert math.hypot(*moments["separate"]) == pytest.approx(1.0, rel=1e-4)


def test_parts_of_a_batch_make_the_step_of_the_batch():
    """Losses that come one after the other sum up to the batch's."""
    whole, parts = weights(), weights()

    total = Optimiser(whole, 0.0, Fit()).move([loss(whole)], rate=1e-3)
    sum_of_parts = Optimiser(parts, 0.0, Fit()).move(
        (loss(parts, rows=slice(row, row + 1)) / 4 for row in range(4)), rate=1e-3
    )

    assert sum_of_parts == pytest.approx(total, rel=1e-6)
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=0, atol=2e-6)


def test_parts_of_a_batch_cannot_move_in_the_backward_pass():
    """A fused step needs the whole batch's gradient at once; nothing has moved when that is refused."""
    parameters = weights()

    with pytest.raises(ValueError, match="at once"):
        Optimiser(parameters, 0.0, Fit(is_fused=True)).move([loss(parameters), loss(parameters)], rate=1e-3)

    assert same(copies(parameters), weights())


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_loss_that_is_no_number_moves_nothing(rounding, is_fused):
    """The step says that it was none, and the next good one is taken."""
    parameters = weights(rounding)
    optimiser = Optimiser(parameters, 0.1, Fit(rounding=rounding, is_fused=is_fused))

    told = optimiser.move([loss(parameters) * math.inf], rate=1e-3)

    assert math.isnan(told)
    assert same(copies(parameters), weights(rounding))
    assert math.isfinite(optimiser.move([loss(parameters)], rate=1e-2))
    assert not same(copies(parameters), weights(rounding))


@pytest.mark.parametrize("is_fused", [False, True])
def test_gradient_that_is_no_number_moves_nothing(is_fused):
    """Where only a gradient is broken, its weight stays; when fused, the other one has moved by then."""
    parameters = weights()
    optimiser = Optimiser(parameters, 0.1, Fit(is_fused=is_fused))
    broken = parameters["first"].detach().new_zeros(()).requires_grad_()  # the root of 0 has an infinite slope

    told = optimiser.move([loss(parameters) + ((parameters["first"] * 0).sum() + broken * 0).sqrt()], rate=1e-2)

    assert math.isnan(told)
    assert torch.equal(parameters["first"], weights()["first"])
    assert torch.equal(parameters["second"], weights()["second"]) != is_fused


@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.bfloat16, "float32"), (torch.bfloat16, "nearest"), (torch.float16, "kahan"), (torch.float16, "stochastic")],
)
def test_precision_that_loses_steps_is_refused(dtype, rounding):
    """There is no way to train 16-bit weights with plain rounding."""
    weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=dtype))

    with pytest.raises(ValueError, match="small steps"):
        Optimiser({"weight": weight}, 0.0, Fit(rounding=rounding))


def test_unknown_optimiser_is_refused():
    """A name that is none of the three is a mistake."""
    with pytest.raises(ValueError, match="adamw8bit"):
        Optimiser(weights(), 0.0, Fit(optimiser="sgd"))


def test_missing_library_is_an_error_with_a_hint(monkeypatch):
    """Eight bits need an optional package: without it, the run says what to install."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)

    with pytest.raises(TrainingError, match="bitsandbytes") as caught:
        Optimiser(weights(), 0.0, Fit(optimiser="adamw8bit"))

    assert "pip install" in caught.value.hint


@pytest.mark.parametrize(("kind", "rounding", "is_fused"), COMBINATIONS)
def test_resumed_run_is_exact(tmp_path, kind, rounding, is_fused):
    """Three steps, a checkpoint and two more end in the same bits as after loading that checkpoint elsewhere."""
    fit = Fit(optimiser=kind, rounding=rounding, is_fused=is_fused)
    straight, resumed = weights(rounding), weights(rounding)
    first, second = Optimiser(straight, 0.01, fit, seed=3), Optimiser(resumed, 0.01, fit, seed=3)
    for step in range(3):
        first.move([loss(straight, step)], rate=1e-4)
    checkpoints.save(tmp_path, 3, straight, first)

    done = checkpoints.load(tmp_path, resumed, second, pytest.fail)
    for step in range(3, 5):
        first.move([loss(straight, step)], rate=1e-4)
        second.move([loss(resumed, step)], rate=1e-4)

    assert done == 3
    assert same(straight, resumed)
    assert all(torch.equal(first.trained(name), second.trained(name)) for name in straight)


def test_run_goes_on_with_an_optimiser_of_less_memory(tmp_path):
    """A checkpoint of AdamW with float32 weights is taken up by Adafactor with 16-bit ones; moments begin anew."""
    before, after = weights(), weights("stochastic")
    first = Optimiser(before, 0.0, Fit())
    first.move([loss(before)], rate=1e-3)
    checkpoints.save(tmp_path, 1, before, first)

    second = Optimiser(after, 0.0, Fit(optimiser="adafactor", rounding="stochastic", is_fused=True))
    done = checkpoints.load(tmp_path, after, second, pytest.fail)

    assert done == 1
    assert all(torch.equal(after[name], before[name].bfloat16()) for name in before)
    assert second.state_dict()["moments"] == {}
    assert math.isfinite(second.move([loss(after, 1)], rate=1e-3))


@pytest.mark.parametrize(
    ("kind", "rounding", "bytes_per_value"),
    [("adamw", "float32", 8), ("adamw", "stochastic", 8), ("adamw", "kahan", 10), ("adafactor", "kahan", 2)]
    + [("adafactor", "stochastic", 0), ("adamw8bit", "stochastic", 2)][: 1 + HAS_8BIT],
)
def test_state_takes_the_memory_that_the_plan_counts(kind, rounding, bytes_per_value):
    """Bytes of state for each value: 8 of AdamW, 2 of its 8-bit kind, next to none of Adafactor; Kahan adds 2."""
    parameters = {"weight": torch.nn.Parameter((0.02 * drawn(0, 300, 300)).to(ROUNDINGS[rounding]))}
    optimiser = Optimiser(parameters, 0.0, Fit(optimiser=kind, rounding=rounding))

    optimiser.move([parameters["weight"].float().square().sum()], rate=1e-5)

    state = optimiser.state_dict()
    tensors = [*state["moments"]["weight"].values(), *state["left_out"].values()]
    if kind == "adamw8bit":
        tensors = list(state["moments"]["weight"]["__bnb_optimizer_quant_state__"].values())
    size = sum(tensor.nbytes for tensor in tensors if torch.is_tensor(tensor)) / parameters["weight"].numel()
    assert size == pytest.approx(bytes_per_value, abs=0.06)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_weights_outlive_the_moments(rounding):
    """What was trained can be read in float32 when the optimiser is gone, hooks and all."""
    parameters = weights(rounding)
    optimiser = Optimiser(parameters, 0.0, Fit(rounding=rounding, is_fused=True))
    optimiser.move([loss(parameters)], rate=1e-4)
    trained, gone = optimiser.trained, weakref.ref(optimiser)

    del optimiser
    gc.collect()

    assert gone() is None
    assert trained("first").dtype == torch.float32
    torch.testing.assert_close(trained("first").bfloat16(), parameters["first"].detach().bfloat16())
