"""Files stay as long as jobs that name them have not ended, however these came: rows, `send_task`, `retry`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit.files import send
from tests.kit.http import assert_problem
from tests.kit.services import write_turning, write_untold
from tests.kit.system import System, finished, poll, running_system

SERVICES = ("turning", "untold")


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """An installation whose services have no worker yet."""
    write_turning(tmp_path / "plugins")
    write_untold(tmp_path / "plugins")
    with running_system(tmp_path, tmp_path / "plugins", SERVICES_DATA_DIR=str(tmp_path / "data")) as made:
        made.start_api()
        yield made


@pytest.fixture
def client(system: System) -> Iterator[httpx.Client]:
    with system.client() as made:
        yield made


def upload(client: httpx.Client, content: bytes = b"") -> str:
    answer = client.post("/files", content=content or os.urandom(32))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def naming(file_id: str, **more: Any) -> dict[str, Any]:
    return {"document": {"file": file_id}, **more}


def queue(client: httpx.Client, file_id: str, service: str = "turning", **more: Any) -> str:
    answer = client.post("/jobs", json={"service": service, "input": naming(file_id, **more)})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def let_time_pass(system: System, file_id: str) -> None:
    """The file is due, and its holders are no longer so young that they count without a look at their jobs."""
    redis: Any = system.redis.client
    for holder in redis.zrange(f"{{.files}}:holds:{file_id}", 0, -1):
        redis.zadd(f"{{.files}}:holds:{file_id}", {holder: 1})
    redis.hset(f"{{.files}}:file:{file_id}", "expires", 1)
    redis.zadd("{.files}:expires", {file_id: 1})


def assert_held(system: System, client: httpx.Client, file_id: str) -> None:
    """It outlives its time, and is not deleted."""
    let_time_pass(system, file_id)
    assert_problem(client.delete(f"/files/{file_id}"), 409, "file_in_use")
    expires = f"{{.files}}:file:{file_id}", "expires"
    poll(lambda: int(system.redis.client.hget(*expires) or 0) != 1, what="the sweep has looked at it")
    assert client.get(f"/files/{file_id}").status_code == 200


def assert_dropped(system: System, client: httpx.Client, file_id: str) -> None:
    let_time_pass(system, file_id)
    poll(lambda: client.get(f"/files/{file_id}").status_code == 404, what="its time is over")


def test_files_of_a_row_of_the_open_inference_protocol_stay_without_a_schema_too(
    system: System, client: httpx.Client
) -> None:
    file_id = upload(client)
    row = {"name": "input", "datatype": "BYTES", "shape": [1], "data": [json.dumps(naming(file_id))]}
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(client.post, "/v2/models/untold/infer", json={"inputs": [row]})
        (job,) = poll(lambda: client.get("/jobs").json()["jobs"], what="the row is a job")
        assert_held(system, client, file_id)
        client.delete(f"/jobs/{job['id']}")
        assert answer.result().status_code == 500
    assert_dropped(system, client, file_id)


@pytest.mark.parametrize("service", SERVICES)
def test_files_of_a_batch_stay_until_their_rows_have_run(system: System, client: httpx.Client, service: str) -> None:
    as_json, as_lines = upload(client), upload(client)
    one = client.post("/batches", json={"service": service, "inputs": [naming(as_json)]}).json()
    lines = json.dumps(naming(as_lines), indent=None, separators=(" , ", "  :  "))
    kind = {"Content-Type": "application/x-ndjson"}
    other = client.post(f"/batches?service={service}", content=lines.encode(), headers=kind).json()
    job = queue(client, held := upload(client), service)
    for file_id in (as_json, as_lines, held):
        assert_held(system, client, file_id)
    system.start_worker(service)
    for batch in (one, other):
        assert '"output"' in client.get(batch["links"]["results"]).text
    finished(client, job)
    for file_id in (as_json, as_lines, held):
        assert_dropped(system, client, file_id)


def test_a_batch_that_arrives_holds_its_files_until_it_breaks_off(system: System, client: httpx.Client) -> None:
    file_id = upload(client)
    row = json.dumps(naming(file_id)).encode() + b"\n"
    head = b"POST /batches?service=turning HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
    with socket.create_connection(("127.0.0.1", system.port)) as raw:
        raw.sendall(head + b"Content-Length: 10000000\r\n\r\n" + row * 300)
        poll(lambda: system.redis.client.keys("{turning}:job:*"), what="its first chunk is stored")
        assert_held(system, client, file_id)
    poll(lambda: not system.redis.client.keys("{turning}:job:*"), what="it is forgotten")
    assert_dropped(system, client, file_id)


def test_a_file_of_many_chunks_stays_to_the_last(system: System, client: httpx.Client) -> None:
    file_id, other = upload(client), upload(client)
    rows = [naming(file_id)] * 256 + [naming(other)] * 256 + [naming(file_id, do="wait")]
    batch = client.post("/batches", json={"service": "turning", "inputs": rows}).json()
    system.start_worker("turning", "-c", "1")
    poll(lambda: client.get(f"/batches/{batch['id']}").json()["counts"]["succeeded"] == 512, what="two chunks ran")
    assert_dropped(system, client, other)
    assert_held(system, client, file_id)
    (system.folder / "go").touch()
    assert client.get(batch["links"]["results"]).text.count('"output"') == 513
    assert_dropped(system, client, file_id)


def test_files_of_a_job_that_another_producer_sent_stay(system: System, client: httpx.Client) -> None:
    file_id = upload(client)
    system.start_worker("turning")
    job_id = send(system, naming(file_id, do="wait"))
    poll(lambda: client.get(f"/jobs/{job_id}").json().get("status") == "running", what="a worker has taken it over")
    assert_held(system, client, file_id)
    (system.folder / "go").touch()
    assert finished(client, job_id)["status"] == "succeeded"
    assert_dropped(system, client, file_id)


@pytest.mark.parametrize("by", ["http", "command"])
@pytest.mark.parametrize("service", SERVICES)
def test_files_of_a_job_that_runs_again_stay(system: System, client: httpx.Client, by: str, service: str) -> None:
    file_id = upload(client)
    job_id = queue(client, file_id, service)
    assert client.delete(f"/jobs/{job_id}").status_code == 202
    # nobody needs it, and it is forgotten that the job did
    other = upload(client)
    client.delete(f"/jobs/{queue(client, other, service)}")
    assert client.delete(f"/files/{other}").status_code == 204, "nothing holds it once its job has ended"
    system.redis.client.delete(f"{{.files}}:holds:{file_id}")
    if by == "http":
        assert client.post(f"/jobs/{job_id}/retry").status_code == 202
    else:
        command = [sys.executable, "-m", "worker.cli.main", "retry", job_id]
        subprocess.run(command, env=system.env, cwd=system.folder, capture_output=True, check=True)
    assert_held(system, client, file_id)
    system.start_worker(service)
    assert finished(client, job_id)["status"] == "succeeded"
    assert_dropped(system, client, file_id)


def test_a_job_with_a_missing_file_does_not_run_again(system: System, client: httpx.Client) -> None:
    content = os.urandom(32)
    file_id = upload(client, content)
    job_id = queue(client, file_id)
    client.delete(f"/jobs/{job_id}")
    assert client.delete(f"/files/{file_id}").status_code == 204
    refused = assert_problem(client.post(f"/jobs/{job_id}/retry"), 409, "job_not_retryable")
    for said in (file_id, "input.document", "upload it again"):
        assert said in refused["detail"]
    assert client.get(f"/jobs/{job_id}").json()["status"] == "cancelled"
    upload(client, content)
    assert client.post(f"/jobs/{job_id}/retry").status_code == 202
    system.start_worker("turning")
    assert finished(client, job_id)["status"] == "succeeded"
    assert_problem(client.post(f"/jobs/{job_id}/retry"), 409, "job_not_retryable")
    assert client.delete(f"/files/{file_id}").status_code == 204, "a retry that cannot be holds nothing"


def test_an_ended_job_that_took_hold_anew_is_about_to_run_again(system: System, client: httpx.Client) -> None:
    file_id = upload(client)
    job_id = queue(client, file_id)
    client.delete(f"/jobs/{job_id}")
    seconds, us = system.redis.client.time()
    holder = {f"turning/{job_id}": seconds * 1_000_000 + us}
    system.redis.client.zadd(f"{{.files}}:holds:{file_id}", holder)
    assert_problem(client.delete(f"/files/{file_id}"), 409, "file_in_use")
    system.redis.client.hset(f"{{turning}}:job:{job_id}", "finished", 1)
    system.redis.client.zadd(f"{{.files}}:holds:{file_id}", {f"turning/{job_id}": 2})
    assert client.delete(f"/files/{file_id}").status_code == 204, "but not for long, should it not have run"


def test_a_file_that_very_many_jobs_named_goes_all_the_same(system: System, client: httpx.Client) -> None:
    file_id = upload(client)
    system.redis.client.zadd(f"{{.files}}:holds:{file_id}", {f"turning/{n}": 1 for n in range(10_050)})
    assert_dropped(system, client, file_id)


@pytest.mark.parametrize("service", SERVICES)
def test_files_of_rows_that_run_again_stay_and_only_those(system: System, client: httpx.Client, service: str) -> None:
    good, bad, gone = upload(client), upload(client), upload(client)
    rows = [naming(good), naming(bad, do="lost"), naming(gone, do="lost")]
    worker = system.start_worker(service)
    batch = client.post("/batches", json={"service": service, "inputs": rows}).json()
    assert client.get(batch["links"]["results"]).text.count('"invalid_output"') == 2
    worker.stop()
    assert client.delete(f"/files/{gone}").status_code == 204
    for file_id in (good, bad):
        system.redis.client.delete(f"{{.files}}:holds:{file_id}")
    assert client.post(f"/batches/{batch['id']}/retry").status_code == 202
    assert_held(system, client, bad)
    assert_dropped(system, client, good)
    system.start_worker(service)
    lines = client.get(batch["links"]["results"]).text.splitlines()
    assert [json.loads(line).get("error", {}).get("code") for line in lines] == [
        None,
        "invalid_output",
        "invalid_input",
    ]
    assert_dropped(system, client, bad)


def test_a_cancelled_batch_that_runs_again_holds_all_of_its_files(system: System, client: httpx.Client) -> None:
    file_id = upload(client)
    batch = client.post("/batches", json={"service": "turning", "inputs": [naming(file_id)]}).json()
    assert client.delete(f"/batches/{batch['id']}").status_code == 202
    system.redis.client.delete(f"{{.files}}:holds:{file_id}")
    assert client.post(f"/batches/{batch['id']}/retry").status_code == 202
    assert_held(system, client, file_id)
    system.start_worker("turning")
    assert '"output"' in client.get(batch["links"]["results"]).text
    assert_dropped(system, client, file_id)
