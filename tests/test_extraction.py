"""From all weights to a LoRA: against plain algebra, and on a toy model from training to the report."""

import math
from pathlib import Path

import fakes
import pytest
import torch

from finetune import extraction, fidelity, flow, lora, registry
from finetune.inputs import FinetuneType
from finetune.memory import Fit
from finetune.optimiser import Optimiser

FAMILY = registry.families()[fakes.FAMILY]
EVEN = torch.ones(30)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The toy model as a base on disk."""
    return fakes.tiny_model().save(tmp_path_factory.mktemp("base"))


class Finetuned:
    """A toy model whose weights were trained for a moment, with what it was trained on."""

    def __init__(self, base, folder, **changes):
        self.config = fakes.config(finetune_type=FinetuneType.FULL, **changes)
        self.model = FAMILY.load(base, Path(base.source), "cpu", Fit())
        self.encoded = fakes.encoded(self.model, folder)
        paths = sorted((folder / "images").iterdir())
        self.held_out = fidelity.hold_out(self.model, paths, self.encoded, (32,), folder / "encodings")
        self.before = {name: weight.clone() for name, weight in self.model.transformer.state_dict().items()}
        self.trainee = lora.AllWeights(self.model.transformer, FAMILY.lora_targets)
        optimiser = Optimiser(self.trainee.parameters, 0.0, Fit())
        for latents, captions in (batch for _, batch in zip(range(20), self.encoded.plan(7, 4), strict=False)):
            t, noise = flow.draw_times(7, 0, 4, 1.0), flow.draw_noise(7, 0, latents.shape)
            predicted = self.model.predict_velocity(flow.noise_latents(latents, noise, t), t, captions)
            optimiser.move([flow.loss(predicted, latents, noise)], rate=5e-3)
        self.trained = optimiser.trained

    def velocity(self):
        noisy, t = drawn(0, 1, 16, 2, 2), torch.tensor([0.5])
        with torch.no_grad():
            return self.model.predict_velocity(noisy, t, self.encoded.captions[0])

    def finish(self, **options):
        parts = self.trainee, self.trained, self.encoded, self.held_out, self.config
        return extraction.finish(self.model, *parts, fakes.ignore, **options)


def test_change_of_low_rank_is_found_exactly():
    """A change that is itself of the rank comes back whole, however the inputs are weighted."""
    change = drawn(0, 40, 4) @ drawn(1, 4, 30)

    a, b, kept = extraction.approximate(change, drawn(2, 30).exp(), rank=4)

    assert torch.allclose(b @ a, change, atol=1e-4)
    assert (kept.error, kept.weighted_error, kept.energy) == pytest.approx((0, 0, 1), abs=1e-5)


def test_even_inputs_give_the_best_approximation():
    """With inputs of one size, the error is the energy of the singular values that were cut off."""
    change = drawn(0, 40, 30)

    a, b, kept = extraction.approximate(change, EVEN, rank=8)

    values = torch.linalg.svdvals(change).square()
    lost = (values[8:].sum() / values.sum()).item()
    assert (change - b @ a).square().sum().item() == pytest.approx(values[8:].sum().item(), rel=1e-3)
    assert kept.error == kept.weighted_error == pytest.approx(math.sqrt(lost), rel=1e-3)
    assert kept.energy == pytest.approx(1 - lost, rel=1e-3)


def test_weighted_extraction_is_nearer_where_inputs_are_large():
    """For real inputs of uneven sizes, what the layer puts out is nearer than without weights, the weight farther."""
    change, scales = drawn(0, 40, 30), 2.0 * drawn(1, 30).exp()
    inputs = drawn(2, 500, 30) * scales

    plain, weighted = (extraction.approximate(change, weights, rank=8) for weights in (EVEN, scales))

    away = [(inputs @ (change - b @ a).T).norm() / (inputs @ change.T).norm() for a, b, _ in (plain, weighted)]
    assert away[1] < 0.9 * away[0]
    assert weighted[2].error > plain[2].error
    assert weighted[2].weighted_error == pytest.approx(away[1].item(), rel=0.05)


def test_large_matrix_is_decomposed_nearly_as_well_as_exactly():
    """The search by chance is within a thousandth of the least possible error, and always finds the same."""
    change = drawn(0, 200, 20) @ drawn(1, 20, 300) + drawn(2, 200, 300)
    torch.manual_seed(1)
    expected = torch.rand(1)

    torch.manual_seed(1)
    first, second = (extraction.approximate(change, torch.ones(300), rank=16) for _ in range(2))

    values = torch.linalg.svdvals(change).square()
    assert first[2].error == pytest.approx(math.sqrt((values[16:].sum() / values.sum()).item()), rel=1e-3)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(torch.rand(1), expected), "the global generator is left alone"


def test_factors_are_balanced():
    """Each row of A is as large as its column of B, so that neither loses precision when stored."""
    a, b, _ = extraction.approximate(drawn(0, 40, 30), drawn(1, 30).exp(), rank=8)

    assert torch.allclose(a.norm(dim=1), b.norm(dim=0), rtol=1e-4)


def test_layer_smaller_than_the_rank_is_filled_up():
    """A layer with fewer rows than the rank still gets factors of that rank."""
    change = drawn(0, 8, 30)

    a, b, _ = extraction.approximate(change, EVEN, rank=16)

    assert (a.shape, b.shape) == ((16, 30), (8, 16))
    assert torch.allclose(b @ a, change, atol=1e-4)


@pytest.mark.parametrize("change", [torch.zeros(40, 30), drawn(0, 40, 1) @ drawn(1, 1, 30)], ids=["none", "rank 1"])
def test_what_did_not_change_leaves_finite_factors(change):
    """Singular values of zero make factors of zero, not of no numbers; nothing lost is an error of zero."""
    a, b, kept = extraction.approximate(change, EVEN, rank=4)

    assert torch.allclose(b @ a, change, atol=1e-5)
    assert kept.error == pytest.approx(0, abs=1e-5) and kept.energy == pytest.approx(1, abs=1e-5)


def test_silent_inputs_do_not_blow_up_their_column():
    """An input that was zero whenever it was measured keeps a share of its change and no more than that."""
    change, scales = drawn(0, 40, 30), torch.ones(30)
    scales[3] = 0.0

    a, b, _ = extraction.approximate(change, scales, rank=8)

    assert (b @ a)[:, 3].norm() < change[:, 3].norm()
    assert (a[:, 3].isfinite()).all()


def test_sizes_of_inputs_are_what_the_layers_see(base, tmp_path):
    """For a layer, the root of the mean square of each input over all lessons, measured again by hand."""
    tuned = Finetuned(base, tmp_path)
    name, seen = "single_transformer_blocks.0.attn.to_out", []

    lessons, scales = extraction.take_lessons(tuned.model, [name], tuned.encoded, tuned.config, fakes.ignore)
    layer = tuned.model.transformer.get_submodule(name)
    assert not layer._forward_pre_hooks
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1)))
    again = [fidelity.predict(tuned.model, lesson.noisy, lesson.t, lesson.captions, 1) for lesson in lessons]

    assert torch.allclose(scales[name], torch.cat(seen).square().mean(0).sqrt(), rtol=1e-4)
    assert len(lessons) == extraction.LESSONS
    assert all(torch.allclose(lesson.velocity, row, atol=1e-4) for lesson, row in zip(lessons, again, strict=True))


def test_extraction_sees_what_16_bits_leave_out(base):
    """A change too small for the weights' own bits is in the LoRA; the base's weights are back as they were loaded."""
    model = FAMILY.load(base, Path(base.source), "cpu", Fit())
    model.transformer.bfloat16()
    before = {name: weight.clone() for name, weight in model.transformer.state_dict().items()}
    trainee = lora.AllWeights(model.transformer, FAMILY.lora_targets, "kahan")
    optimiser = Optimiser(trainee.parameters, 0.0, Fit(rounding="kahan"))
    up = {name: drawn(0, len(weight), 1).sign() for name, weight in trainee.parameters.items()}
    optimiser.move([-sum((weight.float() * up[name]).sum() for name, weight in trainee.parameters.items())], rate=1e-6)

    state, kept = extraction.extract(model, trainee, optimiser.trained, {}, 16, fakes.ignore)

    for name, weight in trainee.parameters.items():
        found = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
        assert (found * up[name]).mean().item() == pytest.approx(1e-6, rel=0.05), name
        assert torch.equal(weight, before[f"{name}.weight"])
    assert set(kept) == set(trainee.parameters)


def test_finished_full_is_the_base_with_a_lora(base, tmp_path):
    """The network's own weights are the base's again, and with the LoRA it predicts what the full finetune did."""
    tuned = Finetuned(base, tmp_path)
    full = tuned.velocity()

    state, found = tuned.finish()

    away = (tuned.velocity() - full).norm() / full.norm()
    now = tuned.model.transformer.state_dict()
    own = {name.replace(".base_layer", ""): weight for name, weight in now.items() if ".lora_" not in name}
    assert away < 0.1
    assert own.keys() == tuned.before.keys() and same(own, tuned.before)
    assert same(state, lora.state(tuned.model.transformer))
    assert found.recovered > fidelity.ENOUGH and not found.is_healed
    assert set(found.layers) == set(tuned.trainee.parameters)


def test_report_measures_each_network_on_the_same_grid(base, tmp_path):
    """Losses of base, full and LoRA are those that the networks themselves have, on both sets of pictures."""
    tuned = Finetuned(base, tmp_path)
    untouched = FAMILY.load(base, Path(base.source), "cpu", Fit())
    sets = {"held_out": tuned.held_out, "trained": tuned.encoded}
    full = {name: fidelity.grid(tuned.model, pictures, 7) for name, pictures in sets.items()}

    _, found = tuned.finish()

    for name, pictures in sets.items():
        losses = getattr(found, name)
        assert losses.full == pytest.approx(full[name], rel=1e-5)
        assert losses.base == pytest.approx(fidelity.grid(untouched, pictures, 7), rel=1e-5)
        assert losses.extracted == pytest.approx(fidelity.grid(tuned.model, pictures, 7), rel=1e-5)
        assert losses.healed == ()


def test_lora_that_recovers_too_little_is_healed(base, tmp_path):
    """At rank 1 the extraction loses much; after the lessons it recovers more, and that LoRA is handed out."""
    tuned = Finetuned(base, tmp_path, lora_rank=1)

    state, found = tuned.finish()

    assert found.held_out.recovered < fidelity.ENOUGH
    assert found.recovered == found.held_out.recovered_by_healing > found.held_out.recovered + 0.01
    assert found.is_healed and found.healing_steps == extraction.HEALING_STEPS
    assert same(state, lora.state(tuned.model.transformer))


def test_healing_that_makes_it_worse_is_thrown_away(base, tmp_path):
    """The LoRA is then the extracted one, and the report tells both."""
    tuned = Finetuned(base, tmp_path, lora_rank=1)

    state, found = tuned.finish(healing_rate=1e3)

    assert not found.is_healed and found.healing_steps == extraction.HEALING_STEPS
    assert found.recovered == found.held_out.recovered
    assert not found.held_out.recovered_by_healing > found.recovered
    assert fidelity.grid(tuned.model, tuned.held_out, 7) == pytest.approx(found.held_out.extracted, rel=1e-6)
    assert same(state, lora.state(tuned.model.transformer))
