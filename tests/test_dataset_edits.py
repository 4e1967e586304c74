"""What a person changes about pictures: it counts, it is kept at once, and it can be taken back."""

import json
import threading
from functools import partial

import pytest
from pictures import picture, zip_of

from finetune import dataset, runs
from finetune.dataset import edits, intake
from finetune.dataset.edits import Change
from finetune.errors import DatasetError, FinetuneError

FIRST, SECOND, THIRD = "0001.png", "0002.png", "0003.png"
here = partial(dataset.unpack, take=intake.take)


@pytest.fixture
def run(tmp_path):
    """Three pictures; the first came with a caption."""
    made = runs.create(tmp_path / "runs")
    files = {"a.png": picture(1), "a.txt": "a red pear", "b.png": picture(2), "c.png": picture(3)}
    here(zip_of(tmp_path / "in.zip", files), made)
    return made


def _captions(run):
    return {one.file: one.caption for one in dataset.read(run).images}


def test_captions_count_and_the_upload_stays(run):
    """What is written here is read in place of what came, which is still there."""
    edits.change(run, Change("edit", captions={FIRST: "a plum", SECOND: "a fig"}))

    assert _captions(run) == {FIRST: "a plum", SECOND: "a fig", THIRD: None}
    assert {one.caption_source for one in dataset.read(run).images} == {edits.EDITED, None}
    assert dataset.uploaded(run).images[0].caption == "a red pear"


def test_empty_caption_and_none_differ(run):
    """Empty asks for the plain caption; None goes back to what came with the picture."""
    edits.change(run, Change("edit", captions={FIRST: ""}))
    assert _captions(run)[FIRST] == ""

    edits.change(run, Change("edit", captions={FIRST: None}))
    assert _captions(run)[FIRST] == "a red pear"


def test_what_came_written_again_is_no_edit(run):
    """Typing the caption of the ZIP once more leaves nothing to tell from it."""
    edits.change(run, Change("edit", captions={FIRST: "a plum"}))

    edits.change(run, Change("edit", captions={FIRST: " a  red pear "}))

    assert edits.stored(run).of == {}


def test_captions_are_tidied_and_cut_like_those_of_a_zip(run):
    """Odd blanks and letters go, and a caption has an end."""
    edits.change(run, Change("edit", captions={FIRST: "a\n\u202eplum ", SECOND: "x" * 5000}))

    assert _captions(run)[FIRST] == "a plum"
    assert len(_captions(run)[SECOND]) == 4000


def test_excluded_pictures_are_left_out_until_they_are_included(run):
    """They are not trained, and come back with the caption that they had."""
    edits.change(run, Change("edit", captions={SECOND: "a fig"}))
    edits.change(run, Change("exclude", excluded=(SECOND, THIRD)))
    assert list(_captions(run)) == [FIRST]

    edits.change(run, Change("include", included=(SECOND,)))
    assert _captions(run) == {FIRST: "a red pear", SECOND: "a fig"}


def test_last_picture_cannot_be_excluded(run):
    """Something must be left to train, also when the rest was excluded before."""
    edits.change(run, Change("exclude", excluded=(FIRST,)))

    with pytest.raises(DatasetError, match="At least one"):
        edits.change(run, Change("exclude", excluded=(SECOND, THIRD)))

    assert list(_captions(run)) == [SECOND, THIRD]


def test_stranger_is_refused_and_changes_nothing(run):
    """A file that is no picture of the run ends the whole change."""
    with pytest.raises(DatasetError, match="no picture"):
        edits.change(run, Change("edit", captions={FIRST: "a plum", "../run.json": "x"}))

    assert edits.stored(run).revision == 0


def test_changes_are_taken_back_and_done_again(run):
    """One after the other, in order, with their titles."""
    edits.change(run, Change("first", captions={FIRST: "one", SECOND: "one"}))
    edits.change(run, Change("second", captions={FIRST: "two"}, excluded=(THIRD,)))

    assert edits.undo(run) == "second"
    assert _captions(run) == {FIRST: "one", SECOND: "one", THIRD: None}
    assert (edits.stored(run).undo, edits.stored(run).redo) == ("first", "second")
    assert [edits.undo(run), edits.redo(run), edits.redo(run)] == ["first", "first", "second"]
    assert _captions(run) == {FIRST: "two", SECOND: "one"}


def test_new_change_ends_what_could_be_done_again(run):
    """After something else was done, there is no other future to go to."""
    edits.change(run, Change("first", captions={FIRST: "one"}))
    edits.undo(run)

    edits.change(run, Change("second", captions={FIRST: "two"}))

    with pytest.raises(FinetuneError, match="nothing to redo"):
        edits.redo(run)


def test_nothing_to_take_back_is_said(run):
    """A fresh upload has no history, and a change that changes nothing makes none."""
    assert edits.change(run, Change("edit", captions={FIRST: "a red pear"}, included=(SECOND,))) == 0

    with pytest.raises(FinetuneError, match="nothing to undo"):
        edits.undo(run)


def test_undoing_a_new_description_brings_the_old_words_back(run):
    """What was described is forgotten when it is described anew; what it said is a caption then."""
    edits.change(run, Change("describe", anew={FIRST: "", SECOND: "a blue fig"}))
    assert _captions(run) == {FIRST: None, SECOND: None, THIRD: None}

    edits.undo(run)
    assert _captions(run) == {FIRST: "a red pear", SECOND: "a blue fig", THIRD: None}


def test_history_has_an_end(run):
    """Of very many changes, the oldest cannot be taken back any more."""
    for number in range(edits.MOST_CHANGES + 2):
        edits.change(run, Change(str(number), captions={FIRST: f"text {number}"}))

    taken = [edits.undo(run) for _ in range(edits.MOST_CHANGES)]

    assert (taken[-1], _captions(run)[FIRST], edits.stored(run).undo) == ("2", "text 1", "")


def test_history_is_not_endless_in_letters_either():
    """Large changes push older ones out, but the newest can always be taken back."""
    half, whole = "x" * (edits.MOST_LETTERS // 2), "x" * edits.MOST_LETTERS * 2

    assert [title for title, _ in edits._newest([["a", half], ["b", half], ["c", half]])] == ["b", "c"]
    assert [title for title, _ in edits._newest([["a", "x"], ["b", whole]])] == ["b"]


def test_everything_survives_a_restart(run):
    """The run's folder alone holds edits and history, for its owner's eyes."""
    edits.change(run, Change("first", captions={FIRST: "one"}))

    again = runs.Run(run.folder)

    assert _captions(again)[FIRST] == "one"
    assert edits.undo(again) == "first"
    assert {(run.folder / name).stat().st_mode & 0o77 for name in (edits.STORED, edits.HISTORY)} == {0}


def test_end_between_the_two_files_loses_no_caption(run):
    """A history that is one change ahead takes back what never was: nothing."""
    edits.change(run, Change("first", captions={FIRST: "one"}))
    before = run.read(edits.STORED)
    edits.change(run, Change("second", captions={FIRST: "two"}))
    run.write(edits.STORED, before)

    edits.undo(run)

    assert _captions(run)[FIRST] == "one"


def test_changes_at_once_all_count(run):
    """Many tabs that write at the same time lose nothing of each other."""
    files = (FIRST, SECOND, THIRD)

    def write(file):
        for number in range(10):
            edits.change(run, Change("edit", captions={file: f"{file} {number}"}))

    threads = [threading.Thread(target=write, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert _captions(run) == {file: f"{file} 9" for file in files}
    assert edits.stored(run).revision == 30


def test_new_pictures_forget_the_edits(run, tmp_path):
    """Another ZIP has other pictures under the same names."""
    edits.change(run, Change("edit", captions={FIRST: "one"}, excluded=(SECOND,)))

    here(zip_of(tmp_path / "other.zip", {"x.png": picture(7), "y.png": picture(8)}), run)

    assert _captions(run) == {FIRST: None, SECOND: None}
    assert edits.stored(run).undo == ""


def test_hash_is_of_what_is_trained(run):
    """Captions, repeats and exclusions make another dataset; taking them back makes the same one again."""
    hashes = [dataset.content_hash(run)]
    edits.change(run, Change("edit", captions={FIRST: ""}))
    hashes.append(dataset.content_hash(run))
    edits.change(run, Change("exclude", excluded=(THIRD,)))
    hashes.append(dataset.content_hash(run))
    edits.undo(run)
    edits.undo(run)
    assert dataset.content_hash(run) == hashes[0]
    values = run.read("dataset.json")
    values["images"][0]["repeats"] = 2
    run.write("dataset.json", values)
    hashes.append(dataset.content_hash(run))

    assert len(set(hashes)) == 4


@pytest.mark.parametrize(
    ("find", "replacement", "options", "expected"),
    [
        ("red", "blue", {}, "a blue car, blueder, blue"),
        ("red", "blue", {"matches_case": True}, "a Red car, blueder, blue"),
        ("red", "blue", {"whole_words": True}, "a blue car, redder, blue"),
        ("RED", "blue", {"matches_case": True, "whole_words": True}, None),
        ("a.*", "x", {}, None),
        ("red", r"\1\g<0>", {"whole_words": True}, r"a \1\g<0> car, redder, \1\g<0>"),
        (", redder", "", {}, "a Red car, red"),
    ],
)
def test_words_are_found_letter_by_letter(find, replacement, options, expected):
    """With or without regard to case and to where words end; nothing is a pattern."""
    found = edits.replaced({FIRST: "a Red car, redder, red"}, find, replacement, **options)

    assert found == ({FIRST: expected} if expected else {})


def test_words_are_added_with_blanks_between():
    """A comma stays with its word, and pictures without words get none."""
    assert edits.added({FIRST: "a pear", SECOND: ""}, "photo of", ", at dusk") == {FIRST: "photo of a pear, at dusk"}
    assert edits.added({FIRST: "a pear"}, "", "at dusk") == {FIRST: "a pear at dusk"}


@pytest.mark.parametrize("words", [("", "x"), ("x", "y" * 501), ("x" * 501, "y")])
def test_words_that_cannot_be_replaced_are_refused(words):
    """Nothing can be found in place of nothing, and nothing grows without end."""
    with pytest.raises(FinetuneError):
        edits.replaced({FIRST: "x"}, *words)


def test_files_are_plain_json(run):
    """What another program, or a later version, finds in the folder."""
    edits.change(run, Change("edit", captions={FIRST: "one"}, excluded=(SECOND,)))

    values = json.loads((run.folder / edits.STORED).read_text(encoding="utf-8"))

    assert values["of"] == {FIRST: {"caption": "one"}, SECOND: {"is_excluded": True}}
