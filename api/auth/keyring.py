"""The API keys as this process knows them: read again within a second of each change, never once a request."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

from api.auth.open_requests import OpenRequests
from worker.errors import Forbidden, RateLimited, StoreUnavailable, Unauthorized
from worker.ledger.api_keys import CHANGED, KEYS_KEY, TAKE, Key, hash_key, read_keys
from worker.ledger.async_ledger import AsyncLedger

log = logging.getLogger("services.api")

#: Seconds between two searches for a change.
LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request, with its rights."""

    key: Key | None = None  #: None: no API keys are configured
    sees: str = ""  #: id of the API key whose jobs it sees; "": all jobs

    @property
    def owner(self) -> str:
        """The id of the API key that its jobs belong to; "" for none."""
        return self.key.id if self.key else ""

    @property
    def most_open(self) -> int | None:
        """Queued and running jobs that it may have; None: any number."""
        return self.key.concurrency or None if self.key else None

    def may_use(self, service: str) -> bool:
        """Whether it may use this service."""
        return not self.key or not self.key.services or service in self.key.services

    def check_service(self, service: str) -> None:
        """Raise ``Forbidden`` for a service that it may not use."""
        if not self.may_use(service):
            raise Forbidden(f"the API key may not use the service {service[:100]!r}")


#: Every caller while no API keys are configured.
ANYONE = Caller()


class Keyring:
    """All API keys. ``run`` reads changes."""

    def __init__(self, ledger: AsyncLedger, open_requests: OpenRequests, require_keys: bool = False) -> None:
        self._ledger = ledger
        self._open_requests = open_requests
        self._required = require_keys  # once any key was seen, for as long as this process lives
        self._take = ledger.redis.register_script(TAKE)
        self._callers: dict[str, Caller] = {}  # by the hash of the API key
        self._changed: bytes | None = None
        self._read_at = 0.0  # when Redis answered last; 0: never
        self._turn = asyncio.Lock()
        self._seen = False  # whether Redis had any key

    async def run(self) -> None:
        """Read changes for ever. While Redis is unavailable, the API keys that were read last stay valid."""
        while True:
            try:
                await self.refresh()
            except StoreUnavailable as error:
                log.debug("the API keys were not read: %s", error)
            else:
                self._end_requests()
            await asyncio.sleep(LOOK_S)

    def _end_requests(self) -> None:
        """End the open requests of keys that were revoked or have expired."""
        keys = {caller.owner: caller.key for caller in self._callers.values()}
        for key_id in self._open_requests.keys:
            key = keys.get(key_id)
            if ended := key.ended() if key else "unknown to Redis":
                self._open_requests.end(key_id, f"the API key {key_id} is {ended}")

    async def refresh(self) -> None:
        """Read the changed API keys. Calls that arrive during one read share the next read."""
        asked = time.monotonic()
        async with self._turn:
            if self._read_at > asked:
                return
            read_at = time.monotonic()
            async with self._ledger.guard():
                changed: Any = await self._ledger.redis.hget(KEYS_KEY, CHANGED)
                stored: Any = await self._ledger.redis.hgetall(KEYS_KEY) if changed != self._changed else None
            if stored is not None:
                self._callers = {hashed: _caller(key) for hashed, key in read_keys(stored).items()}
                self._look_for_loss()
            self._changed, self._read_at = changed, read_at

    def _look_for_loss(self) -> None:
        """Keys that this process has seen stay required where Redis has lost them."""
        if self._required and not self._callers:
            log.error(
                "Redis has no API keys%s: requests get 401 until one is made (`services keys create`) or restored",
                " any more, although this process has seen some" if self._seen else "; SERVICES_REQUIRE_KEYS is true",
            )
        self._seen = self._seen or bool(self._callers)
        self._required = self._required or self._seen

    async def are_required(self, fresh: bool = False) -> bool:
        """Whether requests need an API key. Raises ``StoreUnavailable`` where Redis has never answered.

        Args:
            fresh: before the answer is no, read Redis again.
        """
        if not self._required and (fresh or not self._read_at):
            await self.refresh()
        return self._required

    async def find(self, text: str) -> Caller:
        """The caller with this API key. Raises ``Unauthorized`` for an invalid key."""
        hashed = hash_key(text)
        if hashed not in self._callers:
            await self.refresh()  # it may be new
        caller = self._callers.get(hashed)
        if caller is None or caller.key is None:
            raise Unauthorized("there is no such API key")
        if ended := caller.key.ended():
            raise Unauthorized(f"the API key {caller.key.id} is {ended}")
        return caller

    async def take(self, key: Key) -> None:
        """Count one request against the key's rate. Raises ``RateLimited``."""
        if not key.rate:
            return
        async with self._ledger.guard():
            early_us: Any = await self._take(keys=[key.rate_key], args=key.rate_arguments)
        if early_us:
            message = f"the API key may send {key.rate:g} requests a second, {key.burst} at once"
            raise RateLimited(message, retry_after_s=-(-int(early_us) // 1_000_000))


def _caller(key: Key) -> Caller:
    return Caller(key, "" if key.is_admin else key.id)
