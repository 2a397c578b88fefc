"""Reads server-sent events (WHATWG HTML, section 9.2) from the pieces of an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from libs_service_client.models import Event

#: A lone \r ends a line too, except at the end of a piece, where it may be the first half of \r\n.
LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


class EventReader:
    """Reads events. An incomplete event is dropped: the server sends it again, as the first after ``last_id``."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id  #: id of the last complete event
        self.retry_s: float | None = None  #: seconds before a reconnection, if the server has sent them
        self.restart()

    def restart(self) -> None:
        """Begin to read a new answer."""
        self._rest = b""
        self._is_first = True
        self._forget()

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events that this piece completes."""
        *lines, self._rest = LINE_END.split(self._rest + piece)
        for line in lines:
            text = line.decode(errors="replace")
            if self._is_first:
                text, self._is_first = text.removeprefix("\ufeff"), False
            if text:
                self._read(text)
            else:
                yield from self._dispatch()

    def _read(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_s = int(value) / 1000

    def _dispatch(self) -> Iterator[Event]:
        self.last_id = self._id
        if self._data:
            yield Event(self._type or "message", _parse("\n".join(self._data)), self.last_id)
        self._forget()

    def _forget(self) -> None:
        self._data: list[str] = []
        self._type = ""
        self._id = self.last_id


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
