"""Captions: the trigger word is in every one, exactly once."""

import pytest

from finetune import captions
from finetune.inputs import Mode


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(
    "text",
    ["", "a red apple", "tok on a chair", "a [trigger] chair", "TOK, TOK and TOK", "tokens on a TOK.", "[trigger] tok"],
)
def test_trigger_word_is_in_every_caption_once(mode, text):
    """Whatever a caption says already, the word stands in it once, as it is written."""
    caption = captions.with_trigger(text, mode, "TOK")

    assert captions.names_trigger(caption, "TOK") == 1
    assert "TOK" in caption


def test_style_ends_in_the_trigger_and_others_begin_with_it():
    """Where a missing word is put depends on what it stands for."""
    assert captions.with_trigger("a red apple", Mode.STYLE, "TOK") == "a red apple in the style of TOK"
    assert captions.with_trigger("a red apple", Mode.PRODUCT, "TOK") == "TOK, a red apple"


def test_part_of_another_word_is_not_the_trigger():
    """A trigger word inside another word does not count as it."""
    assert captions.names_trigger("tokens and a token", "TOK") == 0


@pytest.mark.parametrize("trigger", ["C++", "a.b", "[x]", "zwei wörter", "😀"])
def test_trigger_may_be_any_text(trigger):
    """Signs that mean something in patterns are only signs."""
    assert captions.with_trigger(f"a {trigger} cup", Mode.STYLE, trigger).count(trigger) == 1


@pytest.mark.parametrize(
    ("caption", "description", "captioning", "trained"),
    [
        ("mine", "seen", True, "mine in the style of TOK"),
        ("mine", "seen", False, "mine in the style of TOK"),
        (None, "seen", True, "seen in the style of TOK"),
        (None, "seen", False, "a picture in the style of TOK"),
        (None, None, True, "a picture in the style of TOK"),
    ],
)
def test_own_caption_wins_then_the_description_then_the_plain_one(caption, description, captioning, trained):
    """A caption from the ZIP is kept whatever is set; a description is used only with captioning."""
    assert captions.trained(caption, description, Mode.STYLE, "TOK", captioning) == trained


def test_prompts_that_were_asked_for_are_drawn_with_the_trigger():
    """A prompt without the word gets it, one that has it stays as it is."""
    asked = ("a boat", "TOK at sea")

    prompts = captions.sample_prompts(Mode.STYLE, "TOK", [], asked, (), 4)

    assert prompts == ["a boat in the style of TOK", "TOK at sea"]


def test_style_is_shown_on_things_that_were_not_in_the_pictures():
    """Two trained captions, then two things from the base model's list."""
    trained = [f"{thing} in the style of TOK" for thing in ("a", "a", "b", "c")]

    prompts = captions.sample_prompts(Mode.STYLE, "TOK", trained, (), ("a pear", "a dog", "a car"), 4)

    assert prompts == [f"{thing} in the style of TOK" for thing in ("a", "b", "a pear", "a dog")]
