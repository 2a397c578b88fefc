"""The events of a job from outside: each once, in order, whatever is cut; none of them touches the job's end."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit.system import System, finished, free_port, listen_to, make_http, poll, running_system, status_of
from worker.ledger import worker_commands
from worker.ledger.sync_ledger import Ledger
from worker.progress import JobEvent
from worker.settings import Settings


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory, plugins: Path) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("talking"), plugins) as system:
        system.start_api()
        system.start_worker("talking")
        yield system


def submit(client: httpx.Client, service: str = "talking", **input: Any) -> str:
    answer = client.post("/jobs", json={"service": service, "input": input})
    return str(answer.raise_for_status().json()["id"])


def listen(client: httpx.Client, job_id: str, after: str = "") -> Iterator[tuple[str, Any, str]]:
    return listen_to(client, f"/jobs/{job_id}/events", after)


def tell(events: Any) -> list[Any]:
    """Events in short."""
    short = {"status": "status", "progress": "progress", "log": "message", "output": "output"}
    return [(name, data[short[name]]) for name, data, _ in events]


def test_a_job_is_followed_from_its_beginning_to_its_end(talking: System) -> None:
    with talking.client() as client:
        job_id = submit(client, steps=2, do="talk")
        events = list(listen(client, job_id))
        job = client.get(f"/jobs/{job_id}").json()

        assert tell(events) == [
            ("status", "queued"), ("status", "running"), ("log", "read"), ("log", "it has 2 steps"),
            ("log", "predicting"), ("progress", 0.5), ("progress", 1.0), ("status", "succeeded"),
        ]  # fmt: skip
        assert events[2][1] == {"level": "INFO", "message": "read"}
        assert events[3][1] == {"level": "INFO", "message": "it has 2 steps", "logger": "talking"}
        assert events[5][1] == {"progress": 0.5, "message": "step 0"}
        assert events[-1][1] == job and job["progress"] == 1.0 and job["links"]["events"] == f"/jobs/{job_id}/events"
        assert all(data["output"] is None and data["finished_at"] is None for _, data, _ in events[:2])
        log = talking.processes[-1].output
        assert "INFO talking it has 2 steps" in log and "predicting\n" in log

        # heard from the beginning after its end, the same; after its last event, nothing
        assert [id for _, _, id in listen(client, job_id)] == [id for _, _, id in events]
        again = client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": events[-1][2]})
        assert again.status_code == 204
        rest = list(listen(client, job_id, events[4][2]))
        assert rest == events[5:]


def test_a_thousand_events_cut_twenty_times_come_once_and_in_order(talking: System) -> None:
    # by two API processes in turn
    cuts, port = random.Random(5), free_port()
    talking.start("uvicorn", "api:app", "--port", str(port), "--log-level", "warning", name="api")
    poll(lambda: status_of(f"http://127.0.0.1:{port}/healthz") == 200, what="another API is up")
    with talking.client() as client, make_http(f"http://127.0.0.1:{port}", 30) as other:
        job_id = submit(client, steps=1000, step_s=0.002)
        heard: list[tuple[str, Any, str]] = []
        for cut in range(21):
            most = cuts.randrange(20, 60) if cut < 20 else 10_000
            for event in listen((client, other)[cut % 2], job_id, heard[-1][2] if heard else ""):
                heard.append(event)
                most -= 1
                if not most:
                    break
    assert [data["progress"] for name, data, _ in heard if name == "progress"] == [(i + 1) / 1000 for i in range(1000)]
    assert [data["status"] for name, data, _ in heard if name == "status"] == ["queued", "running", "succeeded"]
    assert heard[-1][1]["status"] == "succeeded" and len({id for _, _, id in heard}) == len(heard) == 1003


def test_partial_outputs_come_as_they_are_yielded(talking: System) -> None:
    with talking.client() as client:
        job_id = submit(client, steps=3, step_s=0.2, do="yield")
        times = [(name, data, time.monotonic()) for name, data, _ in listen(client, job_id)]
        outputs = [(data, moment) for name, data, moment in times if name == "output"]
        assert [data for data, _ in outputs] == [{"index": i, "output": i} for i in range(3)]
        assert outputs[0][1] < times[-1][2] - 0.3, "the first is told long before the end"
        assert times[-1][1]["output"] == {"parts": [0, 1, 2]}

        # the rows of a batch have no events, and their outputs all the same
        rows = [{"steps": 2, "do": "yield"}, {"steps": 2}]
        batch = client.post("/batches", json={"service": "talking", "inputs": rows}).json()
        lines = client.get(batch["links"]["results"]).text.splitlines()
        assert [json.loads(line)["output"]["parts"] for line in lines] == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("do", "code", "words"),
    [
        ("nan", "invalid_output", "NaN is not JSON"),
        ("big", "invalid_output", "8388608 bytes"),
        ("beyond", "predict_failed", "expected a number from 0 to 1"),
    ],
)
def test_an_output_that_json_cannot_hold_fails_its_job(talking: System, do: str, code: str, words: str) -> None:
    with talking.client() as client:
        job = finished(client, submit(client, do=do))
    assert job["status"] == "failed" and job["error"]["code"] == code and words in job["error"]["message"]


def test_bad_requests(talking: System) -> None:
    with talking.client() as client:
        assert client.get("/jobs/none/events").json()["code"] == "job_not_found"
        job_id = submit(client)
        for bad in ("x", "1/r", "1/z5", "-1/q0"):
            answer = client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": bad})
            assert answer.status_code == 422 and answer.json()["errors"][0]["loc"] == ["header", "last-event-id"]
        assert client.get(f"/jobs/{job_id}/events?wait=1").status_code == 422
        brief = client.post("/jobs?wait=10", json={"service": "talking", "input": {}, "keep_for_s": 0.3}).json()
        poll(lambda: client.get(f"/jobs/{brief['id']}").status_code == 410, what="it is dropped")
        assert client.get(f"/jobs/{brief['id']}/events").json()["code"] == "job_expired"


def test_the_attempt_after_a_lost_worker_and_an_outage_are_told(talking: System) -> None:
    with talking.client() as client:
        job_id = submit(client, steps=2, step_s=0.5, do="die_once")
        events = []
        for event in listen(client, job_id):
            events.append(event)
            if tell([event]) == [("progress", 1.0)]:
                talking.redis.stop()
                talking.redis.start()
        told = tell(events)
    run = [("status", "queued"), ("status", "running"), ("progress", 0.5)]
    assert told == [*run, *run, ("progress", 1.0), ("status", "succeeded")]
    assert [data["attempt"] for name, data, _ in events if name == "status"] == [0, 1, 1, 2, 2]


def test_a_job_that_was_cancelled_or_retried_hears_nothing_of_its_earlier_run(talking: System) -> None:
    settings = Settings(redis_url=talking.redis.url)
    ledger = Ledger(settings)
    with talking.client() as client, closing(ledger.redis):
        job_id = submit(client, steps=20, step_s=0.1)
        stream = listen(client, job_id)
        for name, _, _ in stream:
            if name == "progress":
                break
        record = talking.redis.client.hgetall(f"{{talking}}:job:{job_id}")
        token = record[b"token"].decode()
        assert client.delete(f"/jobs/{job_id}").status_code == 202
        *_, last = stream
        ledger.run(
            worker_commands.store_events(
                "talking", token, 10, {job_id: [JobEvent(10_000, "progress", b'{"progress": 0.1}', 0.1)]}
            )
        )
        job = client.get(f"/jobs/{job_id}").json()
        assert job["status"] == "cancelled" and job["progress"] != 0.1
        assert client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": last[2]}).status_code == 204
        assert 0 < talking.redis.client.pttl(f"{{talking}}:said:{job_id}") <= 86_400_000

        # run again, the stream goes on after the end that was told
        assert client.post(f"/jobs/{job_id}/retry").status_code == 202
        told = tell(listen(client, job_id, last[2]))
        assert told[:2] == [("status", "queued"), ("status", "running")] and told[-1] == ("status", "succeeded")
        assert [value for name, value in told if name == "progress"] == [(i + 1) / 20 for i in range(20)]
        assert talking.redis.client.pttl(f"{{talking}}:said:{job_id}") > 0


def test_a_call_that_is_repeated_tells_nothing_twice_and_the_oldest_lines_go(talking: System) -> None:
    ledger = Ledger(Settings(redis_url=talking.redis.url))
    with talking.client() as client, closing(ledger.redis):
        job_id = submit(client, steps=10, step_s=0.1)
        stream = listen(client, job_id)
        next(event for event in stream if event[0] == "progress")
        token = talking.redis.client.hget(f"{{talking}}:job:{job_id}", "token").decode()
        lines = [JobEvent(10_000 + i, "log", b'{"level": "INFO", "message": "%d"}' % i) for i in range(30)]
        outputs = [JobEvent(10_100 + i, "output", b'{"index": %d, "output": 1}' % i) for i in range(30)]
        for _ in range(2):
            ledger.run(worker_commands.store_events("talking", token, 7, {job_id: [*lines, *outputs]}))
        list(stream)
        told = tell(listen(client, job_id))
    assert [value for name, value in told if name == "log"] == [str(i) for i in range(23, 30)]
    assert [name for name, _ in told].count("output") == 30


def test_queued_jobs_of_a_service_without_a_worker_are_followed_until_they_run(talking: System) -> None:
    with talking.client() as client:
        job_id = submit(client, "echo", n=1)
        stream = listen(client, job_id)
        assert next(stream)[1]["status"] == "queued"
        assert talking.redis.client.hget(f"{{echo}}:job:{job_id}", "watched") == b"1"
        worker = talking.start_worker("echo")
        assert [data["status"] for _, data, _ in stream] == ["running", "succeeded"]
        assert worker.stop() == 0
