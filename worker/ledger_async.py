"""The API's side of the ledger: asyncio, many clients at once, an answer in ``store_timeout_s`` whatever happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff

from worker.bulk import STAGED_S, Bulk, Chunk, NewBulk
from worker.dispatch import WEBHOOKS, build_bell
from worker.errors import IdempotencyConflict, JobExpired, JobFinished, JobNotFound, QueueFull, StoreUnavailable
from worker.jobs import TERMINAL, Job, NewJob, Status
from worker.ledger import (
    LOOK_AT,
    LUA,
    SERVICES_KEY,
    Priorities,
    bulk_key,
    check_retried,
    create_arguments,
    hash_promise,
    head,
    promise_key,
    queue_full,
    record_key,
    seen_key,
)
from worker.settings import Settings
from worker.store import make_async_client

#: Connections of one API process, at most.
MAX_CONNECTIONS = 16
#: Jobs whose service a process remembers, so that it need not look for them again.
MAX_PLACES = 100_000


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first, and where the next page starts (microseconds and id; None: no more)."""

    jobs: list[Job]
    next: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Repeated:
    """A request that was sent before: its idempotency key and body belong to this job."""

    job_id: str


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
        # No retry: a client that waits is told at once, and an answer that was lost is the client's to ask for again.
        # No timeout of redis-py's: `_guard` bounds all, and redis-py's own goes through `asyncio.wait_for`, which
        # before Python 3.12 may swallow the cancellation by which `_guard` ends a call (and costs a task a command).
        self.redis = make_async_client(
            settings.url,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=AsyncRetry(NoBackoff(), 1),
        )
        # redis-py's pool raises where all its connections are busy; here a call waits for its turn.
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self._script = self.redis.register_script(LUA)
        self._places: dict[str, str] = {}  # job id -> service, the oldest first
        self._services: set[str] = set()  # those of which SERVICES_KEY knows

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose(close_connection_pool=True)

    async def ping(self) -> None:
        """Raise ``StoreUnavailable`` unless Redis answers."""
        async with self._guard():
            await self.redis.execute_command("PING")

    async def create(self, jobs: Sequence[NewJob]) -> list[Job | Repeated | QueueFull | IdempotencyConflict]:
        """Store jobs of one service and their messages, in one step; each as stored, or why it was not."""
        service = jobs[0].service
        await self._announce(service)
        refused = await self._promised_elsewhere(jobs)
        wanted = [job for job in jobs if job.id not in refused] if refused else jobs
        reply = await self._call(service, create_arguments(self._settings, wanted)) if wanted else []
        stored = [_as_stored(*told) for told in zip(wanted, reply[0::3], reply[1::3], reply[2::3], strict=True)]
        for result in stored:
            if isinstance(result, Job):
                self._remember(result.id, service)
        if not refused:
            return stored
        told = iter(stored)
        return [refused[job.id] if job.id in refused else next(told) for job in jobs]

    async def get(self, job_id: str) -> Job:
        """One job. Raises ``JobNotFound``, or ``JobExpired`` where its record has been dropped."""
        known = job_id in self._places
        (service,) = await self._find([job_id])
        if not service:
            raise JobNotFound(f"no job has the id {job_id[:100]!r}")
        (job,) = await self._read([(service, job_id)])
        if job is None and known:  # dropped, or even forgotten since
            del self._places[job_id]
            return await self.get(job_id)
        if job is None:
            raise JobExpired(f"job {job_id[:100]} ended and its record was dropped when its keep_for_s was over")
        return job

    async def get_many(self, job_ids: Sequence[str]) -> list[Job | None]:
        """Jobs of any services; None for an unknown or dropped one."""
        return await self._read(list(zip(await self._find(job_ids), job_ids, strict=True)))

    async def get_ended(self, job_ids: Sequence[str]) -> list[Job | None]:
        """The same for jobs that are said to have ended, which have no place in a queue to look for."""
        return await self._read(list(zip(await self._find(job_ids), job_ids, strict=True)), placed=False)

    async def stage(self, service: str, chunk: Chunk) -> None:
        """Store a chunk of a batch that is still on its way; it vanishes by itself unless the batch is sealed."""
        arguments: list[Any] = [chunk.id, chunk.group, chunk.first, len(chunk.rows)]
        arguments += [b"\n".join(chunk.rows), round(STAGED_S * 1e6)]
        await self._call(service, [*head("stage", self._settings), *arguments])

    async def discard(self, service: str, group: str, chunks: int) -> None:
        """Forget the chunks of a batch that will not come."""
        await self._call(service, [*head("discard", self._settings), group, chunks])

    async def seal(self, batch: NewBulk) -> str:
        """Accept a batch whose chunks are all there; the id of the batch that answers the request.

        Raises ``QueueFull``, ``IdempotencyConflict``, or ``StoreUnavailable`` where chunks are gone already.
        """
        await self._announce(batch.service)
        offset_us = round(Priorities[batch.priority] * self._settings.priority_step_s * 1e6)
        key = hash_promise(batch.idempotency_key)
        arguments: list[Any] = [batch.id, batch.version, batch.priority.value, offset_us, round(batch.keep_for_s * 1e6)]
        arguments += [batch.metadata, batch.rows, batch.chunks, batch.size, build_bell(), key]
        arguments += [batch.body_hash, batch.webhook]
        state, detail = await self._call(batch.service, [*head("seal", self._settings), *arguments])
        if state == b"queued":
            self._remember(f"batch:{batch.id}", batch.service)
            return batch.id
        if state == b"same":
            return str(detail.decode())
        if state == b"full":
            raise queue_full(batch.service, int(detail))
        if state == b"conflict":
            raise _conflict(detail.decode())
        raise StoreUnavailable(f"the batch took longer than {STAGED_S:g} s to arrive; send it again")

    async def get_batch(self, batch_id: str) -> Bulk:
        """One batch. Raises ``JobNotFound``, or ``JobExpired`` where it was dropped."""
        (service,) = await self._find([f"batch:{batch_id}"])
        if not service:
            raise JobNotFound(f"no batch has the id {batch_id[:100]!r}")
        async with self._guard():
            record: Any = await self.redis.hgetall(bulk_key(service, batch_id))
        if not record:
            raise JobExpired(f"batch {batch_id[:100]} ended and was dropped when its keep_for_s was over")
        return Bulk.from_record(batch_id, record)

    async def get_chunk(self, batch: Bulk, number: int) -> tuple[bytes, bytes, bytes, int, int]:
        """Status, output, error (b"" for none), number of the first row and number of rows of one chunk."""
        async with self._guard():
            fields = ("status", "output", "error", "first", "rows")
            found: Any = await self.redis.hmget(record_key(batch.service, f"{batch.id}.{number}"), *fields)
        status, output, error, first, rows = found
        if status is None:
            raise JobExpired(f"batch {batch.id} was dropped when its keep_for_s was over")
        return status, output or b"", error or b"", int(first), int(rows)

    async def cancel_batch(self, batch_id: str) -> Bulk:
        """Cancel what has not ended. Raises ``JobNotFound``, ``JobExpired`` or ``JobFinished``."""
        batch = await self.get_batch(batch_id)
        if not await self._call(batch.service, [*head("cancel_batch", self._settings), batch_id]):
            raise JobFinished(f"batch {batch_id} has already ended")
        return await self.get_batch(batch_id)

    async def cancel(self, job_id: str) -> Job:
        """Cancel a queued or running job and give it. Raises ``JobNotFound``, ``JobExpired`` or ``JobFinished``."""
        job = await self.get(job_id)
        before = await self._call(job.service, [*head("cancel", self._settings), job_id])
        if before is None or Status(before.decode()) in TERMINAL:
            raise JobFinished(f"job {job_id} has already ended as {(before or b'expired').decode()}")
        return await self.get(job_id)

    async def cancel_in(self, service: str, job_id: str) -> None:
        """Cancel a job of this service; nothing happens to one that has ended."""
        await self._call(service, [*head("cancel", self._settings), job_id])

    async def retry(self, job_id: str) -> Job:
        """Run a failed, cancelled or expired job again and give it as it is queued.

        Raises ``JobNotFound``, ``JobExpired``, ``JobNotRetryable`` or ``QueueFull``.
        """
        job = await self.get(job_id)
        check_retried(job_id, job.service, await self._call(job.service, [*head("retry", self._settings), job_id]))
        return await self.get(job_id)

    async def sweep(self, services: Sequence[str]) -> list[str]:
        """End what is late, queue what was delayed, recover dead workers' jobs; gives those."""
        arguments = [*head("sweep", self._settings), round(self._settings.lease_s * 1e6)]
        return [job_id.decode() for service in services for job_id in await self._call(service, arguments)]

    async def page(
        self, services: Sequence[str], status: Status | None, limit: int, before: tuple[str, str] | None
    ) -> Page:
        """The newest jobs of these services, below ``before``. A page may be short although more follow."""
        bound, last_id = before or ("+inf", "")
        arguments = [*head("list", self._settings), status or "", bound, last_id, limit, LOOK_AT]
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
        depth, oldest, now, infos, about = await self._call(service, head("overview", self._settings))
        fields = dict(zip(about[0::2], about[1::2], strict=True))
        return Overview(
            depth=depth,
            oldest_age_s=round((int(now) - int(oldest)) / 1e6, 3) if int(oldest) else 0,
            workers=[json.loads(info) for info in infos],
            knobs=json.loads(fields[b"knobs"]) if b"knobs" in fields else None,
            failure=json.loads(fields[b"failure"]) if b"failure" in fields else None,
        )

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[Any]:
        """Commands in one round trip, under the same limits as every call."""
        async with self._guard(), self.redis.pipeline(transaction=False) as pipe:
            yield pipe

    async def _read(self, keys: Sequence[tuple[str, str]], placed: bool = True) -> list[Job | None]:
        """The records of (service, id) pairs, in one round trip; ``placed``: with their places in the queue."""
        if not keys:
            return []
        async with self._guard(), self.redis.pipeline(transaction=False) as pipe:
            for service, job_id in keys:
                pipe.hgetall(record_key(service, job_id))
                if placed:
                    pipe.zrank(f"{{{service}}}:waiting", job_id)
            replies = await pipe.execute()
            records, ranks = (replies[0::2], replies[1::2]) if placed else (replies, [None] * len(replies))
            if placed:
                await self._place_paused(keys, records, ranks)
        told = zip(keys, records, ranks, strict=True)
        return [Job.from_record(job_id, record, rank) if record else None for (_, job_id), record, rank in told]

    async def _place_paused(self, keys: Sequence[tuple[str, str]], records: list[Any], ranks: list[Any]) -> None:
        """Within a guard: a job that pauses before a retry has no rank yet; it will come after all that wait."""
        for i, (service, _) in enumerate(keys):
            if ranks[i] is None and records[i].get(b"status") == b"queued":
                ranks[i] = await self.redis.zcard(f"{{{service}}}:waiting")

    async def _announce(self, service: str) -> None:
        """Let SERVICES_KEY know of a service before its first job."""
        if service not in self._services:
            async with self._guard():
                await self.redis.sadd(SERVICES_KEY, service)
            self._services.add(service)

    async def _find(self, job_ids: Sequence[str]) -> list[str]:
        """The service of each job; "" for an unknown one. Two round trips for those not met before, else none."""
        unknown = [job_id for job_id in job_ids if job_id not in self._places]
        if unknown:
            async with self._guard(), self.redis.pipeline(transaction=False) as pipe:
                services = await self._all_services()
                for job_id in unknown:
                    for service in services:
                        pipe.exists(record_key(service, job_id), seen_key(service, job_id))
                found = iter(await pipe.execute())
            for job_id in unknown:
                for service in services:
                    if next(found):
                        self._remember(job_id, service)
        return [self._places.get(job_id, "") for job_id in job_ids]

    async def _all_services(self) -> list[str]:
        """Within a guard: every service that may have jobs of clients."""
        known = {name.decode() for name in await self.redis.smembers(SERVICES_KEY)}
        return sorted((known | self._services) - {WEBHOOKS})

    def _remember(self, job_id: str, service: str) -> None:
        self._places[job_id] = service
        if len(self._places) > MAX_PLACES:
            del self._places[next(iter(self._places))]

    async def _promised_elsewhere(self, jobs: Sequence[NewJob]) -> dict[str, IdempotencyConflict]:
        """The jobs, by their ids, whose idempotency key belongs to a job of another service.

        Within a service the ledger looks itself, in the same step. Two services share no step, so of two requests that
        use a key for both in the same moment, each may get its job.
        """
        keyed = [job for job in jobs if job.idempotency_key]
        if not keyed:
            return {}
        async with self._guard(), self.redis.pipeline(transaction=False) as pipe:
            others = [name for name in await self._all_services() if name != jobs[0].service]
            for job in keyed:
                for service in others:
                    pipe.get(promise_key(service, hash_promise(job.idempotency_key)))
            found = iter(await pipe.execute() if others else [])
        conflicts = {}
        for job in keyed:
            for promise in [next(found) for _ in others]:
                if promise:
                    conflicts[job.id] = _conflict(promise.decode().split()[0])
        return conflicts

    def guard(self) -> AbstractAsyncContextManager[None]:
        """Around calls of ``redis`` for records that are not the ledger's: the same bounds, and the same error."""
        return self._guard()

    async def _call(self, service: str, arguments: list[Any]) -> Any:
        async with self._guard():
            return await self._script(keys=[service], args=arguments)

    @asynccontextmanager
    async def _guard(self) -> AsyncIterator[None]:
        try:
            # Over all of it: the wait for a turn, the call, and its one repetition.
            async with asyncio.timeout(self._settings.store_timeout_s), self._turns:
                yield
        except (redis.RedisError, OSError) as error:  # TimeoutError is an OSError
            hint = self._settings.away_hint if isinstance(error, redis.ConnectionError | OSError) else ""
            raise StoreUnavailable(f"{StoreUnavailable.__doc__} {hint} ({type(error).__name__})") from error


def _as_stored(
    job: NewJob, state: bytes, created: bytes, position: int
) -> Job | Repeated | QueueFull | IdempotencyConflict:
    """One job's part of what ``create`` in ``ledger.lua`` answers."""
    if state == b"full":
        return queue_full(job.service, int(created))
    if state == b"same":
        return Repeated(created.decode())
    if state == b"conflict":
        return _conflict(created.decode())
    return _as_created(job, int(created), int(position))


def _conflict(job_id: str) -> IdempotencyConflict:
    return IdempotencyConflict(
        f"this Idempotency-Key belongs to job {job_id}, which was sent with another body; "
        "send the same body to get that job again, or a new key to make another"
    )


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
        webhook=job.webhook,
    )
