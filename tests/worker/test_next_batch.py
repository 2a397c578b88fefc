"""Jobs that are next while their worker's one process computes: nothing that befalls the run may cost them anything.

A worker may have claimed them already, so as to go on without a pause; whether it has must not be seen from outside.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit.system import Process, System, finished, poll, running_system

#: Seconds in which a worker that claims ahead has done so.
AHEAD_S = 1.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, plugins: Path) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("next"), plugins) as made:
        made.start_api()
        yield made


@pytest.fixture
def client(stack: System) -> Iterator[httpx.Client]:
    """And when a test is over, none of its workers lives on."""
    with stack.client() as made:
        yield made
    for process in stack.processes[1:]:
        if process.exit_code is None:
            process.send_signal(signal.SIGCONT)
            process.stop(signal.SIGKILL)


def post(client: httpx.Client, service: str, n: int, **fields: Any) -> str:
    options = {name: fields.pop(name) for name in ("start_within_s", "finish_within_s") if name in fields}
    answer = client.post("/jobs", json={"service": service, "input": {"n": n} | fields, **options})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def status(client: httpx.Client, job_id: str) -> str:
    return str(client.get(f"/jobs/{job_id}").json()["status"])


def attempts(client: httpx.Client, job_id: str) -> list[tuple[str, bool]]:
    told = client.get(f"/jobs/{job_id}?include=attempts").json()["attempts"]
    return [(attempt["outcome"], attempt["charged"]) for attempt in told]


def begin(client: httpx.Client, service: str, n: int, **fields: Any) -> str:
    """A job that runs."""
    job_id = post(client, service, n, **fields)
    poll(lambda: status(client, job_id) == "running", what="it runs")
    return job_id


def let_claim_ahead(client: httpx.Client, job_id: str) -> None:
    """Give a worker that claims ahead the time to claim this job."""
    with contextlib.suppress(AssertionError):
        poll(lambda: status(client, job_id) == "running", AHEAD_S)


def assert_untouched(client: httpx.Client, job_id: str) -> None:
    """It succeeded in its first attempt; before that it may have been given back."""
    assert finished(client, job_id)["status"] == "succeeded"
    *before, last = attempts(client, job_id)
    assert last == ("succeeded", True) and set(before) <= {("handed_back", False)}, before


def running_jobs(stack: System, service: str) -> set[str]:
    """What all workers have claimed."""
    redis = stack.redis.client
    return {job_id.decode() for key in redis.scan_iter(f"{{{service}}}:running:*") for job_id in redis.hkeys(key)}


def test_a_killed_process_takes_its_own_batch_along_and_no_other(stack: System, client: httpx.Client) -> None:
    worker = stack.start_worker("bounded")
    culprit = post(client, "bounded", 1, do="hang_once")
    poll((stack.folder / "run-1").exists, what="the model computes")
    others = [post(client, "bounded", n) for n in range(100, 116)]
    let_claim_ahead(client, others[-1])

    os.kill(worker.children[0], signal.SIGKILL)

    for job_id in others:
        assert_untouched(client, job_id)
    assert client.get(f"/jobs/{others[-1]}").json()["batch_size"] > 1, "nobody suspects them"
    assert finished(client, culprit)["status"] == "succeeded"
    assert attempts(client, culprit) == [("lost", True), ("succeeded", True)]


def test_a_killed_worker_does_not_charge_jobs_that_it_had_not_begun(stack: System, client: httpx.Client) -> None:
    worker = stack.start_worker("one_by_one")
    running = begin(client, "one_by_one", 2, do="hang_once")
    poll((stack.folder / "run-2").exists, what="the model computes")
    others = [post(client, "one_by_one", n) for n in (200, 201)]
    let_claim_ahead(client, others[0])

    worker.stop(signal.SIGKILL)
    stack.start_worker("one_by_one")

    assert [finished(client, job_id)["attempt"] for job_id in (running, *others)] == [2, 1, 1]


def test_sigterm_hands_back_unbegun_jobs_at_once(stack: System, client: httpx.Client) -> None:
    worker = stack.start_worker("one_by_one")
    running = begin(client, "one_by_one", 3, sleep_s=4)
    others = [post(client, "one_by_one", n) for n in (300, 301)]
    let_claim_ahead(client, others[0])

    worker.send_signal(signal.SIGTERM)

    poll(lambda: running_jobs(stack, "one_by_one") == {running}, 1.5, "the rest is handed back")
    assert status(client, running) == "running", "and does not wait for what runs"
    assert worker.wait() == 0
    assert status(client, running) == "succeeded"
    stack.start_worker("one_by_one")
    for job_id in others:
        assert_untouched(client, job_id)


def test_a_job_that_ends_before_its_turn_never_runs_and_disturbs_nothing(stack: System, client: httpx.Client) -> None:
    worker = stack.start_worker("one_by_one")
    child = worker.children
    running = begin(client, "one_by_one", 4, sleep_s=4)
    cancelled = post(client, "one_by_one", 400, do="hang_once")
    unstarted = post(client, "one_by_one", 401, do="hang_once", start_within_s=1)
    unfinished = post(client, "one_by_one", 402, do="hang_once", finish_within_s=1)
    after = post(client, "one_by_one", 403)
    let_claim_ahead(client, cancelled)

    answer = client.delete(f"/jobs/{cancelled}")

    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert finished(client, unstarted)["status"] == "expired"
    assert finished(client, unfinished)["error"]["code"] == "timed_out"
    assert status(client, running) == "running", "its turn would have come only after this one"
    for job_id in (running, after):
        assert_untouched(client, job_id)
    assert worker.children == child, "the process was not ended for the sake of a job that it did not run"
    assert not [n for n in (400, 401, 402) if (stack.folder / f"run-{n}").exists()]


def test_jobs_claimed_ahead_keep_their_start_deadline(stack: System, client: httpx.Client) -> None:
    stack.start_worker("one_by_one")
    begin(client, "one_by_one", 5, sleep_s=3)
    late = post(client, "one_by_one", 500, do="hang_once", start_within_s=1)
    assert finished(client, late)["status"] == "expired"
    assert not (stack.folder / "run-500").exists()


def test_the_time_limit_counts_from_a_jobs_own_begin(stack: System, client: httpx.Client) -> None:
    stack.start_worker("echo")  # with a limit of 2 s
    first = begin(client, "echo", 6, sleep_s=1.4)
    second = post(client, "echo", 600, sleep_s=1.4)
    for job_id in (first, second):
        assert_untouched(client, job_id)
    hangs = begin(client, "echo", 601, sleep_s=60)
    after = post(client, "echo", 602)
    assert_untouched(client, after)
    job = finished(client, hangs)
    assert (job["error"]["code"], job["attempt"]) == ("timed_out", 1)


def test_a_frozen_worker_can_end_neither_its_batch_nor_the_next(stack: System, client: httpx.Client) -> None:
    frozen = stack.start_worker("one_by_one")
    first = begin(client, "one_by_one", 8, do="hang_once")
    poll((stack.folder / "run-8").exists, what="the model computes")
    ids = [first, *(post(client, "one_by_one", n) for n in (800, 801))]
    let_claim_ahead(client, ids[1])
    pids = [*frozen.children, frozen.pid]  # that it is woken last: awake, it ends its children
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    stack.start_worker("one_by_one")

    jobs = [finished(client, job_id) for job_id in ids]
    for pid in pids:
        os.kill(pid, signal.SIGCONT)

    assert [job["attempt"] for job in jobs] == [2, 1, 1]
    poll(lambda: knows(frozen), what="it learns that it was taken for dead")
    assert [finished(client, job_id) for job_id in ids] == jobs


def knows(worker: Process) -> bool:
    return "the lease of worker" in worker.output


def test_the_next_batch_computes_while_redis_keeps_the_ends_of_the_last_one(
    stack: System, client: httpx.Client
) -> None:
    stack.start_worker("one_by_one")
    numbers = list(range(700, 740))
    ids = {post(client, "one_by_one", n, sleep_s=0.2, do="flaky"): n for n in numbers}
    for _ in range(10):
        claimed = poll(lambda: pair if len(pair := running_jobs(stack, "one_by_one")) == 2 else None, step_s=0.001)
        os.kill(stack.redis.pid, signal.SIGSTOP)
        try:
            files = [stack.folder / f"run-{ids[job_id]}" for job_id in claimed]
            if not any(file.exists() for file in files):  # else the claim was not frozen in time
                poll(partial(all_exist, files), 3, "the second computes, though nobody has taken the end of the first")
                break
        finally:
            os.kill(stack.redis.pid, signal.SIGCONT)
    else:
        pytest.fail("no batch was claimed ahead of runs of 0.2 s")
    for job_id in claimed:
        assert finished(client, job_id)["status"] == "failed"
        assert attempts(client, job_id) == [("failed", True)]


def all_exist(files: list[Path]) -> bool:
    return all(file.exists() for file in files)


def test_no_job_waits_behind_a_long_one_while_a_worker_is_idle(stack: System, client: httpx.Client) -> None:
    for _ in range(2):
        stack.start_worker("one_by_one")
    busy = [begin(client, "one_by_one", n, sleep_s=1.5) for n in (900, 901)]
    long = post(client, "one_by_one", 902, sleep_s=12)
    short = [post(client, "one_by_one", n, sleep_s=0.5) for n in range(903, 909)]

    jobs = [finished(client, job_id) for job_id in (*busy, *short)]

    assert status(client, long) == "running", "the others did not wait for it"
    for job in jobs:
        assert job["attempt"] == 1
        assert_adds_up(job)


def test_a_run_longer_than_expected_gives_back_the_batch_claimed_ahead(stack: System, client: httpx.Client) -> None:
    first, second = stack.start_worker("one_by_one"), stack.start_worker("one_by_one")
    os.kill(second.pid, signal.SIGSTOP)  # so that the first runs all, and knows how quick they are
    for pid in second.children:
        os.kill(pid, signal.SIGSTOP)
    quick = [post(client, "one_by_one", n) for n in range(20)]
    for job_id in quick:
        finished(client, job_id)
    long = post(client, "one_by_one", 1000, do="hold_gil")  # no thread of its process can give anything back
    behind = [post(client, "one_by_one", n) for n in (1001, 1002)]
    poll(lambda: status(client, long) == "running", what="the long one runs")
    for pid in (*second.children, second.pid):
        os.kill(pid, signal.SIGCONT)

    jobs = [finished(client, job_id, 5) for job_id in behind]

    assert status(client, long) == "running"
    for job in jobs:
        assert_adds_up(job)
    assert finished(client, long)["status"] == "succeeded"
    assert first.exit_code is None


def test_a_job_behind_a_long_one_is_queued_until_it_runs(stack: System, client: httpx.Client) -> None:
    stack.start_worker("one_by_one")
    first, long = post(client, "one_by_one", 1100, sleep_s=0.5), post(client, "one_by_one", 1101, sleep_s=4)
    late = post(client, "one_by_one", 1102, start_within_s=2)
    after = post(client, "one_by_one", 1103)
    poll(lambda: status(client, long) == "running", what="the long one runs")

    waiting = client.get(f"/jobs/{after}").json()

    assert (waiting["status"], waiting["started_at"]) == ("queued", None)
    assert waiting["position"] is not None
    assert finished(client, late)["status"] == "expired"
    for job_id in (first, long, after):
        assert_adds_up(finished(client, job_id))


def test_quick_jobs_are_claimed_ahead_and_their_times_add_up(stack: System, client: httpx.Client) -> None:
    stack.start_worker("one_by_one")
    ids = [post(client, "one_by_one", n, sleep_s=0.02) for n in range(60)]
    for job_id in ids:
        assert_adds_up(finished(client, job_id))


def assert_adds_up(job: dict[str, Any]) -> None:
    """The time in the queue and the stages' times are all of a job's time, but for what the ledger takes."""
    timings = job["timings"]
    total = sum(timings[f"{stage}_ms"] for stage in ("queued", "preprocess", "predict", "postprocess"))
    assert timings["total_ms"] - 60 < total <= timings["total_ms"] + 1, timings
