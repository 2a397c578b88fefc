"""A file on its way to the server, and its record on the server."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import quote

from libs_service_client.errors import UnexpectedAnswer

#: Sources of an upload: the path of a file, its bytes, or a file that is open for reading in binary mode.
Source: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO"

PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of ``POST /files``."""

    id: str  #: the SHA-256 of its content
    name: str | None
    size: int
    content_type: str
    created_at: datetime
    expires_at: datetime
    links: dict[str, str]  #: ``download`` needs no API key, for a while

    @property
    def reference(self) -> dict[str, str]:
        """How an input names it: ``client.submit("thumbs", {"image": file.reference})``."""
        return {"file": self.id}


class FileBody:
    """A file's bytes as the body of a request, from their beginning each time that it is sent."""

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
        """Its type and its name, as far as they are known; a type that is not, the server tells by content and name."""
        headers = {"Content-Type": self._type or "application/octet-stream"}
        if self._name:
            headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(self._name, safe='')}"
        return headers

    def pieces(self) -> Iterator[bytes]:
        """The content."""
        with self._open() as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    async def pieces_async(self) -> AsyncIterator[bytes]:
        """The same; a slow disk holds up nothing else."""
        with self._open() as file:
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield piece

    def _open(self) -> Any:
        if isinstance(self._source, str | os.PathLike):
            return Path(self._source).open("rb")
        if isinstance(self._source, bytes):
            return closing(io.BytesIO(self._source))
        self._source.seek(self._start)
        return nullcontext(self._source)


def read_file(raw: dict[str, Any]) -> StoredFile:
    """The answer of ``POST /files``."""
    try:
        created, expires = (datetime.fromisoformat(raw[name]) for name in ("created_at", "expires_at"))
        about = (raw["id"], raw.get("name"), raw["size"], raw["content_type"])
        return StoredFile(*about, created, expires, raw["links"])
    except (KeyError, TypeError, ValueError) as error:
        raise UnexpectedAnswer(f"this is no file that the client knows ({error!r}): {str(raw)[:300]}") from error
