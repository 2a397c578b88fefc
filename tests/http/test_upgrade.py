"""The data of 0.1.0 under this release; releases side by side; the schema number; the workers' versions.

``tests/data/store-0.1.0`` is what cfb42b4 left behind when all of it was killed (``tests/kit/recorded_store.py``).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.kit.http import assert_problem
from tests.kit.recorded_store import DOCUMENT, ROWS, WAITING_ROW, write_recorded
from tests.kit.system import ROOT, RedisServer, System, finished, poll, services
from worker.ledger.data_schema import SCHEMA, SCHEMA_KEY

STORE = ROOT / "tests" / "data" / "store-0.1.0"
TOLD = json.loads((STORE / "told.json").read_text())
JOBS: dict[str, str] = TOLD["jobs"]


@pytest.fixture(scope="module")
def taken_over(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """This release on a copy of the data of 0.1.0: an API and a worker, for a caller with a new admin key."""
    folder = tmp_path_factory.mktemp("upgrade")
    server = RedisServer()
    shutil.copy(STORE / "appendonly.aof", server.folder)
    shutil.copytree(STORE / "files", folder / "data" / "files")
    system = System(folder, server, write_recorded(folder / "plugins"), SERVICES_DATA_DIR=str(folder / "data"))
    (folder / "go").touch()
    try:
        server.start()
        system.start_api()
        system.start_worker("recorded")
        made = services(system, "keys", "create", "--name", "after", "--scope", "admin")
        assert made.returncode == 0, made.stderr
        system.env["ADMIN_KEY"] = made.stdout.strip()
        yield system
    finally:
        system.stop()
        server.remove()


@pytest.fixture
def client(taken_over: System) -> Iterator[httpx.Client]:
    with taken_over.client() as made:
        made.headers["Authorization"] = f"Bearer {taken_over.env['ADMIN_KEY']}"
        yield made


def without_new_fields(job: Any) -> Any:
    return {name: value for name, value in job.items() if name in TOLD["shown"]["succeeded"]}


@pytest.mark.parametrize("name", ["cancelled", "expired", "succeeded", "failed", "with a file"])
def test_a_job_that_had_ended_is_as_it_was(client: httpx.Client, name: str) -> None:
    assert without_new_fields(client.get(f"/jobs/{JOBS[name]}").json()) == TOLD["shown"][name]


@pytest.mark.parametrize("name", ["paused", "running", "queued", "queued with a file", "by celery", "of a key"])
def test_a_job_that_had_not_ended_runs_to_its_end(client: httpx.Client, name: str) -> None:
    job = finished(client, JOBS[name], 60)
    assert job["status"] == "succeeded", job
    before = TOLD["shown"].get(name)
    if "created_at" in before:
        assert job["created_at"] == before["created_at"] and job["metadata"] == before["metadata"]
    if name == "queued with a file":
        made = client.get(f"/files/{job['output']['copy_of_it']['file']}/content")
        assert made.content == DOCUMENT[::-1]


def test_a_batch_that_had_ended_is_whole(client: httpx.Client) -> None:
    batch = TOLD["ended_batch"]
    assert client.get(f"/batches/{batch}").json() == TOLD["batches"][batch]
    assert client.get(f"/batches/{batch}/results").text == TOLD["results"]
    again = client.post(f"/batches/{batch}/retry")
    assert again.status_code == 202, again.text
    poll(lambda: client.get(f"/batches/{batch}").json()["finished_at"], what="its failed row has run again")
    assert client.get(f"/batches/{batch}").json()["counts"]["failed"] == 1


def test_a_batch_that_was_cut_off_is_finished(client: httpx.Client) -> None:
    batch = TOLD["cut_batch"]
    assert 0 < TOLD["batches"][batch]["counts"]["succeeded"] <= WAITING_ROW
    poll(lambda: client.get(f"/batches/{batch}").json()["finished_at"], 60, "the batch ends")
    lines = [json.loads(line) for line in client.get(f"/batches/{batch}/results").text.splitlines()]
    assert [(line["index"], line["output"]["n"]) for line in lines] == [(n, n) for n in range(ROWS)]


def test_files_can_be_read(client: httpx.Client) -> None:
    file = TOLD["file"]["id"]
    assert client.get(f"/files/{file}").json()["sha256"] == hashlib.sha256(DOCUMENT).hexdigest() == file
    assert client.get(f"/files/{file}/content").content == DOCUMENT
    made = TOLD["shown"]["with a file"]["output"]["copy_of_it"]["file"]
    assert client.get(f"/files/{made}/content").content == DOCUMENT[::-1]


def test_keys_and_their_jobs(taken_over: System, client: httpx.Client) -> None:
    listed = services(taken_over, "keys", "list")
    assert "recorded" in listed.stdout and listed.stdout.count("valid") >= 2
    body = {"service": "recorded", "input": {"n": 3}, "keep_for_s": 3_000_000_000, "metadata": {"of": "succeeded"}}
    with taken_over.client() as nobody:
        assert_problem(nobody.get(f"/jobs/{JOBS['succeeded']}"), 401, "unauthorized")
    # The new key's promises are its own: the old one, of a job without a key, is not found by it.
    answer = client.post("/jobs", json=body | {"keep_for_s": 60}, headers={"Idempotency-Key": "key of succeeded"})
    assert answer.status_code == 202


def test_an_old_job_can_be_run_again(client: httpx.Client) -> None:
    answer = client.post(f"/jobs/{JOBS['expired']}/retry")
    assert answer.status_code == 202, answer.text
    assert finished(client, JOBS["expired"])["status"] == "succeeded"


def test_the_number_is_raised_once_no_worker_of_0_1_0_lives(taken_over: System) -> None:
    """The killed worker's lease is still there at first."""
    poll(lambda: taken_over.redis.client.hget(SCHEMA_KEY, "number") == str(SCHEMA).encode(), 60, "it is raised")


def test_the_workers_versions_are_shown(taken_over: System, client: httpx.Client) -> None:
    (found,) = client.get("/services/recorded").json()["worker_versions"]
    assert found["version"] == "1.0" and found["workers"] == 1 and found["libs_service"]
