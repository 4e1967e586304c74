"""Datasets under a name: kept once, found again, used by many, seen by their owner alone."""

import os
import time
from dataclasses import replace

import pretend
import pytest
from PIL import Image

from finetune import dataset, runs, shelf
from finetune.dataset import intake
from finetune.errors import ConfigError, DatasetError, FinetuneError, MissingError, StorageError
from finetune.inputs import Request
from finetune.owners import AT_HOME, Caller
from finetune.settings import Settings

ANN, BOB = Caller("ann"), Caller("bob")


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", disk_reserve_gib=0)


@pytest.fixture
def draft(settings, tmp_path):
    return _draft(settings, tmp_path)


def _draft(settings, folder, count=4):
    run = runs.create(settings.runs)
    dataset.unpack(pretend.zip_of_pictures(folder / "things.zip", count), run, take=intake.take)
    return run


def _write(run, found):
    run.write("dataset.json", found.as_dict())


def _recaptioned(run, caption):
    found = dataset.read(run)
    _write(run, replace(found, images=(replace(found.images[0], caption=caption), *found.images[1:])))
    return run


def _used(settings, kept):
    run = runs.create(settings.runs)
    shelf.use(kept, run)
    return run


def test_kept_dataset_is_used_again(settings, draft):
    """Another run gets the same pictures, captions and thumbnails, and so the same hash."""
    kept = shelf.keep(settings, draft, "My  things", ANN)

    run = _used(settings, shelf.find(settings, ANN, "my things"))

    assert (kept.name, kept.pictures, kept.source) == ("My things", 4, "an upload")
    assert dataset.read(run).images == dataset.read(draft).images
    assert dataset.content_hash(run) == kept.hash == dataset.content_hash(draft)
    assert sorted(path.name for path in run.thumbnails.iterdir()) == [f"000{n}.webp" for n in range(1, 5)]


def test_using_a_dataset_takes_no_room(settings, draft):
    """Draft, dataset and run share each picture's bytes."""
    run = _used(settings, shelf.keep(settings, draft, "things", ANN))

    assert os.stat(run.images / "0001.png").st_nlink == 3


def test_what_happens_to_a_draft_does_not_happen_to_the_dataset(settings, draft, tmp_path):
    """Other captions, other pictures and the end of a draft leave the dataset as it was."""
    kept = shelf.keep(settings, draft, "things", ANN)
    run = _recaptioned(_used(settings, kept), "edited")
    dataset.unpack(pretend.zip_of_pictures(tmp_path / "other.zip", 2), run, take=intake.take)
    runs.discard(draft)

    assert dataset.content_hash(kept.contents) == kept.hash


def test_only_pictures_of_the_dataset_are_kept(settings, draft):
    """What was left out by hand takes no room on the shelf, and files that were ignored in the ZIP are forgotten."""
    found = dataset.read(draft)
    _write(draft, replace(found, images=found.images[1:], ignored=(dataset.Ignored("a.pdf", "is not a picture"),)))

    kept = shelf.keep(settings, draft, "things", ANN)

    assert sorted(path.name for path in (kept.folder / "images").iterdir()) == ["0002.png", "0003.png", "0004.png"]
    assert dataset.read(kept.contents).ignored == ()


def test_same_content_makes_no_new_version(settings, draft):
    """Kept again, also in other spelling, it is the same version, with the name as it was last written."""
    first = shelf.keep(settings, draft, "things", ANN)
    again = shelf.keep(settings, draft, " THINGS ", ANN)

    assert shelf.of(settings, ANN) == [again]
    assert (again.hash, again.name) == (first.hash, "THINGS")


def test_newest_version_is_found_unless_another_is_named(settings, draft):
    """A name means what was last kept under it; `name@` and the beginning of a hash mean that version."""
    old = shelf.keep(settings, draft, "things", ANN)
    new = shelf.keep(settings, _recaptioned(draft, "another"), "things", ANN)

    assert shelf.find(settings, ANN, "things") == new
    assert shelf.find(settings, ANN, old.label) == old
    assert shelf.matching(settings, ANN, "Things") == [new, old]


def test_content_that_is_kept_anew_is_the_newest(settings, draft):
    """Going back to what was there before makes that the version that is used."""
    old = shelf.keep(settings, draft, "things", ANN)
    caption = dataset.read(draft).images[0].caption
    shelf.keep(settings, _recaptioned(draft, "another"), "things", ANN)

    shelf.keep(settings, _recaptioned(draft, caption), "things", ANN)

    assert shelf.find(settings, ANN, "things").hash == old.hash


def test_descriptions_are_kept_by_mode(settings, draft):
    """What a captioner said comes along, and is added to when the same content is kept again."""
    draft.write("descriptions.json", {"style": {"0003.png": "a square"}})
    shelf.keep(settings, draft, "things", ANN)
    draft.write("descriptions.json", {"general": {"0003.png": "a blue square"}})

    run = _used(settings, shelf.keep(settings, draft, "things", ANN))

    said = {"style": {"0003.png": "a square"}, "general": {"0003.png": "a blue square"}}
    assert run.read("descriptions.json") == said


def test_run_remembers_its_dataset_until_it_is_edited(settings, draft):
    """The name holds for the content that is kept under it, and for no other."""
    kept = shelf.keep(settings, draft, "things", ANN)
    run = _used(settings, kept)

    assert shelf.name_of(draft, dataset.content_hash(draft)) == shelf.name_of(run, kept.hash) == "things"
    _recaptioned(run, "edited")
    assert shelf.name_of(run, dataset.content_hash(run)) == ""
    assert shelf.name_of(runs.create(settings.runs), kept.hash) == ""


def test_it_is_told_where_pictures_are_from(settings, draft):
    """From an upload, from a dataset that was edited, or from a finetune."""
    run = _recaptioned(_used(settings, shelf.keep(settings, draft, "things", ANN)), "edited")
    edited = shelf.keep(settings, run, "others", ANN)
    run.write("request.json", Request(finetune_comment="Dots", mode="style").model_dump(mode="json"))

    assert edited.source.startswith("things@")
    assert shelf.keep(settings, run, "others", ANN).source == "the finetune Dots"


def test_each_sees_their_own(settings, draft):
    """Of two owners with datasets of one name each finds theirs; an owner of the machine sees both."""
    anns = shelf.keep(settings, draft, "things", ANN)
    bobs = shelf.keep(settings, _recaptioned(draft, "another"), "things", BOB)

    assert (shelf.of(settings, ANN), shelf.of(settings, BOB)) == ([anns], [bobs])
    assert shelf.find(settings, BOB, "things") == bobs
    assert shelf.of(settings, AT_HOME) == [bobs, anns]
    assert shelf.find(settings, AT_HOME, "things", owner="ann") == anns


@pytest.mark.parametrize(("caller", "owner"), [(BOB, ""), (BOB, "ann"), (AT_HOME, "")])
def test_what_is_somebody_else_s_is_not_there(settings, draft, caller, owner):
    """Not even for who knows its name and owner; an owner of the machine says whose it is."""
    kept = shelf.keep(settings, draft, "things", ANN)

    with pytest.raises(MissingError, match="There is no dataset “things@") as error:
        shelf.find(settings, caller, kept.label, owner)
    assert error.value.hint == "None was kept yet."


def test_what_is_not_there_is_said_with_what_is(settings, draft):
    """A misspelt name is answered by the names, a wrong hash by the versions."""
    kept = shelf.keep(settings, draft, "things", ANN)

    with pytest.raises(MissingError, match="dataset “thing”.*There is “things”"):
        shelf.find(settings, ANN, "thing\ud800")
    with pytest.raises(MissingError, match=f"no version 0000.*{kept.hash[:8]}"):
        shelf.find(settings, ANN, "things@0000")


@pytest.mark.parametrize("name", ["../../x", "a/b", "con", "..", "x@abcd1234", "Ünï 🐈", "\ud800 half", "a" * 100])
def test_any_words_are_a_name(settings, draft, name):
    """No name becomes a path, and each finds what was kept under it."""
    kept = shelf.keep(settings, draft, name, ANN)

    assert shelf.find(settings, ANN, kept.name) == kept
    assert kept.folder.parent.parent.parent == settings.home / "datasets"


@pytest.mark.parametrize("name", ["", " \n", "\u200b\u202e", "\x00", "a" * 101])
def test_name_that_is_none_is_refused(settings, draft, name):
    """Nothing, nothing that can be seen, and too much."""
    with pytest.raises(ConfigError):
        shelf.keep(settings, draft, name, ANN)


def test_endless_name_costs_nothing(settings, draft):
    """Neither looked for nor kept, and not repeated."""
    shelf.keep(settings, draft, "things", ANN)

    for call in (lambda: shelf.find(settings, ANN, "\ufdfa@" * 10**7), lambda: shelf.tidy("a" * 10**7)):
        began = time.monotonic()
        with pytest.raises(FinetuneError) as error:
            call()
        assert len(str(error.value)) < 300
        assert time.monotonic() - began < 1


def test_name_is_the_same_however_it_is_composed(settings, draft):
    """Programs write “é” as one letter or as two."""
    kept = shelf.keep(settings, draft, "Cafe\u0301", ANN)

    assert shelf.find(settings, ANN, "caf\u00e9") == kept


def test_removed_version_is_gone_and_its_runs_stay(settings, draft):
    """Other versions stay, and so do the pictures of runs that use it."""
    old = shelf.keep(settings, draft, "things", ANN)
    new = shelf.keep(settings, _recaptioned(draft, "another"), "things", ANN)
    run = _used(settings, old)

    shelf.remove(old)
    shelf.remove(old)

    assert shelf.of(settings, ANN) == [new]
    with Image.open(run.images / "0001.png") as picture:
        assert picture.size == (64, 64)


def test_too_many_are_refused(settings, draft):
    """One owner keeps only so many; others still may, and what is there already can be kept again."""
    for number in range(shelf.MOST_EACH):
        shelf.keep(settings, _recaptioned(draft, f"number {number}"), "things", ANN)

    shelf.keep(settings, draft, "things", ANN)
    shelf.keep(settings, draft, "things", BOB)
    with pytest.raises(FinetuneError, match=f"You keep {shelf.MOST_EACH} datasets"):
        shelf.keep(settings, draft, "others", ANN)


def test_full_disk_is_not_filled_further(settings, draft):
    """Below the reserve nothing is kept, and nothing is left behind."""
    full = replace(settings, disk_reserve_gib=10**6)

    with pytest.raises(StorageError):
        shelf.keep(full, draft, "things", ANN)
    assert shelf.of(full, ANN) == []


def test_run_without_pictures_cannot_be_kept(settings):
    """There is nothing to keep."""
    with pytest.raises(DatasetError):
        shelf.keep(settings, runs.create(settings.runs), "things", ANN)


def test_what_was_left_half_made_is_in_no_list(settings, draft):
    """A folder without its last file, and one that is being deleted, are no versions; keeping makes them whole."""
    kept = shelf.keep(settings, draft, "things", ANN)
    (kept.folder / "about.json").unlink()

    assert shelf.of(settings, ANN) == []
    assert shelf.keep(settings, draft, "things", ANN).hash == kept.hash
