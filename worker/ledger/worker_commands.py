"""Commands of workers: to claim and complete batches, under a lease, and to report on their service."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from worker.ledger.batches import PartKind, Rerun, read_numbers, read_parts, split_lines
from worker.ledger.commands import Command, Fetch, nothing, read_texts
from worker.ledger.equal_jobs import digest_model
from worker.ledger.jobs import Status
from worker.ledger.keys import record_key
from worker.ledger.record import RERUN_FIELDS
from worker.progress import JobEvent


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that a worker has claimed."""

    id: str
    attempt: int
    input: bytes  #: JSON; of a chunk, one line for each row
    first: int | None  #: of a chunk: the number of its first row


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of ``claim``."""

    kind: Literal["batch", "foreign", "hold", "fenced"]
    jobs: list[ClaimedJob] = field(default_factory=list)  #: "batch": the jobs that are now this worker's
    more: bool = False  #: "batch": whether a whole further one waits
    messages: list[tuple[bytes, bytes]] = field(default_factory=list)  #: "foreign": others', each with its field
    hold_s: float = 0  #: "hold": seconds for which the batch waits for more jobs

    @property
    def ids(self) -> list[str]:
        """The jobs' ids."""
        return [job.id for job in self.jobs]


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs of one service that a pool process has claimed under one token."""

    service: str
    worker: str  #: the id under which it was claimed
    token: str
    jobs: list[ClaimedJob]
    more: bool  #: whether a whole further batch waited (of chunks: one that is quick)
    number: int  #: of its token, counted from 0
    claimed: float  #: when, by ``time.monotonic``
    waited_s: float = 0  #: seconds from its claim to its run, where it was claimed ahead

    @property
    def ids(self) -> list[str]:
        """The jobs' ids."""
        return [job.id for job in self.jobs]

    @property
    def chunk_rows(self) -> int:
        """Rows of the chunk that this batch is; 0 for a batch of jobs."""
        return self.jobs[0].input.count(b"\n") + 1 if self.jobs[0].first is not None else 0


@dataclass(frozen=True, slots=True)
class CancelledRun:
    """A job that was cancelled while it ran: in the batch of this token, and in no other in which it may run again."""

    token: str
    job_id: str


class Stored(IntEnum):
    """The effect of an end that a worker reported."""

    DROPPED = 0  #: none: the job is no longer this batch's
    ENDED = 1
    RETRIED = 2  #: it is queued again


@dataclass(frozen=True, slots=True)
class Ending:
    """How one job of a batch ended: its output or its error, as JSON."""

    id: str
    status: Status
    value: bytes
    timings: bytes
    batch_size: int
    failed_rows: bytes = b""  #: of a chunk that succeeded, by ``batches.dump_failed``
    pause_s: float = 0  #: of a failed job: run it again after this, as long as it has attempts left; 0: final


def claim(
    service: str, worker: str, token: str, knobs: Mapping[str, Any], version: str = "", model: str = ""
) -> Command[Claim]:
    """Claim up to ``max_batch_size`` jobs for ``worker`` under ``token``, or learn why there are none.

    Args:
        model: by ``equal_jobs.digest_model``; with another one than a job was sent for, no result goes to the cache.
    """
    limits = [knobs["max_batch_size"], round(knobs["max_queue_delay_ms"] * 1000), knobs["max_attempts"]]
    preferred = ",".join(map(str, knobs["preferred_batch_sizes"]))
    return Command(service, "claim", [worker, token, *limits, version, preferred, model], _read_claim)


def adopted(service: str, worker: str, fields: Sequence[bytes]) -> Command[None]:
    """Forget the messages that this worker's claim took, by their fields: their jobs are stored."""
    return Command(service, "adopted", [worker, *fields], nothing)


def put_part(
    service: str, token: str, job_id: str, kind: PartKind, number: int, lines: Sequence[bytes]
) -> Command[bool]:
    """Store the next part of a chunk's results, numbered from 1; False where it is no longer this token's."""
    return Command(service, "part", [token, job_id, kind, number, b"\n".join(lines)], bool)


def progress(service: str, token: str, job_id: str, results: Sequence[bytes], parts: int = 0) -> Command[bool]:
    """Store the results so far of a chunk that runs row by row; False where it is no longer this token's.

    ``results`` are those that follow this number of ``parts``.
    """
    return Command(service, "progress", [token, job_id, b"\n".join(results), parts], bool)


def pause(service: str, token: str, job_id: str, results: Sequence[bytes], done: int, parts: int = 0) -> Command[bool]:
    """Queue the rest of a chunk again if a job waits that is to run first; False: the run continues.

    ``results`` are those that follow this number of ``parts``; ``done`` is the number of all that came of this run.
    True also where the chunk is no longer this token's.
    """
    return Command(service, "pause", [token, job_id, b"\n".join(results), parts, done], bool)


def store_events(service: str, token: str, most: int, events_by_job: Mapping[str, Sequence[JobEvent]]) -> Command[None]:
    """Store events of jobs of a running batch, by their ids: the last ``most`` of each, and every partial output."""
    flat: list[Any] = []
    for job_id, events in events_by_job.items():
        flat += [job_id, len(events)]
        for event in events:
            share = "" if event.progress is None else repr(event.progress)
            flat += [event.number, event.name, event.data, share]
    return Command(service, "say", [token, most, *flat], nothing)


def complete(
    service: str, token: str, endings: Sequence[Ending], earlier: int = 0, parts: PartKind | Literal[""] = ""
) -> Command[list[Stored]]:
    """Write how jobs of a batch ended; the effect for each.

    Args:
        earlier: how many jobs of the batch were completed before; -1: further calls for this batch follow.
        parts: of a chunk: which parts of its results stand before the output.
    """
    flat: list[Any] = [token, earlier, parts]
    for end in endings:
        pause_us = round(end.pause_s * 1e6)
        flat += [end.id, end.status.value, end.value, end.timings, end.batch_size, pause_us, end.failed_rows]
    return Command(service, "complete", flat, lambda reply: [Stored(stored) for stored in reply])


def postpone(service: str, token: str, ids: Sequence[str], pause_s: float) -> Command[None]:
    """Queue jobs of a batch that have not begun again, after a pause, uncharged."""
    return Command(service, "postpone", [token, round(pause_s * 1e6), *ids], nothing)


def give_up(
    service: str, worker: str, token: str, reason: str, pause_s: float = 0, process: str = ""
) -> Command[dict[str, str]]:
    """End a batch whose run has no result: "lost", "memory", "timed_out" or "handed_back".

    Args:
        pause_s: before a job that was lost, or (where it is not 0) timed out, is tried again.
        process: the pool process that is gone: its other claimed jobs go back too, uncharged.

    The result has the jobs by their ids, each with the reason of its failure, "" where it runs again.
    """

    def read(reply: Any) -> dict[str, str]:
        texts = read_texts(reply)
        return dict(zip(texts[0::2], texts[1::2], strict=True))

    return Command(service, "give_up", [worker, process, token, reason, round(pause_s * 1e6)], read)


def join(service: str, worker: str, lease_s: float, info: Mapping[str, Any]) -> Command[None]:
    """Enter a new worker, with its lease."""
    return Command(service, "join", [worker, round(lease_s * 1e6), json.dumps(info)], nothing)


def renew(
    service: str, worker: str, lease_s: float, info: Mapping[str, Any]
) -> Command[tuple[bool, list[CancelledRun]]]:
    """Renew a worker's lease: whether it was still valid, and its runs that were cancelled since."""

    def read(reply: Any) -> tuple[bool, list[CancelledRun]]:
        valid, cancelled = reply
        return bool(valid), [CancelledRun(*text.split(" ", 1)) for text in read_texts(cancelled)]

    return Command(service, "renew", [worker, round(lease_s * 1e6), json.dumps(info)], read)


def extend(service: str, worker: str, lease_s: float) -> Command[bool]:
    """Renew the lease from a pool process; False where it has lapsed and others run its jobs."""
    return Command(service, "extend", [worker, round(lease_s * 1e6)], bool)


def leave(service: str, worker: str) -> Command[list[str]]:
    """Take a worker out; its unfinished jobs go back at once, uncharged."""
    return Command(service, "leave", [worker], read_texts)


def tell(service: str, version: str, knobs: Mapping[str, Any]) -> Command[None]:
    """Report version and knobs of a service whose model is loaded; forgets an earlier failure."""
    limits = (knobs["max_queue_size"], knobs["max_queue_bytes"])
    cache = (round(knobs["cache_for_s"] * 1e6), digest_model(version, knobs))
    return Command(service, "tell", [version, json.dumps(knobs), *limits, *cache], nothing)


def fail(service: str, failure: Mapping[str, Any]) -> Command[None]:
    """Report why a plugin cannot be loaded."""
    return Command(service, "fail", [json.dumps(failure)], nothing)


def fetch_rerun(service: str, job_id: str) -> Fetch[Rerun]:
    """The results of a chunk's earlier runs."""

    def read(replies: list[Any]) -> Rerun:
        partial, why, rows, output, so_far, out, *numbers = replies[0]
        attempt, base, most, retried = (int(float(number or 0)) for number in numbers)
        return Rerun(
            results=split_lines(partial),
            reason=(why or b"").decode(),
            skip=attempt - base >= most,
            careful=attempt > retried + 1,
            numbers=read_numbers(rows or b""),
            settled=split_lines(output),
            parts=read_parts(so_far),
            settled_parts=read_parts(out),
        )

    return Fetch(lambda pipe: pipe.hmget(record_key(service, job_id), *RERUN_FIELDS), read)


def fetch_part(service: str, job_id: str, part: str) -> Fetch[list[bytes]]:
    """The lines of a part of a chunk's results."""
    return Fetch(lambda pipe: pipe.hget(record_key(service, job_id), part), lambda replies: split_lines(replies[0]))


def _read_claim(reply: Any) -> Claim:
    kind, *rest = reply
    match kind:
        case b"batch":
            fours = zip(*(rest[0][i::4] for i in range(4)), strict=True)
            return Claim("batch", [_claimed(*each) for each in fours], more=bool(rest[1]))
        case b"foreign":
            return Claim("foreign", messages=list(zip(rest[0][0::2], rest[0][1::2], strict=True)))
        case b"hold":
            return Claim("hold", hold_s=float(rest[0]) / 1e6)
    return Claim("fenced")


def _claimed(job_id: bytes, attempt: bytes, input: bytes, first: bytes) -> ClaimedJob:
    return ClaimedJob(job_id.decode(), int(attempt), input, int(first) if first else None)
