"""The model card: what it tells, and that nothing that somebody typed becomes markup."""

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from finetune.formats import card

NASTY = (
    "say \"cheese\" and 'smile'",
    "two\nlines",
    "---",
    "a\n---\nlicense: mit",
    "<script>alert(1)</script>",
    "a | b || c",
    "`code` **bold** _it_ ~~no~~ $x$",
    "[link](https://example.com) ![x](y)",
    "# heading",
    "yes",
    "key: value # no comment",
    "back\\slash \\| end\\",
    "a &amp; b & c &lt;",
    "bell\x07 and \u2028 line",
    "Größe 漢字 🍐",
)


def _facts(**changes):
    values = {
        "title": "My pears",
        "trigger_word": "TOK",
        "base_title": "FLUX.1 dev",
        "base_hub_id": "black-forest-labs/FLUX.1-dev",
        "licence": "FLUX.1 [dev] Non-Commercial License",
        "licence_url": "https://example.com/LICENSE.md",
        "is_commercial": False,
        "tags": ("flux",),
        "files": ("My-pears.safetensors", "My-pears-comfyui.safetensors"),
        "samples": (("a pear by TOK", "images/0.png"), ("a plum by TOK", "images/1.png")),
        "usage": "print('pear')",
        "settings": {"Rank": "16", "Steps": "300"},
        "pictures": 12,
        "dataset_hash": "abc123",
        "checked": "Both files were read back.",
    }
    return card.Facts(**{**values, **changes})


def _shown(written):
    """The card as a reader shows it: HTML, and the text in it by the tag around it."""
    body = ModelCard(written).text
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    return tokens, "\n".join(_plain(token) for token in tokens if token.type == "inline")


def _plain(inline):
    return "".join(
        " " if token.type == "softbreak" else token.content for token in inline.children if token.type in SHOWN
    )


SHOWN = ("text", "text_special", "softbreak", "code_inline")


def test_front_matter_says_what_the_hub_needs():
    """Licence, base model, library, tags, trigger word and sample pictures are in the card's data."""
    data = ModelCard(card.write(_facts())).data

    assert data.license == "other"
    assert data.license_name == "flux-1-dev-non-commercial-license"
    assert data.license_link == "https://example.com/LICENSE.md"
    assert data.base_model == "black-forest-labs/FLUX.1-dev"
    assert data.to_dict()["base_model_relation"] == "adapter"
    assert data.library_name == "diffusers"
    assert {"lora", "flux", "text-to-image", "template:sd-lora"} <= set(data.tags)
    assert data.to_dict()["instance_prompt"] == "TOK"
    assert data.to_dict()["widget"][1] == {"text": "a plum by TOK", "output": {"url": "images/1.png"}}


def test_dataset_is_called_by_its_name():
    """Where it is kept under one; what somebody typed there is text."""
    _, shown = _shown(card.write(_facts(dataset_name="<b>my</b> pears")))

    assert "(dataset “<b>my</b> pears”, abc123)" in shown
    assert "(dataset abc123)" in _shown(card.write(_facts()))[1]


def test_licence_of_the_hub_is_named_by_its_id():
    """Apache 2.0 has an id on the Hub and needs neither name nor link there."""
    data = ModelCard(card.write(_facts(licence="Apache 2.0", is_commercial=True))).data

    assert data.license == "apache-2.0"
    assert data.license_name is None


def test_unknown_licence_is_not_guessed():
    """Without a link to its text a licence is unknown, and the card says to ask."""
    written = card.write(_facts(licence="unknown: see its model card", licence_url=""))

    assert ModelCard(written).data.license == "unknown"
    assert "Ask whoever made the base model" in written


@pytest.mark.parametrize(("is_commercial", "warns"), [(True, False), (False, True)])
def test_card_warns_of_a_non_commercial_licence(is_commercial, warns):
    """Whether commercial use is allowed is told where it is not."""
    written = card.write(_facts(is_commercial=is_commercial))

    assert ("It does not allow commercial use" in written) is warns


def test_base_that_is_not_on_the_hub_is_no_link():
    """A base model from a folder is called by its title and is not given as the Hub's base model."""
    written = card.write(_facts(base_hub_id="", base_title="Demo"))

    assert ModelCard(written).data.base_model is None
    assert "huggingface.co" not in written
    assert "A LoRA for Demo" in written


def test_body_tells_how_to_use_and_how_it_was_made():
    """Both files, the code, all settings, the pictures and the proof are in the text."""
    tokens, shown = _shown(card.write(_facts(distilled="black-forest-labs/fast")))

    assert [token.content for token in tokens if token.type == "fence"] == ["print('pear')\n"]
    for said in (
        "My-pears.safetensors",
        "My-pears-comfyui.safetensors",
        "300",
        "12 pictures",
        "abc123",
        "Both files were read back.",
        "black-forest-labs/fast",
    ):
        assert said in shown


def test_gallery_shows_each_picture_beside_its_prompt():
    """Samples become a table with one row each; without samples there is none."""
    tokens, shown = _shown(card.write(_facts(settings={})))

    pictures = [child.attrs["src"] for token in tokens for child in token.children or () if child.type == "image"]
    assert pictures == ["images/0.png", "images/1.png"]
    assert "a pear by TOK" in shown
    assert "Picture" not in card.write(_facts(samples=()))


@pytest.mark.parametrize("typed", NASTY)
def test_what_was_typed_reaches_the_hub_unchanged(typed):
    """Title and prompts with quotes, line breaks, colons and dashes are the same values when YAML is read."""
    written = card.write(_facts(title=typed, trigger_word=typed, samples=((typed, "images/0.png"),)))

    data = ModelCard(written).data.to_dict()
    assert data["instance_prompt"] == typed
    assert data["widget"] == [{"text": typed, "output": {"url": "images/0.png"}}]
    assert data["license"] == "other"


@pytest.mark.parametrize("typed", NASTY)
def test_what_was_typed_is_shown_and_never_becomes_markup(typed):
    """Heading, sentence and table show the text in one line; it opens no tag, link, heading, row or code."""
    plain = card.write(_facts(title="x", trigger_word="x", samples=(("x", "images/0.png"),)))
    written = card.write(_facts(title=typed, trigger_word=typed, samples=((typed, "images/0.png"),)))

    tokens, shown = _shown(written)

    line = " ".join(typed.replace("\x07", " ").split())
    heading = next(token for number, token in enumerate(tokens) if tokens[number - 1].type == "heading_open")
    assert _plain(heading) == line
    assert shown.count(line) >= 3
    assert [token.type for token in tokens] == [token.type for token in _shown(plain)[0]]
    assert _tags(tokens) == _tags(_shown(plain)[0])


def _tags(tokens):
    """Everything within the text that is not text."""
    return [
        (child.type, child.content if child.type == "html_inline" else "")
        for token in tokens
        for child in token.children or ()
        if child.type not in (*SHOWN, "code_inline")
    ]


def test_code_cannot_end_its_block():
    """A prompt with backticks in the code makes the fence longer than they are."""
    tokens, _ = _shown(card.write(_facts(usage="x = 1\n```\n# not a heading\n````\n")))

    assert [token.content for token in tokens if token.type == "fence"] == ["x = 1\n```\n# not a heading\n````\n"]


def test_address_cannot_end_its_link():
    """A path with spaces and brackets stays one picture."""
    tokens, _ = _shown(card.write(_facts(samples=(("a", "images/a b) (c<d>.png"),))))

    sources = [child.attrs["src"] for token in tokens for child in token.children or () if child.type == "image"]
    assert sources == ["images/a%20b%29%20%28c%3Cd%3E.png"]
