"""The plan of a run: what is chosen, what it takes, what is said when nothing fits."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from finetune import memory, plan, registry
from finetune.errors import OutOfMemoryError
from finetune.inputs import FinetuneType
from finetune.machine import Machine
from finetune.memory import GIB, Fit
from finetune.plan import Order

BASES = {base.id: (family, base) for family in registry.families().values() for base in family.bases}
CARD = Machine("cuda:0", "A card", 24 * GIB, 24 * GIB, 64 * GIB, teraflops=200.0, cores=8, can_pack=True)
LAPTOP = Machine("cpu", "A laptop", 8 * GIB, 6 * GIB, 6 * GIB, teraflops=0.1, cores=1, can_pack=False)


def order(base_id, finetune_type=FinetuneType.LORA, **changes):
    """Three hundred steps on twenty pictures."""
    family, base = BASES[base_id]
    made = Order(
        base,
        family.size(base),
        finetune_type,
        16,
        4,
        300,
        (base.resolution_px,),
        pictures=20,
        drawn=4,
        drawn_px=base.resolution_px,
    )
    return replace(made, **changes)


def card(gib):
    """A GPU with so much free memory."""
    return replace(CARD, total_bytes=round(gib * GIB), free_bytes=round(gib * GIB))


@pytest.mark.parametrize("gib", [8, 12, 16, 24, 48, 80, 141])
def test_first_way_that_fits_is_chosen(gib):
    """What is chosen needs no more than nine tenths of the free memory, and all before it need more."""
    made = plan.plan(order("flux1-dev"), card(gib))

    place = made.rungs.index(made.chosen)
    assert made.chosen.needs.total <= 0.9 * gib * GIB
    assert all(rung.needs.total > 0.9 * gib * GIB for rung in made.rungs[:place])


def test_more_memory_is_never_slower():
    """With every GiB more, a step takes as long or less, and weights have as many bits or more."""
    chosen = [plan.plan(order("flux2-klein-base-9b"), card(gib)).chosen for gib in range(9, 100)]

    seconds = [rung.seconds for rung in chosen]
    assert seconds == sorted(seconds, reverse=True)
    bits = [rung.fit.weight_bits for rung in chosen if not rung.fit.is_offloaded]
    assert bits == sorted(bits)


def test_only_free_memory_counts():
    """A large card that is in use is as good as a small one, whatever its name."""
    small = plan.plan(order("flux1-dev"), card(16))
    in_use = plan.plan(order("flux1-dev"), replace(card(80), name="A large card", free_bytes=16 * GIB))

    assert in_use.chosen == small.chosen


@pytest.mark.parametrize("finetune_type", FinetuneType)
def test_way_below_needs_less_until_there_is_none(finetune_type):
    """Going down from way to way, each needs less memory than the one before, and it ends at the smallest."""
    made = plan.plan(order("flux2-klein-base-4b", finetune_type), card(141))
    needed, rung = [made.chosen.needs.total], made.chosen

    while rung := made.below(rung.fit):
        needed.append(rung.needs.total)

    assert needed == sorted(set(needed), reverse=True)
    assert needed[-1] == min(rung.needs.total for rung in made.rungs)


def test_way_below_one_that_is_not_on_the_ladder_fits():
    """Settings by hand that prove too large give way to what fits."""
    made = plan.plan(order("flux2-klein-base-4b"), card(24))

    assert made.below(Fit(micro_batch=3, weight_bits=16)).needs.total < made.usable_bytes


def test_what_is_missing_is_told():
    """Where nothing fits, the bytes that are missing are named, and what else could be asked for."""
    asked = order("flux1-dev", FinetuneType.FULL)
    others = {"the type “lora”": order("flux1-dev"), "FLUX.2 dev in full": order("flux2-dev", FinetuneType.FULL)}

    made = plan.plan(asked, card(24), others)

    least = min(rung.needs.total for rung in made.rungs)
    assert made.chosen is None
    assert f"{plan.gib(least - 0.9 * 24 * GIB)} are missing" in made.explanation
    assert made.explanation.endswith("What would fit: the type “lora”.")


def test_weights_that_wait_need_a_place():
    """Weights are not left in the processor's memory where that is full, and the explanation says so."""
    made = plan.plan(order("flux2-dev"), replace(card(24), processor_free_bytes=8 * GIB))

    assert made.chosen is None
    assert "8.0 GiB are free" in made.explanation


def test_large_text_encoder_is_split():
    """Text encoders that are larger than the GPU are told of."""
    assert not plan.plan(order("flux2-klein-base-4b"), card(24)).is_text_split
    assert plan.plan(order("flux2-dev"), card(24)).is_text_split


@pytest.mark.parametrize(
    ("base_id", "side_px", "finetune_type", "recomputed", "milliseconds"),
    [
        ("flux1-dev", 512, FinetuneType.LORA, 0.0, 58),
        ("flux1-dev", 1024, FinetuneType.LORA, 1.0, 311),
        ("flux2-klein-base-4b", 1024, FinetuneType.LORA, 0.0, 101),
        ("flux2-klein-base-4b", 1024, FinetuneType.FULL, 1.0, 180),
        ("flux2-klein-base-9b", 768, FinetuneType.FULL, 0.0, 168),
        ("flux2-dev", 512, FinetuneType.LORA, 0.0, 228),
    ],
)
def test_steps_take_as_long_as_their_operations(base_id, side_px, finetune_type, recomputed, milliseconds):
    """Operations agree with those that torch counted in the real networks, as time at 790 TFLOP/s."""
    at_full_rate = replace(CARD, teraflops=790 / plan.EFFICIENCY[True])
    asked = order(base_id, finetune_type, batch=1, resolutions_px=(side_px,))

    seconds = plan.step_seconds(asked, Fit(micro_batch=1, weight_bits=16, recomputed=recomputed), at_full_rate)

    assert seconds * 1000 == pytest.approx(milliseconds, rel=0.02)


@pytest.mark.parametrize(("batch", "milliseconds"), [(4, 80), (1, 45)])
def test_demo_base_takes_as_long_as_measured(batch, milliseconds):
    """On one thread that reaches 0.10 TFLOP/s, a step on the demo base took this long when nothing else ran."""
    seconds = plan.step_seconds(order("demo", batch=batch), Fit(micro_batch=batch), LAPTOP)

    assert seconds * 1000 == pytest.approx(milliseconds, rel=0.2)


def test_demo_base_trains_on_a_laptop():
    """On a computer without a GPU, the demo base fits at once, and three hundred steps take a minute or two."""
    made = plan.plan(order("demo"), LAPTOP)

    assert made.chosen == made.rungs[0]
    assert made.chosen.cost == ""
    assert 0.5 < made.minutes < 2.5
    assert made.download_bytes == 0


def test_minutes_grow_with_samples_and_steps():
    """A run with more steps or samples takes longer."""
    short, long, drawn = (
        plan.plan(order("flux1-dev", **more), CARD).minutes for more in ({}, {"iterations": 600}, {"drawn": 20})
    )

    assert short < drawn and short < long


def test_full_run_needs_more_disk():
    """Checkpoints of all weights are larger than those of a LoRA by far."""
    lora, full = (plan.plan(order("flux2-klein-base-4b", kind), card(80)).disk_bytes for kind in FinetuneType)

    assert lora < 2 * GIB
    assert full > 20 * GIB


def test_table_has_a_line_for_each_order_and_a_column_for_each_size():
    """What does not fit has a dash; what fits says how, how much and how long."""
    orders = {"lora": order("flux1-dev"), "full": order("flux1-dev", FinetuneType.FULL)}

    lines = plan.markdown(plan.table(orders, (24, 80), CARD)).splitlines()

    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["", "24 GB", "80 GB"]
    assert [line[0] for line in cells[2:]] == ["lora", "full"]
    assert cells[2][1].startswith("8 bit, recomputed, 1 at once, ") and cells[2][1].endswith(" min")
    assert cells[3][1] == "–" and "adamw8bit stochastic" in cells[3][2]


def test_planning_loads_no_torch():
    """The page plans in a process without the heavy libraries."""
    program = "import sys; from finetune import plan, registry; registry.families(); assert 'torch' not in sys.modules"

    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent.parent)

    assert done.returncode == 0


def test_every_way_has_a_price():
    """The page can say in words what each way costs, and how long a step takes."""
    for finetune_type in FinetuneType:
        for rung in plan.plan(order("flux1-dev", finetune_type), card(80)).rungs:
            assert rung.seconds > 0
            assert rung.cost == memory.cost(rung.fit, order("flux1-dev").demand)


def _drawn(base_id, gib, side_px=1024, can_pack=True):
    """How a base's weights are kept for drawing on a GPU of so much memory, and whether its text encoders stay."""
    family, base = BASES[base_id]
    machine, pixels = replace(card(gib), can_pack=can_pack), side_px**2
    fit = plan.for_drawing(base, family.size(base), pixels, machine)
    return fit.weight_bits, fit.is_offloaded, plan.room_for_text(base, family.size(base), pixels, fit, machine)


@pytest.mark.parametrize(
    ("base_id", "gib", "kept"),
    [
        ("flux2-klein-base-4b", 80, (16, False, True)),
        ("flux2-klein-base-4b", 24, (16, False, True)),
        ("flux2-klein-base-4b", 16, (16, False, False)),
        ("flux2-klein-base-9b", 24, (16, False, False)),
        ("flux2-klein-base-9b", 16, (8, False, False)),
        ("flux1-dev", 12, (4, False, False)),
        ("flux2-dev", 32, (4, False, False)),
        ("flux2-dev", 24, (4, True, False)),
    ],
)
def test_drawing_keeps_as_much_as_fits(base_id, gib, kept):
    """Weights have as many bits as fit beside a picture; the text encoders stay only if all fit together."""
    assert _drawn(base_id, gib) == kept


def test_drawing_without_the_library_that_packs_has_one_way_less():
    """Where nothing can be packed, weights come from the processor's memory as they are."""
    assert _drawn("flux2-klein-base-9b", 16, can_pack=False) == (16, True, False)


def test_drawing_that_fits_nowhere_is_said():
    """The error names the base, what it takes and what is free."""
    with pytest.raises(OutOfMemoryError, match="FLUX.2 dev takes at least .* of 2.0 GiB"):
        _drawn("flux2-dev", 2)


def test_larger_picture_than_the_fit_was_made_for_is_refused():
    """A base that was loaded as it fits does not take pictures of any size."""
    family, base = BASES["flux2-klein-base-4b"]
    size, machine = family.size(base), card(14)
    fit = plan.for_drawing(base, size, 1024**2, machine)

    with pytest.raises(OutOfMemoryError, match="Order a smaller one"):
        plan.room_for_text(base, size, 2048**2, fit, machine)


def test_demo_draws_on_a_laptop():
    """A processor keeps all weights in 32 bits, and everything at once."""
    family, base = BASES["demo"]
    fit = plan.for_drawing(base, family.size(base), 64**2, LAPTOP)

    assert fit == Fit(weight_bits=32)
    assert plan.room_for_text(base, family.size(base), 64**2, fit, LAPTOP)
