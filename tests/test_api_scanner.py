"""JSON and base64 in pieces: what is found, what is handed on, what is refused."""

import base64
import json

import pytest
from fastapi.exceptions import RequestValidationError

from finetune.api.scanner import DEEPEST, LEFT_OUT, Base64, Scanner
from finetune.errors import TooLargeError

CONTENT = bytes(range(256)) * 9 + b"\xff\xfe\xfd"
PIECES = [1, 2, 3, 7, 1000, 10**6]


def scanned(text, piece=1000, names=("file_data",)):
    """The fields of a body that comes in pieces, and what its sinks got."""
    found = {name: bytearray() for name in names}
    scanner = Scanner({name: sink.extend for name, sink in found.items()})
    body = text if isinstance(text, bytes) else text.encode()
    for place in range(0, len(body), piece):
        scanner.feed(body[place : place + piece])
    return scanner.end(), {name: bytes(sink) for name, sink in found.items()}


def decoded(text, piece=1000):
    """What base64 that comes in pieces stands for."""
    found = bytearray()
    decoder = Base64("file_data", found.extend)
    for place in range(0, len(text), piece):
        decoder.feed(text[place : place + piece])
    decoder.end()
    return bytes(found)


def problem(error):
    """What is told of an error: the place in the body, and the words."""
    (told,) = error.value.errors()
    return told["loc"][1:], told["msg"]


@pytest.mark.parametrize("piece", PIECES)
def test_long_text_goes_into_its_sink_and_the_rest_into_fields(piece):
    """However the body is cut, the sink gets the text and the fields say that it was left out."""
    sent = {"a": [1, {"b": "}]{"}], "file_data": "x" * 5000, "c": 'say "hi", \\ ü\n'}

    fields, sunk = scanned(json.dumps(sent), piece)

    assert fields == {**sent, "file_data": LEFT_OUT}
    assert sunk["file_data"] == b"x" * 5000


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"a\/b\u002bc\u002B", b"a/b+c+"),
        (r"\"\\\b\f\n\r\t", b'"\\\b\f\n\r\t'),
        (r"ends in a backslash\\", b"ends in a backslash\\"),
        ("with\na line break", b"with\na line break"),
        ("", b""),
    ],
)
def test_escapes_in_a_long_text_are_undone(written, meant, piece):
    """PHP writes a slash as two letters, C# a plus as six; line breaks are let through."""
    fields, sunk = scanned(f'{{"file_data" : "{written}" , "b": 1}}', piece)

    assert sunk["file_data"] == meant
    assert fields == {"file_data": LEFT_OUT if meant else "", "b": 1}


@pytest.mark.parametrize("piece", PIECES)
def test_key_may_be_written_with_escapes(piece):
    """A key is what it means, not how it is written."""
    assert scanned(r'{"file\u005fdata": "abcd"}', piece)[1]["file_data"] == b"abcd"


def test_several_texts_have_sinks_of_their_own():
    """Two pictures in one body do not mix."""
    fields, sunk = scanned('{"mask": "m", "image": "i"}', names=("image", "mask"))

    assert sunk == {"image": b"i", "mask": b"m"}
    assert fields == {"image": LEFT_OUT, "mask": LEFT_OUT}


@pytest.mark.parametrize("value", [5, None, True, ["abcd"], {"file_data": "abcd"}])
def test_what_is_no_text_stays_what_it_was(value):
    """Whoever checks the fields says what is wrong with it."""
    fields, sunk = scanned(json.dumps({"file_data": value}))

    assert fields == {"file_data": value}
    assert sunk["file_data"] == b""


def test_key_within_another_object_is_not_meant():
    """Only the outermost object has the fields of the request."""
    fields, sunk = scanned('{"a": {"file_data": "abcd"}, "b": ["file_data", "abcd"]}')

    assert fields == {"a": {"file_data": "abcd"}, "b": ["file_data", "abcd"]}
    assert sunk["file_data"] == b""


@pytest.mark.parametrize("piece", PIECES)
def test_mark_of_utf_8_is_allowed(piece):
    """Windows programs write it."""
    assert scanned(b'\xef\xbb\xbf {"a": 1}', piece)[0] == {"a": 1}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "[]",
        '"file_data"',
        "5",
        "null",
        '{"a": 1',
        '{"a": 1}}',
        '{"a": 1} x',
        '{"a" 1}',
        '{"a": 1,}',
        '{"file_data": "abcd',
        '{"file_data": "ab\\',
        '{"file_data": "a\\x"}',
        '{"file_data": "a\\u00g0"}',
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": 1, "a": 2}',
        '{"file_data": "abcd", "file_data": "abcd"}',
        '{"a": ' + "1" * 5000 + "}",
        '{"a": "\n"}',
        b'{"a": "\xff"}',
        '{"a": 1}'.encode("utf-16"),
        '{"a": ' + "[" * (DEEPEST + 1),
        '{"a":' * 10**5,
    ],
)
def test_what_is_no_json_object_is_refused(text):
    """Broken JSON, other values, keys that stand twice, and what nests too deep, all in one shape."""
    with pytest.raises(RequestValidationError) as error:
        scanned(text)

    assert problem(error)[1]


def test_other_value_is_refused_with_its_first_piece():
    """What is no object need not be read to its end."""
    with pytest.raises(RequestValidationError):
        Scanner({}).feed(b"[1, 2")


def test_place_of_a_mistake_counts_what_was_left_out():
    """The place is that of the body as it was sent."""
    sent = '{"file_data": "' + "x" * 5000 + '", "a" 1}'

    with pytest.raises(RequestValidationError) as error:
        scanned(sent)

    assert problem(error)[0] == (sent.index(" 1}") + 1,)


def test_rest_of_the_body_may_not_be_large():
    """Only texts that have a sink may be long."""
    with pytest.raises(TooLargeError):
        scanned(json.dumps({"prompt": "x" * 2**21}), 2**16)


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_base64_is_decoded(missing, piece):
    """Of every length, and with its padding."""
    content = CONTENT[: len(CONTENT) - missing]

    assert decoded(base64.b64encode(content), piece) == content


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.rstrip(b"="),
        lambda text: text.replace(b"+", b"-").replace(b"/", b"_"),
        lambda text: b"data:application/zip;base64," + text,
        lambda text: b" DATA:application/x-zip-compressed;name=a.zip;base64," + text,
        lambda text: b"\r\n".join(text[place : place + 76] for place in range(0, len(text), 76)) + b"\r\n",
        lambda text: b"\t " + text + b" = \n",
    ],
    ids=["no padding", "url", "data url", "data url of windows", "lines", "blanks"],
)
def test_base64_may_be_written_in_many_ways(change, piece):
    """Programs differ: in alphabet, padding, lines and what stands before."""
    content = CONTENT[:-1]

    assert decoded(change(base64.b64encode(content)), piece) == content


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"A" * 399 + b"!" + b"A" * 400, "character 400"),
        (b"data:application/zip;base64," + b"A" * 399 + b"\xff", "character 428"),
        (b"https://example.com/a.zip", "character 6"),
        (b"data:text/plain,abcd", "character 5"),
        (b"A" * 401, "cut off"),
        (b"AAA=" + b"A" * 400, "padding"),
    ],
)
def test_what_is_no_base64_is_refused_with_its_place(text, place, piece):
    """The message says where, and repeats nothing."""
    with pytest.raises(RequestValidationError) as error:
        decoded(text, piece)

    loc, message = problem(error)
    assert loc == ("file_data",)
    assert place in message
