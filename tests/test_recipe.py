"""From a request to a configuration in which every value is decided."""

import itertools
import json
from dataclasses import replace

import pytest

from finetune import recipe, registry
from finetune.errors import ConfigError
from finetune.inputs import FinetuneType, Mode, Priority, Request
from finetune.memory import Fit

DEMO = registry.base_model("demo")
LARGE = replace(DEMO, resolution_px=1024)


def resolve(base=DEMO, **changes):
    """The configuration of a request."""
    request = Request(finetune_comment="x", mode="style", **changes)
    return recipe.resolve(request, base, ["a pear in the style of TOK"], "cpu", Fit())


@pytest.mark.parametrize(
    ("priority", "small", "large", "batch", "samples"),
    [
        (Priority.SPEED, (48,), (512,), 2, 0),
        (Priority.QUALITY, (64,), (512, 768, 1024), 4, 60),
        (Priority.HIGH_RES_ONLY, (64,), (1024,), 4, 60),
    ],
)
def test_priority_decides_sizes_batch_and_samples(priority, small, large, batch, samples):
    """Speed trains smaller pictures in smaller batches without samples; the others as the request's help says."""
    config = resolve(priority=priority)

    assert config.resolutions_px == small
    assert resolve(LARGE, priority=priority).resolutions_px == large
    assert (config.batch_size, config.sample_every) == (batch, samples)


@pytest.mark.parametrize(
    ("kind", "asked", "used"),
    [("lora", None, 1e-4), ("full", None, 1e-5), ("lora", 5e-3, 5e-3), ("full", 5e-3, 5e-3)],
)
def test_learning_rate_is_the_one_asked_for_or_the_type_s_own(kind, asked, used):
    """An empty learning rate becomes 1e-4 for a LoRA and 1e-5 for a full finetune."""
    assert resolve(finetune_type=kind, learning_rate=asked).learning_rate == used


@pytest.mark.parametrize(
    ("iterations", "warmup", "samples", "checkpoints"), [(100, 10, 20, 25), (300, 15, 60, 30), (1000, 15, 200, 100)]
)
def test_iterations_decide_warmup_samples_and_checkpoints(iterations, warmup, samples, checkpoints):
    """What happens every few steps happens about as often in a short run as in a long one."""
    config = resolve(iterations=iterations)

    assert config.iterations == iterations
    assert (config.warmup_steps, config.sample_every, config.checkpoint_every) == (warmup, samples, checkpoints)


@pytest.mark.parametrize(("priority", "kind", "rank"), [*itertools.product(Priority, FinetuneType, (16, 32))])
def test_every_request_fits_its_base(priority, kind, rank):
    """Resolutions are multiples of 16 and never above the base's own; the rest is passed on unchanged."""
    config = resolve(LARGE, priority=priority, finetune_type=kind, lora_rank=rank, seed=7, trigger_word="ZORP")

    assert all(side % 16 == 0 and side <= 1024 for side in config.resolutions_px)
    assert (config.finetune_type, config.lora_rank, config.seed, config.trigger_word) == (kind, rank, 7, "ZORP")
    assert (config.name, config.base_model, config.mode, config.device) == ("x", "demo", Mode.STYLE, "cpu")
    assert config.time_shift == LARGE.time_shift


@pytest.mark.parametrize("kind", list(FinetuneType))
def test_configuration_survives_json(kind):
    """Written to a file and read again, a configuration is the same, with its enumerations."""
    config = resolve(LARGE, finetune_type=kind)

    again = recipe.from_dict(json.loads(json.dumps(config.as_dict())))

    assert again == config
    assert isinstance(again.mode, Mode) and isinstance(again.finetune_type, FinetuneType)


def test_unknown_setting_is_refused():
    """A key that this version does not know is named, not ignored."""
    with pytest.raises(ConfigError, match="colour"):
        recipe.from_dict({**resolve().as_dict(), "colour": "red"})


def test_missing_setting_is_refused():
    """A key that another version did not write yet is named, not guessed."""
    values = resolve().as_dict()
    del values["time_shift"]

    with pytest.raises(ConfigError, match="time_shift"):
        recipe.from_dict(values)
