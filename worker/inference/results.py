"""The results of a chunk's rows: as soon as they fill a part, it is stored in the ledger and leaves this process's
memory.

Results of a chunk below the size of one part are stored in one piece, with the chunk's end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from worker.ledger import worker_commands
from worker.ledger.batches import PART_BYTES, PartKind, Rerun, find_failed, merge
from worker.ledger.sync_ledger import Ledger

#: Makes a call to Redis until it is answered.
Persist = Callable[[Callable[[], Any]], Any]


class Parts:
    """Lines on their way into parts of one kind.

    Args:
        put: stores a part, by its number and lines; False where the chunk is no longer this token's.
    """

    def __init__(self, put: Callable[[int, Sequence[bytes]], bool], count: int = 0, rest: Sequence[bytes] = ()) -> None:
        self._put = put
        self.count = count  #: parts that are stored
        self.rest: list[bytes] = [*rest]  #: the lines after them
        self._bytes = sum(map(len, self.rest))

    def add(self, lines: Sequence[bytes]) -> bool:
        """Take further lines; False where the chunk is no longer this token's."""
        self.rest.extend(lines)
        self._bytes += sum(map(len, lines))
        while self._bytes > PART_BYTES and len(self.rest) > 1:
            full = self._fill()
            part, self.rest = self.rest[:full], self.rest[full:]
            if not self._put(self.count + 1, part):
                return False
            self.count += 1
            self._bytes -= sum(map(len, part))
        return True

    def _fill(self) -> int:
        """The first lines that make a part: one at least, and never all, so that some are left for the end."""
        size = 0
        for i, line in enumerate(self.rest[:-1]):
            size += len(line)
            if i and size > PART_BYTES:
                return i
        return len(self.rest) - 1


class Results:
    """The results of one chunk.

    Args:
        persist: makes a call to Redis until it is answered.
        before: results and failures of the chunk's earlier runs.
    """

    def __init__(self, ledger: Ledger, service: str, token: str, job_id: str, persist: Persist, before: Rerun) -> None:
        self._ledger, self._service, self._token, self._id = ledger, service, token, job_id
        self._persist = persist
        self._before = before
        self._parts = Parts(self._putter("so_far"), len(before.parts), before.results)
        self.failed: list[int] = []  #: places, among the chunk's rows, of those that failed
        self.count = 0  #: rows that have a result
        if before.parts or before.results:
            for line in self._so_far():
                self.failed += [self.count] * len(find_failed([line]))
                self.count += 1

    def add(self, lines: Sequence[bytes], has_failed: bool) -> bool:
        """Take the results of further rows; False where the chunk is no longer this token's."""
        if has_failed:
            self.failed += [self.count + i for i in find_failed(lines)]
        self.count += len(lines)
        return self._parts.add(lines)

    def keep(self) -> bool:
        """Store how far a chunk that is run row by row has come; False where it is no longer this token's."""
        parts = self._parts
        command = worker_commands.progress(self._service, self._token, self._id, parts.rest, parts.count)
        return bool(self._persist(partial(self._ledger.run, command)))

    def pause(self, done: int) -> bool:
        """Give way to more urgent jobs, if any wait; True: the rest of the chunk is queued again."""
        parts = self._parts
        command = worker_commands.pause(self._service, self._token, self._id, parts.rest, done, parts.count)
        return bool(self._persist(partial(self._ledger.run, command)))

    def output(self, first: int, numbers: Sequence[int]) -> tuple[bytes, PartKind | None] | None:
        """The chunk's output, with all that earlier runs settled, and which parts stand before it (None: none do).

        None where the chunk is no longer this token's.
        """
        before, parts = self._before, self._parts
        if not (before.settled or before.settled_parts):
            return b"\n".join(parts.rest), "so_far" if parts.count else None
        merged = Parts(self._putter("merged"))
        for line in merge(self._read(before.settled_parts, before.settled), first, numbers, self._so_far()):
            if not merged.add([line]):
                return None
        return b"\n".join(merged.rest), "merged" if merged.count else None

    def _so_far(self) -> Iterator[bytes]:
        """Every line that there is."""
        names = self._before.parts[: self._parts.count]
        if self._parts.count > len(names):  # further ones follow in the same series
            rerun = worker_commands.fetch_rerun(self._service, self._id)
            fields = self._persist(partial(self._ledger.fetch, rerun)).parts
            names = fields[: self._parts.count]
        return self._read(names, self._parts.rest)

    def _read(self, fields: Sequence[str], rest: Sequence[bytes]) -> Iterator[bytes]:
        for field in fields:
            yield from self._persist(
                partial(self._ledger.fetch, worker_commands.fetch_part(self._service, self._id, field))
            )
        yield from rest

    def _putter(self, kind: PartKind) -> Callable[[int, Sequence[bytes]], bool]:
        def put(number: int, lines: Sequence[bytes]) -> bool:
            command = worker_commands.put_part(self._service, self._token, self._id, kind, number, lines)
            return bool(self._persist(partial(self._ledger.run, command)))

        return put
