"""Open answers: those of a key that is revoked, their number, and those of an API that is stopped."""

from __future__ import annotations

import json
import re
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from tests.kit.http import assert_problem, body
from tests.kit.keys import make_key
from tests.kit.system import System, poll, services


def wait_in_background(pool: ThreadPoolExecutor, system: System, path: str, key: str = "") -> Future[httpx.Response]:
    headers = {"X-API-Key": key} if key else {}
    return pool.submit(httpx.get, f"{system.url}{path}", headers=headers, timeout=60)


def test_a_revoked_key_ends_its_open_waits_and_streams(system: System) -> None:
    system.start_api()
    key, other = make_key(system), make_key(system, "bob")
    key_id = json.loads(services(system, "keys", "list", "--json").stdout)[0]["id"]
    assert json.loads(services(system, "keys", "list", "--json").stdout)[0]["name"] == "ann"
    with system.client() as client, ThreadPoolExecutor() as pool:
        headers = {"X-API-Key": key}
        job = client.post("/jobs", content=body(), headers=headers).json()
        others = client.post("/jobs", content=body(), headers={"X-API-Key": other}).json()
        waiting = wait_in_background(pool, system, f"/jobs/{job['id']}?wait=40", key)
        undisturbed = wait_in_background(pool, system, f"/jobs/{others['id']}?wait=4", other)
        with client.stream("GET", job["links"]["events"], headers=headers) as stream:
            lines = stream.iter_lines()
            next(lines)
            began = time.monotonic()
            assert services(system, "keys", "revoke", key_id).returncode == 0
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
            assert time.monotonic() - began < 10
        assert_problem(waiting.result(10), 401, "unauthorized")
        assert "is revoked" in waiting.result().json()["detail"]
        assert undisturbed.result(20).status_code == 200


def test_a_key_has_a_limit_of_open_requests(system: System) -> None:
    system.start_api(SERVICES_MAX_OPEN_REQUESTS="3")
    key, other = make_key(system), make_key(system, "bob")
    with system.client() as client, ThreadPoolExecutor() as pool:
        job = client.post("/jobs", content=body(), headers={"X-API-Key": key}).json()
        waits = [wait_in_background(pool, system, f"/jobs/{job['id']}?wait=3", key) for _ in range(3)]
        held = re.compile(r"^services_api_requests_held\{.*\} 3", re.M)
        metrics = {"X-API-Key": other}  # whose requests are counted apart
        poll(lambda: held.search(client.get("/metrics", headers=metrics).text), what="three are open")
        refused = client.get("/jobs", headers={"X-API-Key": key})
        assert_problem(refused, 429, "rate_limited")
        assert "SERVICES_MAX_OPEN_REQUESTS" in refused.json()["detail"] and refused.headers["Retry-After"]
        assert client.get("/jobs", headers={"X-API-Key": other}).status_code == 200
        assert {wait.result(20).status_code for wait in waits} == {200}
        assert client.get("/jobs", headers={"X-API-Key": key}).status_code == 200


def test_a_stopped_api_answers_its_waiting_clients_with_their_jobs(system: System) -> None:
    api = system.start_api()
    with system.client() as client, ThreadPoolExecutor() as pool:
        job = client.post("/jobs", content=body()).json()
        got = wait_in_background(pool, system, f"/jobs/{job['id']}?wait=40")
        posted = pool.submit(httpx.post, f"{system.url}/jobs?wait=40", content=body(), timeout=60)
        tensor = {"name": "n", "shape": [1], "datatype": "INT64", "data": [1]}
        url = f"{system.url}/v2/models/echo/infer"
        inferred = pool.submit(httpx.post, url, json={"inputs": [tensor]}, timeout=60)
        events: list[str] = []
        followed = pool.submit(_follow, f"{system.url}{job['links']['events']}", events)
        poll(lambda: events, what="the stream has begun")
        poll(lambda: len(client.get("/jobs").json()["jobs"]) == 3, what="all are there")
        time.sleep(0.3)
        began = time.monotonic()
        api.send_signal(signal.SIGTERM)
        for answer in (got.result(20), posted.result(20)):
            assert answer.status_code in (200, 202) and answer.json()["status"] == "queued", answer.text
        late = inferred.result(20)
        assert late.status_code == 504 and "it goes on" in late.json()["error"], late.text
        followed.result(20)  # the stream ends as a whole answer
        assert time.monotonic() - began < 5
    api.wait()
    assert "Traceback" not in api.output and "Cancel" not in api.output

    # the jobs go on
    system.start_api()
    system.start_worker("echo")
    with system.client() as client:
        poll(lambda: {j["status"] for j in client.get("/jobs").json()["jobs"]} == {"succeeded"}, what="all have run")


def _follow(url: str, events: list[str]) -> None:
    with httpx.stream("GET", url, timeout=60) as stream:
        events.append("begun")
        events.extend(stream.iter_lines())
