"""Clients that wait for a job's end: one subscription a process, however many wait.

Redis forgets what it publishes while nobody listens, so after each (re)subscription every awaited job is read once,
and each client reads its own once more at its deadline.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

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

T = TypeVar("T")

log = logging.getLogger("services.api")

#: A subscription that has been silent for this long is asked whether it lives, and given up a while later.
PING_AFTER_S = 2.0
DEAD_AFTER_S = 4.0
RETRY_S = 0.3


class Waiter:
    """The process's subscription to the ends of jobs."""

    def __init__(self, ledger: AsyncLedger, settings: Settings) -> None:
        self._ledger = ledger
        self._futures: dict[str, set[asyncio.Future[Job | None]]] = {}
        self._new: dict[str, asyncio.Future[Job | End | None]] = {}
        self._signals: dict[str, set[asyncio.Event]] = {}
        self._redis = make_async_client(
            settings.url,
            socket_timeout=None,
            socket_connect_timeout=settings.store_timeout_s,
            retry=Retry(NoBackoff(), 0),
        )

    async def run(self) -> None:
        """Listen for ever; a Redis that is away is asked again."""
        while True:
            try:
                await self._listen()
            except (redis.RedisError, OSError, StoreUnavailable) as error:
                log.debug("subscription lost: %s", error)
                await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """Close the connection."""
        await self._redis.aclose()

    @contextmanager
    def expect(self, job_id: str) -> Iterator[asyncio.Future[Job | None]]:
        """A future that gets the job when it has ended. Enter before the job can end, and no end is missed."""
        future: asyncio.Future[Job | None] = asyncio.get_running_loop().create_future()
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
        """The same of a job that is about to be stored, ``awaited``: where its end is told in full, that will do."""
        future: asyncio.Future[Job | End | None] = asyncio.get_running_loop().create_future()
        self._new[job_id] = future
        try:
            yield future
        finally:
            del self._new[job_id]

    @contextmanager
    def signal(self, id: str) -> Iterator[asyncio.Event]:
        """An event that is set when whatever has this id may have ended or told something.

        Look yourself, and clear it to wait again.
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
            heard = time.monotonic()
            while True:
                message = await pubsub.get_message(timeout=PING_AFTER_S)
                silence = time.monotonic() - heard
                if message is not None:
                    heard = time.monotonic()
                    await self._on_message(message)
                elif silence > DEAD_AFTER_S:
                    raise redis.ConnectionError("the subscription answers no ping")
                else:
                    await asyncio.wait_for(pubsub.ping(), PING_AFTER_S)

    async def _on_message(self, message: dict[str, Any]) -> None:
        if message["type"] == "message":
            told = from_json(message["data"])
            ids = [each if isinstance(each, str) else each[0] for each in told]
            if self._signals:
                self._ring(ids)
            if message["channel"] == ENDED_CHANNEL.encode():
                await self._settle([id for id, each in zip(ids, told, strict=True) if not self._has_all(id, each)])

    def _has_all(self, job_id: str, told: str | list[str]) -> bool:
        """Whether nobody who waits for this job needs its record."""
        future = self._new.get(job_id)
        if future is not None and not isinstance(told, str):
            if not future.done():
                future.set_result(End.from_told(told[1:]))
            future = None
        return future is None and job_id not in self._futures

    def _ring(self, ids: list[str]) -> None:
        for id in ids:
            for event in self._signals.get(id, ()):
                event.set()

    async def _settle(self, ids: list[str]) -> None:
        """Read these jobs, in one round trip, and tell who waits for those that have ended."""
        if not ids:
            return
        for job in await self._ledger.get_ended(ids):
            if job is None or not job.ended:
                continue
            new = [self._new[job.id]] if job.id in self._new else []
            for future in (*self._futures.get(job.id, ()), *new):
                if not future.done():
                    future.set_result(job)


class Held:
    """How many requests of this process are held until a job ends."""

    now = 0


async def ended_within(future: asyncio.Future[T | None], seconds: float) -> T | None:
    """What is told of a job's end, if it ends within so many seconds. The future is this caller's own."""
    timer = asyncio.get_running_loop().call_later(seconds, _give_up, future)
    Held.now += 1
    try:
        return await future
    finally:
        timer.cancel()
        Held.now -= 1


def _give_up(future: asyncio.Future[T | None]) -> None:
    if not future.done():
        future.set_result(None)
