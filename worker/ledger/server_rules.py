"""The rules that Redis's own settings must keep, read by INFO: it must not drop accepted jobs by itself.

An eviction policy drops keys once ``maxmemory`` is reached, among them accepted jobs and the API keys. Without an
append-only file, a crash of Redis loses the jobs of the last minutes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import redis
import redis.asyncio

from worker.errors import StoreRefused

log = logging.getLogger("services")

#: The only ``maxmemory-policy`` that refuses new data instead of dropping stored data.
POLICY = "noeviction"
#: Without the right to call INFO, or on a server that has renamed it.
UNCHECKED = "Redis's eviction policy and persistence are not checked, since it answers no INFO"
_warned: set[str] = set()


class EvictingStore(StoreRefused):
    """Redis would drop accepted jobs and API keys when its memory is full."""


def check_server(client: redis.Redis) -> None:
    """Raise ``EvictingStore`` unless Redis refuses data that it has no room for; warn where it writes no file."""
    try:
        check_info([client.info("memory"), client.info("persistence")])
    except redis.exceptions.ResponseError as error:
        _warn_unchecked(error)


async def check_server_of(client: redis.asyncio.Redis) -> None:
    """The same for asyncio."""
    try:
        check_info([await client.info("memory"), await client.info("persistence")])
    except redis.exceptions.ResponseError as error:
        _warn_unchecked(error)


def check_info(sections: list[Mapping[str, Any]]) -> None:
    """Check the sections ``memory`` and ``persistence``. Raises ``EvictingStore``."""
    for info in _each_server(sections):
        policy = info.get("maxmemory_policy", POLICY)
        if policy != POLICY:
            raise EvictingStore(
                f"Redis's maxmemory-policy is {policy}: when its memory is full, it would drop accepted jobs and API "
                f"keys; set it to {POLICY}"
            )
        if info.get("aof_enabled") == 0:
            _warn("Redis writes no append-only file: a crash of it loses jobs; set appendonly yes")


def _each_server(sections: list[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The sections of each server: a cluster's client gives them by its nodes."""
    for section in sections:
        nodes = [value for value in section.values() if isinstance(value, dict) and "maxmemory_policy" in value]
        yield from nodes or (section,)


def _warn_unchecked(error: redis.exceptions.ResponseError) -> None:
    """Warn where INFO is not allowed or has been renamed; raise any other error, such as that of a full disk."""
    if not (isinstance(error, redis.exceptions.NoPermissionError) or "unknown command" in str(error).lower()):
        raise error
    _warn(f"{UNCHECKED} ({error})")


def _warn(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        log.warning("%s", text)
