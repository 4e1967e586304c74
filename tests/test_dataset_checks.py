"""What the checks find in a dataset, check by check, and that they are silent about a good one."""

from dataclasses import replace

import pytest

from finetune import captions, registry
from finetune.dataset import checks
from finetune.dataset.archive import Ignored
from finetune.dataset.checks import Severity
from finetune.dataset.intake import Dataset, Picture
from finetune.inputs import Mode, Priority, Request

BASE = registry.base_models()["flux2-klein-base-4b"]
DEMO = registry.base_models()["demo"]
THINGS = (
    "fox",
    "frog",
    "fish",
    "butterfly",
    "honeybee",
    "sunflower",
    "clover",
    "mushroom",
    "apple",
    "cake",
    "cup",
    "hat",
)


def picture(number, **values):
    """A good picture of its own."""
    traits = {"hash": f"{0x9E3779B97F4A7C15 * (number + 1) % 2**64:016x}", "tint": f"{number % 256:02x}4080" * 16}
    traits |= {"span": 200.0, "mean": 120.0, "detail": 0.9}
    thing = f"a {THINGS[number % len(THINGS)]} of kind {number}"
    about = {"width": 1024, "height": 1024, "caption": thing, "caption_source": f"{number}.txt", "traits": traits}
    return Picture(file=f"{number:04}.png", source=f"{number}.jpg", **{**about, **values})


def good(count=20):
    return [picture(number) for number in range(count)]


def request(**values):
    return Request(**{"finetune_comment": "x", "mode": Mode.STYLE, "trigger_word": "TOK", **values})


def find(pictures, asked=None, base=BASE, **more):
    """The findings by kind."""
    words = [one.caption for one in pictures]
    return {one.kind: one for one in checks.check(Dataset(tuple(pictures), **more), words, asked or request(), base)}


@pytest.mark.parametrize("mode", Mode)
def test_nothing_is_found_in_a_good_dataset(mode):
    """Twenty good pictures with captions give no finding in any mode."""
    assert find(good(), request(mode=mode)) == {}


def test_worst_comes_first():
    """Problems come before warnings, and these before hints."""
    pictures = [*good(6), picture(6, caption=None), picture(7, traits={**picture(7).traits, "span": 0.0})]

    found = checks.check(Dataset(tuple(pictures)), [one.caption for one in pictures], request(trigger_word="cat"), BASE)

    order = list(Severity)
    assert [one.severity for one in found] == sorted((one.severity for one in found), key=order.index)
    assert {one.severity for one in found} == set(Severity)


def test_line_names_files_as_the_zip_does():
    """On a terminal, a finding is one line with the names that a person knows."""
    pictures = [*good(), *(picture(30 + n, caption=None) for n in range(7))]

    line = find(pictures)["no_caption"].line()

    assert line.startswith(
        "hint: 7 pictures without a caption (30.jpg, 31.jpg, 32.jpg, 33.jpg, 34.jpg and 2 more). They"
    )


def test_pictures_without_a_caption_matter_once_nothing_describes_them():
    """Without captioning a style loses by a plain caption; the plain caption is quoted."""
    pictures = [*good(), picture(20, caption=None)]

    found = find(pictures, request(captioning=False))["no_caption"]

    assert found.severity is Severity.WARNING and "a picture in the style of TOK" in found.words
    assert find(pictures)["no_caption"].severity is Severity.HINT


def test_captions_without_a_picture_and_twins_are_read_from_the_report():
    """What was left out at the upload for these reasons is told by name; other reasons are not told again."""
    ignored = (
        Ignored("nobody.txt", "no picture of this name lies beside it"),
        Ignored("copy.png", "has the same pixels as 1.jpg"),
        Ignored("notes.md", "is not a picture"),
    )

    found = find(good(), ignored=ignored)

    assert {kind: one.names for kind, one in found.items()} == {
        "orphan_captions": ("nobody.txt",),
        "twins": ("copy.png",),
    }


def test_caption_of_two_pictures_is_asked_about():
    """Until one of them gets a caption of its own."""
    note = {"notes": ("shares the caption of the other",), "caption_source": "cat.txt"}
    pair = [picture(20, **note), picture(21, **note)]

    assert find([*good(), *pair])["shared_caption"].files == ("0020.png", "0021.png")
    assert "shared_caption" not in find([*good(), pair[0], replace(pair[1], caption_source="edited")])


def test_best_of_pictures_that_are_alike_stays():
    """An enlarged copy is left out in favour of the original, though it is larger."""
    copy = replace(picture(0), file="0020.png", width=2048, height=2048, traits={**picture(0).traits, "detail": 0.25})

    found = find([*good(), copy])["near_twins"]

    assert found.mend.excluded == ("0020.png",)
    assert found.notes == {"0000.png": "the best of them", "0020.png": "like 0.jpg"}


def test_empty_picture_is_a_problem_with_a_mend():
    """A black picture is found, and not among those that look alike."""
    black = {"span": 2.0, "mean": 1.0}
    pictures = [*good(), *(picture(n, traits={**picture(0).traits, **black}) for n in (20, 21))]

    found = find(pictures)

    assert found["empty"].severity is Severity.PROBLEM
    assert found["empty"].mend.excluded == ("0020.png", "0021.png")
    assert "near_twins" not in found


@pytest.mark.parametrize("side, detail, is_soft", [(1024, 0.3, True), (2048, 0.3, False), (2048, 0.15, True)])
def test_detail_is_judged_at_the_size_that_is_trained(side, detail, is_soft):
    """A large picture that is a little soft is sharp once it is made small for training."""
    soft = picture(20, width=side, height=side, traits={**picture(20).traits, "detail": detail})

    assert ("soft" in find([*good(), soft])) == is_soft


def test_most_pictures_are_never_left_out():
    """Where most are soft, that may be the style: it is said, and no button leaves them out."""
    soft = [replace(one, traits={**one.traits, "detail": 0.1}) for one in good()]

    assert find(soft)["soft"].mend is None


@pytest.mark.parametrize(
    "side, priority, severity",
    [
        (512, Priority.QUALITY, None),
        (400, Priority.QUALITY, Severity.HINT),
        (200, Priority.QUALITY, Severity.WARNING),
        (512, Priority.HIGH_RES_ONLY, Severity.HINT),
    ],
)
def test_small_pictures_are_those_below_what_is_trained(side, priority, severity):
    """What is small depends on the priority's smallest resolution."""
    found = find([*good(), picture(20, width=side, height=side)], request(priority=priority)).get("small")

    assert (found and found.severity) == severity


def test_crop_says_what_is_lost():
    """Of a strip that no shape in training holds, the share that is cut off is told; of a panorama nothing is."""
    strip, panorama = picture(20, width=2048, height=20), picture(21, width=2048, height=512)

    assert find([*good(), strip, panorama], base=DEMO)["cropped"].notes == {"0020.png": "loses 84%"}


def test_without_a_base_sizes_are_not_judged():
    """An id of the Hub that is not looked up yet has no resolution and no text encoder."""
    pictures = [*good(), picture(20, width=64, height=20, caption="word " * 900)]

    assert find(pictures, base=None) == {}


@pytest.mark.parametrize(
    "count, iterations, kind, severity",
    [
        (20, 300, None, None),
        (20, 700, "often_seen", Severity.HINT),
        (10, 1000, "often_seen", Severity.WARNING),
        (60, 180, "rarely_seen", Severity.HINT),
        (90, 100, "rarely_seen", Severity.WARNING),
        (500, 100, "rarely_seen", Severity.PROBLEM),
    ],
)
def test_iterations_are_weighed_against_pictures(count, iterations, kind, severity):
    """Each picture should be seen a number of times that suits the mode; one that is never seen is a problem."""
    found = find(good(count), request(iterations=iterations))

    assert {one.kind: one.severity for one in found.values()} == ({kind: severity} if kind else {})


def test_iterations_that_suit_are_named():
    """The hint gives a range that the form takes and that leaves nothing to find."""
    found = find(good(60), request(iterations=100))["rarely_seen"]

    assert "230 to 1,000 iterations suit" in found.words
    assert "Not even 1,000" in find(good(300), request(iterations=1000))["rarely_seen"].words


def test_passes_are_said_in_any_case():
    """How often each picture is seen, and that repeats change it."""
    pictures = good(16)
    assert checks.passes(Dataset(tuple(pictures)), request()) == (
        "Each of the 16 pictures is seen about 75 times: 300 steps of 4."
    )

    pictures[0] = replace(pictures[0], repeats=5)

    assert "60 times, those with repeats more often" in checks.passes(Dataset(tuple(pictures)), request())


@pytest.mark.parametrize("count, severity", [(1, Severity.WARNING), (6, Severity.HINT), (10, None)])
def test_few_pictures_are_told(count, severity):
    """A handful works, less is a warning."""
    found = find(good(count), request(iterations=100)).get("few")

    assert (found and found.severity) == severity


def test_ordinary_trigger_is_a_warning():
    """A word that the base knows is refused kindly; the usual one is not."""
    assert "“cat” is an ordinary word" in find(good(), request(trigger_word="cat"))["ordinary_trigger"].title


def test_trigger_is_missed_only_where_others_have_it():
    """Captions that never name it are meant to have it put in."""
    pictures = [replace(one, caption=f"[trigger] {one.caption}") for one in good()]
    assert find(pictures) == {}

    assert find([*pictures, picture(20)])["trigger_missing"].files == ("0020.png",)


def test_repeated_trigger_is_removed_as_training_does():
    """The mend writes what would be trained."""
    text = "TOK, a cup beside TOK and tok"

    found = find([*(replace(one, caption=f"TOK {one.caption}") for one in good()), picture(20, caption=text)])

    assert found["trigger_repeated"].notes == {"0020.png": "3 times"}
    assert found["trigger_repeated"].mend.captions == {"0020.png": captions.with_trigger(text, Mode.STYLE, "TOK")}


def test_long_caption_shows_what_is_not_read():
    """Where the trigger word itself is cut off, that is a problem, and the mend leaves a caption that is read whole."""
    text = "an orange cat with a long tail that sits on a wooden chair beside a window"

    found = find([*good(), picture(20, caption=text)], base=DEMO)["too_long"]
    mended = find([*good(), picture(20, caption=found.mend.captions["0020.png"])], base=DEMO)

    assert found.severity is Severity.PROBLEM and "“TOK”" in found.words
    assert found.notes["0020.png"].startswith("not read: “") and "TOK" in found.notes["0020.png"]
    assert text.startswith(found.mend.captions["0020.png"])
    assert "too_long" not in mended


def test_equal_captions_are_a_warning():
    """Whatever differs between the pictures has no words then."""
    pictures = [replace(one, caption="A dog." if one.file < "0010" else "a dog") for one in good()]

    assert list(find(pictures)) == ["all_equal"]


def test_phrase_of_all_captions_is_removed():
    """It is named with how many have it, and the mend leaves the rest."""
    pictures = [replace(one, caption=f"{one.caption}, on a white background") for one in good()]

    found = find(pictures)["common_phrase"]

    assert found.title == "“on a white background” is in 20 of 20 captions"
    assert found.mend.captions["0000.png"] == "a fox of kind 0"


def test_pictures_of_an_older_version_are_not_judged_by_pixels():
    """A run whose pictures were never measured is checked for all else."""
    assert find([replace(one, traits={}) for one in good()]) == {}
