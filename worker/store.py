"""Clients for the Redis with the ledger: one server by TCP, TLS or unix socket, Sentinel's master, or a Cluster.

``REDIS_URL`` is redis-py's (``redis://``, ``rediss://``, ``unix://``), or
``sentinel://host:port,host:port/db?master=name``, or ``redis+cluster://host:port,host:port`` (``rediss+cluster://`` for
TLS), of which one node that answers will do.
TLS is checked: a ``rediss://`` server must show a certificate that ``ssl_ca_certs`` (else the system) vouches for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.asyncio
from redis._parsers import BaseParser
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import HiredisRespSerializer
from redis.sentinel import Sentinel


class DiskFull(redis.ResponseError):
    """Redis answers, but cannot write to its disk (``MISCONF``), so it refuses every write until it can."""


# redis-py knows no class of its own for it. Celery tells errors that pass by their classes.
BaseParser.EXCEPTION_CLASSES.setdefault("MISCONF", DiskFull)

#: Longest wait for one sentinel, of which the next is then asked.
SENTINEL_TIMEOUT_S = 0.5
SENTINEL_PORT = 26379
#: An argument from which on a command is not copied as a whole.
LARGE_BYTES = 256 * 1024
REDIS_PORT = 6379
CLUSTER_SCHEMES = ("redis+cluster://", "rediss+cluster://")


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """``sentinel://[user:password@]host[:port],…[/db]?master=name`` taken apart. The credentials are the master's."""

    hosts: list[tuple[str, int]]
    master: str
    options: dict[str, Any]  #: db, username, password

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """Raises ``ValueError`` that says what is wrong."""
        parts = urlsplit(url)
        credentials, _, places = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        masters = parse_qs(parts.query).get("master", [])
        database = parts.path.strip("/") or "0"
        if not places or len(masters) != 1 or not database.isdigit():
            raise ValueError("expected sentinel://host:port,host:port/<db>?master=<name>")
        options = {"db": int(database), "username": unquote(user) or None, "password": unquote(password) or None}
        return cls([_host(place, SENTINEL_PORT) for place in places.split(",")], masters[0], options)

    @property
    def celery_url(self) -> str:
        """As Celery and kombu write it: a URL for each sentinel, the master's name apart."""
        user, password = (self.options[name] or "" for name in ("username", "password"))
        login = f"{user}:{password}@" if user or password else ""
        return ";".join(f"sentinel://{login}{host}:{port}/{self.options['db']}" for host, port in self.hosts)


@dataclass(frozen=True, slots=True)
class ClusterUrl:
    """``redis+cluster://[user:password@]host[:port],…`` taken apart; with ``rediss`` by TLS."""

    hosts: list[tuple[str, int]]
    options: dict[str, Any]  #: username, password, ssl

    @classmethod
    def parse(cls, url: str) -> ClusterUrl:
        """Raises ``ValueError`` that says what is wrong."""
        parts = urlsplit(url)
        credentials, _, places = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        if not places or parts.path.strip("/") or parts.query:
            raise ValueError("expected redis+cluster://host:port,host:port and no database: a Cluster has only one")
        options = {"username": unquote(user) or None, "password": unquote(password) or None}
        return cls(
            [_host(place, REDIS_PORT) for place in places.split(",")], {**options, "ssl": parts.scheme[:6] == "rediss"}
        )


def make_client(url: str, **options: Any) -> redis.Redis:
    """A client for redis-py's calls that block."""
    if url.startswith(CLUSTER_SCHEMES):
        cluster = ClusterUrl.parse(url)
        nodes = [ClusterNode(host, port) for host, port in cluster.hosts]
        # Another class, with all the calls that the ledger makes.
        return RedisCluster(startup_nodes=nodes, **cluster.options, **options)  # type: ignore[return-value]
    if not url.startswith("sentinel://"):
        return redis.Redis.from_url(url, **options)
    parsed = SentinelUrl.parse(url)
    timeouts = {"socket_timeout": SENTINEL_TIMEOUT_S, "socket_connect_timeout": SENTINEL_TIMEOUT_S}
    sentinel = Sentinel(parsed.hosts, sentinel_kwargs=timeouts)
    client: redis.Redis = sentinel.master_for(parsed.master, **parsed.options, **options)
    return client


def make_async_client(url: str, **options: Any) -> redis.asyncio.Redis:
    """A client for asyncio."""
    if url.startswith(CLUSTER_SCHEMES):
        cluster = ClusterUrl.parse(url)
        nodes = [AsyncClusterNode(host, port) for host, port in cluster.hosts]
        return AsyncRedisCluster(startup_nodes=nodes, **cluster.options, **options)  # type: ignore[return-value]
    if not url.startswith("sentinel://"):
        return _pack_fast(redis.asyncio.Redis.from_url(url, **options))
    parsed = SentinelUrl.parse(url)
    timeouts = {"socket_timeout": SENTINEL_TIMEOUT_S, "socket_connect_timeout": SENTINEL_TIMEOUT_S}
    sentinel = AsyncSentinel(parsed.hosts, sentinel_kwargs=timeouts)
    return _pack_fast(sentinel.master_for(parsed.master, **parsed.options, **options))


class _Packing:
    """redis-py's asyncio connections with the packer of its others, which is in C and 7 times as fast.

    But not from 400,000 bytes on (measured): there it takes 1.5 ms a megabyte, and theirs 0.08.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        if any(arg.__class__ is bytes and len(arg) > LARGE_BYTES for arg in args):
            return super().pack_command(*args)  # type: ignore[no-any-return]
        packed: list[bytes] = _packer.pack(*args)
        return packed


_packer = HiredisRespSerializer()


def _pack_fast(client: redis.asyncio.Redis) -> redis.asyncio.Redis:
    pool = client.connection_pool
    pool.connection_class = type("Connection", (_Packing, pool.connection_class), {})
    return client


def _host(place: str, default: int) -> tuple[str, int]:
    host, _, port = place.rpartition(":") if place.rpartition(":")[2].isdigit() else (place, "", default)
    return host.strip("[]"), int(port)


def say_refusal(error: Exception, hint: str) -> str:
    """Why Redis did not do what it was asked for, in a sentence that says what to do.

    Args:
        hint: what to do where it cannot be reached.
    """
    if isinstance(error, DiskFull):
        return f"Redis answers, but cannot write to its disk: make room there. It goes on by itself then ({error})"
    if isinstance(error, redis.OutOfMemoryError):
        return "Redis has no memory left (its maxmemory): raise that, or wait until ended jobs are dropped"
    if isinstance(error, redis.BusyLoadingError):
        return "Redis is reading its file; it answers in a moment"
    if isinstance(error, redis.ReadOnlyError):
        return (
            "this Redis is a replica, which takes no writes: a failover is on its way, or REDIS_URL names the wrong one"
        )
    if isinstance(error, redis.AuthenticationError):
        return "Redis refuses the user or the password of REDIS_URL"
    if isinstance(error, redis.ResponseError):
        return f"Redis refuses: {str(error)[:300]}"
    return f"Redis does not answer; try again. {hint} ({type(error).__name__})"
