"""From a ZIP to both LoRA files on a toy of every family, read from a folder in its published layout."""

import fakes
import pictures
import pytest

from finetune import dataset, formats, registry, worker
from finetune.inputs import FinetuneType, Request
from finetune.runs import State

RUNS = [(id, kind) for id in registry.families() for kind in FinetuneType]


@pytest.fixture(scope="module", params=RUNS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def done(request, tmp_path_factory):
    """A short run on a toy of a family: the family, what was trained, and the run."""
    id, kind = request.param
    folder = tmp_path_factory.mktemp(id)
    base = registry.families()[id].tiny().save(folder / "bases" / "toy")
    run = fakes.run(folder)
    named = {f"{number}.png": pictures.picture(number) for number in range(4)}
    pictures.zip_of(folder / "a.zip", {**named, **{f"{number}.txt": f"thing {number}" for number in range(4)}})
    dataset.unpack(folder / "a.zip", run)
    asked = {"finetune_comment": "toy", "mode": "style", "iterations": 100, "priority": "speed", "lora_rank": 16}
    asked |= {"learning_rate": 2e-3, "finetune_type": kind, "base_model": str(base.source)}
    run.write("request.json", Request(**asked).model_dump(mode="json"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FINETUNE_BASES", str(folder / "bases"))
        environment.setenv("FINETUNE_THREADS", "1")
        environment.setenv("FINETUNE_DEVICE", "cpu")
        worker.work(run, "train")
    return id, kind, run


def test_run_on_every_family_ends_ready(done):
    """The sample is drawn again by diffusers' own pipeline, and both files make the same change in all layers."""
    _, _, run = done

    assert run.state() is State.READY, run.events()[0][-1]
    same_picture, same_change = run.events()[0][-1]["checks"]
    assert "draws the trainer’s sample again" in same_picture
    assert "they make the same change in each of" in same_change


def test_loss_falls_on_every_family(done):
    """What was trained knows its pictures better than the base; what was extracted keeps part of it."""
    _, kind, run = done

    summary = run.events()[0][-1]["summary"]

    assert summary["loss_after"] < summary["loss_before"]
    assert ("recovered" in summary) == (kind is FinetuneType.FULL)


def test_files_name_their_base(done):
    """Metadata and card say what the LoRA is for, and no folder of this machine."""
    _, _, run = done

    metadata = formats.read_metadata(run.lora)
    card = (run.results / "README.md").read_text(encoding="utf-8")

    assert metadata["ss_base_model_version"] == "toy"
    assert "bases" not in card and str(run.folder) not in card + str(metadata)
