"""Fixtures: the test services, and systems with a Redis and processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rabbit import RabbitServer
from tests.services import write_services
from tests.support import RedisServer, System, running_system


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the test services."""
    return write_services(tmp_path_factory.mktemp("plugins"))


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def system(tmp_path: Path, plugins: Path) -> Iterator[System]:
    """An installation for one test, with nothing started but Redis."""
    with running_system(tmp_path, plugins) as made:
        yield made


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, plugins: Path) -> Iterator[System]:
    """An installation for one module, with the API and a worker of ``echo``."""
    with running_system(tmp_path_factory.mktemp("serving"), plugins) as made:
        made.start_api()
        made.start_worker("echo")
        yield made


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    server = RabbitServer(tmp_path_factory.mktemp("rabbit"))
    try:
        server.start()
        yield server
    finally:
        server.remove()
