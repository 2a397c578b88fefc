"""The ledger for the API: asyncio, many clients at once, an answer within ``store_timeout_s`` even if Redis hangs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff

from worker.errors import IdempotencyConflict, StoreUnavailable
from worker.ledger import batch_commands, commands
from worker.ledger.batches import NewBatch, StoredBatch
from worker.ledger.commands import Command, Fetch, Outcome
from worker.ledger.data_schema import SCHEMA, SCHEMA_KEY, check_schema_of, may_raise, own_fields
from worker.ledger.forecast import Forecast, Forecasts
from worker.ledger.jobs import LARGE_FIELDS, RETRYABLE, ROW_FIELDS, Job, NewJob, Status
from worker.ledger.keys import SERVICES_KEY, hash_promise, promise_key, record_key, seen_key
from worker.ledger.overview import Overview
from worker.ledger.scripts import Scripts
from worker.names import WEBHOOKS
from worker.net.redis_clients import make_async_client, say_refusal
from worker.settings import Settings

T = TypeVar("T")

#: Connections of one API process, at most.
MAX_CONNECTIONS = 16
#: Jobs whose service a process remembers, so that it need not look for them again.
MAX_PLACES = 100_000
#: Bytes of the inputs and outputs of one page, where they were asked for; a single job may have more.
PAGE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first, and where the next page starts (microseconds and id; None: no more)."""

    jobs: list[Job]
    next: tuple[str, str] | None


class AsyncLedger:
    """The ledger for one asyncio process. All methods raise ``StoreUnavailable`` where Redis is away or full.

    Args that several methods take:
        sees: an API key that sees its own jobs alone; "": all jobs are seen.
        most_open: jobs that the API key may have open, where the job or batch is its own.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # No retry: a waiting client gets its answer at once, and repeats the request if the answer was lost.
        # No timeout of redis-py's: `guard` bounds every call, and redis-py's own goes through `asyncio.wait_for`, which
        # before Python 3.12 may swallow the cancellation by which `guard` ends a call (and costs a task a command).
        self.redis = make_async_client(
            settings.url,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=AsyncRetry(NoBackoff(), 1),
        )
        # redis-py's pool raises where all its connections are busy; here a call waits for its turn.
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self._script = Scripts(self.redis)
        self._forecasts = Forecasts(lambda service: self.run(commands.forecast(service)))
        self._places: dict[str, str] = {}  # job id -> service, the oldest first
        self._services: set[str] = set()  # those that SERVICES_KEY has
        self._cached_for: dict[str, bytes] = {}  # service -> microseconds, by its ledger's last reply
        self._schema = 0  # of the data, once it has been looked at since Redis was away last

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose(close_connection_pool=True)

    async def ping(self) -> None:
        """Raise ``StoreUnavailable`` unless Redis answers."""
        async with self.guard():
            await self.redis.execute_command("PING")

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[Any]:
        """Commands in one round trip, under the same limits as every call."""
        async with self.guard(), self.redis.pipeline(transaction=False) as pipe:
            yield pipe

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Surrounds every call of Redis: an answer in time, or ``StoreUnavailable``.

        So is data of a later schema, which must not be touched; that is looked at before the first call.
        """
        try:
            # Over all of it: the wait for a turn, the call, and its one repetition.
            async with asyncio.timeout(self._settings.store_timeout_s), self._turns:
                if not self._schema:
                    self._schema = await check_schema_of(self.redis, self._settings)
                yield
        except (redis.RedisError, OSError) as error:  # TimeoutError is an OSError
            self._schema = 0 if isinstance(error, redis.ConnectionError | OSError) else self._schema
            raise StoreUnavailable(say_refusal(error, self._settings.away_hint)) from error

    async def raise_schema(self, workers: Iterable[Mapping[str, Any]]) -> bool:
        """Number the data of an earlier release as this one's, unless one of these workers is of its time."""
        if self._schema in (0, SCHEMA) or not may_raise(workers):
            return False
        async with self.guard():
            await self.redis.hset(SCHEMA_KEY, mapping=own_fields())
        self._schema = SCHEMA
        return True

    async def run(self, command: Command[T]) -> T:
        """Run one operation."""
        async with self.guard():
            reply = await self._script(keys=[command.service], args=command.to_arguments(self._settings))
        return command.read(reply)

    async def run_each(self, commands: Sequence[Command[T]]) -> list[T]:
        """Run operations on several services, where they share a Redis in two round trips rather than one each."""
        if self._settings.cluster:
            return await asyncio.gather(*map(self.run, commands))
        async with self.pipeline() as pipe:
            for command in commands:
                await self._script(keys=[command.service], args=command.to_arguments(self._settings), client=pipe)
            replies: list[Any] = await pipe.execute()
        return [command.read(reply) for command, reply in zip(commands, replies, strict=True)]

    async def fetch(self, fetch: Fetch[T]) -> T:
        """Read, in one round trip."""
        async with self.pipeline() as pipe:
            fetch.add(pipe)
            replies = await pipe.execute()
        return fetch.read(replies)

    async def _announce(self, service: str) -> None:
        """Let SERVICES_KEY know of a service before its first job."""
        if service not in self._services:
            async with self.guard():
                await self.redis.sadd(SERVICES_KEY, service)
            self._services.add(service)

    async def _find(self, job_ids: Sequence[str]) -> list[str]:
        """The service of each job; "" for an unknown one. Two round trips for those not met before, else none."""
        unknown = [job_id for job_id in job_ids if job_id not in self._places]
        if unknown:
            async with self.guard(), self.redis.pipeline(transaction=False) as pipe:
                services = await self._all_services()
                for job_id in unknown:
                    for service in services:
                        pipe.exists(record_key(service, job_id), seen_key(service, job_id))
                replies = iter(await pipe.execute())
            for job_id in unknown:
                for service in services:
                    if next(replies):
                        self._remember(job_id, service)
        return [self._places.get(job_id, "") for job_id in job_ids]

    async def _all_services(self) -> list[str]:
        """Within a guard: every service that may have jobs of clients."""
        names: Any = await self.redis.smembers(SERVICES_KEY)
        known = {name.decode() for name in names}
        return sorted((known | self._services) - {WEBHOOKS})

    async def _was_owned_by(self, service: str, seen: str) -> str:
        """The API key whose job or batch this was; it is known as long as the id is."""
        async with self.guard():
            owner: Any = await self.redis.get(seen_key(service, seen))
        return (owner or b"").decode()

    async def _room(self, owner: str, service: str, most_open: int | None) -> int | str:
        """How many jobs an API key may have open in this service, less those in other services; "": any number."""
        return "" if most_open is None or not owner else most_open - await self._open_elsewhere(owner, service)

    async def _open_elsewhere(self, owner: str, service: str) -> int:
        """Queued and running jobs that an API key has in other services."""
        async with self.pipeline() as pipe:
            others = [name for name in await self._all_services() if name != service]
            for name in others:
                pipe.hget(f"{{{name}}}:open", owner)
            return sum(int(count or 0) for count in (await pipe.execute() if others else ()))

    def _remember(self, job_id: str, service: str) -> None:
        self._places[job_id] = service
        if len(self._places) > MAX_PLACES:
            del self._places[next(iter(self._places))]

    async def create(self, jobs: Sequence[NewJob]) -> list[Outcome]:
        """Store jobs of one service and their messages, in one step; each as stored, or why it was not."""
        service = jobs[0].service
        await self._announce(service)
        refused = await self._taken_elsewhere(jobs)
        wanted = await self._within_limits([job for job in jobs if job.id not in refused])
        stored = await self._store(service, wanted) if wanted else []
        for result in stored:
            if isinstance(result, Job):
                self._remember(result.id, service)
        if not refused:
            return stored
        rest = iter(stored)
        return [refused[job.id] if job.id in refused else next(rest) for job in jobs]

    async def _store(self, service: str, jobs: Sequence[NewJob]) -> list[Outcome]:
        created = await self.run(commands.create(self._settings, jobs))
        self._cached_for[service] = created.cached_for
        # The answer to a client that waits has no estimate.
        forecast = None if all(job.awaited for job in jobs) else await self._forecasts.of(service)
        stored = [created.outcome(i, job, forecast) for i, job in enumerate(jobs)]
        hits = [i for i, state in enumerate(created.states) if state == b"cached"]  # they have ended already
        if hits:
            read = await self._read([(service, jobs[i].id) for i in hits], placed=False)
            for i, job in zip(hits, read, strict=True):
                stored[i] = job or commands.dropped(jobs[i].id)
        return stored

    def may_cache(self, service: str) -> bool:
        """Whether a service keeps results for later jobs, as this process heard when it stored a job last."""
        return self._cached_for.get(service) not in (b"", b"0")

    async def get(self, job_id: str, sees: str = "") -> Job:
        """One job. Raises ``JobNotFound``, or ``JobExpired`` where its record has been dropped.

        ``sees``: an API key that sees its own jobs alone, here and below; "": all are seen.
        """
        known = job_id in self._places
        (service,) = await self._find([job_id])
        if not service:
            raise commands.not_found(job_id)
        (job,) = await self._read([(service, job_id)])
        if job is None and known:  # dropped, or even forgotten since
            del self._places[job_id]
            return await self.get(job_id, sees)
        if sees and sees != (job.owner if job else await self._was_owned_by(service, job_id)):
            raise commands.not_found(job_id)
        if job and job.group:  # a chunk of a batch, which only the batch's operations read and change
            raise commands.not_found(job_id)
        if job is None:
            raise commands.dropped(job_id)
        return job

    async def get_many(self, job_ids: Sequence[str]) -> list[Job | None]:
        """Jobs of any services; None for an unknown or dropped one."""
        return await self._read(list(zip(await self._find(job_ids), job_ids, strict=True)))

    async def get_ended(self, job_ids: Sequence[str]) -> list[Job | None]:
        """The same for jobs that are said to have ended, which have no place in a queue to look for."""
        return await self._read(list(zip(await self._find(job_ids), job_ids, strict=True)), placed=False)

    async def cancel(self, job_id: str, sees: str = "") -> Job:
        """Cancel a queued or running job and give it. Raises ``JobNotFound``, ``JobExpired`` or ``JobFinished``."""
        job = await self.get(job_id, sees)
        commands.check_cancelled(job_id, await self.run(commands.cancel(job.service, job_id)))
        return await self.get(job_id)

    async def retry(
        self,
        job_id: str,
        sees: str = "",
        most_open: int | None = None,
        before: Callable[[Job], Awaitable[None]] | None = None,
    ) -> Job:
        """Run a failed, cancelled or expired job again and give it as it is queued.

        Args:
            most_open: the jobs that the API key may have open, where the job is its own.
            before: is called with a job that may be run again, and raises where it cannot be all the same.

        Raises ``JobNotFound``, ``JobExpired``, ``JobNotRetryable``, ``QueueFull`` or ``RateLimited``.
        """
        job = await self.get(job_id, sees)
        if before and job.status in RETRYABLE:
            await before(job)
        await self.run(commands.retry(job.service, job_id, await self._room(sees, job.service, most_open)))
        return await self.get(job_id)

    async def page(
        self,
        services: Sequence[str],
        status: Status | None,
        limit: int,
        before: tuple[str, str] | None,
        sees: str = "",
        include: frozenset[str] = frozenset(),
    ) -> Page:
        """The newest jobs of these services, below ``before``. A page may be short although more follow.

        Args:
            include: which of ``LARGE_FIELDS`` are read too. With inputs or outputs, a page ends where it has
                ``PAGE_BYTES`` of them, but not before its first job.
        """
        listed = [await self.run(commands.list_jobs(service, status, limit, before, sees)) for service in services]
        keys = [(service, job_id) for service, part in zip(services, listed, strict=True) for job_id in part.ids]
        fields = (*ROW_FIELDS, LARGE_FIELDS["attempts"]) if "attempts" in include else ROW_FIELDS
        jobs = [job for job in await self._read(keys, fields=fields) if job is not None]
        jobs.sort(key=lambda job: (job.created_us, job.id), reverse=True)
        # Where a service's search stopped early, nothing older than that point may be shown yet.
        stops = [(int(part.stopped_at[0]), part.stopped_at[1]) for part in listed if part.stopped_at]
        floor = max(stops, default=(0, ""))
        page = [job for job in jobs if (job.created_us, job.id) >= floor][:limit]
        whole = len(page)
        if wanted := [name for name in ("input", "output") if name in include]:
            page = await self._with_large(page, wanted)
        if len(page) < whole or (whole == limit and (len(jobs) > limit or stops)):
            return Page(page, (str(page[-1].created_us), page[-1].id))
        return Page(page, (str(floor[0]), floor[1]) if stops else None)

    async def _with_large(self, jobs: Sequence[Job], names: Sequence[str]) -> list[Job]:
        """The first of these jobs with their inputs, outputs or both: ``PAGE_BYTES`` of them, but one job at least."""
        async with self.pipeline() as pipe:
            for job in jobs:
                for name in names:
                    pipe.hstrlen(record_key(job.service, job.id), name)
            sizes = await pipe.execute() if jobs else []
            of_each = [sum(sizes[i : i + len(names)]) for i in range(0, len(sizes), len(names))]
            totals = list(itertools.accumulate(of_each))
            fitting = jobs[: max(1, sum(total <= PAGE_BYTES for total in totals))]
            for job in fitting:
                pipe.hmget(record_key(job.service, job.id), names)
            records = await pipe.execute() if fitting else []
        kept = [{name: value for name, value in zip(names, values, strict=True) if value} for values in records]
        return [job._replace(**values) for job, values in zip(fitting, kept, strict=True)]

    async def overviews(self, services: Sequence[str]) -> list[Overview]:
        """The state of each of several services as a whole."""
        return await self.run_each([commands.overview(service) for service in services])

    async def _read(
        self, keys: Sequence[tuple[str, str]], placed: bool = True, fields: Sequence[str] = ()
    ) -> list[Job | None]:
        """The records of (service, id) pairs, in one round trip.

        Args:
            placed: with their places in the queue.
            fields: which of their fields to read; none: all.
        """
        if not keys:
            return []
        async with self.guard(), self.redis.pipeline(transaction=False) as pipe:
            for service, job_id in keys:
                key = record_key(service, job_id)
                pipe.hmget(key, fields) if fields else pipe.hgetall(key)
                if placed:
                    pipe.zrank(f"{{{service}}}:waiting", job_id)
            replies = await pipe.execute()
            records, ranks = (replies[0::2], replies[1::2]) if placed else (replies, [None] * len(replies))
            if fields:
                names = [name.encode() for name in fields]
                records = [{n: v for n, v in zip(names, r, strict=True) if v is not None} for r in records]
            paused = await self._place_paused(keys, records, ranks) if placed else {}
        waiting = {service for (service, _), rank in zip(keys, ranks, strict=True) if rank is not None}
        forecasts = {service: await self._forecasts.of(service) for service in waiting}
        jobs: list[Job | None] = []
        for i, ((service, job_id), record, rank) in enumerate(zip(keys, records, ranks, strict=True)):
            start_us = _estimate(forecasts.get(service), rank, paused.get(i, 0))
            jobs.append(Job.from_record(job_id, record, rank, start_us) if record else None)
        return jobs

    async def _place_paused(
        self, keys: Sequence[tuple[str, str]], records: list[Any], ranks: list[Any]
    ) -> dict[int, int]:
        """Within a guard: the place of queued jobs that have no rank; and until when which of them pause.

        One that pauses before a retry will come after all that wait; one that is parked, with the first of its equals;
        one whose not_before has not come has no place.
        """
        placed = [i for i, rank in enumerate(ranks) if rank is None and records[i].get(b"status") == b"queued"]
        if not placed:
            return {}
        async with self.redis.pipeline(transaction=False) as pipe:
            for i in placed:
                service, job_id = keys[i]
                equals = f"{{{service}}}:equals:{records[i].get(b'cache', b'').decode().partition(' ')[0]}"
                pipe.zcard(f"{{{service}}}:waiting")
                pipe.zscore(equals, job_id)
                pipe.zrange(equals, 0, 0)
                pipe.zscore(f"{{{service}}}:delayed", job_id)
                pipe.zscore(f"{{{service}}}:scheduled", job_id)
            replies = await pipe.execute()
            for i, first in zip(placed, replies[2::5], strict=True):
                pipe.zrank(f"{{{keys[i][0]}}}:waiting", first[0] if first else "")
            firsts = await pipe.execute()
        places = zip(placed, replies[0::5], replies[1::5], firsts, replies[4::5], strict=True)
        for i, behind_all, is_parked, first, is_scheduled in places:
            if is_scheduled is None:
                ranks[i] = behind_all if is_parked is None else first or 0
        return {i: int(until) for i, until in zip(placed, replies[3::5], strict=True) if until}

    async def _taken_elsewhere(self, jobs: Sequence[NewJob]) -> dict[str, IdempotencyConflict]:
        """The jobs, by their ids, whose idempotency key or own id belongs to a job of another service.

        Within a service the ledger looks itself, in the same step. Two services share no step, so of two requests that
        use a key for both in the same moment, each may get its job.
        """
        keyed = [job for job in jobs if job.body_hash]
        if not keyed:
            return {}
        async with self.guard(), self.redis.pipeline(transaction=False) as pipe:
            others = [name for name in await self._all_services() if name != jobs[0].service]
            for job in keyed:
                for service in others:
                    if job.idempotency_key:
                        pipe.get(promise_key(service, hash_promise(job.idempotency_key, job.owner)))
                    else:
                        pipe.exists(record_key(service, job.id), seen_key(service, job.id))
            replies = iter(await pipe.execute() if others else [])
        conflicts = {}
        for job in keyed:
            for promise in [next(replies) for _ in others]:
                if promise:
                    conflicts[job.id] = commands.conflict(
                        promise.decode().split()[0] if job.idempotency_key else job.id
                    )
        return conflicts

    async def _within_limits(self, jobs: Sequence[NewJob]) -> Sequence[NewJob]:
        """The jobs, each with the number that its API key may have open here: its limit less its jobs in other
        services.

        A service counts in the step that stores; two share none, so requests for both in one moment may be over.
        """
        owners = {job.owner for job in jobs if job.most_open is not None}
        if not owners:
            return jobs
        elsewhere = {owner: await self._open_elsewhere(owner, jobs[0].service) for owner in owners}
        return [
            job if job.most_open is None else replace(job, most_open=job.most_open - elsewhere[job.owner])
            for job in jobs
        ]

    async def seal(self, batch: NewBatch) -> str:
        """Accept a batch whose chunks are all stored; gives the id of the batch that answers the request.

        Raises the errors of ``batch_commands.seal``.
        """
        await self._announce(batch.service)
        room = await self._room(batch.owner, batch.service, batch.most_open)
        batch_id = await self.run(batch_commands.seal(self._settings, batch, room))
        if batch_id == batch.id:
            self._remember(f"batch:{batch.id}", batch.service)
        return batch_id

    async def get_batch(self, batch_id: str, sees: str = "") -> StoredBatch:
        """One batch. Raises ``JobNotFound``, or ``JobExpired`` where it was dropped."""
        (service,) = await self._find([f"batch:{batch_id}"])
        if not service or (sees and sees != await self._was_owned_by(service, f"batch:{batch_id}")):
            raise commands.not_found(batch_id, "batch")
        return await self.fetch(batch_commands.fetch_batch(service, batch_id))

    async def cancel_batch(self, batch_id: str, sees: str = "") -> StoredBatch:
        """Cancel all chunks that have not ended. Raises ``JobNotFound``, ``JobExpired`` or ``JobFinished``."""
        batch = await self.get_batch(batch_id, sees)
        await self._finish_pages(batch, await self.run(batch_commands.cancel_batch(batch.service, batch_id)))
        return await self.get_batch(batch_id)

    async def retry_batch(
        self,
        batch_id: str,
        sees: str = "",
        most_open: int | None = None,
        before: Callable[[StoredBatch], Awaitable[None]] | None = None,
    ) -> StoredBatch:
        """Run those rows of a batch again that failed or were cancelled, and give it as they are queued.

        Args:
            before: is called with a batch of which something may be run again.

        Raises ``JobNotFound`` and the errors of ``batch_commands.retry_batch``.
        """
        batch = await self.get_batch(batch_id, sees)
        if before and batch.ended and batch.failed + batch.cancelled:
            await before(batch)
        room = await self._room(sees, batch.service, most_open)
        await self._finish_pages(batch, await self.run(batch_commands.retry_batch(self._settings, batch, room)))
        return await self.get_batch(batch_id)

    async def _finish_pages(self, batch: StoredBatch, more: bool) -> None:
        """Page after page, each of which leaves Redis to others; where this process ends, the sweeps do the rest."""
        while more:
            more = await self.run(batch_commands.advance(batch.service, batch.id))


def _estimate(forecast: Forecast | None, position: int | None, not_before_us: int) -> int:
    """About when a job with this position will start; 0: unknown. One that pauses comes first then, by its age."""
    if forecast is None or position is None:
        return 0
    start_us = forecast.start_us(0 if not_before_us else position)
    return max(start_us, not_before_us) if start_us else 0
