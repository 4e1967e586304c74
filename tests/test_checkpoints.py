"""Checkpoints: what is written comes back; what is broken does not stop a run."""

import pytest
import torch

from finetune import checkpoints


def _made(seed=0):
    weight = torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)))
    return {"weight": weight}, torch.optim.AdamW([weight], 0.1)


def _step(parameters, optimiser):
    parameters["weight"].square().sum().backward()
    optimiser.step()
    optimiser.zero_grad()


def test_weights_and_optimiser_come_back(tmp_path):
    """After loading, the next step is the same as if nothing had happened."""
    parameters, optimiser = _made()
    _step(parameters, optimiser)
    checkpoints.save(tmp_path, 1, parameters, optimiser)
    other, other_optimiser = _made(seed=1)

    step = checkpoints.load(tmp_path, other, other_optimiser, pytest.fail)

    _step(parameters, optimiser)
    _step(other, other_optimiser)
    assert step == 1
    assert torch.equal(other["weight"], parameters["weight"])


def test_no_checkpoint_is_step_zero(tmp_path):
    """A folder without checkpoints, or that is not there, means starting from the beginning."""
    assert checkpoints.load(tmp_path / "nothing", *_made(), pytest.fail) == 0


def test_only_the_newest_two_are_kept(tmp_path):
    """Older checkpoints are deleted, and no half-written file is left."""
    for step in (5, 100, 20, 99):
        checkpoints.save(tmp_path, step, *_made())

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step000099.pt", "step000100.pt"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_broken_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    """A cut, changed, empty or foreign newest file costs a warning and some steps, not the run."""
    parameters, optimiser = _made()
    for step in (4, 8):
        _step(parameters, optimiser)
        checkpoints.save(tmp_path, step, parameters, optimiser)
    newest = tmp_path / "step000008.pt"
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[content.index(parameters["weight"].detach().numpy().tobytes())] ^= 255
    newest.write_bytes({"cut": content[:-100], "flip": content, "empty": b"", "other": b"hello"}[damage])
    warnings = []

    step = checkpoints.load(tmp_path, *_made(), warnings.append)

    assert step == 4
    assert len(warnings) == 1
    assert "step000008.pt" in warnings[0]


def test_checkpoint_of_other_layers_is_not_used(tmp_path):
    """A checkpoint whose weights have another shape does not enter the run."""
    checkpoints.save(tmp_path, 4, *_made())
    wider = torch.nn.Parameter(torch.zeros(4, 5))
    warnings = []

    step = checkpoints.load(tmp_path, {"weight": wider}, torch.optim.AdamW([wider], 0.1), warnings.append)

    assert step == 0
    assert len(warnings) == 1
    assert not wider.detach().any()
