"""Data of a later release is refused, by whatever would write; an empty store is numbered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.http import assert_problem
from tests.kit.services import SCHEMA as FIELDS
from tests.kit.system import System, poll, running_system, services, status_of, write_plugin
from worker.ledger.data_schema import SCHEMA, SCHEMA_KEY, own_version

PLUGIN = """
from worker.service import Service
from quick.schema import Input, Output

class Plugin(Service[Input, Output]):
    def predict(self, item):
        return {"n": item.n, "batch": 1}
"""

LATER = {"number": SCHEMA + 1, "version": "0.9.3"}
WORDS = (f"schema {SCHEMA + 1}, set by libs-service 0.9.3", "install libs-service 0.9.3 or later", "REDIS_URL")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plugin(tmp_path_factory.mktemp("quick"), "quick", FIELDS, PLUGIN)


@pytest.fixture
def later(tmp_path: Path, folder: Path) -> Iterator[System]:
    """A Redis to which a later release has written."""
    with running_system(tmp_path, folder) as made:
        redis: Any = made.redis.client
        redis.hset(SCHEMA_KEY, mapping=LATER)
        redis.sadd("services", "quick")
        yield made


def ours(system: System) -> set[bytes]:
    """Keys that are not Celery's."""
    found: Any = system.redis.client.keys("*")
    return {key for key in found if b"kombu" not in key and b"celery" not in key}


def assert_words(output: str) -> None:
    (line,) = [line for line in output.splitlines() if "0.9.3" in line]
    for words in WORDS:
        assert words in line, output
    assert "Traceback" not in output


def test_the_api_and_a_worker_do_not_start_on_it(later: System) -> None:
    api = later.start_api(wait=False)
    worker = later.start_worker("quick", wait=False)
    assert (api.wait(60), worker.wait(60)) == (3, 2)
    assert_words(api.output)
    assert_words(worker.output)
    assert ours(later) == {SCHEMA_KEY.encode(), b"services"}


@pytest.mark.parametrize(
    "command", [("retry", "quick"), ("keys", "create", "--name", "me"), ("webhooks", "rotate")], ids=lambda c: c[0]
)
def test_commands_that_write_refuse(later: System, command: tuple[str, ...]) -> None:
    done = services(later, *command)
    assert done.returncode == 1
    assert_words(done.stderr)
    assert ours(later) == {SCHEMA_KEY.encode(), b"services"}


def test_it_is_found_out_when_redis_comes_back(tmp_path: Path, folder: Path) -> None:
    with running_system(tmp_path, folder) as system:
        redis: Any = system.redis.client
        redis.hset(SCHEMA_KEY, mapping=LATER)
        redis.sadd("services", "quick")
        system.redis.stop()
        system.start_api()
        worker = system.start_worker("quick")
        with system.client() as client:
            body = {"service": "quick", "input": {"n": 1}}
            assert_problem(client.post("/jobs", json=body), 503, "store_unavailable")
            system.redis.start()
            assert worker.wait(60) == 2
            assert_words(worker.output.rpartition("Redis is away")[2])
            problem = assert_problem(client.post("/jobs", json=body), 503, "store_unavailable")
            for words in WORDS:
                assert words in problem["detail"]
            assert status_of(f"{system.url}/readyz") == 503 and status_of(f"{system.url}/healthz") == 200
        assert ours(system) == {SCHEMA_KEY.encode(), b"services"}


@pytest.mark.parametrize("first", ["api", "worker", "keys"])
def test_an_empty_store_is_numbered_by_whoever_comes_first(tmp_path: Path, folder: Path, first: str) -> None:
    with running_system(tmp_path, folder) as system:
        if first == "api":
            system.start_api()
        elif first == "worker":
            system.start_worker("quick")
        else:
            services(system, "keys", "create", "--name", "me")
        redis: Any = system.redis.client
        found = redis.hgetall(SCHEMA_KEY)
        assert found == {b"number": str(SCHEMA).encode(), b"version": own_version().encode()}


def test_the_number_is_not_raised_while_a_worker_of_0_1_0_lives(tmp_path: Path, folder: Path) -> None:
    with running_system(tmp_path, folder) as system:
        redis: Any = system.redis.client
        redis.sadd("services", "quick")
        seconds, us = redis.time()
        redis.zadd("{quick}:workers", {"old": (seconds + 3600) * 1_000_000 + us})
        redis.hset(
            "{quick}:workers:info", "old", json.dumps({"worker": "old", "host": "h", "pid": 1, "state": "ready"})
        )
        api = system.start_api()
        words = "1 worker(s) of service quick run a release of libs-service before 0.2.0"
        poll(lambda: words in api.output, what="it is logged")
        assert not redis.exists(SCHEMA_KEY)
        with system.client() as client:
            (found,) = client.get("/services/quick").json()["worker_versions"]
        assert found == {"version": None, "libs_service": None, "workers": 1}


def test_another_version_of_the_plugin_is_logged_and_shown(tmp_path: Path, folder: Path) -> None:
    write_plugin(tmp_path / "newer", "quick", FIELDS, PLUGIN, version="1.1")
    with running_system(tmp_path, folder) as system:
        system.start_worker("quick")
        redis: Any = system.redis.client
        poll(lambda: b'"ready"' in b"".join(redis.hvals("{quick}:workers:info")), what="it has told its state")
        system.env["PYTHONPATH"] = f"{tmp_path / 'newer'}:{system.env['PYTHONPATH']}"
        api = system.start_api()
        with system.client() as client:
            service = client.get("/services/quick").json()
        assert service["version"] == "1.1"
        assert service["worker_versions"] == [{"version": "1.0", "libs_service": own_version(), "workers": 1}]
        words = "1 worker(s) of service quick run version 1.0 of its plugin, and this API checks inputs by version 1.1"
        poll(lambda: words in api.output, what="it is logged")
        assert api.output.count(words) == 1
