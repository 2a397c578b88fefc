"""The inputs of a batch as the body of its request."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from tempfile import SpooledTemporaryFile
from typing import Any, TypeAlias

from libs_service_client.encode import dump, rows_of
from libs_service_client.errors import InvalidInput

#: The inputs of a batch: for ``Client``, and for ``AsyncClient``.
Inputs: TypeAlias = Iterable[Any]
AsyncInputs: TypeAlias = Iterable[Any] | AsyncIterable[Any]

#: Approximate size of a piece in bytes.
PIECE_BYTES = 64 * 1024
#: Bytes that are retained in memory for a repetition of the request; further ones go to a temporary file.
MEMORY_BYTES = 4 * 1024 * 1024


class Upload:
    """Inputs as JSON lines. They are read once and retained, so that an interrupted request can be repeated.

    The body is ``sent_before()``, then each piece that ``add`` returns, then ``take()``.
    """

    def __init__(self, inputs: AsyncInputs) -> None:
        self._inputs = inputs.__aiter__() if isinstance(inputs, AsyncIterable) else iter(rows_of(inputs))
        self._sent = SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115 - closed by its owner
        self._lines: list[bytes] = []
        self._size = 0
        self.count = 0  #: inputs read so far

    def close(self) -> None:
        """Delete the retained inputs."""
        self._sent.close()

    def read(self) -> Iterator[Any]:
        """The inputs that were not read before. Raises ``TypeError`` for an asynchronous iterable."""
        if not isinstance(self._inputs, Iterator):
            raise TypeError("an asynchronous iterable of inputs needs the AsyncClient")
        return self._inputs

    async def read_async(self) -> AsyncIterator[Any]:
        """The inputs that were not read before, from an iterable of either kind."""
        if isinstance(self._inputs, AsyncIterator):
            async for value in self._inputs:
                yield value
        else:
            for value in self._inputs:
                yield value

    def sent_before(self) -> Iterator[bytes]:
        """The pieces of earlier requests."""
        self._sent.seek(0)
        while piece := self._sent.read(PIECE_BYTES):
            yield piece

    def add(self, value: Any) -> bytes:
        """Write one more input. Returns a piece if it is full, else ``b""``."""
        try:
            line = dump(value) + b"\n"
        except InvalidInput as error:
            raise InvalidInput(f"inputs.{self.count}.{error}") from error
        self.count += 1
        self._lines.append(line)
        self._size += len(line)
        return self.take() if self._size >= PIECE_BYTES else b""

    def take(self) -> bytes:
        """The last piece: all lines that are not yet part of another."""
        piece = b"".join(self._lines)
        self._lines, self._size = [], 0
        self._sent.write(piece)
        return piece
