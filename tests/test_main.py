"""The command line: what it offers, and how it says no."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import fakes
import pictures
import pytest

from finetune import __main__ as program
from finetune import dataset, owners, registry, runs, settings, shelf
from finetune.errors import FinetuneError
from finetune.inputs import Request
from finetune.runs import State

ROOT = Path(__file__).parent.parent
HIDDEN = {"webhook_url", "webhook_secret"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A data folder of the test's own."""
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def zip(tmp_path):
    """A ZIP that could be trained on."""
    return pictures.example_zip(tmp_path / "a.zip")


def refused(capsys, *words):
    """What a command writes to standard error when it ends with status 2."""
    try:
        status = program.main([str(word) for word in words])
    except SystemExit as end:  # argparse's own
        status = end.code
    assert status == 2
    return capsys.readouterr().err


def test_help_lists_every_field_of_the_request(capsys):
    """Each field is an option with its own words, except those about webhooks, which nobody would wait for."""
    with pytest.raises(SystemExit) as end:
        program.main(["train", "--help"])

    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    for name, field in Request.model_fields.items():
        assert (f"--{name.replace('_', '-')}" in text) == (name not in HIDDEN), name
        assert (field.description.split(".")[0] in text.replace("- ", "-")) == (name not in HIDDEN), name


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--iterations", "50", ("Iterations", "100", "50")),
        ("--iterations", "many", ("Iterations", "integer", "many")),
        ("--learning-rate", "1", ("Learning rate", "0.005")),
        ("--lora-rank", "17", ("LoRA rank", "16", "32")),
        ("--lora-rank", "big", ("LoRA rank", "16", "32")),
        ("--priority", "fast", ("Priority", "speed", "fast")),
        ("--seed", "-1", ("Seed", "0")),
        ("--trigger-word", " ", ("Trigger word", "empty")),
        ("--base-model", "sdxl", ("sdxl", "demo")),
    ],
)
def test_wrong_value_is_refused_in_words(capsys, home, zip, option, value, words):
    """The field, the limit and the value are named, without a traceback, and no run is made."""
    text = refused(capsys, "train", zip, "--mode", "style", option, value)

    assert text.startswith("Error: ")
    assert all(word in text for word in words), text
    assert "Traceback" not in text
    assert not list(home.rglob("run.json"))


def test_mode_is_needed(capsys, zip):
    """Leaving out the one field without a default is refused like a wrong value."""
    assert "Mode: is needed" in refused(capsys, "train", zip)


def test_unknown_option_is_refused(capsys, zip):
    """A misspelt option is named."""
    assert "--iteration-s" in refused(capsys, "train", zip, "--mode", "style", "--iteration-s", "100")


def test_missing_zip_is_refused(capsys, home, tmp_path):
    """A path at which there is no file is named, and no run is made."""
    text = refused(capsys, "train", tmp_path / "nothing.zip", "--mode", "style")

    assert "There is no file" in text and "nothing.zip" in text
    assert not list(home.rglob("run.json"))


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"])
def test_zip_that_cannot_be_used_leaves_no_run_behind(capsys, home, tmp_path, content):
    """A bad ZIP is explained, and the list of runs stays as it was."""
    (tmp_path / "bad.zip").write_bytes(content)

    assert refused(capsys, "train", tmp_path / "bad.zip", "--mode", "style").startswith("Error: ")
    assert not list(runs.all_in(home / "runs"))


def test_wrong_environment_is_refused_in_words(capsys, zip, monkeypatch):
    """A variable that holds no number is an error like any other."""
    monkeypatch.setenv("FINETUNE_THREADS", "all")

    assert "FINETUNE_THREADS" in refused(capsys, "train", zip, "--mode", "style")


def test_refusal_is_the_exit_status(tmp_path):
    """Started as a program, a refusal is status 2 and words on standard error, nothing on standard output."""
    words = [sys.executable, "-m", "finetune", "train", str(tmp_path / "x.zip"), "--mode", "style"]

    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert done.stderr.startswith("Error: ") and done.stdout == ""


class Gone:
    """An executor whose worker has ended."""

    def is_running(self, run):
        return False


def test_following_a_run_that_failed_says_why(tmp_path, capsys):
    """The reason goes to standard error; a step without a loss does not disturb the progress bar."""
    run = fakes.run(tmp_path)
    run.tell("started", pid=1)
    run.tell("step", step=1, of=100, loss=None, rate=1e-4, seconds_left=1.0)
    run.tell("failed", message="The loss was not a number.", hint="Lower the learning rate.")

    assert program._follow(run, Gone()) is State.FAILED
    assert "Failed: The loss was not a number. Lower the learning rate." in capsys.readouterr().err


def test_worker_that_is_gone_without_a_word_is_a_failure(tmp_path, capsys):
    """A run whose worker vanished is not waited for; its log is named."""
    run = fakes.run(tmp_path)
    run.tell("started", pid=1)

    assert program._follow(run, Gone()) is State.FAILED
    assert str(run.worker_log) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "copied"), [("x.safetensors", "x.safetensors"), ("new/x.safetensors",) * 2, ("out", "out/a.safetensors")]
)
def test_result_is_copied_to_a_file_or_folder(tmp_path, capsys, output, copied):
    """Folders on the way are made; a name that ends in .safetensors is the file's."""
    run = _with_lora(tmp_path)

    program._show_results(run, tmp_path / output)

    assert (tmp_path / copied).read_bytes() == b"lora"
    assert str(tmp_path / copied) in capsys.readouterr().out


def test_result_that_cannot_be_copied_is_not_lost(tmp_path):
    """The error says where the LoRA is."""
    run = _with_lora(tmp_path)
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(FinetuneError, match=r"a\.safetensors"):
        program._show_results(run, tmp_path / "file" / "x.safetensors")


def _with_lora(folder):
    run = fakes.run(folder)
    run.results.mkdir()
    (run.results / "a.safetensors").write_bytes(b"lora")
    return run


def test_plan_tells_how_bases_fit_cards(capsys):
    """The table has a line for each base, type and priority, and a column for each card; what fits none is a dash."""
    assert program.main(["plan", "--memory-gib", "12", "141"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("|")[2:4] == [" 12 GB ", " 141 GB "]
    assert len(lines) == 2 + 4 * len(registry.base_models())
    (row,) = [line.split("|") for line in lines if line.startswith("| FLUX.2 dev, full, quality")]
    assert row[2].strip() == "–" and "GiB" in row[3]


def key(capsys, *words):
    """What a command about keys writes to standard output, and to standard error."""
    assert program.main(["key", *words]) == 0
    return capsys.readouterr()


def test_key_is_shown_once(capsys):
    """Standard output is the key alone, so that a script can take it; the list shows its id and whose it is."""
    made = key(capsys, "new", "ann", "--admin")
    listed = key(capsys, "list").out

    shown = made.out.strip()
    assert shown.startswith("ft_") and "once" in made.err
    assert shown not in listed
    assert listed.split()[0] == shown[:15] and listed.split()[2:] == ["ann", "(admin)"]


def test_first_key_says_what_changes(capsys):
    """From the first key on, everyone is asked; who makes one without --admin learns what it does not see."""
    first, second = key(capsys, "new", "ann").err, key(capsys, "new", "root", "--admin").err

    assert "From now on" in first and "--admin alone" in first
    assert "From now on" not in second and "--admin alone" not in second


def test_key_is_revoked(capsys):
    """It is gone from the list, and the last one says what that means."""
    id = key(capsys, "new", "ann").out[:15]

    told = key(capsys, "revoke", id).out

    assert id in told and "No key is left" in told
    assert key(capsys, "list").out == ""


@pytest.mark.parametrize(("words", "told"), [(("revoke", "ft_0"), "no such key"), (("new", "visitor-1"), "visitors")])
def test_command_about_keys_that_cannot_be_done_is_refused_in_words(capsys, words, told):
    """An id that there is not, and a name that cannot be one."""
    assert told in refused(capsys, "key", *words)


def test_pictures_are_given_in_one_way(capsys, home, zip):
    """As a path or as a dataset, and not as both."""
    assert "Which pictures?" in refused(capsys, "train", "--mode", "style")
    assert "Which pictures?" in refused(capsys, "train", zip, "--dataset", "things", "--mode", "style")
    assert not list(home.rglob("run.json"))


def test_dataset_is_trained_with(home, zip, capsys):
    """A run is made of what was kept under a name; a name that there is not leaves no run behind."""
    here, usual = settings.read(), {"pictures": [], "dataset": None, "ground": "white"}
    first = program._filled(here, Namespace(**{**usual, "pictures": [zip]}))
    kept = shelf.keep(here, first, "My things", owners.AT_HOME)

    run = program._filled(here, Namespace(**{**usual, "dataset": "my things"}))

    assert dataset.content_hash(run) == kept.hash
    assert f"4 pictures, 0 files ignored. Run {run.id}" in capsys.readouterr().out
    assert "There is “My things”" in refused(capsys, "train", "--dataset", "nothing", "--mode", "style")
    assert len(list(runs.all_in(here.runs))) == 2
