"""In which encoding a text was saved that is not Unicode and does not say: a guess by the letters that come out.

Separate because captions and the names in ZIPs need the same guess. An encoding is believed when its most frequent
letters come out; what is left is the western one of the system that wrote the text.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

NAMES = {
    "cp932": "Shift-JIS",
    "euc_jp": "EUC-JP",
    "cp949": "EUC-KR",
    "gb18030": "GBK",
    "big5": "Big5",
    "cp1251": "Windows-1251",
    "koi8_r": "KOI8-R",
    "cp866": "DOS-866",
    "cp1250": "Windows-1250",
    "cp1252": "Windows-1252",
}
OF_TEXTS = ("cp1251", "koi8_r", "cp1250", "cp1252")
OF_NAMES = ("cp866", "cp1251")
"""Encodings of one byte that programs write captions in, and those of names in ZIPs."""
SHARE = 0.7
"""Of the letters that are not ASCII, how many must be frequent ones."""
DENSE = 1 / 3
"""Of all letters, how many must be of a script whose letters take two bytes."""
READ = 2**16
"""How much of a text is looked at."""
_WORD = re.compile(r"[^\W\d_]+")
_MARKS = "«»–—…“”„’№"
_SYMBOLS = "¹³¿£¯¾¼¥"
"""Of western Europe, where the centre has letters such as ą, ł and ż."""


@dataclass(frozen=True)
class _Rows:
    """The frequent letters of an encoding of two bytes, by their first byte, and what does not count either way."""

    frequent: tuple[range, ...]
    marks: tuple[int, ...] = ()
    second: int = 0xA1
    """The least second byte: what extensions added lies below."""

    def judge(self, content: bytes) -> bool | None:
        """Whether a letter is a frequent one; None where that says nothing."""
        if len(content) < 2 or content[0] in self.marks:
            return None if len(content) == 2 else False
        return content[1] >= self.second and any(content[0] in row for row in self.frequent)


_TWO_BYTES = {
    "cp932": _Rows((range(0x82, 0x84), range(0x88, 0x98)), (0x81,), 0x40),
    "euc_jp": _Rows((range(0xA4, 0xA6),), (0xA1, *range(0xB0, 0xD0))),
    "cp949": _Rows((range(0xB0, 0xC9),), (0xA1, 0xA3)),
    "gb18030": _Rows((range(0xB0, 0xD8),), (0xA1, 0xA3)),
    "big5": _Rows((range(0xA4, 0xC7),), (0xA1, 0xA2), 0x40),
}


def guess(content: bytes, single: tuple[str, ...]) -> str:
    """The encoding that makes words of a text that is not UTF-8; empty if none does.

    `single` are the encodings of one byte that come into question.
    """
    return next((name for name in (*_TWO_BYTES, *single) if _fits(name, content)), "")


def _fits(encoding: str, content: bytes) -> bool:
    try:
        text = content.decode(encoding)[:READ]
    except UnicodeDecodeError:
        return False
    if encoding in _TWO_BYTES:
        return _is_dense(text, _TWO_BYTES[encoding], encoding)
    return _TESTS[encoding](text)


def _is_dense(text: str, rows: _Rows, encoding: str) -> bool:
    foreign = [letter for letter in text if letter > "\x7f"]
    judged = [judgement for letter in foreign if (judgement := rows.judge(letter.encode(encoding))) is not None]
    is_frequent = bool(judged) and sum(judged) >= SHARE * len(judged)
    return is_frequent and len(foreign) >= DENSE * sum(letter.isalpha() for letter in text)


def _is_cyrillic(text: str) -> bool:
    """Words of Cyrillic letters alone, small ones but for the first; among ASCII letters it is one with an accent."""
    words = [word for word in _WORD.findall(text) if not word.isascii()]
    inner = "".join(word[1:] for word in words)
    return (
        all("\u0400" <= letter <= "\u0491" for word in words for letter in word)
        and all(letter.isalpha() or letter < "\x80" or letter in _MARKS for letter in text)
        and len(inner) >= len(words) > 0
        and 8 * sum(letter.isupper() for letter in inner) <= len(inner)
    )


def _is_central_european(text: str) -> bool:
    """What would be a symbol in the middle of a word in western Europe is a letter here."""
    western = text.encode("cp1250").decode("cp1252", "replace")
    inside = zip(western, western[1:], western[2:], strict=False)
    return any(middle in _SYMBOLS and before.isalpha() and after.isalpha() for before, middle, after in inside)


_TESTS: dict[str, Callable[[str], bool]] = {
    "cp1251": _is_cyrillic,
    "koi8_r": _is_cyrillic,
    "cp866": _is_cyrillic,
    "cp1250": _is_central_european,
    "cp1252": bool,
}
