"""Batches: many inputs sent in one request, ``POST /batches``.

Its rows are kept as lines of JSON and cut into chunks. A chunk is a job of the ledger like any other (claimed, leased,
fenced, recovered), except that it is run by itself and that its output is one line for each of its rows. So the lines
of the request reach the model, and the model's results the answer, without being read or written anywhere between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic_core import to_json

from worker.errors import Cancelled, ServicesError
from worker.ledger.jobs import Priority, Status, rfc3339
from worker.ledger.record import CHUNK_FIELDS

#: Bytes of one chunk, about; a single row may be larger.
CHUNK_BYTES = 4 * 1024 * 1024
#: Rows of one chunk, in batches of the service's ``max_batch_size``: enough that a claim costs little beside them. And
#: so many rows are enough for that, where one batch has not more: the first and the last chunk wait for Redis.
CHUNK_BATCHES, CHUNK_ROWS = 4, 4096
#: Where a row takes long, the time of a chunk, about, but at least one batch: progress is reported chunk by chunk, and
#: several workers share a batch by its chunks.
CHUNK_S = 1.0
#: Chunks of a batch after which the further ones have twice as many rows, and so on. Accepting, cancelling or retrying
#: a batch takes Redis some 25 us a chunk (measured), in which it does nothing else: under a second for a million rows.
#: Not fewer chunks, for the same reasons as above.
DOUBLED_AFTER = 4096
#: How long chunks wait for the rest of their batch.
STAGED_S = 3600.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of a batch that are run one after the other by one process."""

    group: str  #: the batch's id
    number: int
    first: int  #: the number of its first row in the batch
    rows: list[bytes]  #: JSON texts without line breaks

    @property
    def id(self) -> str:
        """Its id as a job of the ledger."""
        return f"{self.group}.{self.number}"


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk as the ledger holds it, as far as its rows' results go."""

    status: str
    output: bytes  #: its rows' lines, after those in ``parts``; b"" where it has never been run to its end
    error: bytes  #: JSON; b"" for none
    first: int
    rows: int  #: that it was to run
    numbers: list[int]  #: of these rows, where they were run again; none: all, from the first
    parts: tuple[str, ...]  #: fields of its record that hold earlier lines

    @classmethod
    def from_fields(cls, values: Sequence[bytes | None]) -> StoredChunk | None:
        """Read the fields ``FIELDS``; None where there is no such chunk."""
        status, output, error, first, rows, numbers, parts = (value or b"" for value in values)
        if not status:
            return None
        return cls(status.decode(), output, error, int(first), int(rows), read_numbers(numbers), read_parts(parts))

    @property
    def was_run(self) -> bool:
        """Whether it has ever been run to its end."""
        return bool(self.output or self.parts)

    def lines_not_run(self) -> bytes:
        """One line for each row of a chunk that has never been run to its end, once it has ended."""
        return b"\n".join(error_line(number, self._told) for number in range(self.first, self.first + self.rows))

    def mend(self, lines: bytes, first: int) -> bytes:
        """Some of its lines, from the row of that number on, as they are now.

        Rows that were to be run again, but were not, have the error that says so.
        """
        if self.status == Status.SUCCEEDED:
            return lines
        there = lines.split(b"\n")
        again = [number for number in self.numbers if first <= number < first + len(there)]
        return b"\n".join(merge(there, first, again, (error_line(number, self._told) for number in again)))

    @property
    def _told(self) -> ServicesError | bytes:
        return self.error or Cancelled("the batch was cancelled before this input was run")


#: The fields of a chunk's record that ``StoredChunk`` reads.
FIELDS = CHUNK_FIELDS


@dataclass(frozen=True, slots=True)
class Rerun:
    """Results and failures of a chunk's earlier runs.

    Where a run came to nothing, the next goes row by row, to find the culprit. Where the rows that failed are run
    again, their results take the place of the earlier ones.
    """

    results: list[bytes]  #: lines that are there already, after ``parts``
    reason: str  #: why the run before ended: "lost", "timed_out", ...
    skip: bool  #: whether the next row has used up its attempts
    careful: bool  #: whether that run was lost, so that this one goes row by row
    numbers: list[int]  #: of its rows, where it runs again those that failed; none: all, from its first
    settled: list[bytes]  #: lines of all its rows, after ``settled_parts``, where it has been run to its end before
    parts: tuple[str, ...] = ()  #: fields of the record that hold earlier lines
    settled_parts: tuple[str, ...] = ()


#: Parts of a chunk's results: of those so far, or of the series into which a retry's are merged.
PartKind = Literal["so_far", "merged"]
#: Bytes of a part, about: Redis takes it in some 26 ms (measured), in which it does nothing else. A single line may be
#: larger.
PART_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch that is about to be accepted; its chunks are in the ledger already."""

    service: str
    version: str
    rows: int
    chunks: int
    size: int  #: bytes of all rows
    priority: Priority
    keep_for_s: float
    metadata: bytes
    id: str
    idempotency_key: str = ""
    body_hash: str = ""
    webhook: bytes = b""  #: JSON by ``webhooks.dump_webhook``; b"" for none
    owner: str = ""  #: id of the API key that it was sent with; "" for none
    most_open: int | None = None  #: queued and running jobs that this key may have; None: any number


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch as the ledger holds it. Times are microseconds since the epoch by Redis's clock; 0: not yet."""

    id: str
    service: str
    version: str
    priority: Priority
    rows: int
    chunks: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    stopped: bool  #: by DELETE
    created_us: int
    begun_us: int  #: when its rows were queued: as it was created, or run again
    finished_us: int
    expires_us: int
    metadata: bytes
    webhook: bytes  #: JSON by ``webhooks.dump_webhook``; b"" for none
    owner: str  #: id of the API key that it belongs to; "" for none

    @classmethod
    def from_record(cls, id: str, record: dict[bytes, bytes]) -> StoredBatch:
        """Read the ledger's hash (``{service}:batch:<id>``)."""

        def number(name: bytes) -> int:
            return int(float(record.get(name, 0)))

        return cls(
            id=id,
            service=record[b"service"].decode(),
            version=record[b"version"].decode(),
            priority=Priority(record[b"priority"].decode()),
            rows=number(b"rows"),
            chunks=number(b"chunks"),
            running=number(b"running"),
            succeeded=number(b"succeeded"),
            failed=number(b"failed"),
            cancelled=number(b"cancelled"),
            stopped=b"stopped" in record,
            created_us=number(b"created"),
            begun_us=number(b"begun") or number(b"created"),
            finished_us=number(b"finished"),
            expires_us=number(b"expires"),
            metadata=record[b"metadata"],
            webhook=record.get(b"webhook", b""),
            owner=record.get(b"owner", b"").decode(),
        )

    @property
    def ended(self) -> bool:
        """Whether every row has ended."""
        return bool(self.finished_us)

    @property
    def status(self) -> str:
        """``queued``, ``running``, ``succeeded`` (no row failed), ``failed`` (some did) or ``cancelled``."""
        done = self.succeeded + self.failed + self.cancelled
        if not self.ended:
            return "running" if self.running or done else "queued"
        if self.stopped and self.cancelled:
            return "cancelled"
        return "failed" if self.failed or self.cancelled else "succeeded"

    @property
    def counts(self) -> dict[str, int]:
        """Rows by state."""
        ended = {"succeeded": self.succeeded, "failed": self.failed, "cancelled": self.cancelled}
        return {"queued": self.rows - sum(ended.values()) - self.running, "running": self.running, **ended}

    @property
    def progress(self) -> float:
        """How much has ended, from 0 to 1."""
        return round((self.succeeded + self.failed + self.cancelled) / self.rows, 6) if self.rows else 1.0

    def to_json(self) -> bytes:
        """The batch as ``docs/http.md`` shows it."""
        own = f"/batches/{self.id}"
        links = {"self": own, **{name: f"{own}/{name}" for name in ("events", "results", "retry")}}
        if self.webhook:
            links["deliveries"] = f"{own}/deliveries"
        known = {
            "id": self.id,
            "service": self.service,
            "version": self.version,
            "status": self.status,
            "total": self.rows,
            "counts": self.counts,
            "progress": self.progress,
            "created_at": rfc3339(self.created_us),
            "finished_at": rfc3339(self.finished_us),
            "expires_at": rfc3339(self.expires_us),
            "priority": self.priority.value,
            "links": links,
        }
        return to_json(known)[:-1] + b',"metadata":' + self.metadata + b"}"


def read_numbers(text: bytes) -> list[int]:
    """The rows' numbers, as the ledger stores them."""
    return [int(number) for number in text.split(b",")] if text else []


def read_parts(text: bytes | None) -> tuple[str, ...]:
    """The fields of a chunk's record that hold parts of its results, as the ledger counts them; b"" for none."""
    series, _, parts = (text or b"").decode().partition(" ")
    return tuple(f"{series}.{i + 1}" for i in range(int(parts or 0)))


def split_lines(text: bytes | None) -> list[bytes]:
    """Lines that were stored as one text; none of b""."""
    return text.split(b"\n") if text else []


def output_line(number: int, output: bytes) -> bytes:
    """One row's result."""
    return b'{"index":%d,"output":%b}' % (number, output)


def error_line(number: int, error: ServicesError | bytes) -> bytes:
    """One row's error; given as an error or as its JSON."""
    return b'{"index":%d,"error":%b}' % (number, error if isinstance(error, bytes) else to_json(error.to_dict()))


def find_failed(results: Sequence[bytes]) -> list[int]:
    """Which of these lines are rows' errors, by their places."""
    return [i for i, line in enumerate(results) if line.startswith(b'"error"', line.find(b",") + 1)]


def dump_failed(failed: Sequence[int], numbers: Sequence[int], rows: Sequence[bytes]) -> bytes:
    """The rows of a chunk that failed, as the ledger stores them to be run again; b"" where none did."""
    if not failed:
        return b""
    return b"\n".join([",".join(str(numbers[i]) for i in failed).encode(), *(rows[i] for i in failed)])


def merge(settled: Iterable[bytes], first: int, numbers: Sequence[int], results: Iterable[bytes]) -> Iterator[bytes]:
    """A chunk's lines, with these in the place of those that were there of the same rows; numbers ascend."""
    replaced = zip(numbers, results, strict=True)
    number, line = next(replaced, (-1, b""))
    for place, there in enumerate(settled, first):
        if place == number:
            yield line
            number, line = next(replaced, (-1, b""))
        else:
            yield there


def rows_of_chunk(max_batch_size: int, row_s: float) -> int:
    """Rows of one chunk at most, in whole batches, where a row takes so long (0: not measured yet, so a batch)."""
    batches = int(CHUNK_S / (row_s * max_batch_size)) if row_s else 1
    return max_batch_size * max(1, min(CHUNK_BATCHES, CHUNK_ROWS // max_batch_size, batches))


async def cut(pieces: AsyncIterator[list[bytes]], group: str, most_rows: int) -> AsyncIterator[Chunk]:
    """The chunks of a batch, as its rows come in; the first ones have ``most_rows`` at most."""
    number = first = size = 0
    rows: list[bytes] = []
    async for piece in pieces:
        length = sum(map(len, piece))
        if len(rows) + len(piece) <= most_rows and size + length <= CHUNK_BYTES:
            rows += piece
            size += length
            continue
        for row in piece:
            if rows and (len(rows) >= most_rows or size + len(row) > CHUNK_BYTES):
                yield Chunk(group, number, first, rows)
                number, first, size, rows = number + 1, first + len(rows), 0, []
                if number % DOUBLED_AFTER == 0:
                    most_rows *= 2
            rows.append(row)
            size += len(row)
    if rows:
        yield Chunk(group, number, first, rows)


async def at_once(rows: list[bytes]) -> AsyncIterator[list[bytes]]:
    """Rows that are here already, in one piece."""
    yield rows
