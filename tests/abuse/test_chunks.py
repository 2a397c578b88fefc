"""Chunks of batches are no jobs to the routes, the commands and the messages about jobs."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.kit.batches import send
from tests.kit.http import assert_problem
from tests.kit.system import System, poll, services

REQUESTS = [
    ("GET", ""),
    ("GET", "?include=input,output"),
    ("DELETE", ""),
    ("POST", "/retry"),
    ("GET", "/events"),
    ("GET", "/deliveries"),
]


@pytest.mark.parametrize(("method", "path"), REQUESTS)
def test_a_chunk_is_no_job_to_the_routes_of_jobs(serving: System, method: str, path: str) -> None:
    with serving.client() as client:
        batch = send(client, [{"n": n} for n in range(8)])
        poll(lambda: client.get(batch["links"]["self"]).json()["finished_at"], what="it has run")
        before = client.get(batch["links"]["self"]).json()
        for number in range(2):
            answer = client.request(method, f"/jobs/{batch['id']}.{number}{path}")
            assert_problem(answer, 404, "job_not_found")
        assert client.get(batch["links"]["self"]).json() == before


def test_counts_of_a_batch_stay_right_whatever_is_tried_on_its_chunks(system: System) -> None:
    system.start_api()
    with system.client() as client:
        batch = send(client, [{"n": n} for n in range(8)])
        attack(client, system, batch["id"])
        queued = client.get(batch["links"]["self"]).json()
        assert queued["counts"] == {"queued": 8, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 0}

        assert client.delete(batch["links"]["self"]).json()["counts"]["cancelled"] == 8
        attack(client, system, batch["id"])
        assert client.get(batch["links"]["self"]).json()["counts"]["cancelled"] == 8

        assert client.post(batch["links"]["retry"]).status_code == 202
        attack(client, system, batch["id"])
        system.start_worker("echo")
        ended = poll(lambda: _ended(client, batch["links"]["self"]), what="it ends")
        assert ended["counts"]["succeeded"] == 8 and ended["progress"] == 1


def attack(client: httpx.Client, system: System, batch_id: str) -> None:
    """Everything that changes a job, tried on a chunk."""
    chunk = f"{batch_id}.0"
    assert client.delete(f"/jobs/{chunk}").status_code == 404
    assert client.post(f"/jobs/{chunk}/retry").status_code == 404
    assert "no job" in services(system, "retry", chunk).stderr


def _ended(client: httpx.Client, path: str) -> Any:
    batch = client.get(path).json()
    return batch if batch["finished_at"] else None
