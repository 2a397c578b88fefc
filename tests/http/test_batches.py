"""Many inputs in one request: ``/batches``."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

import pytest

from tests.kit.batches import read, results, send
from tests.kit.system import System, poll

NDJSON = {"Content-Type": "application/x-ndjson"}


def test_results_come_in_order_and_a_bad_row_fails_alone(serving: System) -> None:
    rows: list[Any] = [{"n": n} for n in range(500)]
    rows[7] = {"n": "no number"}
    rows[130] = {"n": 130, "do": "raise"}
    with serving.client() as client:
        batch = send(client, rows, metadata={"who": "me"})
        lines = results(client, batch)
        told = read(client, batch)
        assert [line["index"] for line in lines] == list(range(500))
        assert [line["output"]["n"] for line in lines if "output" in line] == [
            n for n in range(500) if n not in (7, 130)
        ]
        assert lines[7]["error"]["code"] == "invalid_input" and lines[7]["error"]["errors"][0]["loc"] == ["n"]
        assert lines[130]["error"]["code"] == "predict_failed"
        assert max(line["output"]["batch"] for line in lines if "output" in line) == 16, "batches are full"
        assert (told["status"], told["progress"], told["total"], told["metadata"]) == ("failed", 1, 500, {"who": "me"})
        assert told["counts"] == {"queued": 0, "running": 0, "succeeded": 498, "failed": 2, "cancelled": 0}
        assert told["finished_at"] and told["expires_at"] and told["priority"] == "low"
        assert batch["id"] not in client.get("/jobs?limit=100").text, "chunks are no jobs of the list"


def test_a_batch_for_a_slow_model_shows_progress_once_its_speed_is_known(system: System) -> None:
    system.start_api()
    system.start_worker("one_by_one")
    rows = [{"n": n, "sleep_s": 0.6} for n in range(4)]  # one chunk, where nothing is known of the model
    with system.client() as client:
        results(client, send(client, rows, service="one_by_one"))
        batch = send(client, rows, service="one_by_one")
        between = poll(
            lambda: 0 < read(client, batch)["progress"] < 1 and read(client, batch), what="some rows have ended"
        )
        assert between["counts"]["queued"] > 0
        assert [line["output"]["n"] for line in results(client, batch)] == [0, 1, 2, 3]


def test_lines_of_json_are_streamed_in_and_a_broken_line_fails_alone(serving: System) -> None:
    def body() -> Any:
        yield b'{"n": 0}\n{"n"'
        yield b': 1}\r\n\n  \nnot json\n{"n": 3, "sleep_s": NaN}\n{"n": 4, "sleep_s": 1e400}\n'
        yield b'{"n": 5}'

    with serving.client() as client:
        batch = client.post("/batches?service=echo", content=body(), headers=NDJSON).raise_for_status().json()
        lines = results(client, batch)
    codes = [line["error"]["code"] if "error" in line else line["output"]["n"] for line in lines]
    assert codes == [0, 1, "invalid_input", "invalid_input", "invalid_input", 5]


def test_the_same_key_gives_the_same_batch(serving: System) -> None:
    key = {"Idempotency-Key": "batch-key"}
    with serving.client() as client:
        first = client.post("/batches", json={"service": "echo", "inputs": [{"n": 1}]}, headers=key).json()
        again = client.post("/batches", json={"service": "echo", "inputs": [{"n": 1}]}, headers=key)
        other = client.post("/batches", json={"service": "echo", "inputs": [{"n": 2}]}, headers=key)
        assert (again.status_code, again.json()["id"]) == (200, first["id"])
        assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
        results(client, first)
    staged = [key for key in serving.redis.client.scan_iter("{echo}:job:*") if serving.redis.client.ttl(key) == -1]
    assert not staged, "nothing is left of those that were not taken"


@pytest.mark.parametrize(
    ("request_", "status", "code", "says"),
    [
        ({"json": {"service": "echo", "inputs": []}}, 422, "invalid_input", '"loc":["body","inputs"]'),
        ({"data": {"n": 1}, "params": {"service": "echo"}}, 422, "invalid_input", "Content-Type: application/x-ndjson"),
        ({"json": {"service": "echo"}}, 422, "invalid_input", "inputs"),
        ({"json": {"service": "echo", "inputs": [], "x": 1}}, 422, "invalid_input", "x"),
        ({"json": {"service": "nope", "inputs": [1]}}, 404, "unknown_service", "echo"),
        ({"content": b"{}", "headers": NDJSON}, 422, "invalid_input", "?service="),
        ({"content": b"\n\n", "headers": NDJSON, "params": {"service": "echo"}}, 422, "invalid_input", "at least one"),
        (
            {"content": b"1\n" * 200, "headers": NDJSON, "params": {"service": "echo"}},
            413,
            "payload_too_large",
            "INPUTS",
        ),
        ({"json": {"service": "echo", "inputs": ["x" * 3000]}}, 413, "payload_too_large", "JSON lines"),
        ({"content": b"x" * 3000, "headers": NDJSON, "params": {"service": "echo"}}, 413, "payload_too_large", "line"),
    ],
)
def test_an_impossible_batch_is_refused_and_leaves_nothing(
    small_limits: System, request_: Any, status: int, code: str, says: str
) -> None:
    with small_limits.client() as client:
        answer = client.post("/batches", **request_)
        assert (answer.status_code, answer.json()["code"]) == (status, code) and says in answer.text
        assert not list(small_limits.redis.client.scan_iter("{echo}:job:*"))


def test_an_upload_that_breaks_off_leaves_nothing(serving: System) -> None:
    def chunks() -> set[bytes]:
        return set(serving.redis.client.scan_iter("{echo}:job:*", count=1000)) - before

    before: set[bytes] = set()
    before = chunks()
    head = "POST /batches?service=echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-ndjson\r\n"
    with socket.create_connection(("127.0.0.1", serving.port)) as sending:
        sending.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode() + b'{"n":1}\n' * 5000)
        poll(chunks, what="its first chunks are stored")
    poll(lambda: not chunks(), what="they are gone")


@pytest.fixture
def small_limits(system: System) -> System:
    system.start_api(SERVICES_MAX_BATCH_INPUTS="100", SERVICES_MAX_BODY_BYTES="2000")
    return system


def test_ids_that_are_not_or_no_longer(serving: System) -> None:
    with serving.client() as client:
        assert client.get("/batches/none").status_code == client.delete("/batches/none").status_code == 404
        assert client.get("/batches/none/results").json()["code"] == "job_not_found"
        batch = send(client, [{"n": 1}], keep_for_s=0.2)
        poll(lambda: client.get(f"/batches/{batch['id']}").status_code == 410, what="it was dropped")
        assert not list(serving.redis.client.scan_iter(f"*job:{batch['id']}*"))


def test_cancel_stops_the_unfinished_rows(serving: System) -> None:
    with serving.client() as client:
        batch = send(client, [{"n": n, "sleep_s": 0.02} for n in range(1000)])
        poll(lambda: read(client, batch)["counts"]["running"], what="it runs")
        answer = client.delete(f"/batches/{batch['id']}")
        assert answer.status_code == 202
        told = poll(lambda: (now := read(client, batch))["finished_at"] and now, what="it has ended")
        assert told["status"] == "cancelled" and told["counts"]["cancelled"] > 500
        lines = results(client, batch)
        assert len(lines) == 1000 and lines[-1]["error"]["code"] == "cancelled"
        assert client.delete(f"/batches/{batch['id']}").json()["code"] == "job_finished"
        assert client.post("/jobs?wait=20", json={"service": "echo", "input": {"n": 1}}).json()["status"] == "succeeded"


def test_a_row_that_kills_its_process_fails_alone(serving: System) -> None:
    rows: list[Any] = [{"n": n} for n in range(100)]
    rows[40] = {"n": 40, "do": "exit"}
    with serving.client(timeout=90) as client:
        lines = results(client, send(client, rows))
    assert [line["index"] for line in lines if "error" in line] == [40]
    assert lines[40]["error"]["code"] == "worker_lost"


def test_a_killed_worker_costs_no_row(system: System) -> None:
    system.start_api()
    first = system.start_worker("echo")
    with system.client(timeout=60) as client:
        batch = send(client, [{"n": n, "sleep_s": 0.01} for n in range(300)])
        poll(lambda: read(client, batch)["counts"]["running"], what="it runs")
        for pid in first.children:
            os.kill(pid, signal.SIGKILL)
        first.stop(signal.SIGKILL)
        system.start_worker("echo")
        assert [line["output"]["n"] for line in results(client, batch)] == list(range(300))
        assert read(client, batch)["status"] == "succeeded"


def test_a_single_job_goes_before_a_batch(system: System) -> None:
    system.start_api()
    system.start_worker("echo")
    with system.client() as client:
        batch = send(client, [{"n": n, "sleep_s": 0.01} for n in range(2000)])
        poll(lambda: read(client, batch)["counts"]["running"], what="it runs")
        job = client.post("/jobs?wait=30", json={"service": "echo", "input": {"n": 1}}).json()
        assert job["status"] == "succeeded" and read(client, batch)["progress"] < 0.5
        client.delete(f"/batches/{batch['id']}")
