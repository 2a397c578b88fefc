"""Jobs: their fields, their states, and the one table of transitions.

A job is an immutable record: only the ledger's Lua (``ledger/lua``) changes the stored record, by this table, and
``Job.from_record`` reads it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote

from pydantic_core import from_json, to_json

from worker.ledger.record import fields_of


class Status(StrEnum):
    """The states of a job."""

    QUEUED = "queued"  #: stored, waits for a worker
    RUNNING = "running"  #: claimed by a worker under its lease
    SUCCEEDED = "succeeded"  #: ended with an output
    FAILED = "failed"  #: ended with an error
    CANCELLED = "cancelled"  #: ended by DELETE
    EXPIRED = "expired"  #: ended because it did not start within start_within_s


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})
RETRYABLE = frozenset({Status.FAILED, Status.CANCELLED, Status.EXPIRED})

#: The one table of transitions. ``lib/transitions.lua`` has the same, and a test tries every edge that is not here.
#: ``RUNNING -> QUEUED`` happens only when a worker was lost, handed back, is run again alone or is retried; a terminal
#: status is left by ``POST /jobs/<id>/retry`` alone.
TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.CANCELLED, Status.EXPIRED, Status.FAILED}),
    Status.RUNNING: frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.QUEUED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset({Status.QUEUED}),
    Status.CANCELLED: frozenset({Status.QUEUED}),
    Status.EXPIRED: frozenset({Status.QUEUED}),
}


class Priority(StrEnum):
    """How urgent a job is."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class NewJob:
    """A validated job that is about to be stored.

    ``input`` and ``metadata`` are JSON texts; durations are in seconds; 0 means "no limit".
    """

    service: str
    input: bytes
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    version: str = ""
    priority: Priority = Priority.NORMAL
    start_within_s: float = 0
    finish_within_s: float = 0
    keep_for_s: float = 86_400
    metadata: bytes = b"{}"
    idempotency_key: str = ""  #: the client's; "" for none
    body_hash: str = ""  #: of the whole request; distinguishes a repeated key (or own id) from a misused one
    webhook: bytes = b""  #: JSON by ``webhooks.dump_webhook``; b"" for none
    owner: str = ""  #: id of the API key that it was sent with; "" for none
    most_open: int | None = None  #: queued and running jobs that this key may have; None: any number
    awaited: bool = False  #: its client waits for its end, which is then published in full
    cache: str = ""  #: the wish to share results, by ``equal_jobs.ask``; "" for none
    priority_steps: float | None = None  #: its place between two priorities: -1 high, 0 normal, 1 low; None: its own
    not_before_us: int = 0  #: microseconds since the epoch by Redis's clock; it does not run earlier; 0: at once

    def plain_fields(self) -> dict[str, bytes]:
        """The fields of the record that are stored as they stand, without those that have their default."""
        fields = {"metadata": self.metadata if self.metadata != b"{}" else b"", "webhook": self.webhook}
        return {name: value for name, value in fields.items() if value}


class End(NamedTuple):
    """The end of a job, as it is published to clients that wait for it."""

    version: str
    attempt: int
    started_us: int
    finished_us: int
    expires_us: int
    status: Status
    output: bytes | None  #: JSON text
    error: bytes | None  #: JSON text
    timings: bytes  #: JSON text
    batch_size: int

    @classmethod
    def from_reply(cls, reply: Sequence[str]) -> End:
        """Read an entry of the channel ``jobs:ended``, as ``write_end`` in ``lib/ends.lua`` makes it, after the id."""
        version, attempt, started, finished, expires, name, text, timings, size = reply
        status, value = Status(name), text.encode()
        times = (int(started), int(finished), int(expires))
        output, error = (value, None) if status == Status.SUCCEEDED else (None, value)
        return cls(version, int(attempt), *times, status, output, error, timings.encode(), int(size))


#: Fields of a job's record that may be large, by which ``include=`` asks for each.
LARGE_FIELDS = {"input": "input", "output": "output", "attempts": "history"}

#: The others that ``Job.from_record`` reads, and "cache", by which the place of a queued job is found.
ROW_FIELDS = (*(name for name in fields_of("Job") if name not in LARGE_FIELDS.values()), "cache")


class Job(NamedTuple):
    """One job as the ledger holds it. Times are microseconds since the epoch by Redis's clock; 0: not yet.

    A tuple by name, which is made four times as fast as a frozen dataclass with this number of fields.
    """

    id: str
    service: str
    status: Status
    version: str
    priority: Priority
    attempt: int
    batch_size: int | None
    created_us: int
    started_us: int  #: when it was claimed
    finished_us: int
    expires_us: int
    output: bytes | None  #: JSON text
    error: bytes | None  #: JSON text
    timings: bytes | None  #: JSON text: the stages' milliseconds, by name
    metadata: bytes  #: JSON text
    input: bytes = b"null"  #: JSON text
    history: tuple[bytes, ...] = ()  #: attempts that did not succeed, oldest first: JSON texts by ``lib/history.lua``
    worker: str = ""  #: id of the worker that runs or ran it last
    batch: str = ""  #: token of the batch in which it runs or ran last; the worker's log lines bear it
    progress: float | None = None  #: from 0 to 1, as the plugin reported it last
    owner: str = ""  #: id of the API key that it belongs to; "" for none
    position: int | None = None  #: jobs of the service that stand before it; None unless it is queued
    estimated_start_us: int = 0  #: about when it will start; 0: unknown, or it has begun
    webhook: bytes = b""  #: JSON by ``webhooks.dump_webhook``; b"" for none
    cached_from: str = ""  #: id of the job whose output this is, which then did not run; "" for its own
    not_before_us: int = 0  #: it does not run earlier; 0: no such time was asked for
    group: str = ""  #: id of the batch whose chunk this is; "" for a job

    @property
    def ended(self) -> bool:
        """Whether the status is terminal."""
        return self.status in TERMINAL

    @property
    def begun_us(self) -> int:
        """When its run began: where its batch was claimed ahead, some milliseconds after ``started_us``."""
        return self.started_us + round(self._stages.get("waited_ms", 0) * 1000)

    @property
    def _stages(self) -> dict[str, float]:
        return from_json(self.timings) if self.timings else {}

    @classmethod
    def from_record(
        cls, id: str, record: dict[bytes, bytes], position: int | None = None, estimated_start_us: int = 0
    ) -> Job:
        """Read the ledger's hash (``{service}:job:<id>``)."""
        is_queued = record[b"status"] == b"queued"
        return cls(
            id=id,
            service=record[b"service"].decode(),
            status=Status(record[b"status"].decode()),
            version=record.get(b"version", b"").decode(),
            priority=Priority(record[b"priority"].decode()),
            attempt=int(record[b"attempt"]),
            batch_size=int(record[b"batch_size"]) if b"batch_size" in record else None,
            created_us=int(record[b"created"]),
            started_us=int(record.get(b"started", 0)),
            finished_us=int(record.get(b"finished", 0)),
            expires_us=int(record.get(b"expires", 0)),
            output=record.get(b"output"),
            error=record.get(b"error"),
            timings=record.get(b"timings"),
            metadata=record.get(b"metadata", b"{}"),
            input=record.get(b"input", b"null"),
            history=tuple(record[b"history"].split(b"\n")) if b"history" in record else (),
            worker=record.get(b"worker", b"").decode(),
            batch=record.get(b"token", b"").decode(),
            progress=float(record[b"progress"]) if b"progress" in record else None,
            owner=record.get(b"owner", b"").decode(),
            position=position if is_queued else None,
            estimated_start_us=estimated_start_us if is_queued else 0,
            webhook=record.get(b"webhook", b""),
            cached_from=record.get(b"cached_from", b"").decode(),
            not_before_us=int(record.get(b"not_before", 0)),
            group=record.get(b"group", b"").decode(),
        )

    def to_json(self, include: frozenset[str] = frozenset(), is_row: bool = False) -> bytes:
        """The job as ``docs/http.md`` shows it; with ``include`` also its "input" and its "attempts".

        The output, error, metadata and input are JSON texts already and are put in as they stand, not parsed again.

        Args:
            is_row: whether it is a row of a list, which has its "output" only where ``include`` names it.
        """
        parts: dict[str, bytes] = {"error": self.error or b"null", "metadata": self.metadata}
        if not is_row or "output" in include:
            parts = {"output": self.output or b"null", **parts}
        known = {
            "id": self.id,
            "service": self.service,
            "version": self.version,
            "status": self.status,
            "attempt": self.attempt,
            "progress": self.progress,
            "position": self.position,
            "estimated_start_at": rfc3339(self.estimated_start_us),
            "not_before": rfc3339(self.not_before_us),
            "created_at": rfc3339(self.created_us),
            "started_at": rfc3339(self.begun_us),
            "finished_at": rfc3339(self.finished_us),
            "expires_at": rfc3339(self.expires_us),
            "timings": self._timings(),
            "batch_size": self.batch_size,
            "priority": self.priority,
            "links": self._links(),
        }
        if self.cached_from:
            known["cached_from"] = self.cached_from
        if "input" in include:
            parts["input"] = self.input
        if "attempts" in include:
            known["attempts"] = self._attempts()
        texts = b"".join(b',"%b":%b' % (name.encode(), value) for name, value in parts.items())
        return to_json(known)[:-1] + texts + b"}"

    def _links(self) -> dict[str, str]:
        own = f"/jobs/{quote(self.id, safe='')}"  # another Celery producer's id may be any text
        links = {"self": own, "events": f"{own}/events"}
        return {**links, "deliveries": f"{own}/deliveries"} if self.webhook else links

    def as_it_was(self, status: Status, attempt: int, started_us: int) -> Job:
        """The job before its end, or in an earlier run: without the fields that only the end has set."""
        earlier = self._replace(status=status, attempt=attempt, started_us=started_us, finished_us=0, expires_us=0)
        if status == Status.QUEUED:
            earlier = earlier._replace(batch_size=None)
        earlier = earlier._replace(position=None, estimated_start_us=0, cached_from="")
        return earlier._replace(output=None, error=None, timings=None, progress=None)

    def as_it_ended(self, end: End) -> Job:
        """The job after its end, of which no more was said than ``end``."""
        return self._replace(position=None, estimated_start_us=0, **end._asdict())

    def _attempts(self) -> list[dict[str, Any]]:
        """Every attempt, oldest first: those of the history, and the one that runs or has succeeded."""
        attempts = [json.loads(line) for line in self.history]
        if self.status in (Status.RUNNING, Status.SUCCEEDED) and not self.cached_from:
            last: dict[str, Any] = {"attempt": self.attempt, "outcome": self.status, "charged": True, "error": None}
            last |= {"started_us": self.started_us, "ended_us": self.finished_us, "version": self.version}
            attempts.append({**last, "worker": self.worker, "batch": self.batch, "batch_size": self.batch_size})
        for attempt in attempts:
            attempt["started_at"] = rfc3339(attempt.pop("started_us"))
            attempt["ended_at"] = rfc3339(attempt.pop("ended_us"))
        return attempts

    def _timings(self) -> dict[str, float | None]:
        stages = self._stages
        since_us = max(self.created_us, self.not_before_us)  # it does not wait in the queue before
        return {
            "queued_ms": _ms_between(since_us, self.begun_us),
            "preprocess_ms": stages.get("preprocess_ms"),
            "predict_ms": stages.get("predict_ms"),
            "postprocess_ms": stages.get("postprocess_ms"),
            "total_ms": _ms_between(since_us, self.finished_us),
        }


def rfc3339(us: int) -> str | None:
    """Microseconds since the epoch as an RFC 3339 time in UTC; None for 0."""
    if not us:
        return None
    seconds, rest = divmod(us, 1_000_000)
    return f"{_second(seconds)}.{rest:06d}Z"


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _ms_between(start_us: int, end_us: int) -> float | None:
    return round(max(0, end_us - start_us) / 1000, 3) if start_us and end_us else None
