"""The panel of pictures, handler by handler: what it is told, and what it may change."""

import json
import zipfile
from functools import partial

import pretend
import pytest
from pictures import picture, zip_of

from finetune import crops, dataset, descriptions, recipe, registry, runs
from finetune.dataset import edits, intake
from finetune.dataset.edits import Change
from finetune.errors import FinetuneError, MissingError
from finetune.inputs import Mode, Priority
from finetune.owners import AT_HOME, Caller
from finetune.queue import Queue
from finetune.settings import Settings
from finetune.ui import new, pictures
from finetune.ui.handlers import Visit

FILES = [f"000{number}.png" for number in range(1, 5)]
here = partial(dataset.unpack, take=intake.take)


@pytest.fixture
def visit(tmp_path):
    queue = Queue(Settings(home=tmp_path / "home"), pretend.StillExecutor())
    yield Visit(queue, AT_HOME)
    queue.close()


@pytest.fixture
def run(visit, tmp_path):
    """Four pictures; the first two came with captions."""
    made = visit.queue.create(AT_HOME.name)
    files = {f"thing{n}.png": picture(n, 96, 64 + 16 * n) for n in range(4)}
    files |= {f"thing{n}.txt": f"a thing of kind {n}" for n in range(2)}
    here(zip_of(tmp_path / "things.zip", files), made)
    return made


@pytest.fixture
def asked(run):
    return {"run": run.id, "mode": "style", "trigger": "TOK", "captioning": True, "base": "demo", "priority": "quality"}


def _texts(told):
    return [one["text"] for one in told["pictures"]]


def _origins(told):
    return [one["origin"] for one in told["pictures"]]


def _change(visit, asked, what, **values):
    return pictures.change(visit, {**asked, "what": what, **values})


def test_picture_is_told_as_it_is_trained(visit, run, asked):
    """Caption, words to edit, links, and for each resolution the cut that the trainer makes."""
    told = pictures.panel(visit, asked)["pictures"][0]

    assert (told["text"], told["caption"]) == ("a thing of kind 0", "a thing of kind 0 in the style of TOK")
    assert (told["source"], told["origin"], told["width"], told["height"]) == ("thing0.png", "zip", 96, 64)
    assert told["url"].startswith(f"v1/files/{run.id}/thumbnails/0001.webp?")
    assert told["full_url"].startswith(f"v1/files/{run.id}/images/0001.png?")
    assert (told["repeats"], told["is_excluded"]) == (1, False)


@pytest.mark.parametrize("priority", Priority)
def test_cuts_are_those_of_the_trainer(visit, asked, priority):
    """Every resolution of the priority, by the base model's patches, with the lines that cut."""
    base = registry.base_models()["demo"]
    patch_px = registry.families()[base.family].patch_px

    told = pictures.panel(visit, {**asked, "priority": priority})["pictures"][1]["crops"]

    sizes = [crops.fit(96, 80, px, patch_px) for px in recipe.resolutions(priority, base.resolution_px)]
    assert [(cut["width"], cut["height"]) for cut in told] == sizes
    assert [cut["box"] for cut in told] == [pytest.approx(crops.box(96, 80, size), abs=0.1) for size in sizes]


def test_what_is_cut_off_is_said(visit, tmp_path, asked):
    """A share of the picture in words; nothing where all is kept."""
    run = visit.queue.create(AT_HOME.name)
    files = {"a.png": picture(1, 72, 64), "b.png": picture(2, 64, 64)}
    here(zip_of(tmp_path / "in.zip", files), run)

    told = pictures.panel(visit, {**asked, "run": run.id})

    assert [one["crops"][-1]["cut_off"] for one in told["pictures"]] == ["11 %", ""]


def test_every_file_is_reported_once_and_not_again(visit, asked):
    """Pictures and captions have a row each; with what the page knows already there is no report."""
    first = pictures.panel(visit, asked)

    again = pictures.panel(visit, {**asked, "known": first["known"]})

    names = [*(f"thing{n}.png" for n in range(4)), *(f"thing{n}.txt" for n in range(2))]
    assert [row["file"] for row in first["report"]] == names
    assert {row["what"] for row in first["report"]} == {"used"}
    assert again["report"] is None


def test_buckets_count_what_is_trained(visit, run, asked):
    """Each size with its pictures; excluded ones are in none."""
    told = pictures.panel(visit, asked)
    sizes = [(cut["width"], cut["height"]) for one in told["pictures"] for cut in one["crops"]]
    assert {(b["width"], b["height"]): b["pictures"] for b in told["buckets"]} == {
        size: sizes.count(size) for size in sizes
    }

    told = _change(visit, asked, "exclude", files=FILES[:3])

    assert sum(bucket["pictures"] for bucket in told["buckets"]) == len(told["pictures"][3]["crops"])


def test_unknown_base_model_has_no_cuts(visit, asked):
    """As long as nobody looked it up, it is not known how it cuts."""
    told = pictures.panel(visit, {**asked, "base": "somebody/something"})

    assert [one["crops"] for one in told["pictures"]] == [()] * 4
    assert told["buckets"] == []


def test_only_what_is_new_is_told_again(visit, asked):
    """What the page knows comes as null, also when it asks for something else meanwhile."""
    known = pictures.panel(visit, asked)["known"]

    told = _change(visit, {**asked, "known": known}, "caption", files=[FILES[2]], text="a cube")

    assert [one and one["text"] for one in told["pictures"]] == [None, None, "a cube", None]
    again = pictures.panel(visit, {**asked, "known": told["known"]})
    assert again["pictures"] == [None] * 4
    other = pictures.panel(visit, {**asked, "known": told["known"], "trigger": "OTHER"})
    assert all(other["pictures"][:3])


@pytest.mark.parametrize("known", [7, "", "abc", "x" * 24, ["a"], {"a": 1}])
def test_nonsense_that_is_known_means_nothing(visit, asked, known):
    """Then all is told."""
    assert all(pictures.panel(visit, {**asked, "known": known})["pictures"])


def test_caption_is_kept_at_once(visit, run, asked):
    """It is trained from now on, and can be taken back by its name."""
    told = _change(visit, asked, "caption", files=[FILES[0]], text="  a cube ")

    assert (told["said"], told["undo"], told["revision"]) == ("Saved.", "edit of a caption", 1)
    assert _origins(told)[0] == "edited"
    assert told["pictures"][0]["caption"] == "a cube in the style of TOK"
    assert dataset.read(run).images[0].caption == "a cube"
    assert told["counts"] == "4 pictures, 1 with captions from the ZIP, 1 edited, 2 will be described"


def test_empty_caption_is_plain_and_not_described(visit, asked):
    """Who wants no words for a picture gets none."""
    told = _change(visit, asked, "caption", files=[FILES[3]], text="")

    assert told["pictures"][3]["origin"] == "plain"
    assert told["pictures"][3]["caption"] == "a picture in the style of TOK"


def test_caption_saved_unchanged_stays_whose_it_was(visit, run, asked):
    """Opening a description and leaving it does not make it a person's."""
    descriptions.keep(run, Mode.STYLE, {FILES[2]: "a cube"})

    told = _change(visit, asked, "caption", files=[FILES[2]], text="a cube")

    assert (told["said"], _origins(told)[2]) == ("Nothing has changed.", "described")


def test_words_are_replaced_in_what_is_shown(visit, run, asked):
    """In captions of the ZIP and in descriptions alike, which are a person's then."""
    descriptions.keep(run, Mode.STYLE, {FILES[2]: "a thing like a cube"})

    told = _change(visit, asked, "replace", files=FILES, find="THING", replacement="toy", whole_words=True)

    assert _texts(told) == ["a toy of kind 0", "a toy of kind 1", "a toy like a cube", ""]
    assert _origins(told) == ["edited", "edited", "edited", "waiting"]
    assert told["said"] == "Replaced in 3 captions."
    assert _texts(_change(visit, asked, "undo")) == [
        "a thing of kind 0",
        "a thing of kind 1",
        "a thing like a cube",
        "",
    ]


def test_words_are_added_where_there_are_some(visit, asked):
    """Pictures without words are left, and that is said."""
    told = _change(visit, asked, "add", files=FILES, prefix="photo of", suffix=", at dusk")

    assert _texts(told)[:2] == ["photo of a thing of kind 0, at dusk", "photo of a thing of kind 1, at dusk"]
    assert told["said"] == "Added to 2 captions. 2 pictures without words stayed so."


def test_exclusion_is_counted_and_not_described(visit, run, asked):
    """What is left out is shown as such, and nobody describes it."""
    told = _change(visit, asked, "exclude", files=FILES[2:])

    assert [one["is_excluded"] for one in told["pictures"]] == [False, False, True, True]
    assert told["counts"] == "2 pictures, 2 with captions from the ZIP, 2 excluded"
    assert not told["is_waiting"]
    assert _change(visit, asked, "include", files=FILES[2:])["is_waiting"]


def test_description_is_made_anew(visit, run, asked):
    """A caption of the ZIP and an old description make way, and the captioner is asked, though it was before."""
    descriptions.keep(run, Mode.STYLE, {FILES[2]: "old", FILES[3]: "old too"})
    pictures.panel(visit, asked)
    run.write("draft.json", {**run.read("draft.json"), "is_waiting": False})

    told = _change(visit, asked, "describe", files=[FILES[0], FILES[2]])

    assert _origins(told) == ["waiting", "zip", "waiting", "described"]
    assert told["is_waiting"] and run.read("draft.json")["is_waiting"]
    assert told["progress"] == {"done": 1, "of": 3, "words": "1 of 3 described"}
    assert _texts(_change(visit, asked, "undo"))[:3] == ["a thing of kind 0", "a thing of kind 1", "old"]


@pytest.mark.parametrize("values", [{"captioning": False}, {"mode": None}, {"base": "somebody/something"}])
def test_description_that_cannot_be_made_is_explained(visit, asked, values):
    """Without captioning, a mode or a captioner nothing is forgotten."""
    with pytest.raises(FinetuneError) as caught:
        _change(visit, {**asked, **values}, "describe", files=FILES)

    assert caught.value.hint
    assert pictures.panel(visit, asked)["revision"] == 0


def test_picture_that_comes_back_is_described(visit, run, asked):
    """The captioner is asked once more when there is a new picture for it, and only then."""
    _change(visit, asked, "exclude", files=[FILES[3]])
    run.write("draft.json", {**run.read("draft.json"), "is_waiting": False})
    assert not pictures.panel(visit, asked)["is_waiting"]

    assert _change(visit, asked, "include", files=[FILES[3]])["is_waiting"]


def test_captioner_of_the_form_is_asked(visit, run, asked):
    """Whom the form names describes the draft; naming another one asks that one."""
    pictures.panel(visit, asked)
    assert run.read("draft.json")["captioner"] == ""

    assert pictures.panel(visit, {**asked, "captioner": " smolvlm-500m "})["is_waiting"]

    assert run.read("draft.json")["captioner"] == "smolvlm-500m"


def test_stranger_has_no_model_fetched_to_describe(visit, tmp_path, asked):
    """Opening the panel with somebody's model of the Hub asks for nothing, unless the machine is one's own."""
    bob = Visit(visit.queue, Caller("bob"))
    run = visit.queue.create("bob")
    here(zip_of(tmp_path / "in.zip", {"a.png": picture(1)}), run)

    told = pictures.panel(bob, {**asked, "run": run.id, "captioner": "somebody/large"})

    assert not told["is_waiting"]
    assert run.read("draft.json") == {}


def test_what_was_wrong_with_a_description_is_noted(visit, run, asked):
    """Words that should not be in it, or why there is none."""
    run.write(
        "descriptions.json",
        {
            "style": {FILES[2]: "an oil painting of a cube"},
            "leaks": {"style": {FILES[2]: ["oil painting"]}},
            "failed": {"style": {FILES[3]: "It had nothing to say."}},
        },
    )

    notes = [one["notes"] for one in pictures.panel(visit, asked)["pictures"]]

    assert notes[2] == ["its description says what TOK is to stand for: oil painting"]
    assert notes[3] == ["was not described: It had nothing to say."]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"done": 1, "of": 2, "seconds_left": 70}, "0 of 2 described, about 1 min 10 s left"),
        (
            {"title": "Fetching", "done": 10**9, "of": 4 * 10**9, "unit": "bytes", "seconds_left": 5},
            "Fetching: 1.0 GB of 4.0 GB, about 5 s left",
        ),
        ({"done": 2, "of": 2, "seconds_left": 0}, "0 of 2 described"),
    ],
)
def test_progress_of_the_captioner_is_said(visit, run, asked, told, words):
    """How many are described, how long the rest takes, and what is fetched before that."""
    run.tell("caption_progress", **told)

    assert pictures.panel(visit, asked)["progress"] == {"done": 0, "of": 2, "words": words}


def test_undo_from_a_tab_that_has_not_seen_the_last_change(visit, asked):
    """Nothing is taken back that is not shown."""
    seen = pictures.panel(visit, asked)["revision"]
    _change(visit, asked, "caption", files=[FILES[0]], text="of another tab")

    with pytest.raises(FinetuneError, match="changed elsewhere"):
        _change(visit, {**asked, "revision": seen}, "undo")

    assert _texts(_change(visit, {**asked, "revision": seen + 1}, "undo"))[0] == "a thing of kind 0"


def test_started_run_is_not_changed(visit, run, asked):
    """What is trained stays as it was when Train was pressed."""
    new.train(visit, None, asked, finetune_comment="x", mode="style", trigger_word="TOK", base_model="demo")

    with pytest.raises(FinetuneError, match="was started"):
        _change(visit, asked, "caption", files=[FILES[0]], text="late")
    with pytest.raises(FinetuneError, match="was started"):
        pictures.download(visit, asked)

    assert not pictures.panel(visit, asked)["is_draft"]


def test_captions_go_out_and_come_in(visit, run, asked):
    """What is downloaded, changed elsewhere and uploaded changes those captions alone, in one step."""
    url = pictures.download(visit, asked)["url"]
    assert url.startswith(f"v1/files/{run.id}/results/captions.zip?")
    with zipfile.ZipFile(run.results / "captions.zip") as out:
        texts = {name: out.read(name).decode() for name in out.namelist()}
    assert texts["thing0.txt"] == "a thing of kind 0 in the style of TOK\n"

    path = _arrived(visit, {**texts, "thing0.txt": "a cube in the style of TOK", "other.txt": "?"})
    told = _change(visit, asked, "upload", path=str(path))

    assert told["said"] == "1 caption taken, 3 as before. Not used: other.txt no picture has this name."
    assert _origins(told) == ["edited", "zip", "waiting", "waiting"]
    other = pictures.panel(visit, {**asked, "trigger": "OTHER"})["pictures"][0]
    assert other["caption"] == "a cube in the style of OTHER"
    assert _texts(_change(visit, asked, "undo"))[0] == "a thing of kind 0"


def test_download_has_another_address_when_it_has_other_captions(visit, asked):
    """Browsers keep what they have fetched; one for captions of yesterday would be of no use."""
    before = pictures.download(visit, asked)["url"]
    assert pictures.download(visit, asked)["url"] == before

    _change(visit, asked, "caption", files=[FILES[0]], text="a cube")

    assert pictures.download(visit, asked)["url"] != before


def test_upload_that_fits_nothing_is_explained(visit, asked):
    """With what was in it instead."""
    path = _arrived(visit, {"other.txt": "words"})

    with pytest.raises(FinetuneError, match="other.txt no picture has this name"):
        _change(visit, asked, "upload", path=str(path))


@pytest.mark.parametrize("path", ["", None, 7, "\0", "x" * 5000, "/etc/passwd", "uploads/../../captions.zip", "."])
def test_only_what_was_uploaded_is_read(visit, tmp_path, asked, path):
    """A path from the page leads to no other file of this machine."""
    zip_of(tmp_path / "captions.zip", {"thing0.txt": "words"})
    outside = path if path != "uploads/../../captions.zip" else visit.settings.uploads / ".." / ".." / "captions.zip"

    with pytest.raises(MissingError):
        _change(visit, asked, "upload", path=outside if outside is path else str(outside))


@pytest.mark.parametrize(
    "values",
    [
        {"what": "caption"},
        {"what": "caption", "files": [], "text": "x"},
        {"what": "caption", "files": ["0009.png"], "text": "x"},
        {"what": "caption", "files": [7, None], "text": "x"},
        {"what": "exclude", "files": "0001.png"},
        {"what": "exclude", "files": FILES},
        {"what": "replace", "files": FILES, "find": "x" * 501},
        {"what": "mend", "captions": [1], "excluded": []},
        {"what": "mend", "captions": {"../x": "y"}},
        {"what": ["undo"]},
        {"what": "undo"},
        {},
    ],
)
def test_what_cannot_be_done_is_said_in_words(visit, asked, values):
    """Whatever a page, or somebody in its place, sends; and nothing has changed."""
    with pytest.raises(FinetuneError):
        pictures.change(visit, {**asked, **values})

    assert pictures.panel(visit, asked)["revision"] == 0


def test_finding_is_mended_in_one_step(visit, asked):
    """What a check proposes is done, named as it named it."""
    told = _change(
        visit, asked, "mend", label="Leave out the copies", captions={FILES[0]: "a cube"}, excluded=[FILES[3]]
    )

    assert (told["said"], told["undo"]) == ("2 pictures mended.", "Leave out the copies")


def test_edits_are_of_the_owner_alone(visit, run, asked):
    """Somebody else finds no such run, to look at or to change."""
    other = Visit(visit.queue, Caller("bob"))

    for ask in (pictures.panel, pictures.change, pictures.download):
        with pytest.raises(MissingError):
            ask(other, {**asked, "what": "caption", "files": FILES, "text": "x"})

    assert edits.stored(run).revision == 0


def test_answer_is_json(visit, run, asked):
    """What the page gets can be sent, excluded and described pictures too."""
    edits.change(run, Change("x", excluded=(FILES[0],)))
    descriptions.keep(run, Mode.STYLE, {FILES[2]: "a cube"})

    assert json.loads(json.dumps(pictures.panel(visit, asked)))["pictures"][2]["origin"] == "described"


def test_edited_draft_trains_as_shown(visit, run, asked):
    """The worker's captions are those of the panel, for the pictures that are left."""
    _change(visit, asked, "caption", files=[FILES[0]], text="a cube")
    told = _change(visit, {**asked, "captioning": False}, "exclude", files=[FILES[1]])
    fields = {"finetune_comment": "x", "mode": "style", "trigger_word": "TOK", "base_model": "demo"}
    new.train(visit, None, asked, **fields, captioning=False)

    found = dataset.read(runs.find(visit.settings.runs, run.id)).images

    shown = [one["caption"] for one in told["pictures"] if not one["is_excluded"]]
    assert descriptions.trained_captions(run, found) == shown


def _arrived(visit, texts):
    """A ZIP as Gradio's upload leaves it."""
    folder = visit.settings.uploads / "0123"
    folder.mkdir(parents=True)
    return zip_of(folder / "captions.zip", texts)
