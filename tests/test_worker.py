"""One run from start to end on a toy base model, and what is told when something is wrong."""

import json
import zipfile

import fakes
import hub
import pictures
import pytest
from PIL import Image
from small_card import SmallCard, small_card
from torch import nn

from finetune import captions, dataset, formats, preview, results, worker
from finetune.inputs import FinetuneType, Request
from finetune.runs import State

ABOUT_DRAFTS = {"caption", "caption_progress", "log", "warning", "caption_failed"}


@pytest.fixture(scope="module", autouse=True)
def toy(tmp_path_factory):
    """A toy base model and a toy captioner in place of the demo base."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FINETUNE_DEMO_BASE", str(fakes.demo_base(tmp_path_factory.mktemp("base"))))
        environment.setenv("FINETUNE_THREADS", "1")
        environment.setenv("FINETUNE_DEVICE", "cpu")
        yield environment


def uploaded(folder, files=None):
    """A draft with pictures: two share a name, one has a caption."""
    run = fakes.run(folder)
    named = {name: pictures.picture(seed) for seed, name in enumerate(("b/cat.jpg", "b/cat.png", "dog.png", "x.png"))}
    pictures.zip_of(folder / "a.zip", files or {**named, "dog.txt": "a dog"})
    dataset.unpack(folder / "a.zip", run)
    return run


def asked(run, **changes):
    """The run with a request for the quickest training there is."""
    values = {"finetune_comment": "My run", "mode": "style", "iterations": 100, "priority": "speed"}
    request = Request(**{**values, "learning_rate": 5e-3, "lora_rank": 16, "finetune_type": "lora", **changes})
    run.write("request.json", request.model_dump(mode="json"))
    return run


def events(run, kind):
    """All events of a kind."""
    return [event for event in run.events()[0] if event["kind"] == kind]


@pytest.fixture(scope="module", params=list(FinetuneType))
def done(request, tmp_path_factory):
    """A run of each finetune type that went through."""
    run = asked(uploaded(tmp_path_factory.mktemp(request.param)), finetune_type=request.param)
    assert worker.work(run, "train") == 0, run.events()[0][-1]
    return run


def test_run_ends_ready_with_its_files(done):
    """The last event lists both LoRA files, card, captions, settings and report as they lie in the results folder."""
    assert done.state() is State.READY
    files = events(done, "ready")[-1]["files"]
    is_full = done.request().finetune_type is FinetuneType.FULL
    assert [(file["name"], file["title"]) for file in files] == [
        ("My-run.safetensors", "LoRA"),
        ("My-run-comfyui.safetensors", "LoRA for ComfyUI"),
        ("README.md", "Model card"),
        ("captions.zip", "Captions"),
        ("settings.json", "Settings"),
        *([("fidelity.json", "Fidelity report")] if is_full else []),
    ]
    assert all(file["bytes"] == (done.results / file["name"]).stat().st_size for file in files)
    formats.check(done.results / "My-run.safetensors")


def test_summary_measures_what_was_learned(done):
    """The loss on the pictures is lower afterwards; for a full finetune, so is told how much the LoRA kept of that."""
    summary = events(done, "ready")[-1]["summary"]

    assert summary["loss_after"] < summary["loss_before"]
    assert ("recovered" in summary) == (done.request().finetune_type is FinetuneType.FULL)
    assert summary.get("recovered", 1.0) > 0.5
    assert 0 < summary.get("captured_energy", 1.0) <= 1
    assert summary["largest_difference"] <= results.LARGEST_DIFFERENCE
    assert summary["seconds"] > 0 and summary["peak_memory_mib"] > 0


def test_stages_come_in_order(done):
    """What is told in plain words follows the run from captions to the check."""
    stages = list(dict.fromkeys(event["name"] for event in events(done, "stage")))

    last = "extract" if done.request().finetune_type is FinetuneType.FULL else "measure"
    assert stages == ["captions", "encode", "load", "probe", "train", last, "save", "verify"]


def test_both_files_are_proven(done):
    """Two sentences say that the trainer's sample was drawn again, and that both files make the same change."""
    same_picture, same_change = events(done, "ready")[-1]["checks"]

    assert "draws the trainer’s sample again" in same_picture
    assert "all 56 keys" in same_change and "16 layers" in same_change


def test_full_is_compared_with_its_lora(done):
    """For each prompt there are two pictures of a full finetune: its own, and that of the LoRA from it."""
    pairs = events(done, "comparison")

    is_full = done.request().finetune_type is FinetuneType.FULL
    prompts = done.read("config.json")["sample_prompts"] if is_full else []
    assert [pair["prompt"] for pair in pairs] == prompts
    for pair in pairs:
        full, ours = (Image.open(done.samples / pair[side]).convert("RGB") for side in ("full", "lora"))
        assert preview.difference(full, ours) > 0


def test_captions_lie_beside_their_pictures(done):
    """Each caption is named as its picture, also where two pictures share a name, and names the trigger word once."""
    with zipfile.ZipFile(done.results / "captions.zip") as archive:
        texts = {name: archive.read(name).decode().strip() for name in archive.namelist()}

    assert set(texts) == {"b/cat.txt", "b/cat.png.txt", "dog.txt", "x.txt"}
    assert texts["dog.txt"] == "a dog in the style of TOK"
    assert texts["x.txt"] == "red in the style of TOK"
    assert all(captions.names_trigger(text, "TOK") == 1 for text in texts.values())


def test_settings_are_those_of_the_run(done):
    """The settings that are handed out are the configuration that was trained with."""
    assert json.loads((done.results / "settings.json").read_text()) == done.read("config.json")


def test_run_that_goes_on_measures_from_the_same_start(done):
    """Lost after its last step, a run goes on, trains nothing again, and says the same figures."""
    first = events(done, "ready")[-1]["summary"]

    assert worker.work(done, "train") == 0

    again = events(done, "ready")[-1]["summary"]
    same = ("loss_before", "loss_after", "captured_energy", "recovered")
    assert [again.get(name) for name in same] == [first.get(name) for name in same]
    assert len(events(done, "step")) == 100


class ShrinkingCard(SmallCard):
    """Has room for anything until training is well on its way, then for little more than half of that."""

    def hold(self, tensor):
        """Keep a tensor. Raises: torch.OutOfMemoryError when there is no room for it any more."""
        self.held = getattr(self, "held", 0) + 1
        if self.held == 8000:
            self.limit = int(0.55 * self.peak)
        super().hold(tensor)


def test_run_that_outgrows_the_memory_goes_on_in_less(tmp_path):
    """When memory runs out on the way, the run goes on from its last step with fewer pictures at once, and says so."""
    run = asked(uploaded(tmp_path), priority="quality")

    with ShrinkingCard(nn.Module(), limit=2**40).counting():
        assert worker.work(run, "train") == 0, run.events()[0][-1]

    told = [event["message"] for event in events(run, "warning") if "Memory ran out" in event["message"]]
    assert told and all("Going on from the last step" in text for text in told)
    assert [event["step"] for event in events(run, "step")] == list(range(1, 101))
    assert run.read("config.json")["fit"]["micro_batch"] < 4
    assert run.state() is State.READY


def test_run_that_never_fits_fails_in_words(tmp_path):
    """When even the smallest way runs out of memory, the run fails, and says what to do."""
    run = asked(uploaded(tmp_path), priority="quality")

    with small_card(nn.Module(), limit=1000):
        assert worker.work(run, "train") == 1

    assert "not enough memory" in events(run, "failed")[0]["message"]
    assert events(run, "failed")[0]["hint"]
    assert run.read("config.json")["fit"]["recomputed"] == 1.0


def test_run_that_cannot_fit_is_not_begun(tmp_path, toy):
    """Where the plan finds no way at all, the run fails before anything is loaded, and names what is missing."""
    run = asked(uploaded(tmp_path))

    with toy.context() as environment:
        environment.setenv("FINETUNE_MEMORY_GIB", "0.01")
        assert worker.work(run, "train") == 1

    assert "missing" in events(run, "failed")[0]["message"]
    assert "load" not in {event["name"] for event in events(run, "stage")}


def test_stop_that_comes_while_the_worker_starts_is_kept(tmp_path):
    """A stop asked for before the first step ends the run there, without a LoRA that would change nothing."""
    run = asked(uploaded(tmp_path))
    run.ask_to_stop()

    assert worker.work(run, "train") == 0

    assert run.state() is State.STOPPED
    assert events(run, "stopped")[-1]["step"] == 0
    assert not run.results.exists()


def test_run_without_pictures_fails_in_words(tmp_path):
    """A run with a request and nothing to train on says so, and the process has status 1."""
    run = asked(fakes.run(tmp_path))

    assert worker.work(run, "train") == 1

    assert run.state() is State.FAILED
    assert events(run, "failed")[0]["message"] == "This run has no pictures."
    assert events(run, "failed")[0]["hint"]


def test_unexpected_error_is_told_and_keeps_its_traceback(tmp_path):
    """A run that was never asked for is a mistake of ours: told as failed, and raised."""
    run = uploaded(tmp_path)

    with pytest.raises(AttributeError):
        worker.work(run, "train")

    assert run.state() is State.FAILED
    assert "unexpected" in events(run, "failed")[0]["message"]


def test_draft_is_described_where_it_has_no_caption(tmp_path):
    """Pictures with a caption or a description are left alone; the others come one by one, and the draft stays one."""
    run = uploaded(tmp_path)
    run.write("draft.json", {"mode": "general", "base_model": "demo"})
    run.write("descriptions.json", {"general": {"0001.png": "said before"}, "style": {"0002.png": "other"}})

    assert worker.work(run, "caption") == 0

    said = run.read("descriptions.json")
    dog = next(picture.file for picture in dataset.read(run).images if picture.caption)
    assert {event["file"] for event in events(run, "caption")} == {"0002.png", "0003.png", "0004.png"} - {dog}
    assert said["general"]["0001.png"] == "said before" and "a dot of red" in said["general"].values()
    assert said["style"] == {"0002.png": "other"}
    assert run.state() is State.DRAFT
    assert {event["kind"] for event in run.events()[0]} <= ABOUT_DRAFTS


def test_draft_with_all_captions_needs_no_captioner(tmp_path, toy):
    """Nothing is loaded when there is nothing to describe."""
    run = uploaded(tmp_path, {"a.png": pictures.picture(1), "a.txt": "a pear"})
    run.write("draft.json", {"mode": "style", "base_model": "demo"})

    with toy.context() as environment:
        environment.setenv("FINETUNE_DEMO_BASE", str(tmp_path))
        assert worker.work(run, "caption") == 0

    assert run.events()[0] == []


def test_captioner_that_cannot_be_loaded_is_told(tmp_path, toy):
    """A draft whose captioner is missing gets its error as an event, and stays a draft."""
    run = uploaded(tmp_path)
    run.write("draft.json", {"mode": "style", "base_model": "demo"})

    with toy.context() as environment:
        environment.setenv("FINETUNE_DEMO_BASE", str(tmp_path))
        assert worker.work(run, "caption") == 1

    failed = events(run, "caption_failed")[0]
    assert "cannot be loaded" in failed["message"] and failed["hint"]
    assert run.state() is State.DRAFT


def test_draft_of_an_unknown_base_is_told(tmp_path):
    """A base model that is gone is an error in words for a draft, too."""
    run = uploaded(tmp_path)
    run.write("draft.json", {"mode": "style", "base_model": "gone"})

    assert worker.work(run, "caption") == 1

    assert "gone" in events(run, "caption_failed")[0]["message"]


def test_picture_that_says_nothing_is_only_warned_of(tmp_path, toy):
    """One picture that cannot be described does not end the others' turn."""
    run = uploaded(tmp_path)
    run.write("draft.json", {"mode": "style", "base_model": "demo"})
    fakes.captioner(tmp_path / "base" / "captioner", says="nothing")

    with toy.context() as environment:
        environment.setenv("FINETUNE_DEMO_BASE", str(tmp_path / "base"))
        assert worker.work(run, "caption") == 0

    assert len(events(run, "warning")) == 3
    assert run.read("descriptions.json").get("style", {}) == {}


def test_draft_tells_how_far_its_captions_are(tmp_path):
    """Counts come with the seconds that are left."""
    run = uploaded(tmp_path)
    run.write("draft.json", {"mode": "style", "base_model": "demo"})

    assert worker.work(run, "caption") == 0

    told = events(run, "caption_progress")
    assert [(event["done"], event["of"]) for event in told] == [(0, 3), (0, 3), (1, 3), (2, 3), (3, 3)]
    assert told[0]["seconds_left"] is None and told[-1]["seconds_left"] == 0


def test_captioner_that_fails_never_blocks_a_run(tmp_path, monkeypatch):
    """A captioner that is not here while the service is offline is told once, and the plain caption trained."""
    hub.use(monkeypatch, "http://127.0.0.1:9", tmp_path / "hub", is_offline=True)
    run = asked(uploaded(tmp_path), captioner="smolvlm-500m")

    assert worker.work(run, "train") == 0, run.events()[0][-1]

    told = [event["message"] for event in events(run, "warning") if "plain one" in event["message"]]
    assert len(told) == 1 and "offline mode is on" in told[0]
    with zipfile.ZipFile(run.results / "captions.zip") as archive:
        assert archive.read("x.txt").decode().strip() == "a picture in the style of TOK"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("My run", "My-run"),
        ("  a/b\\c:d*e ", "a-b-c-d-e"),
        ("../../etc/passwd", "etc-passwd"),
        ("été 猫", "été-猫"),
        ("v1.0_final", "v1.0_final"),
        ("…", "lora"),
        ("x" * 200, "x" * 80),
    ],
)
def test_name_becomes_a_file_name(name, expected):
    """Whatever a finetune is called, its file has a name that every system takes."""
    assert results.slug(name) == expected


def test_repeats_of_folders_reach_the_training(tmp_path):
    """What kohya's folders say of how often pictures come is in what training reads, picture by picture."""
    files = {"1_a/a.png": pictures.picture(1), "3_b/b.png": pictures.picture(2), "c.txt": "no picture"}
    run = asked(uploaded(tmp_path, files), captioning=False)

    job = worker._prepare(run, "cpu")

    assert job.encoded.repeats == (1, 3)
