"""A form (multipart/form-data) in pieces: its file is handed on as it comes, its texts become fields.

Separate from FastAPI's own reading of forms, which keeps files in the system's folder for temporary files, of any size.
"""

from collections.abc import Callable
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from finetune.api.scanner import LEFT_OUT, REST_BYTES, Base64, Sink, forget, invalid
from finetune.errors import TooLargeError

MOST_PARTS = 100
ZIP_KINDS = (b"application/zip", b"application/x-zip-compressed")


class Form:
    """A form that is read in pieces; `write` gets the bytes of its one file.

    The file is the part of that field, or any part that is a ZIP. A text in the field is read as base64.
    """

    def __init__(self, content_type: str, field: str, write: Sink) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise invalid("The form’s Content-Type names no boundary.")
        self._field = field
        self._write = write
        self._base64 = Base64(field, write)
        self._take: Sink = forget
        self._header = b""
        self._headers: dict[bytes, bytes] = {}
        self._texts: list[tuple[str, bytearray]] = []
        self._has_file = False
        self._is_whole = False
        self._parser = _parser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_begin": self._begin_header,
                "on_header_field": self._name_header,
                "on_header_value": self._fill_header,
                "on_headers_finished": self._choose,
                "on_part_data": lambda data, start, end: self._take(data[start:end]),
                "on_end": self._finish,
            },
        )

    def feed(self, piece: bytes) -> None:
        """Read on. Raises: RequestValidationError, TooLargeError."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise invalid("The form cannot be read: its parts are not separated as its Content-Type says.") from error

    def end(self) -> list[tuple[str, str]]:
        """The texts by name, with LEFT_OUT for the file."""
        if not self._is_whole:
            raise invalid("The form ends early.")
        self._base64.end()
        try:
            texts = [(name, bytes(text).decode()) for name, text in self._texts]
        except UnicodeDecodeError as error:
            raise invalid("A text of the form is not UTF-8.") from error
        return [*texts, (self._field, LEFT_OUT if self._has_file else "")]

    def _begin_part(self) -> None:
        self._headers = {}

    def _begin_header(self) -> None:
        self._header = b""

    def _name_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end].lower()

    def _fill_header(self, data: bytes, start: int, end: int) -> None:
        self._headers[self._header] = self._headers.get(self._header, b"") + data[start:end]

    def _choose(self) -> None:
        """Say where a part's content goes, by its headers."""
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name, file = options.get(b"name", b"").decode("utf-8", "replace"), options.get(b"filename")
        kind = self._headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        is_zip = bool(file) and (kind in ZIP_KINDS or file.lower().endswith(b".zip"))
        if file == b"" or (file and name != self._field and not is_zip):  # none was chosen, or one that nobody needs
            self._take = forget
        elif file or name == self._field:
            self._begin_file(self._write if file else self._base64.feed)
        else:
            self._texts.append((name, bytearray()))
            self._take = self._add_text
        if len(self._texts) > MOST_PARTS:
            raise TooLargeError(f"The form has more than {MOST_PARTS} fields.")

    def _begin_file(self, take: Sink) -> None:
        if self._has_file:
            raise invalid("The form has two files; one ZIP is needed.", self._field)
        self._has_file, self._take = True, take

    def _add_text(self, content: bytes) -> None:
        self._texts[-1][1].extend(content)
        if sum(len(text) for _, text in self._texts) > REST_BYTES:
            raise TooLargeError(f"Without its file, the form is larger than {REST_BYTES // 2**20} MiB.")

    def _finish(self) -> None:
        self._is_whole = True


def _parser(boundary: bytes, callbacks: dict[str, Callable[..., Any]]) -> MultipartParser:
    try:
        return MultipartParser(boundary, callbacks)
    except FormParserError as error:
        raise invalid("The form’s boundary is too long.") from error
