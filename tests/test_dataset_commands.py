"""The commands about datasets: what they take, say, write, and refuse."""

import json
import zipfile

import pictures
import pretend
import pytest

from finetune import __main__ as program
from finetune import dataset, dataset_commands, owners, runs, settings, shelf
from finetune.inputs import Request
from finetune.owners import Caller

WORDS = {"thing0": "a thing of kind 0", "thing1": "a thing of kind 1"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A data folder of the test's own, in which nothing but runs, datasets and locks is left behind."""
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FINETUNE_DISK_RESERVE_GIB", "1")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "home"
    assert not list((tmp_path / "home").glob("dataset-*"))


@pytest.fixture
def zip(tmp_path):
    """Four pictures, two of them with captions."""
    files = {f"thing{n}.png": pictures.picture(n, 64, 64) for n in range(4)}
    return pictures.zip_of(tmp_path / "things.zip", files | {f"{name}.txt": text for name, text in WORDS.items()})


@pytest.fixture
def folder(zip, tmp_path):
    """The same, unpacked."""
    with zipfile.ZipFile(zip) as packed:
        packed.extractall(tmp_path / "things")
    return tmp_path / "things"


def told(capsys, *words, status=0):
    """What a command about datasets writes to standard output, or if it is refused to standard error."""
    assert program.main(["dataset", *map(str, words)]) == status
    written = capsys.readouterr()
    return written.err if status == 2 else written.out


def found(capsys, asked):
    """What `check` knows, as JSON."""
    program.main(["dataset", "check", str(asked), "--json"])
    return json.loads(capsys.readouterr().out)


def _kept(capsys, zip, name="My things"):
    told(capsys, "keep", zip, name)
    return shelf.find(settings.read(), owners.AT_HOME, name)


def _run(zip, **changes):
    """A run that was submitted."""
    run = runs.create(settings.read().runs)
    dataset.unpack(zip, run)
    request = Request(**{"finetune_comment": "Dots", "mode": "style", "trigger_word": "DOT", **changes})
    run.write("request.json", request.model_dump(mode="json"))
    return run


def _texts(path):
    """The captions in a ZIP or a folder, by the names of their files without ending."""
    if path.is_dir():
        return {file.stem: file.read_text(encoding="utf-8").strip() for file in path.rglob("*.txt")}
    with zipfile.ZipFile(path) as packed:
        names = [name for name in packed.namelist() if name.endswith(".txt")]
        return {name.rpartition("/")[2][:-4]: packed.read(name).decode().strip() for name in names}


# --- check


def test_check_tells_what_becomes_of_each_file(capsys, tmp_path):
    """Used, used after repair, and ignored, with the reason; then how many there are."""
    a, b = pictures.picture(1, 40, 30), pictures.picture(2)
    files = {"a.png": a, "a.txt": "a pear", "b.png": b, "b.txt": "purée".encode("cp1252"), "c.pdf": "no"}
    zip = pictures.zip_of(tmp_path / "in.zip", files)

    program.main(["dataset", "check", str(zip)])

    text = capsys.readouterr().out
    assert text.startswith("in: 2 pictures, 1 file ignored.\n  used      a.png\n")
    assert "  repaired  b.txt: " in text
    assert "  ignored   c.pdf: is not a picture" in text


def test_problem_is_the_exit_status(capsys, tmp_path):
    """Pictures of one colour cannot be trained on: the finding is printed and the status is 1; without one it is 0."""
    flat = pretend.zip_of_pictures(tmp_path / "flat.zip")
    fine = pictures.zip_of(tmp_path / "fine.zip", {f"{n}.png": pictures.picture(n, 80, 80) for n in range(12)})

    assert "\nproblem: " in told(capsys, "check", flat, status=1)
    assert "problem: " not in told(capsys, "check", fine, "--trigger-word", "DOTTEX")


def test_passes_are_told(capsys, zip):
    """How often each picture is seen in as many steps as are asked for."""
    program.main(["dataset", "check", str(zip), "--iterations", "200"])

    assert "4 pictures is seen about 200 times" in capsys.readouterr().out


def test_check_reads_folders_and_what_was_kept(capsys, zip, folder):
    """A folder, a ZIP, a run and a kept dataset with the same pictures have the same content."""
    kept, run = _kept(capsys, zip), _run(zip)

    all_found = [found(capsys, asked) for asked in (zip, folder, run.id, kept.name)]

    assert {one["hash"] for one in all_found} == {kept.hash}
    assert [one["name"] for one in all_found] == ["things", "things", "Dots", "My things"]
    assert len(all_found[0]["images"]) == 4


def test_check_leaves_everything_as_it_is(capsys, home, zip):
    """No run is made, and none is changed."""
    run = _run(zip)
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.suffix != ".lock"}

    found(capsys, zip)
    found(capsys, run.id)

    after = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.suffix != ".lock"}
    assert {path: after[path] for path in before if path != home} == {p: t for p, t in before.items() if p != home}
    assert len(after) == len(before)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("nothing", "There is no file, run or dataset “nothing”."),
        ("", "There is no file, run or dataset"),
        ("no/such.zip", "There is no file “no/such.zip”."),
        ("such.zip", "There is no file “such.zip”."),
        ("00000000-0000-4000-8000-000000000000", "There is no such run."),
    ],
)
def test_what_is_not_there_is_said(capsys, asked, words):
    """By its name, whatever it was meant to be."""
    assert words in told(capsys, "check", asked, status=2)


def test_wrong_value_is_refused_in_words(capsys, zip):
    """Options are checked as those of train are."""
    assert "Iterations" in told(capsys, "check", zip, "--iterations", "5", status=2)
    assert "sdxl" in told(capsys, "check", zip, "--base-model", "sdxl", status=2)


# --- caption


def test_worker_describes_what_has_no_caption(folder, tmp_path):
    """It is waited for until it ends, and what it said is there."""

    class Describing(pretend.StillExecutor):
        def start(self, run, task):
            pretend.pretend(run, task, steps=1, pause=0)

    run = runs.create(tmp_path)
    dataset_commands.fill(settings.read(), run, str(folder))
    run.write("draft.json", {"mode": "style", "base_model": "demo"})

    assert dataset_commands.describe(run, Describing())

    said = run.read("descriptions.json")["style"]
    assert said == {"0003.png": "a style thing", "0004.png": "a style thing"}


def test_worker_that_fails_says_why(capsys, zip, tmp_path):
    """Its words go to standard error, and the command is not a success."""

    class Failing(pretend.StillExecutor):
        def start(self, run, task):
            run.tell("caption_failed", message="The captioner is missing.", hint="Fetch it again.")

    run = runs.create(tmp_path)
    dataset_commands.fill(settings.read(), run, str(zip))

    assert not dataset_commands.describe(run, Failing())
    assert "The captioner is missing. Fetch it again." in capsys.readouterr().err


def test_interrupted_worker_is_ended(zip, tmp_path, capsys):
    """Ctrl+C ends it, and what was described so far is taken."""

    class Interrupted(pretend.StillExecutor):
        def is_running(self, run):
            raise KeyboardInterrupt

    run, executor = runs.create(tmp_path), Interrupted()
    dataset_commands.fill(settings.read(), run, str(zip))

    assert not dataset_commands.describe(run, executor)
    assert executor.running == set()


def test_mode_is_needed_to_describe(capsys, zip):
    """What is said of a picture depends on it."""
    assert "--mode" in told(capsys, "caption", zip, status=2)


def test_nothing_is_started_where_every_picture_has_its_words(capsys, tmp_path):
    """Captions that came along are written as they are, or with the trigger word if it is given."""
    zip = pretend.zip_of_pictures(tmp_path / "in.zip", 2, 2)

    assert "2 captions written to in-captions.zip." in told(capsys, "caption", zip, "--mode", "style")
    told(capsys, "caption", zip, "--mode", "style", "--trigger-word", "DOT", "--output", tmp_path / "out")

    assert _texts(tmp_path / "in-captions.zip") == WORDS
    assert _texts(tmp_path / "out") == {name: f"{text} in the style of DOT" for name, text in WORDS.items()}


def test_captions_that_are_there_are_not_replaced(capsys, folder, tmp_path):
    """Beside the pictures, a caption of somebody's own stays."""
    kept = _kept(capsys, folder)
    (kept.folder / "descriptions.json").write_text(json.dumps({"style": {"0003.png": "c", "0004.png": "d"}}))
    (folder / "thing0.txt").write_text("of my own")

    text = told(capsys, "caption", kept.name, "--mode", "style", "--output", folder)

    assert text.startswith("2 captions written")
    assert _texts(folder) == {"thing0": "of my own", "thing1": WORDS["thing1"], "thing2": "c", "thing3": "d"}


# --- export


def test_exported_dataset_is_read_again(capsys, zip, tmp_path):
    """Pictures and captions come back the same from a ZIP and from each layout."""
    hashes = set()
    for layout in ("plain", "kohya", "hf"):
        told(capsys, "export", zip, tmp_path / f"{layout}.zip", "--format", layout)
        hashes.add(found(capsys, tmp_path / f"{layout}.zip")["hash"])

    assert hashes == {found(capsys, zip)["hash"]}


def test_export_lays_files_out_as_other_trainers_read_them(capsys, zip, tmp_path):
    """Side by side, in kohya's folders, or with a table."""
    for layout in ("plain", "kohya", "hf"):
        told(capsys, "export", zip, tmp_path / layout, "--format", layout)

    things = [f"thing{n}.png" for n in range(4)]
    listed = {name: sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("plain", "kohya", "hf")}
    assert listed["plain"] == sorted([*things, "thing0.txt", "thing1.txt"])
    assert listed["kohya"] == ["1_things"]
    assert listed["hf"] == ["metadata.jsonl", *things]
    rows = [json.loads(line) for line in (tmp_path / "hf" / "metadata.jsonl").read_text().splitlines()]
    assert rows[0] == {"file_name": "thing0.png", "text": WORDS["thing0"]} and rows[3]["text"] == ""


def test_export_of_a_run_has_the_captions_that_it_trains(capsys, zip, tmp_path):
    """With its trigger word and descriptions; an option says otherwise."""
    run = _run(zip)
    run.write("descriptions.json", {"style": {"0003.png": "a blue square"}})

    told(capsys, "export", run.id, tmp_path / "a.zip")
    told(capsys, "export", run.id, tmp_path / "b.zip", "--trigger-word", "PEA")

    assert _texts(tmp_path / "a.zip")["thing2"] == "a blue square in the style of DOT"
    assert _texts(tmp_path / "a.zip")["thing3"] == "a picture in the style of DOT"
    assert _texts(tmp_path / "b.zip")["thing0"] == "a thing of kind 0 in the style of PEA"


def test_pictures_of_one_name_are_all_exported(capsys, tmp_path):
    """Of two folders, or with two endings, each keeps its own caption."""
    names = ("a/x.png", "b/x.jpg", "a_x.png", "x.png")
    files = {name: pictures.picture(number) for number, name in enumerate(names)}
    zip = pictures.zip_of(tmp_path / "in.zip", {**files, "captions.csv": "file,caption\nb/x.jpg,the second"})

    told(capsys, "export", zip, tmp_path / "out")

    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    assert _texts(tmp_path / "out") == {"b_x": "the second"}


@pytest.mark.parametrize("output", ["things", "things.txt"])
def test_export_mixes_nothing(capsys, zip, folder, tmp_path, output):
    """A folder that holds something, and a file that is no ZIP, stay as they are."""
    (tmp_path / "things.txt").write_text("mine")

    assert f"{output} is there already" in told(capsys, "export", zip, output, status=2)
    assert (tmp_path / "things.txt").read_text() == "mine"


def test_export_that_cannot_be_written_says_so(capsys, zip, tmp_path):
    """Where a file is in the way of a folder."""
    (tmp_path / "file").write_text("in the way")

    assert "cannot be written" in told(capsys, "export", zip, tmp_path / "file" / "x.zip", status=2)


# --- keep, list, remove


def test_kept_datasets_are_listed_and_removed(capsys, zip):
    """With version, pictures and origin; removed by name, or by name and hash."""
    kept = _kept(capsys, zip)

    assert told(capsys, "list").split("  ") == [kept.label, "4 pictures", kept.created[:16], "from things.zip\n"]
    assert "no version" in told(capsys, "remove", "my things@0000", status=2)
    assert told(capsys, "remove", kept.label) == f"{kept.label} is deleted.\n"
    assert told(capsys, "list") == ""


def test_dataset_of_somebody_else_is_named_with_its_owner(capsys, zip):
    """The owner of the machine sees it, and reaches it by saying whose it is."""
    shelf.keep(settings.read(), _run(zip), "things", Caller("ann"))

    assert "owned by ann" in told(capsys, "list")
    assert "no dataset" in told(capsys, "remove", "things", status=2)
    assert "is deleted" in told(capsys, "remove", "things", "--owner", "ann")


@pytest.mark.parametrize("name", ["a/b", "x.zip", "things@abcd"])
def test_name_that_looks_like_something_else_is_found(capsys, zip, name):
    """A dataset may be called like a path, as long as there is no such file."""
    _kept(capsys, zip, name)

    assert found(capsys, name)["name"] == name


def test_bad_name_is_refused(capsys, zip):
    """A dataset needs a name."""
    assert "needs a name" in told(capsys, "keep", zip, " ", status=2)
