"""What is measured of a LoRA: on a grid that never changes, and on pictures that were never trained."""

import json
import math

import fakes
import pytest
import torch

from finetune import encodings, fidelity, flow
from finetune.fidelity import Comparison, Fidelity, Kept


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A toy model, its encoded pictures and their folder."""
    folder, model = tmp_path_factory.mktemp("measured"), fakes.tiny_model()
    return model, fakes.encoded(model, folder), folder


def report(held_out, is_healed=False):
    """A report of some losses."""
    return Fidelity(16, held_out, held_out, {"layer": Kept(0.5, 0.4, 0.8)}, 48 if is_healed else 0, is_healed)


def test_loss_at_a_time_is_the_mean_over_the_pictures(measured):
    """Written out for one time, the grid's figure is the mean squared error of each picture's velocity."""
    model, encoded, _ = measured
    losses = []
    for number, (latents, caption) in enumerate(zip(encoded.latents, encoded.captions, strict=True)):
        noise = torch.randn((8, *latents[0].shape), generator=flow.generator(3, "grid", number))[2:3]
        t = torch.tensor([2.5 / 8])
        noisy = (1 - t) * latents[0] + t * noise
        with torch.no_grad():
            losses.append((model.predict_velocity(noisy, t, caption) - (noise - latents[0])).square().mean().item())

    curve = fidelity.grid(model, encoded, seed=3)

    assert curve[2] == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert fidelity.grid_loss(model, encoded, seed=3) == pytest.approx(sum(curve) / 8)


def test_measuring_a_few_at_once_changes_nothing(measured):
    """In parts that fit a small memory, the figures are the same."""
    model, encoded, _ = measured

    assert fidelity.grid(model, encoded, 0, at_once=3) == pytest.approx(fidelity.grid(model, encoded, 0), rel=1e-5)


def test_held_out_are_the_pictures_mirrored(measured):
    """Latents are those of the flipped picture, not the trained ones; captions stay with their pictures."""
    model, encoded, folder = measured
    paths = sorted((folder / "images").iterdir())

    held_out = fidelity.hold_out(model, paths, encoded, (32,), folder / "encodings")

    for number, path in enumerate(paths):
        flipped = model.encode_images(encodings.load_pixels(path, (32, 32)).flip(-1))[0]
        assert torch.equal(held_out.latents[number][0], flipped)
        assert not torch.allclose(held_out.latents[number][0], encoded.latents[number][0], atol=1e-2)
        assert torch.equal(held_out.captions[number]["text"], encoded.captions[number]["text"])


def test_held_out_pictures_are_kept(measured):
    """The second time they are read, and nothing is encoded."""
    model, encoded, folder = measured
    paths = sorted((folder / "images").iterdir())
    first = fidelity.hold_out(model, paths, encoded, (32,), folder / "encodings")

    files = {path: path.stat().st_mtime_ns for path in (folder / "encodings").iterdir()}
    second = fidelity.hold_out(model, paths, encoded, (32,), folder / "encodings")

    assert {path: path.stat().st_mtime_ns for path in (folder / "encodings").iterdir()} == files
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first.latents, second.latents, strict=True))


@pytest.mark.parametrize(("count", "measured"), [(1, 1), (16, 16), (17, 9), (100, 15)])
def test_at_most_sixteen_pictures_are_measured(tmp_path, count, measured):
    """Of many pictures, some from all over them, at the smallest of the resolutions."""
    model = fakes.tiny_model()
    paths = fakes.pictures(tmp_path, [(32, 32)] * count)
    caption = model.encode_prompts(["a pear"])
    encoded = encodings.Encoded((), (caption,) * count, (), caption)

    held_out = fidelity.hold_out(model, paths, encoded, (16, 32), tmp_path / "kept")

    assert len(held_out.latents) == len(held_out.captions) == measured
    assert {latents[0].shape for latents in held_out.latents} == {(16, 1, 1)}


def test_report_counts_the_lora_that_is_handed_out():
    """Healed, it is what healing recovers; else what the extraction did, even if healing was tried."""
    losses = Comparison(base=(3.0, 1.0), full=(1.5, 0.5), extracted=(2.0, 0.6), healed=(1.7, 0.5))

    assert losses.recovered == pytest.approx(0.7)
    assert report(losses, is_healed=True).recovered == pytest.approx(0.9)
    assert report(losses).recovered == pytest.approx(0.7)
    assert report(losses, is_healed=True).loss_after == pytest.approx(1.1)


def test_report_is_plain_json():
    """What a file and the page show are numbers and names."""
    losses = Comparison(base=(3.0, 1.0), full=(1.5, 0.5), extracted=(2.0, 0.6))

    values = json.loads(json.dumps(report(losses).as_dict()))

    assert values["held_out"]["loss"] == {"base": 2.0, "full": 1.0, "extracted": 1.3}
    assert values["held_out"]["loss_by_time"]["full"] == [1.5, 0.5]
    assert values["held_out"]["recovered_by_healing"] is None
    assert values["layers"] == {"layer": {"error": 0.5, "weighted_error": 0.4, "energy": 0.8}}
    assert values["captured_energy"] == pytest.approx(0.8)


def test_healing_that_broke_the_lora_is_told_as_no_number():
    """JSON has no infinity: what is no number is null, and the LoRA that was extracted counts."""
    losses = Comparison(base=(3.0, 1.0), full=(1.5, 0.5), extracted=(2.0, 0.6), healed=(math.nan, math.inf))

    values = json.loads(json.dumps(report(losses).as_dict(), allow_nan=False))

    assert values["held_out"]["loss"]["healed"] is None
    assert values["held_out"]["loss_by_time"]["healed"] == [None, None]
    assert values["recovered"] == pytest.approx(0.7)
