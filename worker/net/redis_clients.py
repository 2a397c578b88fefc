"""Clients for the Redis with the ledger: one server by TCP, TLS or unix socket, Sentinel's master, or a Cluster.

All URLs of servers are taken apart here, one class a kind, for all parts of the system. Names and passwords are
unquoted once, as a URL is read (``%40`` is "@"), and quoted again where one is written for kombu or Celery.

``REDIS_URL`` is redis-py's (``redis://``, ``rediss://``, ``unix://``), or
``sentinel://host:port,host:port/db?master=name``, or ``redis+cluster://host:port,host:port`` (``rediss+cluster://`` for
TLS), of which one node that answers will do.
TLS is checked: a ``rediss://`` server must show a certificate that ``ssl_ca_certs`` (else the system) vouches for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qs, parse_qsl, quote, unquote, urlencode, urlsplit

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


# redis-py knows no class of its own for it. Celery recognises transient errors by their classes.
BaseParser.EXCEPTION_CLASSES.setdefault("MISCONF", DiskFull)

#: Errors that pass when Redis is back, has loaded its file, has room again or has a new master.
AWAY = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.BusyLoadingError,
    redis.OutOfMemoryError,
    redis.ReadOnlyError,
    DiskFull,
)

#: Longest wait for one sentinel, of which the next is then asked.
SENTINEL_TIMEOUT_S = 0.5
SENTINEL_PORT = 26379
#: An argument from which on a command is not copied as a whole.
LARGE_BYTES = 256 * 1024
REDIS_PORT = 6379
CLUSTER_SCHEMES = ("redis+cluster://", "rediss+cluster://")


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """``redis://[user:password@]host[:port][/db]``, with ``rediss`` by TLS, or ``unix://[user:password@]/path[?db=]``.

    ``redis+socket://`` is kombu's word for ``unix://``, and ``virtual_host`` there its word for ``db``.
    """

    scheme: str  #: "redis", "rediss" or "unix"
    place: str  #: "host:port"; of a unix socket its path
    db: int
    username: str
    password: str
    query: dict[str, str]  #: redis-py's other options

    @classmethod
    def parse(cls, url: str) -> ServerUrl:
        """Raises ``ValueError`` that names the error."""
        parts = urlsplit(url)
        is_socket = parts.scheme in ("unix", "redis+socket")
        username, password, place = _login(parts)
        query = dict(parse_qsl(parts.query))
        in_path = "" if is_socket else parts.path.strip("/")
        db = query.pop("db", query.pop("virtual_host", "")) or in_path or "0"
        if is_socket:
            place = unquote(parts.path)
            username, password = query.pop("username", username), query.pop("password", password)
        elif not _has_port(parts):
            place = ""
        if not place or not db.isdigit() or parts.fragment:
            form = "unix://[user:password@]/path?db=<number>" if is_socket else "redis://[user:password@]host:port/<db>"
            raise ValueError(f"expected {form}; what is special in a user, password or path is %-escaped")
        return cls("unix" if is_socket else parts.scheme, place, int(db), username, password, query)

    @classmethod
    def of_socket(cls, path: str) -> ServerUrl:
        """That of a server's unix socket."""
        return cls("unix", path, 0, "", "", {})

    @property
    def redis_url(self) -> str:
        """As redis-py reads it."""
        if self.scheme == "unix":
            return self._write("unix", {"db": str(self.db)} if self.db else {})
        return self._write(self.scheme, {})

    @property
    def celery_url(self) -> str:
        """As Celery and kombu read it: ``redis+socket://`` for a unix socket, TLS spelt out."""
        if self.scheme == "unix":
            return self._write("redis+socket", {"virtual_host": str(self.db)} if self.db else {})
        return self._write(self.scheme, {"ssl_cert_reqs": "required"} if self.scheme == "rediss" else {})

    def _write(self, scheme: str, options: dict[str, str]) -> str:
        where = quote(self.place) if self.scheme == "unix" else f"{self.place}/{self.db}"
        query = urlencode({**options, **self.query}, quote_via=quote)
        return f"{scheme}://{_quote_login(self.username, self.password)}{where}{'?' if query else ''}{query}"


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """``sentinel://[user:password@]host[:port],…[/db]?master=name`` taken apart. The credentials are the master's."""

    hosts: list[tuple[str, int]]
    master: str
    options: dict[str, Any]  #: db, username, password

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """Raises ``ValueError`` that names the error."""
        parts = urlsplit(url)
        user, password, places = _login(parts)
        masters = parse_qs(parts.query).get("master", [])
        database = parts.path.strip("/") or "0"
        if not places or len(masters) != 1 or not database.isdigit():
            raise ValueError("expected sentinel://host:port,host:port/<db>?master=<name>")
        options = {"db": int(database), "username": user or None, "password": password or None}
        return cls([_host(place, SENTINEL_PORT) for place in places.split(",")], masters[0], options)

    @property
    def celery_url(self) -> str:
        """As Celery and kombu write it: a URL for each sentinel, the master's name apart."""
        user, password = (self.options[name] or "" for name in ("username", "password"))
        login = _quote_login(user, password)
        return ";".join(f"sentinel://{login}{host}:{port}/{self.options['db']}" for host, port in self.hosts)


@dataclass(frozen=True, slots=True)
class ClusterUrl:
    """``redis+cluster://[user:password@]host[:port],…`` taken apart; with ``rediss`` by TLS."""

    hosts: list[tuple[str, int]]
    options: dict[str, Any]  #: username, password, ssl

    @classmethod
    def parse(cls, url: str) -> ClusterUrl:
        """Raises ``ValueError`` that names the error."""
        parts = urlsplit(url)
        user, password, places = _login(parts)
        if not places or parts.path.strip("/") or parts.query:
            raise ValueError("expected redis+cluster://host:port,host:port and no database: a Cluster has only one")
        options = {"username": user or None, "password": password or None}
        return cls(
            [_host(place, REDIS_PORT) for place in places.split(",")], {**options, "ssl": parts.scheme[:6] == "rediss"}
        )


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """``amqp://[user:password@]host[:port][/vhost]``, with ``amqps`` by TLS; several with ";" between them."""

    urls: list[str]

    @classmethod
    def parse(cls, url: str) -> BrokerUrl:
        """Raises ``ValueError`` that names the error. kombu reads the rest: it unquotes as we do."""
        urls = url.split(";")
        if not all(_has_port(urlsplit(each)) and not urlsplit(each).fragment for each in urls):
            raise ValueError("expected amqp://user:password@host:port/vhost; what is special in these is %-escaped")
        return cls(urls)


def _login(parts: SplitResult) -> tuple[str, str, str]:
    """User and password, unquoted, and the rest of the URL."""
    credentials, _, places = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    return unquote(user), unquote(password), places


def _quote_login(user: str, password: str) -> str:
    return f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""


def _has_port(parts: SplitResult) -> bool:
    """Whether the port is a number, or none is named: a password with "/" that is not escaped reads as one."""
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


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
    """The reason for which Redis refused a call, in a sentence with advice.

    Args:
        hint: advice for a Redis that cannot be reached.
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
        code = str(error).partition(" ")[0]  # such as NOPERM; the rest may name keys, or lines of our scripts
        return f"Redis refuses the call ({code if code.isupper() and code.isalpha() else type(error).__name__})"
    return f"Redis does not answer; try again. {hint} ({type(error).__name__})"
