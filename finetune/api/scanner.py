"""JSON and base64 in pieces: the long texts of an object are handed on as they come, the rest becomes its fields.

Separate from `bodies`, because it knows nothing of requests: bytes go in. It looks only as closely as is needed to find
the texts; whether the rest is JSON at all is judged by the library that reads it in the end.
"""

import binascii
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError

from finetune.errors import TooLargeError

LEFT_OUT = "(left out)"
NOT_JSON = "json_invalid"
REST_BYTES = 2**20
DEEPEST = 100
BOM = b"\xef\xbb\xbf"
_OUTSIDE = re.compile(rb'[^"{}\[\],:]*+')
_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_CUT_ESCAPE = re.compile(rb"\\u[0-9a-fA-F]{0,3}\Z")
_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = dict(zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True))
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/_=\s-]")
_BASE64 = bytes(letter for letter in range(256) if not _NOT_BASE64.match(bytes([letter])))
_URL_PREFIX = re.compile(rb"\s*+data:[^,\"]{0,200};base64,", re.IGNORECASE)
_URL_PREFIX_BYTES = 256
_WHITE = b" \t\r\n\v\f"
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
Sink = Callable[[bytes], Any]


def forget(content: bytes) -> None:
    """The sink of what nobody needs."""


def invalid(message: str, *place: str | int, kind: str = "value_error") -> RequestValidationError:
    """What is wrong with a body, and with which field of it."""
    return RequestValidationError([{"type": kind, "loc": ("body", *place), "msg": message}])


class Scanner:
    """One JSON object that is read in pieces; each sink gets the text of one of its keys, with escapes undone."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = sinks
        self._sink: Sink | None = None
        self._sunk = 0
        self._left = b""
        self._rest = bytearray()
        self._cuts: list[tuple[int, int]] = []  # where in the rest how much was left out
        self._key_start: int | None = None
        self._key: str | None = None
        self._depth = 0
        self._awaits_key = False
        self._is_inside = False
        self._has_begun = False

    def feed(self, piece: bytes) -> None:
        """Read on. Raises: RequestValidationError, TooLargeError."""
        text, self._left = self._left + piece, b""
        if not self._has_begun:
            text = self._begin(text)
        place = 0
        while place < len(text):
            if self._sink:
                place = self._sink_text(text, place)
            elif self._is_inside:
                place = self._copy_string(text, place)
            else:
                place = self._copy_outside(text, place)
            if len(self._rest) > REST_BYTES:
                raise TooLargeError(f"Without its pictures, the request is larger than {REST_BYTES // 2**20} MiB.")

    def end(self) -> dict[str, Any]:
        """The fields; those that went into sinks say LEFT_OUT, or "" where nothing did."""
        try:
            return json.loads(self._rest.decode(), object_pairs_hook=_without_twins, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            cut = sum(count for place, count in self._cuts if place <= error.pos)
            raise invalid(f"This is not JSON: {error.msg}.", error.pos + cut, kind=NOT_JSON) from error
        except UnicodeDecodeError as error:
            raise invalid("This is not JSON: its text is not UTF-8.", kind=NOT_JSON) from error
        except ValueError as error:  # ours, or a number of thousands of digits
            raise invalid(f"This cannot be read: {error}.", kind=NOT_JSON) from error

    def _begin(self, text: bytes) -> bytes:
        """Refuse at once what is no object, before it is large. A mark of UTF-8 is allowed."""
        if len(text) < len(BOM) and BOM.startswith(text):
            self._left = text
            return b""
        text = text.removeprefix(BOM).lstrip(_WHITE)
        if text:
            if not text.startswith(b"{"):
                raise invalid("The body must be a JSON object.", kind="model_attributes_type")
            self._has_begun = True
        return text

    def _copy_outside(self, text: bytes, place: int) -> int:
        end = _OUTSIDE.match(text, place).end()
        self._rest += text[place : end + 1]
        match text[end : end + 1]:
            case b"{" | b"[":
                self._depth += 1
                self._awaits_key = self._depth == 1
                if self._depth > DEEPEST:
                    raise invalid(f"The body nests deeper than {DEEPEST} levels.", kind=NOT_JSON)
            case b"}" | b"]":
                self._depth -= 1
            case b"," if self._depth == 1:
                self._awaits_key = True
            case b":" if self._depth == 1:
                self._awaits_key = False
            case b'"':
                self._open_string()
        return end + 1

    def _open_string(self) -> None:
        if self._depth == 1 and self._awaits_key:
            self._key_start = len(self._rest) - 1
        elif self._depth == 1 and self._key in self._sinks:
            self._sink = self._sinks[self._key]
        self._is_inside = True

    def _copy_string(self, text: bytes, place: int) -> int:
        end = _INSIDE.match(text, place).end()
        self._rest += text[place : end + 1] if text[end : end + 1] == b'"' else text[place:end]
        if text[end : end + 1] == b"\\":  # what it escapes comes with the next piece
            self._left = b"\\"
        elif end < len(text):
            self._close_string()
        return end + 1

    def _close_string(self) -> None:
        self._is_inside = False
        if self._key_start is not None:
            self._key = _key(bytes(self._rest[self._key_start :]))
            self._key_start = None

    def _sink_text(self, text: bytes, place: int) -> int:
        end = place + len(text[place:].partition(b'"')[0])
        if text.find(b"\\", place, end) >= 0:
            end = _INSIDE.match(text, place).end()
        is_whole, raw = text[end : end + 1] == b'"', text[place:end]
        if not is_whole:
            held = _CUT_ESCAPE.search(raw)
            raw, self._left = (raw[: held.start()], held[0]) if held else (raw, text[end:])
        self._sunk += len(raw)
        if raw:
            self._sink(_ESCAPE.sub(_unescape, raw) if b"\\" in raw else raw)
        if is_whole:
            self._close_sink()
        return end + 1 if is_whole else len(text)

    def _close_sink(self) -> None:
        instead = LEFT_OUT.encode() if self._sunk else b""
        self._cuts.append((len(self._rest), self._sunk - len(instead)))
        self._rest += instead + b'"'
        self._sink, self._sunk, self._is_inside = None, 0, False


class Base64:
    """Decodes base64 in pieces: of both alphabets, with or without padding, line breaks and the head of a data URL."""

    def __init__(self, field: str, write: Sink) -> None:
        self._field = field
        self._write = write
        self._head: bytes | None = b""
        self._left = b""
        self._seen = 0
        self._is_padded = False

    def feed(self, text: bytes) -> None:
        """Decode on. Raises: RequestValidationError saying where it is no base64."""
        if self._head is not None:
            self._head += text
            if len(self._head) < _URL_PREFIX_BYTES:
                return
            text = self._without_prefix()
        self._decode(text)

    def end(self) -> None:
        """Decode what is left."""
        if self._head is not None:
            self._decode(self._without_prefix())
        if len(self._left) % 4 == 1:
            raise self._invalid("is cut off: base64 never ends after so many characters")
        self._write(binascii.a2b_base64(self._left + b"=" * (-len(self._left) % 4)))

    def _without_prefix(self) -> bytes:
        head, self._head = self._head, None
        prefix = _URL_PREFIX.match(head)
        self._seen = prefix.end() if prefix else 0
        return head[self._seen :]

    def _decode(self, text: bytes) -> None:
        if text.translate(None, _BASE64):
            place = self._seen + _NOT_BASE64.search(text).start() + 1
            raise self._invalid(f"is not base64: see its character {place:,}")
        letters = text.translate(_TO_STANDARD, _WHITE)
        letters, padding, after = letters.partition(b"=")
        if self._is_padded and letters or after.strip(b"="):
            raise self._invalid(f"goes on after its padding, before character {self._seen + len(text) + 1:,}")
        self._is_padded |= bool(padding)
        self._seen += len(text)
        letters = self._left + letters
        whole = len(letters) // 4 * 4
        self._write(binascii.a2b_base64(letters[:whole]))
        self._left = letters[whole:]

    def _invalid(self, what: str) -> RequestValidationError:
        return invalid(f"The text {what}.", self._field)


def _key(quoted: bytes) -> str | None:
    try:
        return json.loads(quoted)
    except ValueError:  # the library will say so of the whole
        return None


def _unescape(escape: re.Match[bytes]) -> bytes:
    if escape[1]:
        return chr(int(escape[1], 16)).encode("utf-8", "surrogatepass")
    if escape[2][0] not in _ESCAPED:
        raise invalid("This is not JSON: a text has a backslash before a letter that needs none.", kind=NOT_JSON)
    return bytes([_ESCAPED[escape[2][0]]])


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return fields


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
