"""Forms in pieces: where a file goes, what becomes of texts, what is refused."""

import base64

import pytest
from fastapi.exceptions import RequestValidationError

from finetune.api.forms import MOST_PARTS, Form
from finetune.api.scanner import LEFT_OUT
from finetune.errors import TooLargeError

TYPE = "multipart/form-data; boundary=line"
CONTENT = bytes(range(256)) * 5 + b"\r\n--lin\r\n-line--"  # nearly a separator


def part(name, content, file=None, kind=None):
    """A part of a form as programs write it."""
    named = f'; filename="{file}"' if file is not None else ""
    typed = f"\r\nContent-Type: {kind}" if kind else ""
    head = f'--line\r\nContent-Disposition: form-data; name="{name}"{named}{typed}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def read(*parts, end=b"--line--\r\n", piece=1000, kind=TYPE):
    """The texts of a form that comes in pieces, and its file."""
    found = bytearray()
    form = Form(kind, "file_data", found.extend)
    body = b"".join(parts) + end
    for place in range(0, len(body), piece):
        form.feed(body[place : place + piece])
    return form.end(), bytes(found)


@pytest.mark.parametrize("piece", [1, 2, 7, 10**6])
def test_file_is_handed_on_and_texts_are_fields(piece):
    """However the body is cut."""
    texts, file = read(
        part("mode", b"style"), part("file_data", CONTENT, "a.zip"), part("a", "ü".encode()), piece=piece
    )

    assert file == CONTENT
    assert texts == [("mode", "style"), ("a", "ü"), ("file_data", LEFT_OUT)]


@pytest.mark.parametrize(
    ("name", "file", "kind"),
    [("file", "a.ZIP", None), ("upload", "a", "application/zip"), ("x", "ü.zip", "application/octet-stream")],
)
def test_zip_in_another_field_is_the_file(name, file, kind):
    """Who sends one ZIP means it."""
    assert read(part(name, b"PK", file, kind))[1] == b"PK"


def test_text_in_the_field_is_base64():
    """A form without a file may carry what JSON would."""
    texts, file = read(part("file_data", base64.b64encode(CONTENT)))

    assert file == CONTENT
    assert texts == [("file_data", LEFT_OUT)]


def test_other_files_are_ignored():
    """A field that is not known is no mistake, whatever it holds."""
    assert read(part("notes", b"abc", "notes.pdf", "application/pdf")) == ([("file_data", "")], b"")


def test_field_without_a_chosen_file_is_empty():
    """Browsers send an empty name when nothing was chosen."""
    assert read(part("file_data", b"", "", "application/octet-stream")) == ([("file_data", "")], b"")


@pytest.mark.parametrize(
    "sent",
    [
        {"end": b""},
        {"end": b"--line\r\nCont"},
        {"kind": "multipart/form-data"},
        {"kind": f"multipart/form-data; boundary={'x' * 1000}"},
        {"kind": "multipart/form-data; boundary=other"},
    ],
)
def test_form_that_is_not_whole_is_refused(sent):
    """A body that was cut off, or whose parts cannot be told apart, is no form."""
    with pytest.raises(RequestValidationError):
        read(part("mode", b"style"), **sent)


def test_two_files_are_refused():
    """Nobody can tell which one is meant."""
    with pytest.raises(RequestValidationError):
        read(part("file_data", b"PK", "a.zip"), part("more", b"PK", "b.zip"))


def test_text_that_is_not_utf_8_is_refused():
    """Names would come out wrong."""
    with pytest.raises(RequestValidationError):
        read(part("finetune_comment", b"\xff"))


def test_long_texts_are_refused():
    """Only the file may be large."""
    with pytest.raises(TooLargeError):
        read(part("a", b"x" * 2**19), part("b", b"x" * 2**20))


def test_many_fields_are_refused():
    """A form of a million empty fields fills no memory."""
    with pytest.raises(TooLargeError):
        read(*(part(f"a{number}", b"") for number in range(MOST_PARTS + 1)))
