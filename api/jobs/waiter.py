"""Clients that wait for the ends of jobs share one subscription a process.

Redis stores no message for a subscriber that is away, so after each (re)subscription every awaited job is read once,
and each client reads its job once more when its wait is over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
from pydantic_core import from_json
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from worker.errors import StoreUnavailable
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.jobs import End, Job
from worker.ledger.keys import ENDED_CHANNEL, TOLD_CHANNEL
from worker.net.redis_clients import make_async_client
from worker.settings import Settings

log = logging.getLogger("services.api")

#: Seconds of silence after which the subscription gets a ping, and after which it counts as lost.
PING_AFTER_S = 2.0
DEAD_AFTER_S = 4.0
#: Seconds until a lost subscription is made again.
RETRY_S = 0.3

#: Gets the job when it has ended; of a new job, perhaps its end alone; None when the wait is over.
Awaited = asyncio.Future[Job | None] | asyncio.Future[Job | End | None]


class Waiter:
    """The process's subscription to the ends of jobs."""

    def __init__(self, ledger: AsyncLedger, settings: Settings) -> None:
        self._ledger = ledger
        self._futures: dict[str, set[asyncio.Future[Job | None]]] = {}
        self._new: dict[str, asyncio.Future[Job | End | None]] = {}
        self._signals: dict[str, set[asyncio.Event]] = {}
        self.is_stopping = False
        self._redis = make_async_client(
            settings.url,
            socket_timeout=None,
            socket_connect_timeout=settings.store_timeout_s,
            retry=Retry(NoBackoff(), 0),
        )

    async def run(self) -> None:
        """Listen for ever; connect again when Redis was unavailable."""
        while True:
            try:
                await self._listen()
            except (redis.RedisError, OSError, StoreUnavailable) as error:
                log.debug("subscription lost: %s", error)
                await asyncio.sleep(RETRY_S)

    def stop(self) -> None:
        """End all waits at once: this process is about to stop. Each client gets its job as it stands."""
        self.is_stopping = True
        for waiting in self._futures.values():
            for future in waiting:
                _give_up(future)
        for new in self._new.values():
            _give_up(new)
        self._ring(list(self._signals))

    async def close(self) -> None:
        """Close the connection."""
        await self._redis.aclose()

    async def read(self, job_id: str, wait_s: float, sees: str) -> Job:
        """The job as it ends within ``wait_s`` seconds, or as it then stands. Raises ``JobNotFound``, ``JobExpired``.

        Args:
            sees: the API key whose jobs alone may be read; "": all jobs.
        """
        with self.expect(job_id) as end:
            job = await self._ledger.get(job_id, sees)
            if wait_s and not job.ended:
                ended = await ended_within(end, wait_s)
                job = ended if isinstance(ended, Job) else await self._ledger.get(job_id, sees)
        return job

    @contextmanager
    def expect(self, job_id: str) -> Iterator[asyncio.Future[Job | None]]:
        """A future that gets the job when it has ended. Enter it before the job can end, so that no end is missed."""
        future: asyncio.Future[Job | None] = asyncio.get_running_loop().create_future()
        if self.is_stopping:
            future.set_result(None)
        self._futures.setdefault(job_id, set()).add(future)
        try:
            yield future
        finally:
            waiting = self._futures[job_id]
            waiting.discard(future)
            if not waiting:
                del self._futures[job_id]

    @contextmanager
    def expect_new(self, job_id: str) -> Iterator[asyncio.Future[Job | End | None]]:
        """The same for a job that is stored next, as ``awaited``: Redis then publishes the whole end of its run."""
        future: asyncio.Future[Job | End | None] = asyncio.get_running_loop().create_future()
        if self.is_stopping:
            future.set_result(None)
        self._new[job_id] = future
        try:
            yield future
        finally:
            del self._new[job_id]

    @contextmanager
    def signal(self, id: str) -> Iterator[asyncio.Event]:
        """An event that is set when the job, batch or chunk with this id may have ended or sent an event.

        Read it then, and clear the event to wait again.
        """
        event = asyncio.Event()
        self._signals.setdefault(id, set()).add(event)
        try:
            yield event
        finally:
            waiting = self._signals[id]
            waiting.discard(event)
            if not waiting:
                del self._signals[id]

    async def _listen(self) -> None:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(ENDED_CHANNEL, TOLD_CHANNEL)
            await self._settle([*self._futures, *self._new])
            self._ring(list(self._signals))
            received_at = time.monotonic()
            while True:
                message = await pubsub.get_message(timeout=PING_AFTER_S)
                silence = time.monotonic() - received_at
                if message is not None:
                    received_at = time.monotonic()
                    await self._on_message(message)
                elif silence > DEAD_AFTER_S:
                    raise redis.ConnectionError("the subscription answers no ping")
                else:
                    await asyncio.wait_for(pubsub.ping(), PING_AFTER_S)

    async def _on_message(self, message: dict[str, Any]) -> None:
        if message["type"] == "message":
            news = from_json(message["data"])  # ids, and whole ends that begin with their ids
            ids = [item if isinstance(item, str) else item[0] for item in news]
            if self._signals:
                self._ring(ids)
            if message["channel"] == ENDED_CHANNEL.encode():
                await self._settle([id for id, item in zip(ids, news, strict=True) if not self._has_all(id, item)])

    def _has_all(self, job_id: str, news: str | list[str]) -> bool:
        """Whether no client that waits for this job needs its record."""
        future = self._new.get(job_id)
        if future is not None and not isinstance(news, str):
            if not future.done():
                future.set_result(End.from_reply(news[1:]))
            future = None
        return future is None and job_id not in self._futures

    def _ring(self, ids: list[str]) -> None:
        for id in ids:
            for event in self._signals.get(id, ()):
                event.set()

    async def _settle(self, ids: list[str]) -> None:
        """Read these jobs in one round trip, and settle the futures of those that have ended."""
        if not ids:
            return
        for job in await self._ledger.get_ended(ids):
            if job is None or not job.ended:
                continue
            new = [self._new[job.id]] if job.id in self._new else []
            for future in (*self._futures.get(job.id, ()), *new):
                if not future.done():
                    future.set_result(job)


class WaitingRequests:
    """Counts the requests of this process that wait for a job's end."""

    count = 0


async def ended_within(future: Awaited, seconds: float) -> Job | End | None:
    """The job, or its end, when it ends within some seconds, else None. The future belongs to this caller."""
    timer = asyncio.get_running_loop().call_later(seconds, _give_up, future)
    WaitingRequests.count += 1
    try:
        return await future
    finally:
        timer.cancel()
        WaitingRequests.count -= 1


def _give_up(future: Awaited) -> None:
    if not future.done():
        future.set_result(None)
