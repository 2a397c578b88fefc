"""Send webhooks: many at the same time, and no receiver delays the deliveries to another.

An *origin* (scheme, host and port) gets 4 connections at first, and twice as many after each answer, up to 32. An
origin that hangs falls back to a single connection, and its other deliveries are postponed in Redis, so that they
occupy nothing here. An origin that answers at once, even with an error or a refused connection, delays no other.

Deliveries go by aiohttp: with httpx, a worker makes 384 instead of 1,725 deliveries a CPU second
(``docs/architecture/decisions.md``).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

import aiohttp
from pydantic_core import to_json

from worker.broker.events import Reporter
from worker.broker.sample import Sample
from worker.errors import DeliveryFailed, InvalidInput, ServicesError
from worker.ledger import worker_commands
from worker.ledger.jobs import Status
from worker.ledger.keys import record_key
from worker.ledger.record import DELIVERY_FIELDS
from worker.ledger.sync_ledger import Ledger
from worker.ledger.worker_commands import Batch, Ending, Stored
from worker.names import WEBHOOKS
from worker.net.addresses import Target, parse_url
from worker.net.redis_clients import AWAY
from worker.net.signing import sign
from worker.settings import Settings
from worker.webhooks.events import read_secrets

log = logging.getLogger("services.worker")

#: Connections of an origin: at first, and at most. The limit doubles with each answer.
FIRST_LIMIT, MAX_LIMIT = 4, 32
#: Deliveries that wait in this process for a connection of their origin; further ones wait in Redis.
MAX_WAITING = 200
#: Deliveries that a worker has claimed at a time, at most.
MAX_CLAIMED = 2000
#: An origin that gives no answer within this time (milliseconds) hangs.
SLOW_MS = 1000
#: Seconds for which a delivery waits in Redis when its origin has no free connection: 1 s, doubled with each failure of
#: the origin, at most 60 s.
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 60.0
#: Longest pause between two attempts in seconds, unless the receiver asks for more by ``Retry-After``.
MAX_BACKOFF_S = 3600.0
#: Seconds for which the secrets are cached.
SECRETS_S = 5.0
#: Origins whose state is remembered, at most.
MAX_ORIGINS = 10_000
#: Threads for calls of Redis, and for name lookups: a name server that hangs must delay only its own receivers.
LEDGER_THREADS, NAME_THREADS = 8, 64
#: Seconds between two attempts to call Redis while it is away.
AGAIN_S = 0.3
GONE = 410
#: Bytes of an answer's body that are read, so that its connection can be used again.
MAX_ANSWER = 16 * 1024
#: The fields of a delivery's record except for its body, which is read when it is sent.
FIELDS = DELIVERY_FIELDS

T = TypeVar("T")


@dataclass(slots=True)
class Delivery:
    """One webhook that this worker has claimed."""

    id: str
    token: str  #: under which it was claimed
    webhook_id: str
    target: Target
    tries: int  #: number of this attempt, counted since the delivery was made
    age_s: float  #: seconds since then


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The result of one attempt."""

    status: int | None  #: None: no answer
    error: str
    duration_ms: float
    retry_after_s: float = 0

    @property
    def delivered(self) -> bool:
        """Whether the receiver has accepted the delivery."""
        return self.status is not None and 200 <= self.status < 300


@dataclass(slots=True)
class Origin:
    """The state of one receiver, and its waiting deliveries."""

    limit: int = FIRST_LIMIT
    running: int = 0
    failures: int = 0  #: consecutive attempts without an answer within ``SLOW_MS``
    waiting: deque[Delivery] = field(default_factory=deque)

    @property
    def has_room(self) -> bool:
        """Whether a further delivery can be sent or wait here. While the origin fails, it gets one at a time."""
        return self.running < self.limit or (not self.failures and len(self.waiting) < MAX_WAITING)

    @property
    def pause_s(self) -> float:
        """Seconds for which a delivery without a free connection waits."""
        return min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self.failures, 20)) * random.uniform(0.5, 1.0)

    def learn(self, result: AttemptResult) -> None:
        """Update the origin's state by the result of an attempt."""
        answered = result.status is not None or result.duration_ms < SLOW_MS
        self.failures = 0 if answered else self.failures + 1
        self.limit = min(MAX_LIMIT, self.limit * 2) if answered else 1


class Sender:
    """Sends deliveries on the event loop in which it was started."""

    def __init__(self, settings: Settings, ledger: Ledger, reporter: Reporter) -> None:
        self._settings = settings
        self._ledger = ledger
        self._reporter = reporter
        self._origins: dict[str, Origin] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._secrets: tuple[float, list[str]] = (0, [])
        self._threads = ThreadPoolExecutor(LEDGER_THREADS, "ledger")
        self._sample = Sample(settings.event_rate)
        self._stopping = False

    @property
    def claimed(self) -> int:
        """The number of deliveries that this worker has claimed and not settled."""
        return len(self._tasks) + sum(len(origin.waiting) for origin in list(self._origins.values()))

    async def start(self) -> None:
        """Open the sessions, one for each scheme, since the allowed addresses depend on the scheme."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(NAME_THREADS, "names"))
        for scheme in ("https", "http"):
            check = partial(self._settings.webhook_rules.open_socket, scheme)
            self._sessions[scheme] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=check),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=self._settings.webhook_timeout_s),
                auto_decompress=False,
            )

    async def finish(self) -> None:
        """Let open requests end, and close. The lease thread gives back the waiting deliveries."""
        self._stopping = True
        for origin in self._origins.values():
            origin.waiting.clear()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        for session in self._sessions.values():
            await session.close()
        self._threads.shutdown()

    def abandon(self, ids: Sequence[str] | None = None) -> None:
        """Stop sending these deliveries, or all (None): they no longer belong to this worker."""
        for delivery_id, task in list(self._tasks.items()):
            if ids is None or delivery_id in ids:
                task.cancel()
        for origin in self._origins.values():
            remaining = [] if ids is None else [delivery for delivery in origin.waiting if delivery.id not in ids]
            origin.waiting = deque(remaining)

    async def take(self, batch: Batch) -> None:
        """Send the deliveries of a batch whose origins have room; postpone the others."""
        back: dict[str, list[Delivery]] = {}
        for delivery_id, record in zip(batch.ids, await self._ask(partial(self._read, batch.ids)), strict=True):
            try:
                delivery = read_delivery(delivery_id, batch.token, record)
            except ServicesError as error:
                await self._end(batch.token, delivery_id, Status.FAILED, error.to_dict())
                continue
            origin = self._origins.setdefault(delivery.target.origin, Origin())
            if origin.has_room:
                origin.waiting.append(delivery)
                self._pump(origin)
            else:
                back.setdefault(delivery.target.origin, []).append(delivery)
        for name, deliveries in back.items():
            await self._postpone(self._origins[name], deliveries)
        self._forget_origins()

    def _pump(self, origin: Origin) -> None:
        """Send waiting deliveries while their origin has free connections."""
        while origin.waiting and origin.running < origin.limit and not self._stopping:
            delivery = origin.waiting.popleft()
            origin.running += 1
            task = asyncio.create_task(self._deliver(delivery, origin))
            self._tasks[delivery.id] = task
            task.add_done_callback(partial(self._done, delivery.id))

    def _done(self, delivery_id: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(delivery_id, None)
        if not task.cancelled() and (error := task.exception()):
            log.error("webhook %s was not settled; it is sent again when this worker ends", delivery_id, exc_info=error)

    async def _deliver(self, delivery: Delivery, origin: Origin) -> None:
        """Make an attempt, store its result, and go on with the origin's waiting deliveries."""
        shown = [delivery.id] if self._sample.take() else []
        self._reporter.started(delivery.id, WEBHOOKS, shown, os.getpid())
        shown_results: list[dict[str, Any]] = []
        try:
            body = await self._ask(lambda: self._ledger.redis.hget(record_key(WEBHOOKS, delivery.id), "input"))
            result = await self._post(delivery, bytes(body or b""))  # type: ignore[arg-type]
            origin.learn(result)
            shown_results = [await self._settle(delivery, result)]
        finally:
            self._reporter.ended(delivery.id, WEBHOOKS, shown_results if shown else [], 1)
            origin.running -= 1
            if origin.failures:
                back, origin.waiting = list(origin.waiting), deque()
                await self._postpone(origin, back)
            self._pump(origin)

    async def _post(self, delivery: Delivery, body: bytes) -> AttemptResult:
        """Send a request. Redirects are not followed; of the answer, only the status and ``Retry-After`` count."""
        secrets = await self._ask(self._read_secrets)
        started = time.perf_counter()
        status, error, retry_after_s = None, "", 0.0
        try:
            headers = sign(secrets, delivery.webhook_id, int(time.time()), body)
            headers |= {"Content-Type": "application/json", "User-Agent": "libs-service-webhooks"}
            session = self._sessions[delivery.target.scheme]
            async with session.post(delivery.target.url, data=body, headers=headers, allow_redirects=False) as response:
                status, retry_after_s = response.status, parse_retry_after(response.headers.get("Retry-After"))
                error = "" if 200 <= status < 300 else f"HTTP {status}"
                await response.content.read(MAX_ANSWER)
        except TimeoutError:
            error = error or f"no answer within {self._settings.webhook_timeout_s:g} s"
        except Exception as problem:  # any error that a URL or an answer causes counts as the receiver's
            error = error or f"{type(problem).__name__}: {problem}"[:500]
        return AttemptResult(status, error, round((time.perf_counter() - started) * 1000, 1), retry_after_s)

    async def _settle(self, delivery: Delivery, result: AttemptResult) -> dict[str, Any]:
        """Store the result of an attempt; returns it for Celery's events."""
        pause_s = 0.0
        output: dict[str, Any] = {"status_code": result.status, "duration_ms": result.duration_ms}
        if not result.delivered:
            pause_s = self._pause_s(delivery, result)
            output |= DeliveryFailed(result.error).to_dict() | {"retryable": result.status != GONE}
        status = Status.SUCCEEDED if result.delivered else Status.FAILED
        became = await self._end(delivery.token, delivery.id, status, output, pause_s)
        words = {Stored.ENDED: "delivered" if result.delivered else "failed", Stored.RETRIED: "will be retried"}
        line = "webhook %s id=%s url=%s attempt=%d ms=%.1f %s"
        values = (words.get(became, "dropped"), delivery.id, delivery.target.origin, delivery.tries)
        log.log(logging.INFO if result.delivered else logging.WARNING, line, *values, result.duration_ms, result.error)
        error, seconds = result.error or None, result.duration_ms / 1000
        retried = became == Stored.RETRIED
        return {"id": delivery.id, "error": error, "retried": retried, "result": str(result.status), "seconds": seconds}

    def _pause_s(self, delivery: Delivery, result: AttemptResult) -> float:
        """Seconds before the next attempt; 0: none. The last attempt is at the end of the allowed time."""
        left_s = self._settings.webhook_give_up_s - delivery.age_s
        if result.status == GONE or left_s <= 0:
            return 0
        wanted = backoff_s(self._settings.webhook_backoff_s, delivery.tries)
        return min(max(wanted, result.retry_after_s), left_s)

    async def _end(
        self, token: str, delivery_id: str, status: Status, output: dict[str, Any], pause_s: float = 0
    ) -> Stored:
        ending = Ending(delivery_id, status, to_json(output), b"{}", 1, pause_s=pause_s)
        stored = await self._ask(partial(self._ledger.run, worker_commands.complete(WEBHOOKS, token, [ending])))
        return stored[0]

    async def _postpone(self, origin: Origin, deliveries: list[Delivery]) -> None:
        for token in {delivery.token for delivery in deliveries}:
            ids = [delivery.id for delivery in deliveries if delivery.token == token]
            await self._ask(partial(self._ledger.run, worker_commands.postpone(WEBHOOKS, token, ids, origin.pause_s)))

    async def _ask(self, call: Callable[[], T]) -> T:
        """Call the ledger in a thread; while Redis is away, repeat the call until the worker stops."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await loop.run_in_executor(self._threads, call)
            except AWAY:
                if self._stopping:
                    raise
                await asyncio.sleep(AGAIN_S)

    def _read(self, ids: Sequence[str]) -> list[list[Any]]:
        pipe = self._ledger.redis.pipeline(transaction=False)
        for delivery_id in ids:
            pipe.hmget(record_key(WEBHOOKS, delivery_id), *FIELDS)
        return pipe.execute()

    def _read_secrets(self) -> list[str]:
        read_at, secrets = self._secrets
        if not secrets or time.monotonic() - read_at > SECRETS_S:
            secrets = read_secrets(self._ledger.redis, self._settings)
            self._secrets = (time.monotonic(), secrets)
        return secrets

    def _forget_origins(self) -> None:
        idle = [name for name, origin in self._origins.items() if not origin.running and not origin.waiting]
        for name in idle[: max(0, len(self._origins) - MAX_ORIGINS)]:
            del self._origins[name]


def read_delivery(delivery_id: str, token: str, record: list[Any]) -> Delivery:
    """Read a delivery from its record. Raises ``InvalidInput`` or ``AddressRefused`` if it cannot be sent."""
    metadata, attempt, base, started, score = record
    message = json.loads(metadata or b"{}")
    if "url" not in message:
        raise InvalidInput("the queue webhooks takes no tasks of other producers")
    age_s = (int(started or 0) - float(score or 0)) / 1e6
    tries = int(attempt or 1) - int(base or 0)
    return Delivery(delivery_id, token, message["webhook_id"], parse_url(message["url"]), tries, age_s)


def backoff_s(first_s: float, attempt: int) -> float:
    """Seconds before the next attempt: doubled per attempt, up to an hour, with jitter so that retries spread out."""
    return min(MAX_BACKOFF_S, first_s * 2.0 ** min(attempt - 1, 30)) * random.uniform(0.75, 1.25)


def parse_retry_after(text: str | None) -> float:
    """Seconds of a ``Retry-After`` header, in either of its forms; 0 for no header or an unknown form."""
    if not text:
        return 0
    if text.strip().isdecimal():
        return float(text.strip()[:9])
    try:
        return max(0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0
