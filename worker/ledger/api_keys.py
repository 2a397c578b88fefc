"""API keys: their scopes, services, rates and concurrency.

Keys in Redis, neither of which belongs to a service:

* ``services:keys`` (hash): the SHA-256 of each API key, in hexadecimal, to the JSON of its record (``Key``); and
  ``changed`` to a random text, another one after each change, by which the APIs see that they must read again. A key
  that is revoked stays here, marked: a leaked one must not become "no key is configured", and the log names its id.
* ``services:rate:<id>`` (string): of a key with a rate, the time (microseconds) at which its bucket is full again; it
  vanishes then.

The API key itself is stored nowhere. It has 256 random bits, so nobody finds it by trying, even with a fast hash.
A slow hash with salt protects passwords that people think up, and would delay each request.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from worker.errors import ServicesError
from worker.ledger.data_schema import check_schema
from worker.net.redis_clients import make_client
from worker.settings import Settings

#: A prefix by which a scanner of sources, or a person, recognises our API keys.
PREFIX = "lsk_"
KEYS_KEY = "services:keys"
CHANGED = "changed"


class Scope(StrEnum):
    """The permissions of an API key."""

    SUBMIT = "submit"  #: every request that makes work: POST and PUT
    READ = "read"  #: its own jobs and batches, and the services
    CANCEL = "cancel"  #: DELETE
    ADMIN = "admin"  #: all of these, to everybody's jobs


DEFAULT_SCOPES = (Scope.SUBMIT, Scope.READ, Scope.CANCEL)

#: A bucket that ``burst`` requests empty and that fills at ``rate`` a second: KEYS[1] the string, ARGV[1] microseconds
#: a request, ARGV[2] burst. Gives the microseconds until a request may come; 0: this one may.
TAKE = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local each, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local full_at = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0)) + each
local early = full_at - now - each * burst
if early > 0 then return math.ceil(early) end
redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000))
return 0
"""


class UnknownKey(ServicesError):
    """No API key has this id; `services keys list` shows them."""

    code = "unknown_key"


@dataclass(frozen=True, slots=True)
class Key:
    """The record of one API key. Times are seconds since the epoch; 0: never."""

    id: str
    name: str
    services: tuple[str, ...] = ()  #: those that it may use; none named: all
    scopes: tuple[Scope, ...] = DEFAULT_SCOPES
    rate: float = 0  #: requests a second; 0: any number
    burst: int = 1  #: requests that may come at once
    concurrency: int = 0  #: queued and running jobs at once; 0: any number
    created: float = 0
    expires: float = 0
    revoked: float = 0

    @classmethod
    def from_json(cls, text: bytes) -> Key:
        """Read a record; a scope that a later version has added grants nothing here."""
        stored = json.loads(text)
        fields = {name: value for name, value in stored.items() if name in cls.__dataclass_fields__}
        fields["scopes"] = tuple(scope for scope in Scope if scope in stored["scopes"])
        return cls(**{**fields, "services": tuple(stored["services"])})

    def to_json(self) -> str:
        """The record as it is stored."""
        return json.dumps(asdict(self))

    def may(self, scope: Scope) -> bool:
        """Whether it may do this."""
        return scope in self.scopes or self.is_admin

    @property
    def is_admin(self) -> bool:
        """Whether it sees everybody's jobs."""
        return Scope.ADMIN in self.scopes

    def ended(self) -> str:
        """Why it is not valid any more; "" where it is."""
        if self.revoked:
            return "revoked"
        return "expired" if self.expires and time.time() >= self.expires else ""

    @property
    def rate_key(self) -> str:
        """The string in Redis that its rate is kept by."""
        return f"services:rate:{self.id}"

    @property
    def rate_arguments(self) -> list[int]:
        """The arguments of ``TAKE``."""
        return [round(1e6 / self.rate), self.burst]


def hash_key(text: str) -> str:
    """An API key as it is stored."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_keys(stored: Mapping[bytes, bytes]) -> dict[str, Key]:
    """The records in ``services:keys``, by their hashes."""
    return {hashed.decode(): Key.from_json(text) for hashed, text in stored.items() if hashed != CHANGED.encode()}


class Keys:
    """Makes, lists and revokes API keys, for ``services keys``. Raises redis-py's own errors."""

    def __init__(self, settings: Settings) -> None:
        timeout_s = settings.store_timeout_s
        self.redis = make_client(settings.url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        self._settings = settings

    def create(self, key: Key) -> tuple[str, Key]:
        """Store a record under a new API key and a new id; gives the API key, which is not stored."""
        text = PREFIX + secrets.token_urlsafe(32)
        made = replace(key, id=secrets.token_hex(6), created=round(time.time(), 3))
        self._store(hash_key(text), made)
        return text, made

    def list(self) -> Sequence[Key]:
        """Every key, the oldest first."""
        return sorted(self._read().values(), key=lambda key: key.created)

    def revoke(self, id: str) -> Key:
        """End a key at once. Raises ``UnknownKey``."""
        for hashed, key in self._read().items():
            if key.id == id:
                ended = key if key.revoked else replace(key, revoked=round(time.time(), 3))
                self._store(hashed, ended)
                return ended
        raise UnknownKey(f"no API key has the id {id[:100]!r}; `services keys list` shows them")

    def _read(self) -> dict[str, Key]:
        stored: Any = self.redis.hgetall(KEYS_KEY)
        return read_keys(stored)

    def _store(self, hashed: str, key: Key) -> None:
        check_schema(self.redis, self._settings)
        self.redis.hset(KEYS_KEY, mapping={hashed: key.to_json(), CHANGED: secrets.token_hex(8)})
