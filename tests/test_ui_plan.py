"""The panel that tells before a run what it will take."""

import json
from dataclasses import asdict

import pretend
import pytest

from finetune import machine
from finetune.machine import Machine
from finetune.owners import AT_HOME
from finetune.plan import GIB
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.ui import plan
from finetune.ui.handlers import Visit

ASKED = {"base_model": "demo", "finetune_type": "lora", "priority": "quality", "lora_rank": 32, "iterations": 300}
GPU = Machine("cuda:0", "A card", 24 * GIB, 22 * GIB, 60 * GIB, teraflops=150.0, cores=8, can_pack=True)


@pytest.fixture
def visit(tmp_path):
    queue = Queue(Settings(home=tmp_path), pretend.StillExecutor())
    yield Visit(queue, AT_HOME)
    queue.close()


def measured(visit, found):
    """A machine as it was measured when the service started."""
    (visit.settings.home / machine.FILE).write_text(json.dumps(asdict(found)))


def test_before_it_is_measured_the_machine_is_said_to_be(visit):
    """The page asks again for as long as nothing was measured."""
    told = plan.panel(visit, ASKED)

    assert told["is_measuring"] and "Measuring" in told["verdict"]
    assert told["base"]["licence"] == "Apache 2.0"


def test_run_that_fits_is_told_with_memory_time_and_disk(visit):
    """On a card of 24 GB the suggested base fits, and every way down is told with its cost."""
    measured(visit, GPU)

    told = plan.panel(visit, {**ASKED, "base_model": "flux2-klein-base-4b"})

    assert told["verdict"].startswith("Fits: ") and "22.0 GiB" in told["verdict"] and "min" in told["verdict"]
    assert "downloaded first" in told["base"]["terms"]
    assert [rung["is_chosen"] for rung in told["rungs"]].count(True) == 1
    assert all(rung["cost"] for rung in told["rungs"][1:])


def test_who_has_a_gpu_is_told_of_a_real_base(visit):
    """Beside the demo base stands what such a machine can do better."""
    measured(visit, GPU)

    assert "FLUX.2 klein base 4B" in plan.panel(visit, ASKED)["verdict"]
    assert "has a GPU" not in plan.panel(visit, {**ASKED, "base_model": "flux1-dev"})["verdict"]


def test_run_that_does_not_fit_says_what_would(visit):
    """A full finetune of FLUX.1 on 8 GB is refused in words that name what fits."""
    small = Machine("cuda:0", "A card", 8 * GIB, 7 * GIB, 16 * GIB, teraflops=30.0, cores=8, can_pack=False)
    measured(visit, small)

    told = plan.panel(visit, {**ASKED, "base_model": "flux1-dev", "finetune_type": "full"})

    assert "does not fit" in told["problem"]["message"]
    assert "missing" in told["problem"]["hint"] and "Demo" in told["problem"]["hint"]
    assert told["verdict"] == ""


@pytest.mark.parametrize("base", ["", "nonsense", "black-forest-labs/FLUX.1-schnell", "/etc"])
def test_wrong_base_is_left_to_its_field(visit, base):
    """The form says beside the field what is wrong; the panel stays empty."""
    measured(visit, GPU)

    assert plan.panel(visit, {**ASKED, "base_model": base}) == plan.NOTHING


def test_model_of_the_hub_is_looked_up_later(visit):
    """An id that nobody asked for yet is accepted, and the panel says when its needs will be known."""
    measured(visit, GPU)

    assert "look this model up" in plan.panel(visit, {**ASKED, "base_model": "someone/some-flux"})["verdict"]
