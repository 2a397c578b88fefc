"""A file as the body of a request, and the server's record of a stored file."""

from __future__ import annotations

import io
import os
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import quote

from libs_service_client.errors import UnexpectedAnswer

#: Sources of an upload: the path of a file, its bytes, or a file that is open for reading in binary mode.
Source: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO"

#: Size of a piece of the body in bytes.
PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that the server has stored (``POST /files``)."""

    id: str  #: the SHA-256 of its content
    name: str | None
    size: int
    content_type: str
    created_at: datetime
    expires_at: datetime
    links: dict[str, str]  #: ``download`` is valid for a limited time and needs no API key

    @property
    def reference(self) -> dict[str, str]:
        """The form in which an input refers to the file: ``client.submit("thumbs", {"image": file.reference})``."""
        return {"file": self.id}


class FileBody:
    """A file's bytes as the body of a request. Each repetition starts at the beginning."""

    def __init__(self, source: Source, name: str | None, content_type: str) -> None:
        if isinstance(source, io.TextIOBase):
            raise TypeError("expected a file that is open in binary mode: open(path, 'rb')")
        self._source = source
        self._start = 0 if isinstance(source, str | bytes | os.PathLike) else source.tell()
        known = source if isinstance(source, str | os.PathLike) else getattr(source, "name", "")
        self._name = Path(known).name if name is None and isinstance(known, str | os.PathLike) else name or ""
        self._type = content_type

    @property
    def headers(self) -> dict[str, str]:
        """The file's type and name, if known. The server derives an unknown type from the name and the content."""
        headers = {"Content-Type": self._type or "application/octet-stream"}
        if self._name:
            headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(self._name, safe='')}"
        return headers

    def open(self) -> AbstractContextManager[BinaryIO]:
        """The file at its beginning. A file that the caller has opened stays open afterwards."""
        if isinstance(self._source, str | os.PathLike):
            return Path(self._source).open("rb")
        if isinstance(self._source, bytes):
            return closing(io.BytesIO(self._source))
        self._source.seek(self._start)
        return nullcontext(self._source)


def read_file(raw: dict[str, Any]) -> StoredFile:
    """Read the answer of ``POST /files``. Raises ``UnexpectedAnswer``."""
    try:
        created, expires = (datetime.fromisoformat(raw[name]) for name in ("created_at", "expires_at"))
        fields = (raw["id"], raw.get("name"), raw["size"], raw["content_type"])
        return StoredFile(*fields, created, expires, raw["links"])
    except (KeyError, TypeError, ValueError) as error:
        raise UnexpectedAnswer(f"expected a stored file ({error!r}): {str(raw)[:300]}") from error
