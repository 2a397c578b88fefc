"""The schema number of the data in Redis, by which a release decides whether it may change another release's data.

``services:schema`` is a hash: ``number``, and ``version``, the release of libs-service that set it. Every
writer looks at it before its first write. A store without one is empty, or was written by 0.1.0, whose schema is 1.

An empty store gets ``SCHEMA`` from its first writer. A lower number is taken over: this release reads the data of all
earlier ones. The API then raises the number, once no worker of an earlier schema lives (``may_raise``). A higher
number is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import redis

from worker.errors import StoreRefused
from worker.ledger.server_rules import check_server, check_server_of
from worker.settings import Settings

log = logging.getLogger("services")

#: The schema of this release. To be raised where an earlier release would misread, or lose, data of this one.
SCHEMA = 2
SCHEMA_KEY = "services:schema"
#: A store without a number that has data, and a worker that reports none.
FIRST_SCHEMA = 1
FIELDS = ("number", "version")
#: The ledger's set of services: a store without it is empty.
SERVICES_KEY = "services"


class SchemaTooNew(StoreRefused):
    """A later version of libs-service has written to this Redis."""


@cache
def own_version() -> str:
    """The framework's version."""
    try:
        return version("libs-service")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0"


def own_fields() -> dict[Any, Any]:
    """The fields of ``SCHEMA_KEY`` for this release."""
    return {"number": SCHEMA, "version": own_version()}


def read_number(reply: Any, settings: Settings) -> int:
    """The store's number; 0 where there is none. Raises ``SchemaTooNew``."""
    number, writer = ((value or b"").decode() for value in reply)
    if not number:
        return 0
    if number.isdigit() and int(number) <= SCHEMA:
        return int(number)
    other = "another folder by SERVICES_DATA_DIR" if settings.private_redis else "another Redis by REDIS_URL"
    raise SchemaTooNew(
        f"the data in Redis has schema {number}, set by libs-service {writer or '(unknown)'}; this is libs-service "
        f"{own_version()}, which reads schema {SCHEMA} and lower: install libs-service {writer or '(unknown)'} or "
        f"later here, or name {other}"
    )


def check_schema(client: redis.Redis, settings: Settings) -> None:
    """Look before the first write; an empty store is numbered. Raises ``StoreRefused``, and redis-py's own errors."""
    check_server(client)
    try:
        if read_number(client.hmget(SCHEMA_KEY, FIELDS), settings) == 0 and not client.exists(SERVICES_KEY):
            client.hset(SCHEMA_KEY, mapping=own_fields())
    except redis.exceptions.NoPermissionError:
        log.warning("the user of REDIS_URL may not read %s: the data's schema is not checked", SCHEMA_KEY)


async def check_schema_of(client: redis.asyncio.Redis, settings: Settings) -> int:
    """The same for asyncio; gives the store's number, ``FIRST_SCHEMA`` for data without one."""
    await check_server_of(client)
    number = read_number(await client.hmget(SCHEMA_KEY, FIELDS), settings)
    if number == 0 and not await client.exists(SERVICES_KEY):
        await client.hset(SCHEMA_KEY, mapping=own_fields())
        return SCHEMA
    return number or FIRST_SCHEMA


def may_raise(workers: Iterable[Mapping[str, Any]]) -> bool:
    """Whether none of these live workers, as their infos say, is of an earlier schema."""
    return all(worker.get("schema", FIRST_SCHEMA) >= SCHEMA for worker in workers)
