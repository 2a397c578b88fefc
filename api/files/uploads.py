"""The body of ``POST /files`` while it arrives: raw bytes, or a form with one file; one megabyte is in memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.files.dispositions import read_name, read_parameters
from api.problems import PayloadTooLarge, UnsupportedFileType
from api.requests import DRAIN_BYTES, refuse_encoded
from worker.errors import InvalidInput
from worker.files import CONTENT_TYPE, matches
from worker.filestore.storage import HEAD_BYTES, PIECE_BYTES, find_type, sniff
from worker.settings import Settings

FORM = "multipart/form-data"
#: Types that clients send by default, as curl's ``--data-binary`` does; they declare nothing.
UNDECLARED = frozenset({"", "application/x-www-form-urlencoded"})
#: Most bytes of a form besides its file.
ENVELOPE_BYTES = 64 * 1024
#: Seconds after which a piece is written although it is not full.
PIECE_S = 10.0
#: Kinds of content that the first bytes show reliably.
RELIABLE_KINDS = {"image": "image", "audio": "sound", "video": "sound"}


class Upload:
    """One file that is arriving: its pieces, and its type once the first piece is there."""

    def __init__(self, request: Request, settings: Settings) -> None:
        refuse_encoded(request)
        self._request = request
        self._settings = settings
        declared = request.headers.get("content-type", "")
        kind = declared.partition(";")[0].strip().lower()
        self._form = Form(declared) if kind == FORM else None
        self._declared = "" if self._form else _check_declared(kind, ["header", "content-type"])
        self._name = read_name(read_parameters(request.headers.get("content-disposition", "").encode("latin-1")))
        self._stream = request.stream()
        self._unread = False
        self._size = 0
        self.content_type = ""

    def describe(self) -> tuple[str, str]:
        """The file's type, and its name in the form or in the header ``Content-Disposition``; "" for none."""
        return self.content_type, (self._form.name if self._form else "") or self._name

    async def pieces(self) -> AsyncIterator[bytes]:
        """The file, in pieces of a megabyte. Raises ``PayloadTooLarge``, ``UnsupportedFileType``, ``InvalidInput``."""
        self._check_length()
        async for piece in self._gather():
            if not self.content_type:
                self.content_type = self._find_type(piece[:HEAD_BYTES])
            yield piece
        if not self._size:
            must = "the file is empty: send its bytes as the body, or a form with one file"
            raise InvalidInput(must, errors=[{"loc": ["body"], "msg": must, "type": "too_short"}])

    async def drain(self) -> None:
        """Read on after a refusal, for at most ``DRAIN_BYTES``: many clients read the answer only when all is sent."""
        drained = 0
        if self._unread:
            return
        async for chunk in self._stream:
            drained += len(chunk)
            if drained > DRAIN_BYTES:
                return

    async def _gather(self) -> AsyncIterator[bytes]:
        gathered: list[bytes] = []
        size, since = 0, time.monotonic()
        async for content in self._contents():
            gathered.append(content)
            size += len(content)
            if size >= PIECE_BYTES or (size and time.monotonic() - since > PIECE_S):
                yield b"".join(gathered)
                gathered.clear()
                size, since = 0, time.monotonic()
        if size:
            yield b"".join(gathered)

    async def _contents(self) -> AsyncIterator[bytes]:
        """The file's bytes as they arrive, without the form around them."""
        most = self._settings.max_file_bytes
        received = 0
        async for chunk in self._stream:
            received += len(chunk)
            content = self._form.feed(chunk) if self._form else chunk
            self._size += len(content)
            if self._size > most or received > most + ENVELOPE_BYTES:
                raise self._too_large()
            yield content
        if self._form:
            self._form.finish()

    def _check_length(self) -> None:
        """Refuse by the declared length before reading: a client that waits for 100-continue then sends nothing."""
        declared = self._request.headers.get("content-length", "0")
        most = self._settings.max_file_bytes + (ENVELOPE_BYTES if self._form else 0)
        if declared.isdigit() and int(declared) > most and "expect" in self._request.headers:
            self._unread = True
            raise self._too_large()

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"the file has more than {self._settings.max_file_bytes} bytes (SERVICES_MAX_FILE_BYTES)"
        )

    def _find_type(self, head: bytes) -> str:
        """The file's type. Raises ``UnsupportedFileType`` where it is not taken, or the content belies it."""
        declared, shown = self._form.content_type if self._form else self._declared, sniff(head)
        content_type = find_type(declared, head, (self._form.name if self._form else "") or self._name)
        declared_kind, seen_kind = (RELIABLE_KINDS.get(kind.partition("/")[0]) for kind in (content_type, shown))
        if declared_kind and shown and declared_kind != seen_kind:
            raise UnsupportedFileType(f"the file was declared as {content_type}, but its content is {shown}")
        if not matches(content_type, self._settings.file_types):
            known = ", ".join(self._settings.file_types)
            raise UnsupportedFileType(f"the file is {content_type}; accepted are {known} (SERVICES_FILE_TYPES)")
        return content_type


class Form:
    """Extracts the one file of a ``multipart/form-data`` body."""

    def __init__(self, content_type: str) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if not 0 < len(boundary) <= 70:
            raise _invalid("the form's Content-Type has no boundary")
        names = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "end")
        callbacks: Any = {f"on_{name}": getattr(self, f"_on_{name}") for name in names}
        self._parser = MultipartParser(boundary, callbacks)
        self._field = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._content: list[bytes] = []
        self._files = 0
        self._ended = False
        self.content_type = ""
        self.name = ""

    def feed(self, data: bytes) -> bytes:
        """The bytes of the file within the next bytes of the body."""
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise _invalid(f"the form cannot be read: {error}") from error
        content = b"".join(self._content)
        self._content.clear()
        return content

    def finish(self) -> None:
        """At the body's end: check that the form has ended too, with a file. Raises ``InvalidInput``."""
        if not self._ended:
            raise _invalid("the form breaks off before its end")
        if not self._files:
            raise _invalid("the form has no file; expected one, as of `curl -F file=@photo.jpg`")

    def _on_part_begin(self) -> None:
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _on_headers_finished(self) -> None:
        options = read_parameters(self._headers.get(b"content-disposition", b""))
        name = options.get("name", "")
        self._files += 1
        if not options.keys() & {"filename", "filename*"} or self._files > 1:
            raise _invalid("expected one file and nothing else in the form", name[:100])
        self.name = read_name(options, is_form=True)
        declared = self._headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        self.content_type = _check_declared(declared, ["body", name[:100], "content-type"])

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def _on_end(self) -> None:
        self._ended = True


def _check_declared(kind: str, where: list[str]) -> str:
    """A declared content type, checked; "" where it declares nothing."""
    if kind in UNDECLARED:
        return ""
    if not CONTENT_TYPE.fullmatch(kind):
        must = "expected a content type such as image/png"
        raise InvalidInput(f"content-type: {must}", errors=[{"loc": where, "msg": must, "type": "content_type"}])
    return kind


def _invalid(must: str, name: str = "") -> InvalidInput:
    return InvalidInput(must, errors=[{"loc": ["body", name] if name else ["body"], "msg": must, "type": "form"}])
