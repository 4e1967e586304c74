"""What captioners are asked, what becomes of their answers, and which words of them must not be said."""

import time

import pytest

from finetune import instructions
from finetune.inputs import Mode


@pytest.mark.parametrize("mode", Mode)
def test_instruction_is_short(mode):
    """A small model follows a few sentences, no more."""
    assert 8 < len(instructions.words(mode).split()) < 60


def test_second_instruction_names_the_words_that_leaked():
    """Asked again, a captioner is told what not to say."""
    assert "hair, eyes" in instructions.words(Mode.CHARACTER, ["hair", "eyes"])


def test_modes_are_told_apart():
    """What was answered for one mode is not taken for an answer for another."""
    assert len({instructions.fingerprint(mode) for mode in Mode}) == len(Mode)


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("A cat on a sofa.", "a cat on a sofa"),
        ("The image shows a cat.", "a cat"),
        ("This is a photo of a cat.", "a cat"),
        ("In this picture we see two cats.", "two cats"),
        ("In the image, a cat sleeps.", "a cat sleeps"),
        ("A close-up photograph of a cat", "a cat"),
        ("Sure! Here is a description of the image:\n\n**The image shows** a cat.", "a cat"),
        ("The image is a photograph of a cat", "a cat"),
        ("Caption: “A cat”", "a cat"),
        ('"Berlin at night."', "Berlin at night"),
        ("- **Pose:** standing\n- **Light:** soft", "standing, soft"),
        ("<think>Hm. A cat?</think>\nA cat.", "a cat"),
        ("<loc_12>cat and dog</s>", "cat and dog"),
        ("A cat. A cat. It sleeps.", "a cat. It sleeps"),
    ],
)
def test_caption_is_found_in_an_answer(answer, caption):
    """Preambles, markup, quotes, labels, thoughts and repetitions are left out."""
    assert instructions.tidied(answer, 40) == caption


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " \n ",
        "I'm sorry, I can't help with that.",
        "I cannot see it.",
        "As an AI model I",
        "<think>hm",
        "the " * 30,
        "!",
    ],
)
def test_answer_without_a_caption_is_empty(answer):
    """Refusals, silence and endless repetition are no captions."""
    assert instructions.tidied(answer, 40) == ""


def test_caption_ends_where_the_encoder_stops_reading():
    """Whole sentences as far as they go, then whole clauses."""
    assert instructions.tidied("A cat sleeps. It is a very fat one.", 4) == "a cat sleeps"
    assert instructions.tidied("A cat sleeps on a sofa, in the light of a lamp", 8) == "a cat sleeps on a sofa"


def test_answer_that_was_cut_ends_in_no_fragment():
    """What the limit cut off is left out, or at least its loose end."""
    assert instructions.tidied("A cat sleeps. It is a", 40, is_cut=True) == "a cat sleeps"
    assert instructions.tidied("A cat sleeping on the", 40, is_cut=True) == "a cat sleeping"


@pytest.mark.parametrize(
    ("mode", "text", "found"),
    [
        (Mode.GENERAL, "a red painting of a woman with brown hair", []),
        (Mode.CHARACTER, "a woman with brown hair, blue eyes and a pale face", ["hair", "eyes", "face"]),
        (Mode.CHARACTER, "a woman in a red coat faces the camera", []),
        (
            Mode.STYLE,
            "a watercolor painting in an impressionistic style",
            ["watercolor", "painting", "impressionistic", "style"],
        ),
        (Mode.STYLE, "a man painting a fence", []),
        (Mode.PRODUCT, "a red handbag with a logo on a white table", ["red", "logo"]),
        (Mode.PRODUCT, "a bottle on a dark wooden table, before a blue wall", []),
        (Mode.PRODUCT, "a glass of milk", []),
    ],
)
def test_words_that_leak_are_found(mode, text, found):
    """The look of a character, the manner of a style, what a product is made of; not the surroundings."""
    assert instructions.leaks(text, mode, "TOK") == found


def test_trigger_word_does_not_leak():
    """A trigger word that is such a word is meant to be said."""
    assert instructions.leaks("a Pastel boat", Mode.STYLE, "pastel") == []


@pytest.mark.parametrize(
    ("mode", "text", "caption"),
    [
        (Mode.CHARACTER, "a woman with long brown hair and blue eyes sits on a bench", "a woman sits on a bench"),
        (Mode.CHARACTER, "an elderly bearded man is walking", "a man is walking"),
        (Mode.CHARACTER, "a smiling woman, her skin glowing, on a beach", "a smiling woman, on a beach"),
        (Mode.STYLE, "a watercolor painting of a dog in a field", "a dog in a field"),
        (Mode.STYLE, "a flat emoji of a camel", "a camel"),
        (Mode.STYLE, "a dog, drawn in a minimalistic style", "a dog"),
        (Mode.PRODUCT, "an orange leather bag on a white table", "a bag on a white table"),
        (Mode.PRODUCT, "a cup with the brand logo in gold lettering, seen from above", "a cup, seen from above"),
        (Mode.CHARACTER, "long hair", "long hair"),
    ],
)
def test_leaking_words_are_left_out_where_a_caption_remains(mode, text, caption):
    """Phrase by phrase, with the article that fits; where nothing would remain, the caption stays."""
    assert instructions.without_leaks(text, mode, "TOK") == caption


@pytest.mark.parametrize(
    "text", ["a red " * 20_000, "<" * 60_000, "here is " * 9_000, "**Sure! " * 9_000, "with " * 9_000]
)
def test_long_answers_take_no_time(text):
    """No pattern runs for long on what a captioner that went wild says."""
    started = time.monotonic()

    for mode in Mode:
        instructions.without_leaks(instructions.tidied(text, 80), mode, "TOK")

    assert time.monotonic() - started < 5
