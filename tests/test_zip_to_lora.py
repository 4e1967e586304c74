"""From a ZIP to a LoRA that loads, on the CPU, through the command line and the worker's own process."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from finetune import captions, formats, preview, registry, runs
from finetune.runs import Run, State
from finetune.settings import ASSETS

EXAMPLE = ASSETS / "example" / "twemoji.zip"
ROOT = Path(__file__).parent.parent


def train(home: Path, *options: str) -> tuple[subprocess.CompletedProcess, Run]:
    """Run the command line on the example in a home of its own."""
    words = [sys.executable, "-m", "finetune", "train", str(EXAMPLE), "--mode", "style", *options]
    environment = {**os.environ, "FINETUNE_HOME": str(home)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    return done, next(runs.all_in(home / "runs"))


@pytest.fixture(scope="module", params=["lora", "full"])
def trained(request, tmp_path_factory) -> tuple[subprocess.CompletedProcess, Run]:
    """One short run of each finetune type."""
    home = tmp_path_factory.mktemp(request.param)
    options = ("--finetune-type", request.param, "--iterations", "100", "--lora-rank", "16", "--name", "My example")
    return train(home, *options, "--output", str(home / "out.safetensors"))


def test_a_run_ends_ready(trained):
    """The command succeeds and the run says that it is ready."""
    done, run = trained

    assert done.returncode == 0, done.stderr + run.worker_log.read_text()
    assert run.state() is State.READY


def test_every_step_is_told_and_the_loss_falls(trained):
    """All 100 steps are in the events, and the last quarter's mean loss is below the first quarter's."""
    _, run = trained

    losses = [event["loss"] for event in run.events()[0] if event["kind"] == "step"]

    assert len(losses) == 100
    assert sum(losses[75:]) < sum(losses[:25])


def test_every_trained_caption_names_the_trigger_word_once(trained):
    """The captions that are handed out name TOK exactly once each."""
    _, run = trained

    with zipfile.ZipFile(run.results / "captions.zip") as archive:
        texts = [archive.read(name).decode() for name in archive.namelist()]

    assert len(texts) == 16
    assert [captions.names_trigger(text, "TOK") for text in texts] == [1] * 16


def drawn_as_the_page_says(base, lora: Path, prompt: str, seed: int):
    """The picture that the lines under “Use it” draw, word for word but for the folders and the seed."""
    family = registry.families()[base.family]
    text = family.usage(base, lora.name, prompt).replace("path/to/folder", lora.parent.as_posix())
    text = text.replace("path/to/assets/demo-base", base.source).replace("manual_seed(0)", f"manual_seed({seed})")
    told: dict = {}
    exec(text.replace('image.save("picture.png")', ""), told)
    return told["image"]


def test_the_file_draws_what_the_trainer_drew_and_not_what_the_base_draws(trained):
    """Through diffusers' own pipeline the file gives the last sample again, and another picture than at step 0."""
    from PIL import Image

    _, run = trained
    base = registry.base_model("demo")
    config = run.read("config.json")
    lora = run.lora

    drawn = drawn_as_the_page_says(base, lora, config["sample_prompts"][0], config["seed"])

    assert preview.difference(drawn, Image.open(run.samples / "step000100-0.png").convert("RGB")) <= 2
    assert preview.difference(drawn, Image.open(run.samples / "step000000-0.png").convert("RGB")) > 8


def test_the_file_says_how_it_was_made(trained):
    """Metadata hold the rank, the trigger word and the run's settings."""
    _, run = trained

    metadata = formats.read_metadata(run.lora)

    assert metadata["modelspec.trigger_phrase"] == "TOK"
    assert metadata["ss_network_dim"] == "16"
    assert metadata["finetune"]["iterations"] == 100
    assert metadata["finetune"]["name"] == "My example"


def test_a_wrong_value_is_refused_before_anything_starts(tmp_path):
    """Fifty iterations are too few: the command says so, names the limit and makes no run."""
    words = [sys.executable, "-m", "finetune", "train", str(EXAMPLE), "--mode", "style", "--iterations", "50"]
    environment = {**os.environ, "FINETUNE_HOME": str(tmp_path)}

    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert "Iterations" in done.stderr and "100" in done.stderr
    assert not list(runs.all_in(tmp_path / "runs"))
