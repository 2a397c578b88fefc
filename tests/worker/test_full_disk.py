"""A Redis whose disk is full: the API says so, workers wait, and all goes on once there is room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.system import System, finished, poll, running_system, services


@pytest.fixture
def stack(tmp_path: Path, plugins: Path) -> Iterator[System]:
    with running_system(tmp_path, plugins) as made:
        made.start_api()
        yield made


def fill_disk(system: System) -> None:
    """Have Redis fail to save, as on a full disk: its file's place is taken by a folder."""
    client = system.redis.client
    (system.redis.folder / "dump.rdb").mkdir()
    client.config_set("save", "3600 1")
    client.bgsave()
    poll(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", what="it cannot save")


def make_room(system: System) -> None:
    (system.redis.folder / "dump.rdb").rmdir()
    system.redis.client.bgsave()


def test_a_full_disk_is_told_as_one_and_ends_no_worker(stack: System) -> None:
    worker = stack.start_worker("echo")
    with stack.client() as client:
        fill_disk(stack)
        refused = client.post("/jobs", json={"service": "echo", "input": {"n": 1}})
        ready = client.get("/readyz")
        poll(lambda: "cannot write to its disk" in worker.output, what="the worker says why it waits")
        told = services(stack, "retry", "echo")

        for answer in (refused, ready):
            assert answer.status_code == 503
            assert answer.json()["code"] == "store_unavailable"
            assert "cannot write to its disk" in answer.json()["detail"], answer.text
        assert "cannot write to its disk" in told.stderr
        assert worker.exit_code is None

        make_room(stack)
        poll(lambda: client.get("/readyz").status_code == 200, what="it answers again")
        job = client.post("/jobs", json={"service": "echo", "input": {"n": 2}}).json()
        assert finished(client, job["id"])["status"] == "succeeded"
        assert worker.exit_code is None, "it has waited"
        assert "Unrecoverable error" not in worker.output
