"""How the API's side of the ledger calls Redis, and how it knows in which service's slot a job is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff

from worker.errors import StoreUnavailable
from worker.ledger.data_schema import SCHEMA, SCHEMA_KEY, check_schema_of, may_raise, own_fields
from worker.ledger.scripts import Scripts
from worker.ledger.sync_ledger import SERVICES_KEY, record_key, seen_key
from worker.names import WEBHOOKS
from worker.net.redis_clients import make_async_client, say_refusal
from worker.settings import Settings

#: Connections of one API process, at most.
MAX_CONNECTIONS = 16
#: Jobs whose service a process remembers, so that it need not look for them again.
MAX_PLACES = 100_000


class LedgerClient:
    """Connections to the ledger, for one asyncio process; ``AsyncLedger`` says what may be asked by them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # No retry: a client that waits is told at once, and an answer that was lost is the client's to ask for again.
        # No timeout of redis-py's: `guard` bounds all, and redis-py's own goes through `asyncio.wait_for`, which
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
        self._places: dict[str, str] = {}  # job id -> service, the oldest first
        self._services: set[str] = set()  # those of which SERVICES_KEY knows
        self._cached_for: dict[str, bytes] = {}  # service -> microseconds, as its ledger told them last
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
        """Around whatever is asked of Redis: an answer in time, or ``StoreUnavailable``.

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

    async def _call(self, service: str, arguments: list[Any]) -> Any:
        async with self.guard():
            return await self._script(keys=[service], args=arguments)

    async def _call_each(self, services: Sequence[str], arguments: list[Any]) -> list[Any]:
        """One operation on each of these services, where they share a Redis in two round trips rather than one each."""
        if self._settings.cluster:
            return await asyncio.gather(*(self._call(service, arguments) for service in services))
        async with self.pipeline() as pipe:
            for service in services:
                await self._script(keys=[service], args=arguments, client=pipe)
            found: list[Any] = await pipe.execute()
        return found

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

    async def _was_owned_by(self, service: str, seen: str) -> str:
        """The API key whose job or batch this was; it is known as long as the id is."""
        async with self.guard():
            owner: Any = await self.redis.get(seen_key(service, seen))
        return (owner or b"").decode()

    async def _room(self, owner: str, service: str, most_open: int | None) -> int | str:
        """How many jobs an API key may have open in this service, less what it has in others; "": any number."""
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
