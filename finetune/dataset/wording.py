"""What the words of captions have in common, and which words are ordinary ones: text in, text out.

Separate from the checks, because it knows nothing of pictures.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import cache

from finetune import captions
from finetune.inputs import Request
from finetune.settings import ASSETS

Words = tuple[str, ...]
NEARLY_ALL = 0.8
SHORTEST_PHRASE, LONGEST_PHRASE, WORDS_READ = 3, 12, 60
_TRIGGER = "|"
"""Stands where the trigger word was: no phrase goes across it."""


def is_ordinary(trigger: str) -> bool:
    """Whether a trigger word is made of words that every base model knows."""
    words = re.findall(r"\w+", trigger.casefold())
    return bool(words) and all(word in _ordinary() for word in words)


@cache
def _ordinary() -> frozenset[str]:
    texts = [(ASSETS / "words" / name).read_text(encoding="utf-8") for name in ("common.txt", "pictures.txt")]
    return frozenset(word for text in texts for word in text.split())


def are_equal(texts: Collection[str]) -> bool:
    """Whether all texts say the same, whatever their case and punctuation."""
    return len({_words(text) for text in texts}) == 1


def common_phrase(texts: Collection[str], trigger: str) -> tuple[str, int]:
    """The longest phrase (of 3 to 12 words) in nearly all texts, and in how many it is; empty if there is none.

    The trigger word, and the words by which a style names it, are no part of it.
    """
    pattern = rf"(?:in the style of )?(?<!\w){re.escape(trigger)}(?!\w)"
    rows = [_words(re.sub(pattern, _TRIGGER, text, flags=re.IGNORECASE))[:WORDS_READ] for text in texts]
    best: tuple[Words, int] = ((), 0)
    for length in range(SHORTEST_PHRASE, LONGEST_PHRASE + 1):
        counts = Counter(run for row in rows for run in set(_runs(row, length)))
        longer = max(counts.items(), key=lambda pair: pair[1], default=((), 0))
        if longer[1] < max(1, NEARLY_ALL * len(rows)):
            break
        best = longer
    return " ".join(best[0]), best[1]


def without(phrase: str, text: str) -> str:
    """A text without a phrase, tidied up."""
    pattern = r"(?<!\w)" + r"\W+".join(map(re.escape, phrase.split())) + r"(?!\w)[,;.]?"
    rest = " ".join(re.sub(pattern, " ", text, flags=re.IGNORECASE).split())
    return re.sub(r"\s+([,;.])", r"\1", rest).strip(" ,;.")


def shortened(text: str, request: Request, unread: Callable[[str], str]) -> str:
    """As many words of a caption as are read together with the trigger word; empty if not even one is."""

    def end(words: list[str]) -> str:
        return unread(captions.with_trigger(" ".join(words), request.mode, request.trigger_word))

    words = text.split()
    words = words[: max(0, len(words) - len(end(words).split()))]
    while words and end(words):
        words.pop()
    return " ".join(words).rstrip(" ,;")


def _words(text: str) -> Words:
    return tuple(re.findall(rf"\w+|{re.escape(_TRIGGER)}", text.casefold()))


def _runs(words: Words, length: int) -> Iterator[Words]:
    runs = (words[start : start + length] for start in range(len(words) - length + 1))
    return (run for run in runs if _TRIGGER not in run)
