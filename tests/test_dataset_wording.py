"""What words have in common, and which are ordinary."""

import pytest

from finetune.dataset import wording
from finetune.inputs import Request

THINGS = ("dog", "red cat", "fish", "frog", "bee", "rose")


@pytest.mark.parametrize("trigger", ["cat", "Portrait", "red fox", "my-style", "watercolor"])
def test_ordinary_words_are_known(trigger):
    """Common words and those of pictures are found in any case, also several of them."""
    assert wording.is_ordinary(trigger)


@pytest.mark.parametrize("trigger", ["TOK", "TWEMO", "ohwx", "sks", "zwx style", "c4t", "猫", "!!"])
def test_made_up_words_are_not(trigger):
    """One word that no list has makes a trigger word one's own."""
    assert not wording.is_ordinary(trigger)


def test_longest_common_phrase_is_found():
    """Case and punctuation do not matter, and what a few texts lack is still nearly everywhere."""
    texts = [f"A {thing}, on a white background." for thing in THINGS] + ["a pear ON a white background", "a plum"]

    assert wording.common_phrase(texts, "TOK") == ("on a white background", 7)


def test_words_around_the_trigger_are_no_phrase():
    """How a style names its trigger word is meant to be everywhere."""
    assert wording.common_phrase([f"a {thing} in the style of TOK" for thing in THINGS], "TOK") == ("", 0)
    assert wording.common_phrase([f"photo TOK of a {thing}" for thing in THINGS], "TOK") == ("", 0)


def test_removed_phrase_leaves_a_tidy_caption():
    """No blanks or commas are left where the phrase was."""
    assert wording.without("on a white background", "a dog, on a white background, asleep.") == "a dog, asleep"
    assert wording.without("a photo of", "A photo of a dog") == "a dog"


@pytest.mark.parametrize("mode", ["style", "general"])
def test_shortened_caption_is_read_with_its_trigger(mode):
    """As many words stay as leave room for the trigger word, wherever the mode puts it."""
    request = Request(finetune_comment="x", mode=mode, trigger_word="TOK")

    short = wording.shortened("one two three four five six seven", request, lambda text: " ".join(text.split()[7:]))

    assert short == {"style": "one two", "general": "one two three four five six"}[mode]


def test_nothing_is_left_where_not_even_the_trigger_is_read():
    """A reader that reads nothing leaves no caption."""
    request = Request(finetune_comment="x", mode="style", trigger_word="TOK")

    assert wording.shortened("one two", request, lambda text: text) == ""
