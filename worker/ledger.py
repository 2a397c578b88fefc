"""The job ledger: the truth about every job, in Redis.

``ledger.lua`` names every key and changes every state; this module only speaks to it. ``AsyncLedger`` is the API's
side (create, get, cancel, list), ``Ledger`` the worker's (claim, complete, give up, leases). Every call may be sent
twice without harm, because redis-py repeats a call whose answer it lost.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from importlib.resources import files
from typing import Any, Literal, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.retry import Retry

from worker.dispatch import build_message
from worker.errors import JobExpired, JobFinished, JobNotFound, JobNotRetryable, QueueFull, StoreUnavailable
from worker.jobs import RETRYABLE, TERMINAL, Job, NewJob, Priority, Status
from worker.settings import Settings

LUA = files("worker").joinpath("ledger.lua").read_text()

#: Channel on which the ids of ended jobs are published, as a JSON array.
ENDED_CHANNEL = "jobs:ended"

#: Records that one page of ``GET /jobs`` looks at, at most.
LOOK_AT = 1000

T = TypeVar("T")
Priorities = {Priority.HIGH: -1, Priority.NORMAL: 0, Priority.LOW: 1}


def record_key(service: str, job_id: str) -> str:
    """The hash that holds a job."""
    return f"{{{service}}}:job:{job_id}"


def pointer_key(job_id: str) -> str:
    """The string that names a job's service."""
    return f"job:{job_id}"


def _head(operation: str, settings: Settings) -> list[Any]:
    """The arguments that every operation of ``ledger.lua`` begins with."""
    return [operation, round(settings.remember_for_s * 1e6), datetime.now(UTC).isoformat()]


def _create_arguments(settings: Settings, jobs: Sequence[NewJob], errors: Sequence[bytes] | None = None) -> list[Any]:
    """``create``'s arguments. With ``errors``: jobs that came as messages, each with why it failed at once or b""."""
    arguments = _head("create", settings)
    for i, job in enumerate(jobs):
        message = build_message(job.service, job.id) if errors is None else b""
        durations = (job.start_within_s, job.finish_within_s, job.keep_for_s)
        arguments += [job.id, job.version, job.priority.value]
        arguments += [round(Priorities[job.priority] * settings.priority_step_s * 1e6)]
        arguments += [round(seconds * 1e6) for seconds in durations]
        arguments += [job.metadata, job.input, message, errors[i] if errors else b""]
    return arguments


# -- the API's side ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first, and where the next page starts (microseconds and id; None: no more)."""

    jobs: list[Job]
    next: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Overview:
    """What the ledger knows of one service."""

    depth: int  #: queued jobs
    oldest_age_s: float  #: age of the oldest of the jobs that are next; 0 where none waits
    workers: list[dict[str, Any]]  #: each live worker's host, pid and state
    knobs: dict[str, Any] | None  #: as the last worker told them; None before any worker ran
    failure: dict[str, Any] | None  #: why the plugin cannot be loaded


class AsyncLedger:
    """The ledger for one asyncio process. All methods raise ``StoreUnavailable`` where Redis is away or full."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        timeout = settings.store_timeout_s
        # A blocking pool, because redis-py's default one raises where all its connections are busy. No retry: a
        # client that waits is told at once, and an answer that was lost is the client's to ask for again.
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            settings.url,
            max_connections=16,
            timeout=timeout,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=AsyncRetry(NoBackoff(), 1),
        )
        self.redis = redis.asyncio.Redis(connection_pool=pool)
        self._script = self.redis.register_script(LUA)

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose(close_connection_pool=True)

    async def ping(self) -> None:
        """Raise ``StoreUnavailable`` unless Redis answers."""
        async with self._guard():
            await self.redis.execute_command("PING")

    async def create(self, jobs: Sequence[NewJob]) -> list[Job | QueueFull]:
        """Store jobs of one service and their messages, in one step; each as stored, or ``QueueFull``."""
        service = jobs[0].service
        reply = await self._call(service, _create_arguments(self._settings, jobs))
        states = zip(jobs, reply[0::3], reply[1::3], reply[2::3], strict=True)
        return [
            _full(service, int(created)) if state == b"full" else _as_created(job, int(created), int(position))
            for job, state, created, position in states
        ]

    async def get(self, job_id: str) -> Job:
        """One job. Raises ``JobNotFound``, or ``JobExpired`` where its record has been dropped."""
        async with self._guard():
            service = await self.redis.get(pointer_key(job_id))
        if service is None:
            raise JobNotFound(f"no job has the id {job_id[:100]!r}")
        (job,) = await self._read([(service.decode(), job_id)])
        if job is None:
            raise JobExpired(f"job {job_id[:100]} ended and its record was dropped when its keep_for_s was over")
        return job

    async def get_many(self, job_ids: Sequence[str]) -> list[Job | None]:
        """Jobs of any services, in two round trips; None for an unknown or dropped one."""
        async with self._guard():
            services = await self.redis.mget([pointer_key(job_id) for job_id in job_ids])
        keys = [(service.decode() if service else "", i) for service, i in zip(services, job_ids, strict=True)]
        return await self._read(keys)

    async def cancel(self, job_id: str) -> Job:
        """Cancel a queued or running job and give it. Raises ``JobNotFound``, ``JobExpired`` or ``JobFinished``."""
        job = await self.get(job_id)
        before = await self._call(job.service, [*_head("cancel", self._settings), job_id])
        if before is None or Status(before.decode()) in TERMINAL:
            raise JobFinished(f"job {job_id} has already ended as {(before or b'expired').decode()}")
        return await self.get(job_id)

    async def retry(self, job_id: str) -> Job:
        """Run a failed, cancelled or expired job again and give it as it is queued.

        Raises ``JobNotFound``, ``JobExpired``, ``JobNotRetryable`` or ``QueueFull``.
        """
        job = await self.get(job_id)
        _check_retried(job_id, job.service, await self._call(job.service, [*_head("retry", self._settings), job_id]))
        return await self.get(job_id)

    async def sweep(self, services: Sequence[str]) -> list[str]:
        """End what is late, queue what was delayed, recover dead workers' jobs; gives those."""
        lease_us = round(self._settings.lease_s * 1e6)
        async with self._guard(), self.redis.pipeline(transaction=False) as pipe:
            for service in services:
                await self._script(keys=[service], args=[*_head("sweep", self._settings), lease_us], client=pipe)
            return [job_id.decode() for lost in await pipe.execute() for job_id in lost]

    async def page(
        self, services: Sequence[str], status: Status | None, limit: int, before: tuple[str, str] | None
    ) -> Page:
        """The newest jobs of these services, below ``before``. A page may be short although more follow."""
        bound, last_id = before or ("+inf", "")
        arguments = [*_head("list", self._settings), status or "", bound, last_id, limit, LOOK_AT]
        replies = [await self._call(service, arguments) for service in services]
        keys = [(s, i.decode()) for s, (_, _, ids) in zip(services, replies, strict=True) for i in ids]
        jobs = [job for job in await self._read(keys) if job is not None]
        jobs.sort(key=lambda job: (job.created_us, job.id), reverse=True)
        # Where a service's search stopped early, nothing older than that point may be shown yet.
        stops = [(int(us), i.decode()) for us, i, _ in replies if us]
        floor = max(stops, default=(0, ""))
        page = [job for job in jobs if (job.created_us, job.id) >= floor][:limit]
        if len(page) == limit and (len(jobs) > limit or stops):
            return Page(page, (str(page[-1].created_us), page[-1].id))
        return Page(page, (str(floor[0]), floor[1]) if stops else None)

    async def overview(self, service: str) -> Overview:
        """What the ledger knows of one service."""
        depth, oldest, now, infos, about = await self._call(service, _head("overview", self._settings))
        fields = dict(zip(about[0::2], about[1::2], strict=True))
        return Overview(
            depth=depth,
            oldest_age_s=round((int(now) - int(oldest)) / 1e6, 3) if int(oldest) else 0,
            workers=[json.loads(info) for info in infos],
            knobs=json.loads(fields[b"knobs"]) if b"knobs" in fields else None,
            failure=json.loads(fields[b"failure"]) if b"failure" in fields else None,
        )

    async def _read(self, keys: Sequence[tuple[str, str]]) -> list[Job | None]:
        """The records of (service, id) pairs, in one round trip."""
        if not keys:
            return []
        async with self._guard(), self.redis.pipeline(transaction=False) as pipe:
            for service, job_id in keys:
                pipe.hgetall(record_key(service, job_id))
                pipe.zrank(f"{{{service}}}:waiting", job_id)
            replies = await pipe.execute()
            # A job that pauses before a retry has no rank yet: it will come after all that wait.
            paused = [
                i for i, rank in enumerate(replies[1::2]) if rank is None and replies[2 * i].get(b"status") == b"queued"
            ]
            for i in paused:
                pipe.zcard(f"{{{keys[i][0]}}}:waiting")
            for i, waiting in zip(paused, await pipe.execute() if paused else [], strict=True):
                replies[2 * i + 1] = waiting
        records = zip(keys, replies[0::2], replies[1::2], strict=True)
        return [Job.from_record(job_id, record, rank) if record else None for (_, job_id), record, rank in records]

    async def _call(self, service: str, arguments: list[Any]) -> Any:
        async with self._guard():
            return await self._script(keys=[service], args=arguments)

    @asynccontextmanager
    async def _guard(self) -> AsyncIterator[None]:
        try:
            # Over all of it: the wait for a free connection, the call, and its one repetition.
            async with asyncio.timeout(self._settings.store_timeout_s):
                yield
        except (redis.RedisError, OSError) as error:  # TimeoutError is an OSError
            hint = self._settings.away_hint if isinstance(error, redis.ConnectionError | OSError) else ""
            raise StoreUnavailable(f"{StoreUnavailable.__doc__} {hint} ({type(error).__name__})") from error


def _full(service: str, retry_after_s: int) -> QueueFull:
    limits = "its max_queue_size or max_queue_bytes"
    return QueueFull(f"the queue of {service} is full ({limits}); try again later", retry_after_s=retry_after_s)


def _check_retried(job_id: str, service: str, reply: Any) -> None:
    """Raise what ``retry`` in ``ledger.lua`` says went wrong."""
    if isinstance(reply, list):
        raise _full(service, int(reply[1]))
    if reply is None:
        raise JobExpired(f"job {job_id} was dropped in this moment: its keep_for_s is over")
    if Status(reply.decode()) not in RETRYABLE:
        raise JobNotRetryable(f"job {job_id} is {reply.decode()}: {JobNotRetryable.__doc__}")


def _as_created(job: NewJob, created_us: int, position: int) -> Job:
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
        position=position if position >= 0 else None,
    )


# -- the worker's side ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """What came of asking for a batch."""

    kind: Literal["batch", "foreign", "hold", "fenced"]
    ids: list[str]  #: "batch": the jobs that are now this worker's
    messages: list[tuple[bytes, bytes]]  #: "foreign": other producers' messages, each with its field
    hold_s: float  #: "hold": how long the batch is held back for more


class Stored(IntEnum):
    """What became of an end that a worker told."""

    DROPPED = 0  #: the job is no longer this batch's
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
    pause_s: float = 0  #: of a failed job: run it again after this, as long as it has attempts left; 0: final


class Ledger:
    """The ledger for a worker's processes and for Celery's result backend. Raises redis-py's own errors.

    Args:
        timeout_s: longest wait for an answer; the call is repeated ``retries`` times after that.
    """

    def __init__(self, settings: Settings, timeout_s: float = 5, retries: int = 3) -> None:
        self._settings = settings
        self.redis = redis.Redis.from_url(
            settings.url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=1), retries),
            health_check_interval=15,
        )
        self._script = self.redis.register_script(LUA)

    def claim(self, service: str, worker: str, token: str, knobs: dict[str, Any], version: str = "") -> Claim:
        """Claim up to ``max_batch_size`` jobs for ``worker`` under ``token``, or learn why there are none."""
        limits = [knobs["max_batch_size"], round(knobs["max_queue_delay_ms"] * 1000), knobs["max_attempts"]]
        kind, *rest = self._call(service, "claim", worker, token, *limits, version)
        name = kind.decode()
        value: Any = rest[0] if rest else []
        return Claim(
            kind=name,
            ids=[i.decode() for i in value] if name == "batch" else [],
            messages=list(zip(value[0::2], value[1::2], strict=True)) if name == "foreign" else [],
            hold_s=float(value) / 1e6 if name == "hold" else 0,
        )

    def adopt(self, service: str, worker: str, jobs: Sequence[NewJob], errors: Sequence[bytes], fields: Any) -> None:
        """Store the jobs that came as other producers' messages; those with an error end with it at once."""
        if jobs:
            self._script(keys=[service], args=_create_arguments(self._settings, jobs, errors))
        self._call(service, "adopted", worker, *fields)

    def wait(self, service: str, timeout_s: float) -> None:
        """Block until a message is in the service's queue, at most so long. Takes nothing out.

        Moving the last message of a list to its end changes nothing, and blocks where there is none.
        """
        self.redis.execute_command("BLMOVE", service, service, "RIGHT", "RIGHT", timeout_s)

    def inputs(self, service: str, ids: Sequence[str], token: str) -> list[tuple[str, int, bytes]]:
        """Id, attempt and input (JSON) of each of these jobs that this token still holds."""
        pipe = self.redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hmget(record_key(service, job_id), "token", "status", "attempt", "input")
        held = [token.encode(), b"running"]
        replies = zip(ids, pipe.execute(), strict=True)
        return [(job_id, int(reply[2]), reply[3]) for job_id, reply in replies if reply[:2] == held]

    def complete(self, service: str, token: str, endings: Sequence[Ending]) -> list[Stored]:
        """Write how the jobs of a batch ended; what became of each."""
        flat: list[Any] = []
        for end in endings:
            pause_us = round(end.pause_s * 1e6)
            flat += [end.id, end.status.value, end.value, end.timings, end.batch_size, pause_us]
        return [Stored(stored) for stored in self._call(service, "complete", token, *flat)]

    def give_up(self, service: str, worker: str, token: str, reason: str, pause_s: float = 0) -> list[str]:
        """End a batch whose run came to nothing: "lost", "memory", "timed_out" or "handed_back".

        ``pause_s``: before a job that was lost, or (where it is not 0) timed out, is tried again.
        """
        return _decode(self._call(service, "give_up", worker, token, reason, round(pause_s * 1e6)))

    def join(self, service: str, worker: str, info: dict[str, Any]) -> None:
        """Enter a new worker, with its lease."""
        self._call(service, "join", worker, self._lease_us, json.dumps(info))

    def tell(self, service: str, version: str, knobs: dict[str, Any]) -> None:
        """Tell what is known of a service once its model is loaded; forgets an earlier failure."""
        limits = (knobs["max_queue_size"], knobs["max_queue_bytes"])
        self._call(service, "tell", version, json.dumps(knobs), *limits)

    def fail(self, service: str, failure: dict[str, Any]) -> None:
        """Tell why a plugin cannot be loaded."""
        self._call(service, "fail", json.dumps(failure))

    def renew(self, service: str, worker: str, info: dict[str, Any]) -> tuple[bool, list[str]]:
        """Renew a worker's lease: whether it was still held, and its running jobs that were cancelled since."""
        held, cancelled = self._call(service, "renew", worker, self._lease_us, json.dumps(info))
        return bool(held), _decode(cancelled)

    def extend(self, service: str, worker: str) -> bool:
        """Renew the lease from a pool process; False where it has lapsed and what runs is others' now."""
        return bool(self._call(service, "extend", worker, self._lease_us))

    def leave(self, service: str, worker: str) -> list[str]:
        """Take a worker out; what it had not finished goes back at once, uncharged."""
        return _decode(self._call(service, "leave", worker))

    def sweep(self, service: str) -> list[str]:
        """End what is late, queue what was delayed, recover dead workers' jobs; gives those."""
        return _decode(self._call(service, "sweep", self._lease_us))

    def cancel(self, job_id: str) -> None:
        """Cancel a job that has not ended; nothing happens to one that has."""
        service = self.redis.get(pointer_key(job_id))
        if service is not None:
            self._call(service.decode(), "cancel", job_id)

    def retry(self, job_id: str) -> None:
        """Run a failed, cancelled or expired job again. Raises as ``AsyncLedger.retry`` does."""
        service = self.redis.get(pointer_key(job_id))
        if service is None:
            raise JobNotFound(f"no job has the id {job_id[:100]!r}")
        _check_retried(job_id, service.decode(), self._call(service.decode(), "retry", job_id))

    def failed(self, service: str) -> Iterator[str]:
        """The ids of all failed jobs of a service, newest first."""
        bound, last_id = "+inf", ""
        while bound:
            arguments = (Status.FAILED.value, bound, last_id, LOOK_AT, LOOK_AT)
            us, last, ids = self._call(service, "list", *arguments)
            bound, last_id = us.decode(), last.decode()
            yield from _decode(ids)

    def get(self, job_id: str) -> Job | None:
        """One job; None for one that is unknown or dropped."""
        service = self.redis.get(pointer_key(job_id))
        if service is None:
            return None
        record: Any = self.redis.hgetall(record_key(service.decode(), job_id))
        return Job.from_record(job_id, record) if record else None

    @property
    def _lease_us(self) -> int:
        return round(self._settings.lease_s * 1e6)

    def _call(self, service: str, operation: str, *arguments: Any) -> Any:
        return self._script(keys=[service], args=[*_head(operation, self._settings), *arguments])


def _decode(ids: Sequence[bytes]) -> list[str]:
    return [job_id.decode() for job_id in ids]
