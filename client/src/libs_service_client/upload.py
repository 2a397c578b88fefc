"""The inputs of a batch on their way to the server."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from tempfile import SpooledTemporaryFile
from typing import Any

from libs_service_client.encode import dump, rows_of
from libs_service_client.errors import InvalidInput

#: Bytes of one piece, about.
PIECE_BYTES = 64 * 1024
#: Bytes that are kept in memory for a repetition; more go to a temporary file.
MEMORY_BYTES = 4 * 1024 * 1024


class Upload:
    """Inputs as JSON lines. They are read once and kept, so that a body that broke off can be sent again."""

    def __init__(self, inputs: Iterable[Any] | AsyncIterable[Any]) -> None:
        self._inputs = inputs.__aiter__() if isinstance(inputs, AsyncIterable) else iter(rows_of(inputs))
        self._kept = SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115 - closed by its owner
        self.count = 0  #: inputs read so far

    def close(self) -> None:
        """Forget the kept inputs."""
        self._kept.close()

    def pieces(self) -> Iterator[bytes]:
        """The body: the inputs that were read before, then the rest."""
        if not isinstance(self._inputs, Iterator):
            raise TypeError("an asynchronous iterable of inputs needs the AsyncClient")
        yield from self._sent_before()
        lines = _Lines()
        for value in self._inputs:
            self.count += 1
            if piece := lines.add(value):
                yield self._keep(piece)
        if piece := lines.take():
            yield self._keep(piece)

    async def pieces_async(self) -> AsyncIterator[bytes]:
        """The same for inputs of either kind."""
        if isinstance(self._inputs, Iterator):
            for piece in self.pieces():
                yield piece
            return
        for piece in self._sent_before():
            yield piece
        lines = _Lines()
        async for value in self._inputs:
            self.count += 1
            if piece := lines.add(value):
                yield self._keep(piece)
        if piece := lines.take():
            yield self._keep(piece)

    def _keep(self, piece: bytes) -> bytes:
        self._kept.write(piece)
        return piece

    def _sent_before(self) -> Iterator[bytes]:
        self._kept.seek(0)
        while piece := self._kept.read(PIECE_BYTES):
            yield piece


class _Lines:
    """JSON lines that gather until they make a piece."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._size = 0
        self._count = 0

    def add(self, value: Any) -> bytes:
        """One more input; the piece, where it is full."""
        try:
            line = dump(value)
        except InvalidInput as error:
            raise InvalidInput(f"inputs.{self._count}.{error}") from error
        self._count += 1
        self._lines.append(line + b"\n")
        self._size += len(self._lines[-1])
        return self.take() if self._size >= PIECE_BYTES else b""

    def take(self) -> bytes:
        """The gathered bytes."""
        piece = b"".join(self._lines)
        self._lines, self._size = [], 0
        return piece
