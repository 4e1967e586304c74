"""Descriptions: who is asked, what is kept and told, that one that fails costs only itself, and who has the last word
on a picture."""

from dataclasses import replace
from functools import partial

import fakes
import pictures
import pytest
from PIL import Image

from finetune import captioners, dataset, descriptions, registry, runs, settings
from finetune.captioners import Answer
from finetune.dataset import edits, intake
from finetune.dataset.edits import Change
from finetune.descriptions import Wish
from finetune.errors import CaptionError, ModelError
from finetune.inputs import Mode, Request

BASE = replace(registry.base_model("demo"), text_tokens=512)
FILES = ("0001.png", "0002.png", "0003.png")
FOUR = (*FILES, "0004.png")
taken = partial(dataset.unpack, take=intake.take)


class Talker:
    """A captioner whose answers a test decides, in their order; an error is raised."""

    title, licence, source, gib = "Talker", "none", "", 0.0
    listens = True

    def __init__(self, *answers, id="talker", at_once=1):
        self.id, self.at_once = id, at_once
        self.answers, self.asked, self.is_free = list(answers), [], False

    def revision(self, base):
        """Always the same."""
        return "1"

    def fits(self, base, device, free_bytes):
        """Always."""
        return True

    def load(self, base, device, free_bytes, progress):
        """Itself, unless its first answer is that it cannot be loaded."""
        if self.answers and isinstance(self.answers[0], ModelError):
            raise self.answers.pop(0)
        return self

    def describe(self, pictures, mode, words):
        """The next answers."""
        self.asked.append((len(pictures), words))
        given = [self.answers.pop(0) if self.answers else "a cat" for _ in pictures]
        for answer in given:
            if isinstance(answer, CaptionError):
                raise answer
        return [Answer(answer) for answer in given]

    def release(self):
        """Note that the memory is free again."""
        self.is_free = True


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A draft of three pictures at home, and nothing described."""
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    return draft()


def draft(owner="ann"):
    """A draft with the same three pictures as all others."""
    made = runs.create(settings.read().runs, owner)
    archive = settings.read().home / "a.zip"
    pictures.zip_of(archive, {f"{name}.png": pictures.picture(seed) for seed, name in enumerate("abc")})
    dataset.unpack(archive, made)
    return made


@pytest.fixture
def known(monkeypatch):
    """Lets a captioner be found by its id, as if its file lay in the folder."""

    def add(talker):
        monkeypatch.setitem(registry.captioners(), talker.id, talker)
        return talker

    return add


def describe(run, talker, mode=Mode.STYLE, progress=fakes.ignore, **more):
    """Ask a captioner by its name."""
    descriptions.describe(run, Wish(mode, BASE, "TOK", talker.id, **more), progress, fakes.ignore)


def events(run, kind):
    """All events of a kind."""
    return [event for event in run.events()[0] if event["kind"] == kind]


def test_answers_are_kept_tidied_and_told(run, known):
    """Each picture gets its caption, one event each, with progress; then the memory is freed."""
    talker, told = known(Talker("The image shows a cat.", "A dog.", "two birds")), []

    describe(run, talker, progress=lambda *counts: told.append(counts))

    assert descriptions.said(run, Mode.STYLE) == dict(zip(FILES, ("a cat", "a dog", "two birds"), strict=True))
    assert [event["file"] for event in events(run, "caption")] == list(FILES)
    assert told[0] == (0, 3) and told[-1] == (3, 3)
    assert talker.is_free


def test_leaking_answer_is_asked_for_again(run, known):
    """Once, with the words that it must not say; the better answer is taken."""
    talker = known(Talker("a cat in watercolor", "a cat on a mat", "a dog", "a bird"))

    describe(run, talker)

    assert descriptions.said(run, Mode.STYLE)["0001.png"] == "a cat on a mat"
    assert "watercolor" in talker.asked[1][1] and len(talker.asked) == 4


def test_words_that_leak_in_the_end_are_told_beside_the_text(run, known):
    """What cannot be left out is kept, and listed for the page."""
    talker = known(Talker("watercolor", "watercolor", "a painting of a dog", "a painting of a dog", "a bird"))

    describe(run, talker)

    assert descriptions.leaks(run, Mode.STYLE) == {"0001.png": ["watercolor"]}
    assert descriptions.said(run, Mode.STYLE)["0002.png"] == "a dog"
    assert events(run, "caption")[0]["leaks"] == ["watercolor"]


def test_picture_that_fails_costs_itself(run, known):
    """Its reason is told and kept; the others are described."""
    talker = known(Talker("a cat", CaptionError("It blinked.", "Write it yourself."), "I'm sorry, I can't."))

    describe(run, talker)

    assert list(descriptions.said(run, Mode.STYLE)) == ["0001.png"]
    assert descriptions.failures(run, Mode.STYLE)["0002.png"] == "It blinked. Write it yourself."
    assert "nothing to say" in descriptions.failures(run, Mode.STYLE)["0003.png"]
    assert [event["message"][:5] for event in events(run, "warning")] == ["b.png", "c.png"]


def test_pictures_that_fail_together_are_asked_for_one_by_one(run, known):
    """One bad picture among several costs no other."""
    talker = known(Talker("a cat", CaptionError("It blinked."), "x", "a cat", "a dog", "a bird", at_once=3))

    describe(run, talker)

    assert [count for count, _ in talker.asked] == [3, 1, 1, 1]
    assert len(descriptions.said(run, Mode.STYLE)) == 3


def test_file_that_cannot_be_read_costs_itself(run, known):
    """A damaged picture is told of like one without words."""
    (run.images / "0002.png").write_bytes(b"nothing")

    describe(run, known(Talker()))

    assert list(descriptions.failures(run, Mode.STYLE)) == ["0002.png"]


def test_captioner_that_never_speaks_is_given_up(run, known, monkeypatch):
    """After the first few pictures without a word, it is told once, and the others are not tried."""
    monkeypatch.setattr(descriptions, "SILENT_AT_MOST", 2)
    talker = known(Talker("", "", ""))

    with pytest.raises(ModelError, match="given up"):
        describe(run, talker)

    assert len(talker.asked) == 2 and talker.is_free


def test_who_stops_keeps_what_was_said(run, known):
    """What progress raises ends it between pictures, and the memory is freed."""

    def stop(done, of):
        if done == 2:
            raise KeyboardInterrupt

    talker = known(Talker())
    with pytest.raises(KeyboardInterrupt):
        describe(run, talker, progress=stop)

    assert len(descriptions.said(run, Mode.STYLE)) == 2 and talker.is_free


def test_nothing_is_described_twice(run, known):
    """After another mode, another upload or another run of the same owner, what is known is taken."""
    talker = known(Talker())
    describe(run, talker)
    descriptions.forget(run, Mode.STYLE, FILES)

    describe(run, talker)
    describe(draft(), talker)

    assert len(talker.asked) == 3
    assert len(descriptions.said(run, Mode.STYLE)) == 3


@pytest.mark.parametrize("change", ["mode", "owner", "picture"])
def test_what_was_said_is_for_the_same_owner_picture_and_instruction_alone(run, known, change):
    """Nobody learns what was said to somebody else, and no picture gets the words of another."""
    talker = known(Talker())
    describe(run, talker)
    other = draft("bob" if change == "owner" else "ann")
    if change == "picture":
        for file in FILES:
            Image.new("RGB", (50, 60), (int(file[3]), 9, 9)).save(other.images / file)

    describe(other, talker, Mode.GENERAL if change == "mode" else Mode.STYLE)

    assert len(talker.asked) == 6


def test_other_captioner_describes_anew(run, known):
    """Whoever names another captioner gets its words; who names none takes what there is."""
    describe(run, known(Talker("a", "b c", "d e", id="first")))
    describe(run, known(Talker("it is dark", "it is dark", "it is dark", id="second")))

    assert set(descriptions.said(run, Mode.STYLE).values()) == {"it is dark"}


def test_old_words_are_forgotten(run, known, monkeypatch):
    """What nobody asked for in a month is deleted."""
    talker = known(Talker())
    describe(run, talker)
    monkeypatch.setattr(descriptions, "KEPT_DAYS", -1.0)

    describe(draft(), talker)

    assert len(talker.asked) == 6


def test_smaller_captioner_stands_in_for_one_that_cannot_be_loaded(run, known):
    """Of those that suit, the next is tried; nothing is told as long as one works."""
    known(Talker(ModelError("no network"), id="qwen3-vl-2b"))
    known(Talker("a boat", "a boat", "a boat", id="smolvlm-500m"))
    base = replace(BASE, captioner="qwen3-vl-2b")

    descriptions.describe(run, Wish(Mode.STYLE, base), fakes.ignore, fakes.ignore)

    assert set(descriptions.said(run, Mode.STYLE).values()) == {"a boat"}
    assert [one.id for one in captioners.suited("", base, "cpu", 0)] == ["qwen3-vl-2b", "smolvlm-500m"]


def test_captions_are_as_long_as_the_base_reads(run, known):
    """A base with a small text encoder gets short captions."""
    long = "a cat, " + ", ".join(f"thing{number}" for number in range(40))
    talker = known(Talker(long, long, long))

    descriptions.describe(
        run, Wish(Mode.STYLE, replace(BASE, text_tokens=20), "TOK", talker.id), fakes.ignore, fakes.ignore
    )

    assert all(len(text.split()) <= 12 for text in descriptions.said(run, Mode.STYLE).values())


@pytest.fixture
def edited(tmp_path):
    """Four pictures: a caption of the ZIP, one that was edited, one asked to be plain, and one without any."""
    made = runs.create(tmp_path / "runs")
    files = {
        "a.png": pictures.picture(1),
        "a.txt": "a red pear",
        **{f"{name}.png": pictures.picture(ord(name)) for name in "bcd"},
    }
    taken(pictures.zip_of(tmp_path / "in.zip", files), made)
    edits.change(made, Change("edit", captions={FOUR[1]: "a plum", FOUR[2]: ""}))
    return made


def test_captioner_never_writes_over_a_person(edited):
    """Only a picture without any caption waits for a captioner; an empty one was asked for."""
    assert [one.file for one in descriptions.silent(dataset.read(edited).images, {})] == [FOUR[3]]


def test_person_s_words_are_trained_whatever_was_described(edited):
    """The caption of a person counts, then the description, then the plain one."""
    descriptions.keep(edited, Mode.STYLE, {file: f"said of {file}" for file in FOUR})
    edited.write("request.json", Request(finetune_comment="x", mode="style").model_dump(mode="json"))

    assert descriptions.trained_captions(edited, dataset.read(edited).images) == [
        "a red pear in the style of TOK",
        "a plum in the style of TOK",
        "a picture in the style of TOK",
        "said of 0004.png in the style of TOK",
    ]


def test_what_is_described_anew_is_silent_until_then(edited):
    """Its caption does not count any more, and what was said is forgotten, for this mode and this picture."""
    for mode in (Mode.STYLE, Mode.GENERAL):
        descriptions.keep(edited, mode, dict.fromkeys(FOUR, "old"))

    edits.change(edited, Change("describe", anew={FOUR[0]: ""}))
    descriptions.forget(edited, Mode.STYLE, [FOUR[0]])

    known = descriptions.said(edited, Mode.STYLE)
    assert [one.file for one in descriptions.silent(dataset.read(edited).images, known)] == [FOUR[0]]
    assert descriptions.said(edited, Mode.GENERAL)[FOUR[0]] == "old"


def test_forgetting_meets_a_captioner_at_work(edited):
    """What the page forgets while a captioner writes does not come back with its next words."""
    descriptions.keep(edited, Mode.STYLE, {FOUR[0]: "old"})
    descriptions.forget(edited, Mode.STYLE, [FOUR[0]])

    descriptions.keep(edited, Mode.STYLE, {FOUR[3]: "words"})

    assert descriptions.said(edited, Mode.STYLE) == {FOUR[3]: "words"}
