"""The job ledger: the truth about every job, in Redis.

``ledger.lua`` names every key and changes every state; this module only speaks to it. ``Ledger`` is the worker's side
(claim, complete, give up, leases); the API's (create, get, cancel, list) is ``AsyncLedger`` in ``ledger_async``. Every
call may be sent twice without harm, because redis-py repeats a call whose answer it lost.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Literal, TypeVar

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from worker.bulk import PartKind, Rerun, read_numbers, read_parts, split_lines
from worker.cache import digest_model
from worker.dispatch import WEBHOOKS, build_bell, build_message
from worker.errors import JobExpired, JobNotFound, JobNotRetryable, QueueFull, RateLimited
from worker.jobs import LARGE_FIELDS, RETRYABLE, ROW_FIELDS, Job, NewJob, Priority, Status
from worker.record import RERUN_FIELDS
from worker.scripts import Scripts
from worker.settings import Settings
from worker.store import make_client

#: Channel on which ended jobs are published: a JSON array of ids, and of arrays that ``End`` reads.
ENDED_CHANNEL = "jobs:ended"
#: The same, ids alone, of jobs and batches that somebody follows and that have news.
TOLD_CHANNEL = "jobs:told"
#: Set of the services that ever had a job or a worker.
SERVICES_KEY = "services"

#: Records that one page of ``GET /jobs`` looks at, at most.
LOOK_AT = 1000

T = TypeVar("T")
Priorities = {Priority.HIGH: -1, Priority.NORMAL: 0, Priority.LOW: 1}


def record_key(service: str, job_id: str) -> str:
    """The hash that holds a job."""
    return f"{{{service}}}:job:{job_id}"


def bulk_key(service: str, batch_id: str) -> str:
    """The hash that holds a batch."""
    return f"{{{service}}}:batch:{batch_id}"


def seen_key(service: str, job_id: str) -> str:
    """The string that says that the service had such a job, from its end on; a batch, from its beginning on."""
    return f"{{{service}}}:seen:{job_id}"


def promise_key(service: str, hashed: str) -> str:
    """The string that says which job belongs to an ``Idempotency-Key``."""
    return f"{{{service}}}:idempotency:{hashed}"


def hash_promise(key: str, owner: str = "") -> str:
    """An ``Idempotency-Key`` as it is stored; "" for none. Those of two API keys are never the same."""
    return hashlib.sha256((f"{owner} {key}" if owner else key).encode()).hexdigest() if key else ""


def head(operation: str, settings: Settings) -> list[Any]:
    """The arguments that every operation of ``ledger.lua`` begins with."""
    date = "" if settings.cluster else datetime.now(UTC).isoformat()
    if date and settings.celery_results == "all":
        date = f"all {date}"
    return [operation, round(settings.remember_for_s * 1e6), date]


def create_arguments(settings: Settings, jobs: Sequence[NewJob], errors: Sequence[bytes] | None = None) -> list[Any]:
    """``create``'s arguments. With ``errors``: jobs that came as messages, each with why it failed at once or b""."""
    arguments = head("create", settings)
    for i, job in enumerate(jobs):
        message = build_message(job.service, job.id) if errors is None else b""
        durations = (job.start_within_s, job.finish_within_s, job.keep_for_s)
        arguments += [job.id, job.version, job.priority.value]
        steps = Priorities[job.priority] if job.priority_steps is None else job.priority_steps
        arguments += [round(steps * settings.priority_step_s * 1e6)]
        arguments += [math.ceil(seconds * 1e6) for seconds in durations]  # 0 means none
        arguments += [job.metadata, job.input, message, errors[i] if errors else b""]
        arguments += [hash_promise(job.idempotency_key, job.owner), job.body_hash, job.webhook]
        arguments += [job.owner, "" if job.most_open is None else job.most_open, 1 if job.awaited else "", job.cache]
        arguments += [job.not_before_us]
    return arguments


def queue_full(service: str, retry_after_s: int) -> QueueFull:
    """The error for a queue that has no room."""
    limits = "its max_queue_size or max_queue_bytes"
    return QueueFull(f"the queue of {service} is full ({limits}); try again later", retry_after_s=retry_after_s)


def too_many_open(retry_after_s: int) -> RateLimited:
    """The error for an API key that has as many unfinished jobs as it may."""
    message = "the API key has as many queued and running jobs as its concurrency allows; try again as they end"
    return RateLimited(message, retry_after_s=retry_after_s)


def check_retried(job_id: str, service: str, reply: Any) -> None:
    """Raise what ``retry`` in ``jobs.lua`` says went wrong."""
    if isinstance(reply, list):
        full = reply[0] == b"full"
        raise queue_full(service, int(reply[1])) if full else too_many_open(int(reply[1]))
    if reply is None:
        raise JobExpired(f"job {job_id} was dropped in this moment: its keep_for_s is over")
    if Status(reply.decode()) not in RETRYABLE:
        only = "only a job that has failed, was cancelled or expired can be run again"
        raise JobNotRetryable(f"the status of job {job_id} is {reply.decode()}: {only}")


@dataclass(frozen=True, slots=True)
class Held:
    """A job that a worker has claimed."""

    id: str
    attempt: int
    input: bytes  #: JSON; of a chunk, one line a row
    first: int | None  #: of a chunk: the number of its first row


@dataclass(frozen=True, slots=True)
class Claim:
    """What came of asking for a batch."""

    kind: Literal["batch", "foreign", "hold", "fenced"]
    jobs: list[Held] = field(default_factory=list)  #: "batch": the jobs that are now this worker's
    more: bool = False  #: "batch": whether a whole further one waits
    messages: list[tuple[bytes, bytes]] = field(default_factory=list)  #: "foreign": others', each with its field
    hold_s: float = 0  #: "hold": how long the batch is held back for more

    @property
    def ids(self) -> list[str]:
        """The jobs' ids."""
        return [job.id for job in self.jobs]


@dataclass(frozen=True, slots=True)
class CancelledRun:
    """A job that was cancelled while it ran: in this batch, and in no other in which it may run again."""

    token: str
    job_id: str


class Stored(IntEnum):
    """What became of an end that a worker told."""

    DROPPED = 0  #: the job is no longer this batch's
    ENDED = 1
    RETRIED = 2  #: it is queued again


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that a job said in a run."""

    number: int  #: within the run, from 1
    name: Literal["progress", "log", "output"]
    data: bytes  #: JSON
    progress: float | None = None  #: of a "progress": how far the job is


@dataclass(frozen=True, slots=True)
class Ending:
    """How one job of a batch ended: its output or its error, as JSON."""

    id: str
    status: Status
    value: bytes
    timings: bytes
    batch_size: int
    failed_rows: bytes = b""  #: of a chunk that succeeded, by ``bulk.dump_failed``
    pause_s: float = 0  #: of a failed job: run it again after this, as long as it has attempts left; 0: final


class Ledger:
    """The ledger for a worker's processes and for Celery's result backend. Raises redis-py's own errors.

    Args:
        timeout_s: longest wait for an answer; the call is repeated ``retries`` times after that.
    """

    def __init__(self, settings: Settings, timeout_s: float = 5, retries: int = 3) -> None:
        self._settings = settings
        self.redis = make_client(
            settings.url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=1), retries),
            health_check_interval=15,
        )
        self._script = Scripts(self.redis)

    def claim(
        self, service: str, worker: str, token: str, knobs: dict[str, Any], version: str = "", model: str = ""
    ) -> Claim:
        """Claim up to ``max_batch_size`` jobs for ``worker`` under ``token``, or learn why there are none.

        ``model``: of ``cache.digest_model``; with another one than it was sent for, no result goes to the cache.
        """
        limits = [knobs["max_batch_size"], round(knobs["max_queue_delay_ms"] * 1000), knobs["max_attempts"]]
        preferred = ",".join(map(str, knobs["preferred_batch_sizes"]))
        kind, *rest = self._call(service, "claim", worker, token, *limits, version, preferred, model)
        match kind:
            case b"batch":
                return Claim("batch", [_held(*told) for told in _fours(rest[0])], more=bool(rest[1]))
            case b"foreign":
                return Claim("foreign", messages=list(zip(rest[0][0::2], rest[0][1::2], strict=True)))
            case b"hold":
                return Claim("hold", hold_s=float(rest[0]) / 1e6)
        return Claim("fenced")

    def adopt(self, service: str, jobs: Sequence[NewJob], errors: Sequence[bytes]) -> list[str]:
        """Store the jobs that came as other producers' messages; those with an error end with it at once.

        Gives for each "queued", "other" (the id is that of a job with another input) or "revoked".
        """
        self.redis.sadd(SERVICES_KEY, service)
        told: Any = self._script(keys=[service], args=create_arguments(self._settings, jobs, errors))
        return _decode(told[0:-1:3])

    def revoke(self, service: str, ids: Sequence[str], running: bool) -> list[str]:
        """Cancel jobs that wait, with ``running`` those that run too; one not known yet, as soon as it is adopted.

        Gives the status that each had; "" for an unknown one.
        """
        return _decode(self._call(service, "revoke", 1 if running else 0, *ids))

    def revoke_anywhere(self, job_id: str, running: bool) -> str:
        """The same for a known job of whichever service; the status that it had, "" for an unknown one."""
        service = self._find(job_id)
        return self.revoke(service, [job_id], running)[0] if service else ""

    def adopted(self, service: str, worker: str, fields: Sequence[bytes]) -> None:
        """Forget the messages that this worker's claim took, by their fields: their jobs are stored."""
        self._call(service, "adopted", worker, *fields)

    def ring(self, service: str) -> None:
        """Wake a worker that waits for a message."""
        self.redis.lpush(service, build_bell())

    def wait(self, service: str, timeout_s: float) -> None:
        """Block until a message is in the service's queue, at most so long. Takes nothing out.

        Moving the last message of a list to its end changes nothing, and blocks where there is none.
        """
        self.redis.execute_command("BLMOVE", service, service, "RIGHT", "RIGHT", timeout_s)

    def rerun(self, service: str, job_id: str) -> Rerun:
        """What is known of a chunk that has been run before."""
        found: Any = self.redis.hmget(record_key(service, job_id), *RERUN_FIELDS)
        partial, why, rows, output, so_far, out, *numbers = found
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

    def read_part(self, service: str, job_id: str, field: str) -> list[bytes]:
        """The lines of a part of a chunk's results."""
        return split_lines(self.redis.hget(record_key(service, job_id), field))  # type: ignore[arg-type]

    def put_part(
        self, service: str, token: str, job_id: str, kind: PartKind, number: int, lines: Sequence[bytes]
    ) -> bool:
        """Store the next part of a chunk's results, numbered from 1; False where it is no longer this token's."""
        return bool(self._call(service, "part", token, job_id, kind, number, b"\n".join(lines)))

    def progress(self, service: str, token: str, job_id: str, results: Sequence[bytes], parts: int = 0) -> bool:
        """Keep what a chunk that is run row by row has come to; False where it is no longer this token's.

        ``results`` are those that follow so many ``parts``.
        """
        return bool(self._call(service, "progress", token, job_id, b"\n".join(results), parts))

    def pause(self, service: str, token: str, job_id: str, results: Sequence[bytes], done: int, parts: int = 0) -> bool:
        """Let what is to be run before the rest of a chunk, if there is anything, be run; False: go on with it.

        ``results`` are those that follow so many ``parts``; ``done`` of all came of this run. True also where it is no
        longer this token's.
        """
        return bool(self._call(service, "pause", token, job_id, b"\n".join(results), parts, done))

    def say(self, service: str, token: str, most: int, said: Mapping[str, Sequence[Said]]) -> None:
        """Keep what jobs of a running batch said, by their ids; the last ``most`` of each, and every partial output."""
        flat: list[Any] = []
        for job_id, events in said.items():
            flat += [job_id, len(events)]
            for event in events:
                progress = "" if event.progress is None else repr(event.progress)
                flat += [event.number, event.name, event.data, progress]
        self._call(service, "say", token, most, *flat)

    def complete(
        self, service: str, token: str, endings: Sequence[Ending], earlier: int = 0, parts: PartKind | Literal[""] = ""
    ) -> list[Stored]:
        """Write how jobs of a batch ended; what became of each.

        Args:
            earlier: how many jobs of the batch were told before; -1: there are further ones to tell.
            parts: of a chunk: which parts of its results stand before the output.
        """
        flat: list[Any] = [earlier, parts]
        for end in endings:
            pause_us = round(end.pause_s * 1e6)
            flat += [end.id, end.status.value, end.value, end.timings, end.batch_size, pause_us, end.failed_rows]
        return [Stored(stored) for stored in self._call(service, "complete", token, *flat)]

    def answers(self) -> bool:
        """Whether Redis answers, over another connection than one that was just cut."""
        try:
            return bool(self.redis.ping())
        except redis.RedisError:
            return False

    def postpone(self, service: str, token: str, ids: Sequence[str], pause_s: float) -> None:
        """Queue jobs of a batch that have not begun again, after a pause, uncharged."""
        self._call(service, "postpone", token, round(pause_s * 1e6), *ids)

    def give_up(
        self, service: str, worker: str, token: str, reason: str, pause_s: float = 0, process: str = ""
    ) -> dict[str, str]:
        """End a batch whose run came to nothing: "lost", "memory", "timed_out" or "handed_back".

        Args:
            pause_s: before a job that was lost, or (where it is not 0) timed out, is tried again.
            process: the pool process that is gone: what else it had claimed goes back too, uncharged.

        Returns:
            The jobs by their ids, each with why it has failed, "" where it runs again.
        """
        told = _decode(self._call(service, "give_up", worker, process, token, reason, round(pause_s * 1e6)))
        return dict(zip(told[0::2], told[1::2], strict=True))

    def join(self, service: str, worker: str, info: dict[str, Any]) -> None:
        """Enter a new worker, with its lease."""
        self.redis.sadd(SERVICES_KEY, service)
        self._call(service, "join", worker, self._lease_us, json.dumps(info))

    def tell(self, service: str, version: str, knobs: dict[str, Any]) -> None:
        """Tell what is known of a service once its model is loaded; forgets an earlier failure."""
        limits = (knobs["max_queue_size"], knobs["max_queue_bytes"])
        cache = (round(knobs["cache_for_s"] * 1e6), digest_model(version, knobs))
        self._call(service, "tell", version, json.dumps(knobs), *limits, *cache)

    def fail(self, service: str, failure: dict[str, Any]) -> None:
        """Tell why a plugin cannot be loaded."""
        self.redis.sadd(SERVICES_KEY, service)
        self._call(service, "fail", json.dumps(failure))

    def renew(self, service: str, worker: str, info: dict[str, Any]) -> tuple[bool, list[CancelledRun]]:
        """Renew a worker's lease: whether it was still held, and its runs that were cancelled since."""
        held, cancelled = self._call(service, "renew", worker, self._lease_us, json.dumps(info))
        return bool(held), [CancelledRun(*text.split(" ", 1)) for text in _decode(cancelled)]

    def extend(self, service: str, worker: str) -> bool:
        """Renew the lease from a pool process; False where it has lapsed and what runs is others' now."""
        return bool(self._call(service, "extend", worker, self._lease_us))

    def leave(self, service: str, worker: str) -> list[str]:
        """Take a worker out; what it had not finished goes back at once, uncharged."""
        return _decode(self._call(service, "leave", worker))

    def sweep(self, service: str) -> list[str]:
        """End what is late, queue what was delayed, recover dead workers' jobs; gives those."""
        return _decode(self._call(service, "sweep", self._lease_us))

    def cancel_in(self, service: str, job_id: str) -> None:
        """Cancel a job of this service; nothing happens to one that has ended."""
        self._call(service, "cancel", job_id)

    def cancel(self, job_id: str) -> None:
        """Cancel a job that has not ended; nothing happens to one that has."""
        service = self._find(job_id)
        if service:
            self._call(service, "cancel", job_id)

    def retry(self, job_id: str) -> None:
        """Run a failed, cancelled or expired job again. Raises as ``AsyncLedger.retry`` does."""
        service = self._find(job_id)
        if not service:
            raise JobNotFound(f"no job has the id {job_id[:100]!r}")
        check_retried(job_id, service, self._call(service, "retry", job_id, ""))

    def failed(self, service: str) -> Iterator[str]:
        """The ids of all failed jobs of a service, newest first."""
        bound, last_id = "+inf", ""
        while bound:
            arguments = (Status.FAILED.value, bound, last_id, LOOK_AT, LOOK_AT, "")
            us, last, ids = self._call(service, "list", *arguments)
            bound, last_id = us.decode(), last.decode()
            yield from _decode(ids)

    def get(self, job_id: str) -> Job | None:
        """One job without its input; None for one that is unknown or dropped."""
        service = self._find(job_id)
        if not service:
            return None
        fields = (*ROW_FIELDS, LARGE_FIELDS["output"])
        found: Any = self.redis.hmget(record_key(service, job_id), fields)
        record = {name.encode(): value for name, value in zip(fields, found, strict=True) if value is not None}
        return Job.from_record(job_id, record) if record else None

    def get_input(self, job: Job) -> bytes:
        """A job's input, as JSON."""
        found: Any = self.redis.hget(record_key(job.service, job.id), LARGE_FIELDS["input"])
        return found or b"null"

    def _find(self, job_id: str) -> str:
        """The service of a client's job; "" for an unknown one. A worker's Redis user sees its services' keys alone.

        Deliveries of webhooks are no client's.
        """
        services = sorted({name.decode() for name in self.redis.smembers(SERVICES_KEY)} - {WEBHOOKS})
        pipe = self.redis.pipeline(transaction=False)
        for service in services:
            pipe.exists(record_key(service, job_id), seen_key(service, job_id))
        for service, found in zip(services, pipe.execute(raise_on_error=False), strict=True):
            if isinstance(found, redis.exceptions.NoPermissionError):
                continue
            if isinstance(found, Exception):
                raise found
            if found:
                return service
        return ""

    @property
    def _lease_us(self) -> int:
        return round(self._settings.lease_s * 1e6)

    def _call(self, service: str, operation: str, *arguments: Any) -> Any:
        return self._script(keys=[service], args=[*head(operation, self._settings), *arguments])


def _fours(flat: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    return zip(flat[0::4], flat[1::4], flat[2::4], flat[3::4], strict=True)


def _held(job_id: bytes, attempt: bytes, input: bytes, first: bytes) -> Held:
    return Held(job_id.decode(), int(attempt), input, int(first) if first else None)


def _decode(ids: Sequence[bytes]) -> list[str]:
    return [job_id.decode() for job_id in ids]
