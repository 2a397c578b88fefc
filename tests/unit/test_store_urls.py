"""Every URL of a server is read in one place, and redis-py, kombu and Celery all come to the same server by it."""

from __future__ import annotations

from typing import Any

import pytest
from kombu.connection import Connection
from kombu.utils.url import url_to_parts
from redis.connection import parse_url as redis_parses

from worker.net.redis_clients import ClusterUrl, SentinelUrl, ServerUrl
from worker.settings import Settings

#: With everything that means something in a URL, and a "%" that is followed by hexadecimal digits.
USER, PASSWORD = "us@er:/1", "p@ss/w#x?y:%41&;+ ü"
ESCAPED = "us%40er%3A%2F1:p%40ss%2Fw%23x%3Fy%3A%2541%26%3B%2B%20%C3%BC"


def told(url: str) -> tuple[Any, ...]:
    """What redis-py makes of our URL, and kombu of the one that is written for it."""
    parsed = ServerUrl.parse(url)
    ours: dict[str, Any] = dict(redis_parses(parsed.redis_url))
    with Connection(parsed.celery_url) as connection:
        return ours, connection


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_servers_login_reaches_every_library_as_it_was_meant(scheme: str) -> None:
    ours, theirs = told(f"{scheme}://{ESCAPED}@127.0.0.1:6390/4")
    assert (ours["username"], ours["password"], ours["host"], ours["port"], ours["db"]) == (
        USER,
        PASSWORD,
        "127.0.0.1",
        6390,
        4,
    )
    assert (theirs.userid, theirs.password, theirs.hostname, theirs.port) == (USER, PASSWORD, "127.0.0.1", 6390)
    assert theirs.virtual_host == "4"


@pytest.mark.parametrize(
    "url",
    [
        f"unix://{ESCAPED}@/tmp/a%20b%23c/r.sock?db=3",
        f"redis+socket://{ESCAPED}@/tmp/a%20b%23c/r.sock?db=3",
        f"redis+socket://{ESCAPED}@/tmp/a%20b%23c/r.sock?virtual_host=3",
    ],
)
def test_a_socket_has_its_login_path_and_database_for_every_library(url: str) -> None:
    ours, theirs = told(url)
    assert (ours["username"], ours["password"], ours["path"], ours["db"]) == (USER, PASSWORD, "/tmp/a b#c/r.sock", 3)
    assert theirs.transport_cls == "redis"
    read = url_to_parts(theirs.hostname)
    assert (read.username, read.password, "/" + read.path, read.query) == (
        USER,
        PASSWORD,
        "/tmp/a b#c/r.sock",
        {"virtual_host": "3"},
    )


def test_sentinels_and_a_cluster_take_the_same_login() -> None:
    sentinel = SentinelUrl.parse(f"sentinel://{ESCAPED}@a:1,b:2/3?master=m")
    assert (sentinel.options, sentinel.hosts) == (
        {"db": 3, "username": USER, "password": PASSWORD},
        [("a", 1), ("b", 2)],
    )
    for url in sentinel.celery_url.split(";"):
        read = url_to_parts(url)
        assert (read.username, read.password, read.path) == (USER, PASSWORD, "3")
    assert ClusterUrl.parse(f"redis+cluster://{ESCAPED}@a:1").options["password"] == PASSWORD


def test_a_password_alone_and_the_private_socket_of_any_folder() -> None:
    assert redis_parses(ServerUrl.parse("redis://:p%40@h:1").redis_url) == {
        "password": "p@",
        "host": "h",
        "port": 1,
        "db": 0,
    }
    assert redis_parses(ServerUrl.of_socket("/tmp/50% #1/ü.sock").redis_url)["path"] == "/tmp/50% #1/ü.sock"


def test_tls_is_checked_by_celery_too_and_its_options_stay() -> None:
    url = ServerUrl.parse("rediss://h:1/0?ssl_ca_certs=/a b").celery_url
    assert url == "rediss://h:1/0?ssl_cert_reqs=required&ssl_ca_certs=%2Fa%20b"
    assert "ssl_cert_reqs=none" in ServerUrl.parse("rediss://h:1/0?ssl_cert_reqs=none").celery_url


@pytest.mark.parametrize("url", ["redis://:p/w@h:1/0", "redis://h:1/x", "unix://", "redis://:p#w@h/0", "redis://h:0/0"])
def test_an_unescaped_url_is_named_without_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="%-escaped"):
        Settings(redis_url=url)


def test_a_brokers_url_too() -> None:
    assert Settings(broker_url="amqp://u:p%40ss%2F@h:5672/v").broker_url
    with pytest.raises(ValueError, match="%-escaped"):
        Settings(broker_url="amqp://u:p/w@h:5672/v")
