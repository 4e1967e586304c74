"""How much of a caption is read: as the families read it, without torch."""

from dataclasses import replace

import pytest

from finetune import registry
from finetune.dataset import tokens
from finetune.memory import Fit

LONG = "an orange cat with a long tail that sits on a wooden chair beside a window in the style of TOK"


@pytest.mark.parametrize("words", range(8, 20))
def test_demo_base_reads_what_is_said(words):
    """For captions around the limit, the end that is not read is the one that the model itself cuts off."""
    base = registry.base_models()["demo"]
    model = registry.families()[base.family].load(base, tokens._file(base).parent.parent, "cpu", Fit())
    unread, is_exact = tokens.reader(base)

    text = " ".join(LONG.split()[:words])

    assert is_exact
    assert unread(text) == model.cut_off(text)


def test_caption_that_is_longer_than_it_looks_is_found():
    """Letters of many bytes, and words of many letters, count as the tokenizer counts them."""
    unread, _ = tokens.reader(registry.base_models()["demo"])

    assert unread("猫" * 12)
    assert not unread("a" * 19)
    assert unread("fox " * 1000)


def test_without_a_tokenizer_it_is_estimated(tmp_path):
    """A base whose files are not here is judged by letters, and that is said."""
    unread, is_exact = tokens.reader(replace(registry.base_models()["flux1-dev"], source=str(tmp_path)))

    assert not is_exact
    assert not unread("a cat on a chair, " * 100)
    assert unread("a cat on a chair, " * 200)
