"""Attempts and limits on real workers: retries, timeouts, memory, cancel, deadlines, backpressure."""

from __future__ import annotations

import itertools
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit.system import System, finished, poll


def post(client: httpx.Client, service: str, **fields: Any) -> str:
    options = {name: fields.pop(name) for name in ("start_within_s", "finish_within_s") if name in fields}
    answer = client.post("/jobs", json={"service": service, "input": {"n": 1} | fields, **options})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def attempts(client: httpx.Client, job_id: str) -> list[Any]:
    job = client.get(f"/jobs/{job_id}?include=attempts").json()
    return [(a["attempt"], a["outcome"], a["charged"]) for a in job["attempts"]]


def test_exceptions_in_retry_on_are_retried_with_a_pause_and_others_are_not(system: System) -> None:
    system.start_api()
    worker = system.start_worker("retrying")
    with system.client() as client:
        flaky = post(client, "retrying", do="flaky")  # by itself: a batch's half is run again in the same attempt
        assert finished(client, flaky)["status"] == "succeeded"
        assert attempts(client, flaky) == [(1, "failed", True), (2, "succeeded", True)]
        hopeless, bad = post(client, "retrying", n=1, do="always_flaky"), post(client, "retrying", n=2, do="raise")
        job = finished(client, hopeless)
        assert (job["error"]["code"], job["error"]["retryable"], job["attempt"]) == ("predict_failed", True, 3)
        told = client.get(f"/jobs/{hopeless}?include=attempts").json()["attempts"]
        assert all(b["started_at"] > a["ended_at"] for a, b in itertools.pairwise(told))
        assert finished(client, bad)["attempt"] == 1
        batch = told[0]["batch"]
    assert f"job will be retried id={hopeless} service=retrying attempt=1 batch={batch}" in worker.output
    assert "ConnectionError: no model server" in worker.output


def test_a_timeout_is_retried_where_the_author_says_so(system: System) -> None:
    system.start_api()
    system.start_worker("retrying")
    with system.client() as client:
        job_id = post(client, "retrying", n=7, do="hang_once")
        assert finished(client, job_id)["status"] == "succeeded"
        assert attempts(client, job_id) == [(1, "timed_out", True), (2, "succeeded", True)]


def test_a_job_that_eats_memory_fails_alone_and_a_leak_costs_nobody_anything(system: System) -> None:
    system.start_api()
    worker = system.start_worker("bounded")
    with system.client() as client:
        ids = [post(client, "bounded", n=n, do="leak") for n in range(24)]
        jobs = [finished(client, job_id) for job_id in ids]
        assert {job["status"] for job in jobs} == {"succeeded"}
        poll(lambda: "starting a new one (memory_limit_mb)" in worker.output or "memory batch=" in worker.output)
        greedy, mate = post(client, "bounded", n=1, do="grow"), post(client, "bounded", n=2)
        job = finished(client, greedy, 60)
        assert (job["status"], job["error"]["code"], job["attempt"]) == ("failed", "worker_lost", 3)
        assert "memory_limit_mb" in job["error"]["message"]
        assert finished(client, mate)["status"] == "succeeded"


def test_cancel_spares_unbegun_jobs_and_ends_a_run_within_two_seconds(system: System) -> None:
    system.start_api()
    system.start_worker("one_by_one")
    with system.client() as client:
        running = post(client, "one_by_one", sleep_s=50)
        poll(lambda: client.get(f"/jobs/{running}").json()["status"] == "running")
        waiting = post(client, "one_by_one", n=2)
        assert client.delete(f"/jobs/{running}").status_code == 202
        assert finished(client, waiting, 3)["status"] == "succeeded", "the slot is free again within two seconds"
        assert attempts(client, running) == [(1, "cancelled", True)]
        # and cancelled, it can be run again, but never beside its own earlier run
        assert client.post(f"/jobs/{running}/retry").json()["status"] == "queued"


def test_deadlines_are_kept_where_no_worker_lives(system: System) -> None:
    system.start_api()
    with system.client() as client:
        late = post(client, "echo", start_within_s=0.2)
        slow = post(client, "echo", finish_within_s=0.2)
        assert finished(client, late, 5)["status"] == "expired"
        assert finished(client, slow, 5)["error"]["code"] == "timed_out"
        # both can be run again, with the same deadlines
        for job_id in (late, slow):
            assert client.post(f"/jobs/{job_id}/retry").status_code == 202
            assert finished(client, job_id, 5)["status"] in ("expired", "failed")


def test_a_run_past_its_finish_within_is_stopped(system: System) -> None:
    system.start_api()
    system.start_worker("one_by_one")
    with system.client() as client:
        late = post(client, "one_by_one", sleep_s=50, finish_within_s=1)
        after = post(client, "one_by_one", n=2)
        assert finished(client, late, 5)["error"]["code"] == "timed_out"
        assert finished(client, after, 5)["status"] == "succeeded"


def test_a_stopped_main_process_does_not_have_its_long_job_run_twice(system: System) -> None:
    system.start_api()
    first = system.start_worker("one_by_one")
    with system.client() as client:
        long = post(client, "one_by_one", sleep_s=9)
        poll(lambda: client.get(f"/jobs/{long}").json()["status"] == "running")
        system.start_worker("one_by_one")
        first.send_signal(signal.SIGSTOP)  # its pool process computes on, and keeps the lease
        job = finished(client, long, 30)
        first.send_signal(signal.SIGCONT)
        assert (job["status"], job["attempt"]) == ("succeeded", 1)
        assert attempts(client, long) == [(1, "succeeded", True)]


def test_a_run_in_c_code_that_holds_the_gil_keeps_its_lease_and_can_be_stopped(system: System) -> None:
    system.start_api()
    system.start_worker("one_by_one")
    system.start_worker("echo")  # with a limit of 2 s
    with system.client() as client:
        long = post(client, "one_by_one", do="hold_gil")
        endless = post(client, "echo", do="hold_gil")
        assert finished(client, endless, 8)["error"]["code"] == "timed_out"
        assert finished(client, long)["status"] == "succeeded"
        assert attempts(client, long) == [(1, "succeeded", True)], "its process ran it to its end, beyond any lease"
        unwanted = post(client, "one_by_one", do="hold_gil")
        poll(lambda: client.get(f"/jobs/{unwanted}").json()["status"] == "running")
        after = post(client, "one_by_one", n=2)
        assert client.delete(f"/jobs/{unwanted}").status_code == 202
        assert finished(client, after, 3)["status"] == "succeeded", "the slot is free again within two seconds"


def test_a_pool_process_with_a_lapsed_lease_ends_itself(system: System) -> None:
    system.start_api()
    first = system.start_worker("one_by_one")
    with system.client() as client:
        long = post(client, "one_by_one", do="hang_once")
        poll((system.folder / "run-1").exists, what="the child computes")
        (child,) = first.children
        first.send_signal(signal.SIGSTOP)
        os.kill(child, signal.SIGSTOP)
        system.start_worker("one_by_one")
        poll(lambda: client.get(f"/jobs/{long}?include=attempts").json()["attempts"][0]["outcome"] == "lost", 15)
        os.kill(child, signal.SIGCONT)  # the main process stays stopped: only the child itself can know
        poll(lambda: gone(child), 5, "the child ends itself")
        first.send_signal(signal.SIGCONT)
    assert "others run it now: ending it" in first.output or "could not be renewed in time" in first.output


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_burst_is_absorbed_up_to_the_limit_and_the_refusal_says_when_to_come_back(system: System) -> None:
    system.start_api()
    worker = system.start_worker("small")
    with system.client() as client:
        worker.stop()
        answers = [client.post("/jobs", json={"service": "small", "input": {"n": n}}) for n in range(4)]
        assert [answer.status_code for answer in answers] == [202, 202, 429, 429]
        assert answers[3].json()["code"] == "queue_full"
        assert 1 <= int(answers[3].headers["Retry-After"]) <= 60
        system.start_worker("small")
        for answer in answers[:2]:
            assert finished(client, answer.json()["id"])["status"] == "succeeded"
        assert client.post("/jobs", json={"service": "small", "input": {"n": 1}}).status_code == 202


def test_a_burst_of_fifty_times_the_capacity_is_absorbed_and_worked_off_by_more_workers(system: System) -> None:
    system.start_api()
    system.start_worker("one_by_one")  # 20 ms a job: at most 50 a second
    with system.client() as client, ThreadPoolExecutor(32) as pool:
        body = {"service": "one_by_one", "input": {"n": 1, "sleep_s": 0.02}}
        posts = [pool.submit(client.post, "/jobs", json=body) for _ in range(2500)]
        waits = []
        while not all(post.done() for post in posts):
            started = time.monotonic()
            assert client.get("/readyz").status_code == 200
            waits.append(time.monotonic() - started)
        answers = [post.result() for post in posts]
        assert {answer.status_code for answer in answers} == {202}
        assert max(waits) < 2, "the API answers others meanwhile"
        system.start_worker("one_by_one", "--concurrency=8")
        depth = lambda: client.get("/services/one_by_one").json()["queue_depth"]  # noqa: E731
        poll(lambda: depth() == 0, 60, "the queue is worked off")
        assert {finished(client, answer.json()["id"])["status"] for answer in answers} == {"succeeded"}


def test_failed_jobs_are_listed_looked_at_and_run_again_by_hand(system: System) -> None:
    system.start_api()
    system.start_worker("retrying")
    with system.client() as client:
        ids = [post(client, "retrying", n=n, do="raise") for n in range(3)]
        assert all(finished(client, job_id)["status"] == "failed" for job_id in ids)
        listed = client.get("/jobs?service=retrying&status=failed").json()["jobs"]
        assert [job["id"] for job in listed] == ids[::-1]
        one = client.get(f"/jobs/{ids[0]}?include=input,attempts").json()
        assert one["input"] == {"n": 0, "do": "raise"}
        assert one["attempts"][0]["error"]["message"].startswith("ValueError: bad one")
        (whole,) = client.get("/jobs?service=retrying&status=failed&limit=1&include=input,attempts").json()["jobs"]
        assert whole["input"] == {"n": 2, "do": "raise"} and whole["attempts"][0]["outcome"] == "failed"

        said = system.start("worker.cli.main", "retry", "retrying")
        assert said.wait() == 0
        assert sorted(said.output.split("queued again: ")[1:]) == sorted(f"{job_id}\n" for job_id in ids)
        again = [finished(client, job_id) for job_id in ids]
        assert [(job["status"], job["attempt"]) for job in again] == [("failed", 2)] * 3
        assert len(attempts(client, ids[0])) == 2
        by_id = system.start("worker.cli.main", "retry", ids[0])
        assert by_id.wait() == 0
        unknown = system.start("worker.cli.main", "retry", "no-such-job")
        assert unknown.wait() == 1
        assert (
            "Error: no job has the id 'no-such-job', and no service this name; installed services: " in unknown.output
        )


def test_a_retry_of_all_stops_where_the_queue_is_full_and_counts_the_rest(system: System) -> None:
    system.start_api()
    worker = system.start_worker("small")  # at most two may wait
    with system.client() as client:
        ids = []
        for n in range(3):
            ids.append(post(client, "small", n=n, do="raise"))
            finished(client, ids[-1])
        worker.stop()
        said = system.start("worker.cli.main", "retry", "small")
        assert said.wait() == 1
        assert said.output.count("queued again: ") == 2
        assert "Error: the queue of small is full: 2 queued again, 1 still failed; run this again in " in said.output
        assert [client.get(f"/jobs/{job_id}").json()["status"] for job_id in ids] == ["failed", "queued", "queued"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("/jobs/none/retry", 404, "job_not_found"), ("/jobs/{done}/retry", 409, "job_not_retryable")],
)
def test_a_job_that_cannot_run_again_gets_the_reason(serving: System, path: str, status: int, code: str) -> None:
    with serving.client() as client:
        done = client.post("/jobs?wait=20", json={"service": "echo", "input": {"n": 1}}).json()["id"]
        answer = client.post(path.format(done=done))
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert client.post(f"/jobs/{done}/retry", json={"input": {}}).status_code == 422
        assert client.get(f"/jobs/{done}?include=outputs").json()["errors"][0]["loc"] == ["query", "include"]
