"""Fixtures: the test services, and systems with a Redis and processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.rabbit import RabbitServer
from tests.kit.services import write_services
from tests.kit.system import RedisServer, System, running_system
from tests.kit.tools import need, report_skipped


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs(*tools): programs of the system, by their names in scripts/system_packages.py"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    need(*(tool for marker in item.iter_markers("needs") for tool in marker.args))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    lines = report_skipped(str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple))
    if lines:
        terminalreporter.section("programs that are not installed", yellow=True)
        terminalreporter.write_line("\n".join(lines))


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
    need("rabbitmq")
    server = RabbitServer(tmp_path_factory.mktemp("rabbit"))
    try:
        server.start()
        yield server
    finally:
        server.remove()
