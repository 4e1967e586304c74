"""What a run needs, and the ladder of ways to need less."""

from dataclasses import replace

import pytest
import torch
from small_card import small_card

from finetune import flow, footprint, lora, memory, registry
from finetune.inputs import FinetuneType
from finetune.memory import GIB, Demand, Fit

FAMILIES = registry.families()
BASES = {base.id: (family, base) for family in FAMILIES.values() for base in family.bases}
GPU = Fit(weight_bits=16, micro_batch=1)


def demand(base_id, finetune_type=FinetuneType.LORA, side_px=1024, batch=4, rank=16):
    """What training on a published base asks for."""
    family, base = BASES[base_id]
    return Demand(family.size(base), finetune_type, rank, batch, side_px**2, side_px**2, text_tokens=512)


class Step:
    """A forward and backward pass of a family's toy model."""

    def __init__(self, family, finetune_type, fit):
        self.model, batch, side = family.tiny(), 4, 12
        targets = family.lora_targets
        lora.prepare(self.model.transformer, targets, finetune_type, 1, 0)  # rank 1, as toys are 100 times narrower
        footprint.apply(self.model.transformer, fit)
        rows = self.model.encode_prompts(["a pear on a plate"])
        self.text = {name: tensor.expand(batch, *tensor.shape[1:]) for name, tensor in rows.items()}
        self.latents = torch.randn(batch, self.model.latent_channels, side, side)
        size, tokens = family.size(self.model.base), max(t.shape[1] for t in rows.values() if t.dim() == 3)
        pixels = side**2 * size.patch_px**2
        self.demand = Demand(size, finetune_type, 1, batch, pixels, pixels, tokens)

    def __call__(self):
        velocity = self.model.predict_velocity(self.latents, torch.full((len(self.latents),), 0.5), self.text)
        flow.loss(velocity, self.latents, torch.zeros_like(self.latents)).backward()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("finetune_type", FinetuneType)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_activations_are_what_autograd_keeps(family, finetune_type, share):
    """The formula agrees with a count of all that a toy model of the family keeps for the backward pass."""
    fit = Fit(recomputed=share, micro_batch=4)
    step = Step(family, finetune_type, fit)
    kept = footprint.Kept(step.model.transformer)

    with kept.counting():
        step()

    assert memory.needs(step.demand, fit, is_gpu=False).activations == pytest.approx(kept.peak, rel=0.15)


@pytest.mark.parametrize(
    ("base_id", "bits", "gigabytes"),
    [
        ("flux1-dev", 16, 23.8),
        ("flux1-dev", 8, 11.9),
        ("flux1-dev", 4, 6.7),
        ("flux2-klein-base-4b", 16, 7.8),
        ("flux2-klein-base-4b", 4, 2.2),
        ("flux2-dev", 8, 32.2),
    ],
)
def test_weights_take_what_their_bits_say(base_id, bits, gigabytes):
    """Packed weights are as large as parameters times bits; layers around the blocks and scales add up to 0.8 GB."""
    found = memory.needs(demand(base_id), replace(GPU, weight_bits=bits), is_gpu=True).weights

    assert gigabytes - 0.1 < found / 1e9 < gigabytes * 1.0625 + 0.8


def test_lora_keeps_sixteen_bytes_and_a_copy_for_each_value():
    """A LoRA of rank 16 on klein 4B has 24.1 million values: weight, gradient, two moments, and 16 bits to compute."""
    assert memory.needs(demand("flux2-klein-base-4b"), GPU, is_gpu=True).trained == pytest.approx(24.1e6 * 18, rel=0.01)


def test_published_sums_are_met():
    """Least memory for a LoRA with recomputation is near what other programs report: 26 to 30 GB for FLUX.1 in 16 bits,
    18 in 8 and 9 to 12 in 4; 22 for klein 9B."""
    least = {
        (base_id, bits): memory.needs(demand(base_id), replace(GPU, weight_bits=bits, recomputed=1.0), True).total / 1e9
        for base_id, bits in [("flux1-dev", 16), ("flux1-dev", 8), ("flux1-dev", 4), ("flux2-klein-base-9b", 16)]
    }

    assert 26 < least["flux1-dev", 16] < 30
    assert 15 < least["flux1-dev", 8] < 19
    assert 9 < least["flux1-dev", 4] < 12
    assert 20 < least["flux2-klein-base-9b", 16] < 24


@pytest.mark.parametrize("base_id", sorted(set(BASES) - {"demo"}))
@pytest.mark.parametrize("finetune_type", FinetuneType)
def test_ladder_goes_from_most_to_least(base_id, finetune_type):
    """The first way needs the most and is the only one that costs nothing; the last needs the least."""
    asked = demand(base_id, finetune_type)

    fits = memory.ladder(asked, is_gpu=True, can_pack=True)

    totals = [memory.needs(asked, fit, is_gpu=True).total for fit in fits]
    assert (max(totals), min(totals)) == (totals[0], totals[-1])
    assert [bool(memory.cost(fit, asked)) for fit in fits] == [False] + [True] * (len(fits) - 1)
    assert len(set(fits)) == len(fits)


def test_ladder_of_lora_gives_up_time_before_precision():
    """Weights are packed only when recomputing every block is not enough, and never back to more bits."""
    fits = memory.ladder(demand("flux1-dev"), is_gpu=True, can_pack=True)

    bits = [fit.weight_bits for fit in fits if not fit.is_offloaded]
    assert bits == sorted(bits, reverse=True)
    assert [fit.micro_batch for fit in fits[:3]] == [4, 2, 1]
    assert [fit.recomputed for fit in fits if fit.weight_bits == 16] == [0.0, 0.0, 0.0, 0.5, 1.0]
    assert fits[-1].is_offloaded


def test_ladder_of_full_goes_down_to_fused_adafactor():
    """Masters of 32 bits come first; weights that move during the backward pass take the whole batch at once."""
    fits = memory.ladder(demand("flux1-dev", FinetuneType.FULL), is_gpu=True, can_pack=True)

    assert list(dict.fromkeys((fit.optimiser, fit.rounding, fit.is_fused) for fit in fits)) == list(
        memory.BYTES_TRAINED
    )
    assert all(fit.micro_batch == 4 and fit.recomputed == 1 for fit in fits if fit.is_fused)
    assert all(fit.weight_bits == 16 and not fit.is_offloaded for fit in fits)


def test_without_the_library_nothing_is_packed():
    """Where bitsandbytes is missing, neither weights nor moments of few bits are offered."""
    for finetune_type in FinetuneType:
        for fit in memory.ladder(demand("flux1-dev", finetune_type), is_gpu=True, can_pack=False):
            assert fit.weight_bits == 16
            assert fit.optimiser != "adamw8bit"


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_on_a_processor_only_time_is_given_up(batch):
    """There are smaller parts of a batch and recomputation, in 32 bits."""
    fits = memory.ladder(demand("demo", batch=batch), is_gpu=False, can_pack=True)

    assert {(fit.weight_bits, fit.optimiser, fit.is_offloaded) for fit in fits} == {(32, "adamw", False)}
    assert [fit.micro_batch for fit in fits[:-2]] == sorted({batch, min(2, batch), 1}, reverse=True)
    assert [fit.recomputed for fit in fits[-2:]] == [0.5, 1.0]


def test_offloaded_weights_wait_elsewhere():
    """What leaves the device is needed in the processor's memory."""
    asked = demand("flux2-dev")
    stays = memory.needs(asked, replace(GPU, weight_bits=8, recomputed=1.0), is_gpu=True)

    waits = memory.needs(asked, replace(GPU, weight_bits=8, recomputed=1.0, is_offloaded=True), is_gpu=True)

    assert stays.waiting == 0
    assert waits.weights < 0.1 * stays.weights
    assert waits.waiting + waits.weights == pytest.approx(stays.weights, rel=0.05)
    assert waits.total < 16 * GIB


def test_shrinking_card_walks_down_the_ladder():
    """As a device's memory shrinks, each way in turn is the first that a training step gets through with."""
    family = FAMILIES["flux2-klein"]
    first = Step(family, FinetuneType.LORA, Fit())
    fits = memory.ladder(first.demand, is_gpu=False, can_pack=False)
    kept = [_kept(family, fit) for fit in fits]

    reached = [_first_that_runs(family, fits, limit) for limit in (kept[0], *[size - 1 for size in kept])]

    assert kept == sorted(kept, reverse=True)
    assert reached == [*fits, None]
    assert (fits[0].recomputed, fits[-1].recomputed) == (0.0, 1.0)


def _parts(family, fit):
    """A step that goes through the network in parts, as the trainer takes a batch."""
    step = Step(family, FinetuneType.LORA, fit)
    latents, text = step.latents, step.text

    def run():
        for part in torch.arange(len(latents)).split(fit.micro_batch):
            step.latents, step.text = latents[part], {name: rows[part] for name, rows in text.items()}
            step()

    return step.model.transformer, run


def _kept(family, fit):
    network, run = _parts(family, fit)
    with small_card(network, 2**40) as card:
        run()
    return card.peak


def _first_that_runs(family, fits, limit):
    for fit in fits:
        network, run = _parts(family, fit)
        try:
            with small_card(network, limit):
                run()
        except torch.OutOfMemoryError:
            continue
        return fit
    return None
