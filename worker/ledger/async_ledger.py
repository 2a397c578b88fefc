"""The API's side of the ledger: asyncio, many clients at once, an answer in ``store_timeout_s`` whatever happens."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from worker.errors import IdempotencyConflict, JobFinished
from worker.ledger.async_batches import BatchLedger
from worker.ledger.forecast import Forecast, Forecasts
from worker.ledger.jobs import LARGE_FIELDS, RETRYABLE, ROW_FIELDS, TERMINAL, Job, NewJob, Status
from worker.ledger.overview import Overview
from worker.ledger.replies import Outcome, as_stored, conflict, dropped, not_found
from worker.ledger.replies import Repeated as Repeated
from worker.ledger.sync_ledger import (
    LOOK_AT,
    check_retried,
    create_arguments,
    hash_promise,
    head,
    promise_key,
    record_key,
    seen_key,
)
from worker.settings import Settings

#: Bytes of the inputs and outputs of one page, where they were asked for; a single job may have more.
PAGE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first, and where the next page starts (microseconds and id; None: no more)."""

    jobs: list[Job]
    next: tuple[str, str] | None


class AsyncLedger(BatchLedger):
    """The ledger for one asyncio process. All methods raise ``StoreUnavailable`` where Redis is away or full."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._forecasts = Forecasts(lambda service: self._call(service, head("forecast", self._settings)))

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
        told = iter(stored)
        return [refused[job.id] if job.id in refused else next(told) for job in jobs]

    async def _store(self, service: str, jobs: Sequence[NewJob]) -> list[Outcome]:
        *reply, self._cached_for[service] = await self._call(service, create_arguments(self._settings, jobs))
        states = reply[0::3]
        # Clients that wait are told of their ends.
        forecast = None if all(job.awaited for job in jobs) else await self._forecasts.of(service)
        told = zip(jobs, states, reply[1::3], reply[2::3], strict=True)
        stored = [as_stored(*each, forecast) for each in told]
        if b"cached" in states:  # they have ended already
            hits = [i for i, state in enumerate(states) if state == b"cached"]
            read = await self._read([(service, jobs[i].id) for i in hits], placed=False)
            for i, job in zip(hits, read, strict=True):
                stored[i] = job or dropped(jobs[i].id)
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
            raise not_found(job_id)
        (job,) = await self._read([(service, job_id)])
        if job is None and known:  # dropped, or even forgotten since
            del self._places[job_id]
            return await self.get(job_id, sees)
        if sees and sees != (job.owner if job else await self._was_owned_by(service, job_id)):
            raise not_found(job_id)
        if job is None:
            raise dropped(job_id)
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
        before = await self._call(job.service, [*head("cancel", self._settings), job_id])
        if before is None or Status(before.decode()) in TERMINAL:
            raise JobFinished(f"job {job_id} has already ended as {(before or b'expired').decode()}")
        return await self.get(job_id)

    async def cancel_in(self, service: str, job_id: str, but_running: bool = False) -> None:
        """Cancel a job of this service; nothing happens to one that has ended or, with ``but_running``, begun."""
        await self._call(service, [*head("cancel", self._settings), job_id, int(but_running)])

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
        arguments = [*head("retry", self._settings), job_id, await self._room(sees, job.service, most_open)]
        check_retried(job_id, job.service, await self._call(job.service, arguments))
        return await self.get(job_id)

    async def sweep(self, services: Sequence[str]) -> list[str]:
        """End what is late, queue what was delayed, recover dead workers' jobs; gives those."""
        arguments = [*head("sweep", self._settings), round(self._settings.lease_s * 1e6)]
        replies = await self._call_each(services, arguments)
        return [job_id.decode() for lost in replies for job_id in lost]

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
        bound, last_id = before or ("+inf", "")
        arguments = [*head("list", self._settings), status or "", bound, last_id, limit, LOOK_AT, sees]
        replies = [await self._call(service, arguments) for service in services]
        keys = [(s, i.decode()) for s, (_, _, ids) in zip(services, replies, strict=True) for i in ids]
        fields = (*ROW_FIELDS, LARGE_FIELDS["attempts"]) if "attempts" in include else ROW_FIELDS
        jobs = [job for job in await self._read(keys, fields=fields) if job is not None]
        jobs.sort(key=lambda job: (job.created_us, job.id), reverse=True)
        # Where a service's search stopped early, nothing older than that point may be shown yet.
        stops = [(int(us), i.decode()) for us, i, _ in replies if us]
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
            found = await pipe.execute() if fitting else []
        kept = [{name: value for name, value in zip(names, values, strict=True) if value} for values in found]
        return [job._replace(**values) for job, values in zip(fitting, kept, strict=True)]

    async def overview(self, service: str) -> Overview:
        """What the ledger knows of one service."""
        return Overview.from_reply(await self._call(service, head("overview", self._settings)))

    async def overviews(self, services: Sequence[str]) -> list[Overview]:
        """The same of several."""
        return list(map(Overview.from_reply, await self._call_each(services, head("overview", self._settings))))

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
            found = await pipe.execute()
            for i, first in zip(placed, found[2::5], strict=True):
                pipe.zrank(f"{{{keys[i][0]}}}:waiting", first[0] if first else "")
            firsts = await pipe.execute()
        places = zip(placed, found[0::5], found[1::5], firsts, found[4::5], strict=True)
        for i, behind_all, is_parked, first, is_scheduled in places:
            if is_scheduled is None:
                ranks[i] = behind_all if is_parked is None else first or 0
        return {i: int(until) for i, until in zip(placed, found[3::5], strict=True) if until}

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
            found = iter(await pipe.execute() if others else [])
        conflicts = {}
        for job in keyed:
            for promise in [next(found) for _ in others]:
                if promise:
                    conflicts[job.id] = conflict(promise.decode().split()[0] if job.idempotency_key else job.id)
        return conflicts

    async def _within_limits(self, jobs: Sequence[NewJob]) -> Sequence[NewJob]:
        """The jobs, each told how many its API key may have open here: less what it has in other services.

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


def _estimate(forecast: Forecast | None, position: int | None, not_before_us: int) -> int:
    """About when a job with this position will start; 0: unknown. One that pauses comes first then, by its age."""
    if forecast is None or position is None:
        return 0
    start_us = forecast.start_us(0 if not_before_us else position)
    return max(start_us, not_before_us) if start_us else 0
