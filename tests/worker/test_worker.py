"""The worker from outside: batches, order, faults, limits. Real Redis, real processes."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.kit.jobs import post, results
from tests.kit.system import System, finished, poll


def endings(jobs: list[dict[str, Any]]) -> Counter[str]:
    return Counter(job["error"]["code"] if job["error"] else job["status"] for job in jobs)


def test_jobs_that_wait_together_run_together_and_none_is_swapped(serving: System) -> None:
    numbers = random.Random(3).sample(range(100_000), 300)

    def submit(n: int) -> dict[str, Any]:
        with serving.client() as client:
            answer: dict[str, Any] = client.post("/jobs?wait=30", json={"service": "echo", "input": {"n": n}}).json()
            return answer

    with ThreadPoolExecutor(32) as pool:
        jobs = list(pool.map(submit, numbers))

    assert [job["output"]["n"] for job in jobs] == numbers
    assert all(job["output"]["batch"] == job["batch_size"] for job in jobs)
    assert max(job["batch_size"] for job in jobs) > 1


def test_one_exception_one_bad_input_cost_their_own_jobs_only(system: System) -> None:
    # given jobs that wait together: their worker starts after them
    system.start_api()
    ids = post(system, {"n": 1}, {"n": 2, "do": "raise"}, {"n": 3})
    bad = post(system, {"n": "x"}, service="no_schema")

    system.start_worker("echo")
    system.start_worker("no_schema")

    good, failed, other = results(system, ids)
    assert (good["output"]["n"], failed["output"], other["output"]["n"]) == (1, None, 3)
    assert failed["error"] == {
        "code": "predict_failed",
        "message": "ValueError: bad one (in predict_batch)",
        "retryable": False,
    }
    (job,) = results(system, bad)
    assert job["error"]["code"] == "invalid_input" and job["error"]["errors"][0]["loc"] == ["n"]


def test_priorities_are_served_in_their_order(system: System) -> None:
    system.start_api()
    order = ["low", "normal", "high"] * 20
    random.Random(5).shuffle(order)
    ids = [post(system, {"n": i}, priority=priority)[0] for i, priority in enumerate(order)]

    system.start_worker("echo")

    jobs = results(system, ids)
    # In one batch all start together, so compare the order in which batches began.
    started: dict[str, list[str]] = {}
    for job in jobs:
        started.setdefault(job["started_at"], []).append(job["priority"])
    rank = {"high": 0, "normal": 1, "low": 2}
    ranks = [sorted(rank[p] for p in started[moment]) for moment in sorted(started)]
    assert [r for batch in ranks for r in batch] == sorted(rank[p] for p in order)


def test_a_queue_delay_fills_batches_and_a_lone_job_waits_no_longer(system: System) -> None:
    system.start_api()
    system.start_worker("patient")

    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda n: post(system, {"n": n}, service="patient")[0], range(4)))
    together = results(system, ids)
    (alone,) = results(system, post(system, {"n": 9}, service="patient"))

    assert {job["batch_size"] for job in together} == {4}
    assert 290 <= alone["timings"]["queued_ms"] < 2000


def test_a_killed_pool_process_costs_no_job(system: System) -> None:
    system.start_api()
    worker = system.start_worker("echo")
    ids = post(system, {"n": 1, "sleep_s": 1})
    with system.client() as client:
        poll(lambda: client.get(f"/jobs/{ids[0]}").json()["status"] == "running", what="it runs")

    os.kill(worker.children[0], signal.SIGKILL)

    (job,) = results(system, ids)
    assert (job["status"], job["attempt"]) == ("succeeded", 2)


def test_a_job_that_kills_its_process_fails_alone(system: System) -> None:
    system.start_api()
    ids = post(system, {"n": 1}, {"n": 2, "do": "exit"}, {"n": 3})

    system.start_worker("echo")

    good, poison, other = results(system, ids)
    assert endings([good, other]) == {"succeeded": 2}
    assert {good["attempt"], other["attempt"]} == {1}, "its neighbours are not charged"
    assert (poison["error"]["code"], poison["attempt"]) == ("worker_lost", 3)


def test_a_run_over_its_time_limit_fails_alone(system: System) -> None:
    system.start_api()
    ids = post(system, {"n": 1}, {"n": 2, "sleep_s": 60})

    system.start_worker("echo")

    good, slow = results(system, ids)
    assert (good["status"], slow["error"]["code"]) == ("succeeded", "timed_out")


def test_killed_worker_500_jobs_each_end_once(system: System) -> None:
    system.start_api()
    first = system.start_worker("echo")
    ids = post(system, *({"n": n, "sleep_s": 0.005} for n in range(500)))
    poll(lambda: len([1 for i in ids[:200] if _status(system, i) == "succeeded"]) > 50, what="it is in the middle")

    first.stop(signal.SIGKILL)
    running = [i for i in ids if _status(system, i) == "running"]
    system.start_worker("echo")

    jobs = results(system, ids)
    assert endings(jobs) == {"succeeded": 500}
    assert [job["output"]["n"] for job in jobs] == list(range(500))
    assert running, "the kill hit a batch"


def test_sigterm_finishes_the_running_jobs_hands_back_the_rest_and_exits_0(system: System) -> None:
    system.start_api()
    worker = system.start_worker("echo")
    ids = post(system, *({"n": n, "sleep_s": 0.05} for n in range(48)))
    poll(lambda: _status(system, ids[0]) != "queued", what="it has begun")

    assert worker.stop(signal.SIGTERM) == 0

    states = Counter(_status(system, i) for i in ids)
    assert set(states) == {"succeeded", "queued"}, states
    assert system.redis.client.zcard("{echo}:workers") == 0
    system.start_worker("echo")
    assert endings(results(system, ids)) == {"succeeded": 48}


def test_sigterm_to_the_whole_group_does_not_cut_the_batch(system: System) -> None:
    system.start_api()
    worker = system.start_worker("echo")
    (job_id,) = post(system, {"n": 1, "sleep_s": 1})
    poll(lambda: _status(system, job_id) == "running", what="it runs")

    for pid in (*worker.children, worker.pid):
        os.kill(pid, signal.SIGTERM)

    assert worker.wait() == 0
    assert results(system, [job_id])[0]["attempt"] == 1


def test_cancel_stops_a_running_job_and_spares_its_batch_mates(system: System) -> None:
    system.start_api()
    ids = post(system, {"n": 1, "sleep_s": 1.5}, {"n": 2})
    worker = system.start_worker("echo")
    poll(lambda: _status(system, ids[0]) == "running", what="it runs")
    child = worker.children[0]

    with system.client() as client:
        assert client.delete(f"/jobs/{ids[0]}").json()["status"] == "cancelled"

    poll(lambda: child not in worker.children, timeout=2, what="its process is ended")
    cancelled, mate = results(system, ids)
    assert (cancelled["status"], cancelled["output"]) == ("cancelled", None)
    assert (mate["status"], mate["attempt"]) == ("succeeded", 1)


def test_a_cancelled_job_that_is_retried_runs_in_another_process_too(system: System) -> None:
    system.start_api()
    system.start_worker("one_by_one", "-c", "2")

    def start(sleep_s: float) -> str:
        (job_id,) = post(system, {"n": 1, "sleep_s": sleep_s}, service="one_by_one")
        poll(lambda: client.get(f"/jobs/{job_id}").json()["status"] == "running", what="it runs")
        return job_id

    with system.client() as client:
        other, job_id = start(3), start(0.5)
        client.delete(f"/jobs/{job_id}").raise_for_status()
        client.post(f"/jobs/{job_id}/retry").raise_for_status()
        own = start(8)  # keeps the process's successor busy: the job, due in 4 s, is for the other one
        job = finished(client, job_id, 6)
        assert (job["status"], job["attempt"]) == ("succeeded", 2)
        assert finished(client, other)["finished_at"] < job["started_at"]
        assert client.get(f"/jobs/{own}").json()["status"] == "running"


def test_start_within_and_finish_within(system: System) -> None:
    system.start_api()
    late = post(system, {"n": 1}, start_within_s=0.01) + post(system, {"n": 1}, finish_within_s=0.01)
    fine = post(system, {"n": 1}, start_within_s=60, finish_within_s=60)

    system.start_worker("echo")

    expired, timed_out, done = results(system, late + fine)
    assert (expired["status"], expired["error"]) == ("expired", None)
    assert timed_out["error"]["code"] == "timed_out"
    assert done["status"] == "succeeded"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_redis_gone_and_back_loses_nothing_accepted(system: System, number: int) -> None:
    # given a worker with work, on a Redis that writes each command to its disk
    system.redis.stop()
    system.redis.start("always")
    api = system.start_api()
    worker = system.start_worker("echo")
    ids = post(system, *({"n": n, "sleep_s": 0.02} for n in range(60)))

    system.redis.stop(number)
    with system.client(timeout=5) as client:
        refused = client.post("/jobs", json={"service": "echo", "input": {"n": 1}})
    system.redis.start("always")

    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert endings(results(system, ids)) == {"succeeded": 60}
    assert api.exit_code is None and worker.exit_code is None
    with system.client() as client:
        job = client.post("/jobs?wait=20", json={"service": "echo", "input": {"n": 5}}).json()
    assert job["status"] == "succeeded", "the subscription is back too"


def test_a_lost_message_does_not_lose_its_job(system: System) -> None:
    system.start_api()
    ids = post(system, {"n": 1})
    system.redis.client.delete("echo")

    system.start_worker("echo")
    assert endings(results(system, ids)) == {"succeeded": 1}

    # and the same while the worker already waits
    with system.client() as client:
        job_id = client.post("/jobs", json={"service": "echo", "input": {"n": 1}}).json()["id"]
        system.redis.client.delete("echo")
        assert finished(client, job_id)["status"] == "succeeded"


def test_doubled_messages_run_a_job_once(system: System) -> None:
    system.start_api()
    (job_id,) = post(system, {"n": 1})
    message: Any = system.redis.client.lrange("echo", 0, -1)
    system.redis.client.lpush("echo", *message * 5)

    system.start_worker("echo")

    assert results(system, [job_id])[0]["attempt"] == 1
    poll(lambda: system.redis.client.llen("echo") == 0, what="the surplus messages are gone")


def test_a_frozen_worker_cannot_overwrite_the_result_of_another(system: System) -> None:
    system.start_api()
    frozen = system.start_worker("echo")
    (job_id,) = post(system, {"n": 1, "sleep_s": 0.5})
    poll(lambda: _status(system, job_id) == "running", what="it runs")
    pids = [*frozen.children, frozen.pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    system.start_worker("echo")

    (job,) = results(system, [job_id])
    for pid in pids:
        os.kill(pid, signal.SIGCONT)

    assert job["attempt"] == 2
    poll(lambda: "the lease of worker" in frozen.output, what="the frozen worker learns that it was taken for dead")
    assert results(system, [job_id]) == [job], "a terminal job never changes"
    assert endings(results(system, post(system, {"n": 2}, {"n": 3}))) == {"succeeded": 2}


def test_knobs_and_state_are_told_while_loading_and_when_ready(system: System) -> None:
    system.start_api()
    worker = system.start_worker("small", wait=False, TEST_LOAD_S="2")

    with system.client() as client:
        poll(lambda: client.get("/services/small").json()["state"] == "loading", what="it loads")
        service: Any = poll(lambda: _when(client.get("/services/small").json(), "ready"), what="it is ready")
        assert service["knobs"]["max_queue_size"] == 2 and service["workers"] == 1
        worker.stop()
        assert client.get("/services/small").json()["state"] == "no_workers"
        statuses = [client.post("/jobs", json={"service": "small", "input": {"n": n}}).status_code for n in range(4)]
    assert statuses == [202, 202, 429, 429]


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        ("bad_import", "bad_import: cannot import bad_import.service:Plugin: ModuleNotFoundError: No module named"),
        ("bad_load", "RuntimeError: no weights"),
        ("crash_load", "its process died 3 times while it loaded: ended by signal 6"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_stops_its_own_worker_alone(system: System, service: str, reason: str) -> None:
    system.start_api()
    other = system.start_worker("echo")
    worker = system.start_worker(service, wait=False)

    assert worker.wait() == 1
    line = [line for line in worker.output.splitlines() if "cannot be loaded, so its worker stops" in line]
    assert len(line) == 1 and reason in line[0]
    with system.client() as client:
        told = client.get(f"/services/{service}").json()
        assert told["state"] == "failed" and reason in told["reason"]
        assert client.get("/services/echo").json()["state"] == "ready"
    assert other.exit_code is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name the services to run"),
        (["-Q", "nope"], "no installed plugin is named 'nope'"),
        (["-Q", "echo,nope"], "no installed plugin is named 'nope'"),
        (["-Q", "echo", "-P", "solo"], "leave --pool out"),
    ],
)
def test_a_command_line_that_cannot_be_exits_2(system: System, arguments: list[str], words: str) -> None:
    worker = system.start("celery", "-A", "worker", "worker", *arguments)
    assert worker.wait() == 2
    assert words in worker.output
    assert "bad_import, bad_load, bad_schema" in worker.output or "solo" in arguments


def test_a_worker_of_two_services_serves_both(system: System) -> None:
    system.start_api()
    system.start_worker("echo,small")
    jobs = results(system, post(system, {"n": 1}) + post(system, {"n": 2}, service="small"))
    assert [job["output"]["n"] for job in jobs] == [1, 2]


@pytest.mark.parametrize(("command", "code"), [(("worker", "-Q", "echo"), 1), (("inspect", "ping"), 69)])
def test_a_command_of_celery_without_redis_names_the_remedy(
    system: System, command: tuple[str, ...], code: int
) -> None:
    missing = system.folder / "no-redis"
    started = system.start_without_redis("celery", "-A", "worker", *command, SERVICES_DATA_DIR=str(missing))
    assert started.wait(30) == code
    assert "run `services redis` (or `make run`), or set REDIS_URL" in started.output


def test_nothing_is_left_in_redis_but_kept_records(system: System) -> None:
    system.start_api()
    worker = system.start_worker("echo")
    results(system, post(system, {"n": 1}, {"n": 2}, keep_for_s=0.5))
    worker.stop()

    def left() -> Any:
        keys = {key.decode() for key in system.redis.client.keys("*")}
        return keys if not any(":job:" in k or "meta" in k for k in keys) else None

    kept = poll(left, what="records and results are dropped")
    pointers = {key for key in kept if key.startswith("{echo}:seen:")}
    assert len(pointers) == 2, "their ids still answer 410"
    assert all(0 < system.redis.client.ttl(key) <= 86_401 for key in pointers)
    about = {f"{{echo}}:{name}" for name in ("about", "index", "expires", "swept")}
    assert kept - pointers <= about | {"services", "services:schema", "_kombu.binding_deadlines"}


def _status(system: System, job_id: str) -> str:
    value: Any = system.redis.client.hget(f"{{echo}}:job:{job_id}", "status")
    return str(value.decode())


def _when(service: dict[str, Any], state: str) -> dict[str, Any] | None:
    return service if service["state"] == state else None
