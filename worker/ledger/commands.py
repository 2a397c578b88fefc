"""The ledger's commands: the arguments of each operation in ``lua/``, and how its reply is read. Nothing here does I/O.

``Ledger.run`` (blocking, ``sync_ledger``) and ``AsyncLedger.run`` (asyncio, ``async_ledger``) send a command. Every
command may be sent twice without harm, because redis-py repeats a call whose answer it lost. This module has the
commands that clients cause; those of workers are in ``worker_commands``, those of batches in ``batch_commands``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, TypeVar

from worker.errors import (
    IdempotencyConflict,
    JobExpired,
    JobFinished,
    JobNotFound,
    JobNotRetryable,
    QueueFull,
    RateLimited,
)
from worker.ledger.forecast import Forecast
from worker.ledger.jobs import LARGE_FIELDS, RETRYABLE, ROW_FIELDS, TERMINAL, Job, NewJob, Priority, Status
from worker.ledger.keys import hash_promise, record_key
from worker.ledger.messages import build_message
from worker.ledger.overview import Overview
from worker.settings import Settings

T_co = TypeVar("T_co", covariant=True)

#: Records that one page of ``GET /jobs`` looks at, at most.
LOOK_AT = 1000
#: Steps of ``priority_step_s`` by which a job of this priority comes later.
PRIORITY_STEPS = {Priority.HIGH: -1, Priority.NORMAL: 0, Priority.LOW: 1}


@dataclass(frozen=True, slots=True)
class Command(Generic[T_co]):
    """One operation of ``lua/`` on one service."""

    service: str
    operation: str
    arguments: Sequence[Any]
    read: Callable[[Any], T_co]  #: makes the result of Redis's reply, or raises the error that the reply names

    def to_arguments(self, settings: Settings) -> list[Any]:
        """The arguments as the script takes them: operation, how long ids are remembered (microseconds), date."""
        date = "" if settings.cluster else datetime.now(UTC).isoformat()
        if date and settings.celery_results == "all":
            date = f"all {date}"
        return [self.operation, round(settings.remember_for_s * 1e6), date, *self.arguments]


@dataclass(frozen=True, slots=True)
class Repeated:
    """A request that was sent before: its idempotency key and body belong to this job."""

    job_id: str


#: The result of ``create`` for one job.
Outcome = Job | Repeated | QueueFull | RateLimited | IdempotencyConflict | JobExpired


class Created(NamedTuple):
    """The reply of ``create``; the first three have an element for each job."""

    states: Sequence[bytes]
    details: Sequence[bytes]  #: by state: time of creation, seconds to wait, or the id of the earlier job
    positions: Sequence[int]  #: place in the queue; below 0: none
    cached_for: bytes  #: microseconds for which the service keeps results for equal jobs; b"" or b"0": not at all

    def outcome(self, i: int, job: NewJob, forecast: Forecast | None) -> Outcome:
        """How the job of this index was stored, or the error for which it was not."""
        state, detail = self.states[i], self.details[i]
        match state:
            case b"full":
                return queue_full(job.service, int(detail))
            case b"limited":
                return too_many_open(int(detail))
            case b"same":
                return Repeated(detail.decode())
            case b"conflict":
                return conflict(detail.decode())
            case b"gone":
                return dropped(job.id)
        return _as_created(job, int(detail), int(self.positions[i]), forecast)


def create(settings: Settings, jobs: Sequence[NewJob], errors: Sequence[bytes] | None = None) -> Command[Created]:
    """Store jobs of one service and their messages, in one step.

    Args:
        errors: for jobs that came as messages: for each the error with which it ends at once, or b"".
    """
    arguments: list[Any] = []
    for i, job in enumerate(jobs):
        message = build_message(job.service, job.id) if errors is None else b""
        durations = (job.start_within_s, job.finish_within_s, job.keep_for_s)
        arguments += [job.id, job.version, job.priority.value]
        steps = PRIORITY_STEPS[job.priority] if job.priority_steps is None else job.priority_steps
        arguments += [round(steps * settings.priority_step_s * 1e6)]
        arguments += [math.ceil(seconds * 1e6) for seconds in durations]  # 0 means none
        arguments += [_pack(job.plain_fields()), job.input, message, errors[i] if errors else b""]
        arguments += [hash_promise(job.idempotency_key, job.owner), job.body_hash]
        arguments += [job.owner, "" if job.most_open is None else job.most_open, 1 if job.awaited else "", job.cache]
        arguments += [job.not_before_us]
    return Command(jobs[0].service, "create", arguments, _read_created)


def _pack(fields: Mapping[str, bytes]) -> bytes:
    """Names and values as one MessagePack array of texts, which Redis's Lua can read; b"" for none."""
    texts = [text for name, value in fields.items() for text in (name.encode(), value)]
    packed = b"".join(b"\xdb%b%b" % (len(text).to_bytes(4, "big"), text) for text in texts)
    return b"\xdc%b%b" % (len(texts).to_bytes(2, "big"), packed) if texts else b""


def cancel(service: str, job_id: str, but_running: bool = False) -> Command[bytes | None]:
    """Cancel a job; its status before, None for an unknown one. With ``but_running``, a running one is left alone."""
    return Command(service, "cancel", [job_id, int(but_running)], as_it_is)


def check_cancelled(job_id: str, before: bytes | None) -> None:
    """Raise ``JobFinished`` unless the job could be cancelled; ``before``: the result of ``cancel``."""
    if before is None or Status(before.decode()) in TERMINAL:
        raise JobFinished(f"job {job_id} has already ended as {(before or b'expired').decode()}")


def retry(service: str, job_id: str, room: int | str = "") -> Command[None]:
    """Queue a failed, cancelled or expired job again.

    Args:
        room: jobs that the API key may still have open in this service; "": any number.

    Raises ``JobExpired``, ``JobNotRetryable``, ``QueueFull`` or ``RateLimited``.
    """

    def read(reply: Any) -> None:
        if isinstance(reply, list):
            raise queue_full(service, int(reply[1])) if reply[0] == b"full" else too_many_open(int(reply[1]))
        if reply is None:
            raise JobExpired(f"job {job_id} was dropped in this moment: its keep_for_s is over")
        if Status(reply.decode()) not in RETRYABLE:
            only = "only a job that has failed, was cancelled or expired can be run again"
            raise JobNotRetryable(f"the status of job {job_id} is {reply.decode()}: {only}")

    return Command(service, "retry", [job_id, room], read)


def revoke(service: str, ids: Sequence[str], running: bool) -> Command[list[str]]:
    """Cancel jobs that wait, with ``running`` those that run too; an unknown one as soon as it is adopted.

    The result has the status that each had; "" for an unknown one.
    """
    return Command(service, "revoke", [1 if running else 0, *ids], read_texts)


class Listed(NamedTuple):
    """One step of a search through a service's jobs."""

    stopped_at: tuple[str, str] | None  #: where the search stopped early (microseconds, id); None: at the end
    ids: list[str]


def list_jobs(
    service: str, status: Status | None, limit: int, before: tuple[str, str] | None = None, sees: str = ""
) -> Command[Listed]:
    """The ids of a service's jobs, newest first, below ``before`` (microseconds, id).

    Args:
        sees: an API key that sees its own jobs alone; "": all jobs are listed.
    """

    def read(reply: Any) -> Listed:
        us, last_id, ids = reply
        return Listed((us.decode(), last_id.decode()) if us else None, read_texts(ids))

    bound, last_id = before or ("+inf", "")
    return Command(service, "list", [status or "", bound, last_id, limit, LOOK_AT, sees], read)


def sweep(service: str, lease_s: float) -> Command[list[str]]:
    """End late jobs, queue delayed ones, recover those of dead workers; the result has the ids of the recovered."""
    return Command(service, "sweep", [round(lease_s * 1e6)], read_texts)


def overview(service: str) -> Command[Overview]:
    """The state of one service as a whole."""
    return Command(service, "overview", [], Overview.from_reply)


def forecast(service: str) -> Command[Forecast]:
    """The state of a service's queue, from which the start of a queued job is estimated."""
    return Command(service, "forecast", [], Forecast.from_reply)


@dataclass(frozen=True, slots=True)
class Fetch(Generic[T_co]):
    """Plain reads, sent in one round trip."""

    add: Callable[[Any], Any]  #: adds the commands to a pipeline of redis-py
    read: Callable[[list[Any]], T_co]  #: makes the result of their replies


def fetch_job(service: str, job_id: str) -> Fetch[Job | None]:
    """One job without its input; None for a dropped one."""
    fields = (*ROW_FIELDS, LARGE_FIELDS["output"])

    def read(replies: list[Any]) -> Job | None:
        record = {name.encode(): value for name, value in zip(fields, replies[0], strict=True) if value is not None}
        return Job.from_record(job_id, record) if record else None

    return Fetch(lambda pipe: pipe.hmget(record_key(service, job_id), fields), read)


def queue_full(service: str, retry_after_s: int) -> QueueFull:
    """The error for a queue that has no room."""
    limits = "its max_queue_size or max_queue_bytes"
    return QueueFull(f"the queue of {service} is full ({limits}); try again later", retry_after_s=retry_after_s)


def too_many_open(retry_after_s: int) -> RateLimited:
    """The error for an API key that has as many unfinished jobs as it may."""
    message = "the API key has as many queued and running jobs as its concurrency allows; try again as they end"
    return RateLimited(message, retry_after_s=retry_after_s)


def not_found(id: str, kind: str = "job") -> JobNotFound:
    """The error for an id that was never seen, or that is another API key's."""
    return JobNotFound(f"no {kind} has the id {id[:100]!r}")


def dropped(job_id: str) -> JobExpired:
    """The error for a job whose record is gone."""
    return JobExpired(f"job {job_id[:100]} ended and its record was dropped when its keep_for_s was over")


def conflict(job_id: str) -> IdempotencyConflict:
    """The error for an idempotency key, or an id of a client's own, that is used with another body."""
    return IdempotencyConflict(
        f"this Idempotency-Key or id belongs to job {job_id}, which was sent with another body; "
        "send the same body to get that job again, or a new key or id to make another"
    )


def as_it_is(reply: Any) -> Any:
    """Redis's reply."""
    return reply


def nothing(reply: Any) -> None:
    """No result; the reply is not looked at."""


def read_texts(reply: Sequence[bytes]) -> list[str]:
    """A list of texts."""
    return [text.decode() for text in reply]


def _read_created(reply: Any) -> Created:
    *flat, cached_for = reply
    return Created(flat[0::3], flat[1::3], flat[2::3], cached_for)


def _as_created(job: NewJob, created_us: int, position: int, forecast: Forecast | None) -> Job:
    return Job(
        id=job.id,
        service=job.service,
        status=Status.QUEUED,
        version=job.version,
        priority=job.priority,
        attempt=0,
        batch_size=None,
        created_us=created_us,
        started_us=0,
        finished_us=0,
        expires_us=0,
        output=None,
        error=None,
        timings=None,
        metadata=job.metadata,
        owner=job.owner,
        position=position if position >= 0 else None,
        estimated_start_us=forecast.start_us(position) if forecast and position >= 0 else 0,
        webhook=job.webhook,
        not_before_us=job.not_before_us,
    )
