"""The training loop on a toy model: it learns, stops, goes on exactly, and says what goes wrong."""

import math
from dataclasses import replace

import fakes
import pytest
import torch

from finetune import fidelity, lora, registry, trainer
from finetune.errors import DivergedError, OutOfMemoryError
from finetune.inputs import FinetuneType
from finetune.memory import Fit


class Session:
    """A model, a trainee and a run, ready to be trained."""

    def __init__(self, folder, run=None, **changes):
        self.config = fakes.config(**changes)
        self.model = fakes.tiny_model()
        self.encoded = fakes.encoded(self.model, folder)
        self.run = run or fakes.run(folder)
        targets = registry.families()[fakes.FAMILY].lora_targets
        self.trainee = lora.prepare(self.model.transformer, targets, self.config.finetune_type, 16, seed=0)
        self.drawn = []

    def train(self, draw_samples=None):
        draw = draw_samples or self.drawn.append
        return trainer.train(self.model, self.trainee, self.encoded, self.config, self.run, draw)

    def told(self, kind):
        return [event for event in self.run.events()[0] if event["kind"] == kind]


@pytest.mark.parametrize("kind", list(FinetuneType))
def test_training_lowers_the_loss(tmp_path, kind):
    """On the same grid of noise and times, the loss is lower afterwards than before."""
    session = Session(tmp_path, finetune_type=kind, iterations=60, learning_rate=5e-3, checkpoint_every=60)
    before = fidelity.grid_loss(session.model, session.encoded, seed=0)

    outcome = session.train()

    assert outcome.is_complete and outcome.step == 60
    assert fidelity.grid_loss(session.model, session.encoded, seed=0) < 0.97 * before


@pytest.mark.parametrize("kind", list(FinetuneType))
def test_resumed_run_is_exactly_the_same(tmp_path, kind):
    """Ten steps at once, and five, a stop and five more, end in the same weights to the last bit."""
    straight = Session(tmp_path / "a", finetune_type=kind)
    straight.train()
    stopped = Session(tmp_path / "b", finetune_type=kind, sample_every=5)
    outcome = stopped.train(lambda step: stopped.run.ask_to_stop() if step == 5 else None)
    stopped.run.forget_stop()

    resumed = Session(tmp_path / "b", run=stopped.run, finetune_type=kind, sample_every=5)
    final = resumed.train()

    assert (outcome.step, outcome.is_complete) == (5, False)
    assert (final.step, final.is_complete) == (10, True)
    assert resumed.drawn == [10], "the samples before the first step are not drawn again"
    for name, weight in straight.trainee.parameters.items():
        assert torch.equal(weight, resumed.trainee.parameters[name]), name
    steps = [(event["step"], event["loss"]) for event in straight.told("step")]
    assert steps == [(event["step"], event["loss"]) for event in resumed.told("step")]


def test_killed_run_goes_on_from_its_checkpoint(tmp_path):
    """A run that dies after step nine goes on after step eight, and ends as if nothing had happened."""
    straight = Session(tmp_path / "a", sample_every=9)
    straight.train()
    killed = Session(tmp_path / "b", sample_every=9)

    def die(step):
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.train(die)
    resumed = Session(tmp_path / "b", run=killed.run, sample_every=9)
    resumed.train()

    assert resumed.drawn == [9, 10]
    for name, weight in straight.trainee.parameters.items():
        assert torch.equal(weight, resumed.trainee.parameters[name]), name


def test_grid_loss_is_the_same_whenever_it_is_measured(tmp_path):
    """Measured twice, also after drawing random numbers, the figure does not move."""
    session = Session(tmp_path)

    first = fidelity.grid_loss(session.model, session.encoded, seed=0)
    torch.rand(3)

    assert fidelity.grid_loss(session.model, session.encoded, seed=0) == first
    assert fidelity.grid_loss(session.model, session.encoded, seed=1) != first


def test_every_step_is_told(tmp_path):
    """Each step has one event with loss, rate and time left, which ends at nothing."""
    session = Session(tmp_path)

    session.train()

    steps = session.told("step")
    assert [event["step"] for event in steps] == list(range(1, 11))
    assert all(math.isfinite(event["loss"]) and event["of"] == 10 for event in steps)
    assert all(event["seconds_left"] >= 0 for event in steps)
    assert steps[-1]["seconds_left"] < 1


def test_samples_and_checkpoints_come_when_they_are_due(tmp_path):
    """Samples before the first step, every few and after the last one; checkpoints likewise."""
    session = Session(tmp_path, sample_every=4, checkpoint_every=5)

    session.train()

    assert session.drawn == [0, 4, 8, 10]
    assert [event["step"] for event in session.told("checkpoint")] == [5, 10]


def test_without_samples_on_the_way_first_and_last_are_drawn(tmp_path):
    """sample_every = 0 draws before and after training only."""
    session = Session(tmp_path, sample_every=0)

    session.train()

    assert session.drawn == [0, 10]


def test_run_that_was_complete_is_not_trained_again(tmp_path):
    """Resuming after the last step trains nothing and says that all is done."""
    first = Session(tmp_path)
    first.train()

    again = Session(tmp_path, run=first.run)
    outcome = again.train()

    assert (outcome.step, outcome.is_complete) == (10, True)
    assert len(again.told("step")) == 10
    assert again.drawn == []


def test_frozen_weights_do_not_move(tmp_path):
    """A full finetune leaves norms, embedders and modulation exactly as they were."""
    session = Session(tmp_path, finetune_type=FinetuneType.FULL)
    before = {name: weight.clone() for name, weight in session.model.transformer.state_dict().items()}

    session.train()

    for name, weight in session.model.transformer.state_dict().items():
        trained = name.removesuffix(".weight") in session.trainee.parameters
        assert torch.equal(weight, before[name]) != trained, name


def test_loss_that_is_no_number_ends_the_run(tmp_path):
    """Three such steps in a row are an error that names the learning rate; they are told without a loss."""
    session = Session(tmp_path)
    for caption in session.encoded.captions:
        caption["text"].fill_(float("nan"))

    with pytest.raises(DivergedError, match=r"step 3.*0\.001"):
        session.train()

    assert [event["loss"] for event in session.told("step")] == [None] * 3
    assert all(weight.isfinite().all() for weight in session.trainee.parameters.values())


def test_single_bad_step_is_survived(tmp_path):
    """One step without a finite loss moves nothing, and training goes on."""
    session = Session(tmp_path)
    good, calls = session.model.predict_velocity, []

    def predict(*arguments):
        calls.append(arguments)
        return good(*arguments) * (float("nan") if len(calls) == 3 else 1)

    session.model.predict_velocity = predict

    outcome = session.train()

    assert outcome.is_complete
    assert [event["step"] for event in session.told("step") if event["loss"] is None] == [3]
    assert all(weight.isfinite().all() for weight in session.trainee.parameters.values())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("x: can't allocate memory: y")])
def test_too_little_memory_is_an_error_with_a_hint(error):
    """What torch raises when memory is full becomes an error that says what to do."""
    with pytest.raises(OutOfMemoryError) as caught, trainer.memory_in_words():
        raise error

    assert "speed" in caught.value.hint


def test_other_errors_stay_what_they_are():
    """A mistake in the program is not mistaken for full memory."""
    with pytest.raises(RuntimeError, match="shapes"), trainer.memory_in_words():
        raise RuntimeError("shapes do not match")


def test_learning_rate_warms_up_and_stays():
    """The rate rises in a line and is whole from the end of the warm-up on."""
    config = fakes.config(iterations=300, warmup_steps=15, learning_rate=1e-4)

    rates = [trainer.rate(step, config) for step in range(300)]

    assert rates[0] == pytest.approx(1e-4 / 15)
    assert rates[:15] == sorted(rates[:15])
    assert set(rates[14:]) == {1e-4}


def test_time_left_counts_steps_and_samples(tmp_path):
    """With steps of a second and samples of ten, nine steps and one round of samples are 19 seconds."""
    pace = trainer.Pace(fakes.config(iterations=10, sample_every=0), first=0)
    pace._steps.extend([1.0, 1.0, 30.0])
    pace._samples.append(10.0)

    assert pace.seconds_left(1) == 9 * 1.0 + 10.0
    assert pace.seconds_left(10) == 10.0


def test_recovered_is_the_share_of_the_gain():
    """Half of the gain kept is one half; without any gain nothing was lost."""
    assert fidelity.recovered(base_loss=1.0, full_loss=0.8, lora_loss=0.9) == pytest.approx(0.5)
    assert fidelity.recovered(base_loss=1.0, full_loss=1.1, lora_loss=1.0) == 1.0


def test_time_left_counts_the_samples_of_every_step(tmp_path):
    """Whatever the steps between samples, as many are counted as are still drawn."""
    for every in (0, 1, 3, 4, 10, 12):
        config = fakes.config(iterations=10, sample_every=every)
        pace = trainer.Pace(config, first=0)
        pace._steps.append(0.0)
        pace._samples.append(1.0)

        due = [step for step in range(1, 11) if step == 10 or (every and step % every == 0)]

        assert [pace.seconds_left(done) for done in range(1, 11)] == [
            sum(step >= done for step in due) for done in range(1, 11)
        ]


def test_fit_that_compiles_trains_through_compiled_blocks(tmp_path):
    """Every repeated block is called through its compiled form, and training ends as it does without."""
    plain, compiled = Session(tmp_path / "a"), Session(tmp_path / "b", fit=Fit(is_compiled=True))
    plain.train()

    with torch.compiler.set_stance("force_eager"):  # a compiler is not everywhere
        compiled.train()

    blocks = [*compiled.model.transformer.transformer_blocks, *compiled.model.transformer.single_transformer_blocks]
    assert all(block._compiled_call_impl is not None for block in blocks)
    for name, weight in plain.trainee.parameters.items():
        assert torch.equal(weight, compiled.trainee.parameters[name]), name


def test_what_is_trained_on_is_brought_to_the_device_where_it_is_small(tmp_path):
    """With room for it, latents and captions lie there, each caption once; without, they stay where they are."""
    encoded = fakes.encoded(fakes.tiny_model(), tmp_path)
    encoded = replace(encoded, captions=encoded.captions[:1] * 4)
    size = sum(latents.nbytes for (latents,) in encoded.latents) + encoded.captions[0]["text"].nbytes

    there = trainer.placed(encoded, "meta", free_bytes=20 * size)

    assert {latents.device.type for (latents,) in there.latents} == {"meta"}
    assert len({id(row["text"]) for row in there.captions}) == 1 and there.captions[0]["text"].is_meta
    assert trainer.placed(encoded, "meta", free_bytes=20 * size - 40) is encoded
