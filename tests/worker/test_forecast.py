"""``estimated_start_at``: what the ledger measures, the arithmetic on it, and how near the real system comes to it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from api.client import Client
from tests.kit.bench import KNOBS, Bench
from tests.kit.system import RedisServer, System, finished, listen_to, poll
from worker.errors import StoreUnavailable
from worker.ledger import batch_commands, commands, worker_commands
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.batches import Chunk, NewBatch
from worker.ledger.forecast import Forecast, Forecasts
from worker.ledger.jobs import NewJob, Priority, Status
from worker.ledger.worker_commands import Ending

BUSY, ABOUT = "{echo}:busy:w1", "{echo}:about"


class Hall(Bench):
    """A ledger with worker w1, whose processes a, b and c have runs of which the test says how long they took."""

    def join(self, processes: int = 1, state: str = "ready") -> None:
        self.ledger.join("echo", "w1", {"state": state, "processes": processes})

    def tell(self, version: str = "1", **knobs: Any) -> None:
        self.ledger.run(worker_commands.tell("echo", version, KNOBS | knobs))

    def age(self, *, jobs: list[str], process: str, seconds: float) -> None:
        """As if the process had begun its run so long ago, and claimed these jobs then."""
        us = round(seconds * 1e6)
        for job_id in jobs:
            key = f"{{echo}}:job:{job_id}"
            self.redis.hset(key, "started", int(self.redis.hget(key, "started")) - us)
        since, rest = self.redis.hget(BUSY, process).split(b" ", 1)
        self.redis.hset(BUSY, process, b"%d %b" % (int(since) - us, rest))

    def run(self, token: str, seconds: float, **knobs: Any) -> None:
        """Claim a batch that takes so long, and complete it."""
        ids = self.claim(token, **knobs)
        self.age(jobs=ids, process=token.split(".")[0], seconds=seconds)
        assert all(self.complete(token, *ids))

    def send_batch(self, name: str, chunks: int) -> None:
        """A ``POST /batches`` of chunks of 20 rows."""

        async def send(ledger: AsyncLedger) -> None:
            for number in range(chunks):
                await ledger.run(batch_commands.stage("echo", Chunk(name, number, number * 20, [b"1"] * 20)))
            made = NewBatch("echo", "1", 20 * chunks, chunks, 40 * chunks, Priority.NORMAL, 60, b"{}", name)
            assert await ledger.seal(made) == name

        self.api(send)

    def mean(self, field: str = "batch_time") -> float:
        """Seconds of a run, as measured."""
        return float(self.redis.hget(ABOUT, field).split()[0]) / 1e6

    def forecast(self) -> Forecast:
        return self.ledger.run(commands.forecast("echo"))

    def starts_in(self, job_id: str) -> float | None:
        """Seconds until a job's estimated start; None where that is not known."""
        now = self.redis.time()
        start = self.get(job_id).estimated_start_us
        return (start - now[0] * 10**6 - now[1]) / 1e6 if start else None


@pytest.fixture
def hall(redis_server: RedisServer) -> Iterator[Hall]:
    made = Hall(redis_server.url)
    made.join()
    made.tell(max_batch_size=1)
    yield made
    made.redis.close()


def near(seconds: float) -> Any:
    """The test itself takes some time."""
    return pytest.approx(seconds, abs=0.5)


def test_a_run_is_measured_from_its_begin_and_not_from_a_claim_ahead(hall: Hall) -> None:
    hall.create(2)
    first, ahead = hall.claim("a.1", max_batch_size=1), hall.claim("a.2", max_batch_size=1)
    hall.age(jobs=first + ahead, process="a", seconds=10)
    hall.complete("a.1", *first)
    assert hall.mean() == near(10)
    hall.age(jobs=ahead, process="a", seconds=2)
    hall.complete("a.2", *ahead)
    assert hall.mean() == near((0.95 * 10 + 2) / 1.95), "not 11, as since its claim"


def test_a_process_that_had_nothing_to_do_does_not_spoil_the_measure(hall: Hall) -> None:
    hall.create(1)
    hall.run("a.1", 2)
    hall.redis.hset(BUSY, "a", f"{int(hall.redis.time()[0] - 3600) * 10**6} 0 0")  # an hour passes
    hall.create(1)
    hall.run("a.2", 2)
    assert hall.mean() == near(2)
    assert hall.claim("a.3") == [] and not hall.redis.exists(BUSY), "and now it is seen to be idle"


def test_small_batches_before_a_queue_weigh_little_against_full_ones(hall: Hall) -> None:
    for number in range(20):
        hall.create(1)
        hall.run(f"a.{number}", 1)
    hall.create(50)
    for number in range(2):
        hall.run(f"a.{20 + number}", 10, max_batch_size=25)
    assert hall.mean() > 8


def test_waiting_jobs_start_as_runs_end_and_two_processes_take_half_the_time(hall: Hall) -> None:
    hall.create(1)
    hall.run("a.1", 10)
    ids = hall.create(8)
    running = hall.claim("a.2", max_batch_size=1)
    hall.age(jobs=running, process="a", seconds=4)
    assert [hall.starts_in(job_id) for job_id in ids[1:4]] == [near(6), near(16), near(26)]

    hall.join(processes=2)
    hall.claim("b.1", max_batch_size=1)
    assert [hall.starts_in(job_id) for job_id in ids[2:6]] == [near(6), near(10), near(16), near(20)]


def test_jobs_that_are_claimed_together_start_together(hall: Hall) -> None:
    hall.tell(max_batch_size=8, preferred_batch_sizes=[4])
    hall.create(4)
    hall.run("a.1", 10, max_batch_size=4)
    ids = hall.create(12)
    hall.claim("a.2", max_batch_size=4)
    assert [hall.starts_in(ids[i]) for i in (4, 7, 8, 11)] == [near(10), near(10), near(20), near(20)]


def test_a_process_runs_the_batch_claimed_ahead_before_it_claims_again(hall: Hall) -> None:
    hall.tell(max_batch_size=4)
    hall.create(4)
    hall.run("a.1", 10, max_batch_size=4)
    ids = hall.create(9)
    hall.claim("a.2", max_batch_size=4)
    hall.claim("a.3", max_batch_size=4)  # one waits: no whole batch, so it will not look ahead again
    assert hall.starts_in(ids[8]) == near(20)


def test_a_late_end_does_not_hide_the_batch_claimed_ahead(hall: Hall) -> None:
    hall.tell(max_batch_size=4)
    hall.create(4)
    hall.run("a.1", 10, max_batch_size=4)
    ids = hall.create(13)
    first = hall.claim("a.2", max_batch_size=4)
    hall.claim("a.3", max_batch_size=4)
    hall.claim("a.4", max_batch_size=4)  # a.3 runs by now, but the end of a.2 is still on its way
    hall.complete("a.2", *first)
    assert hall.starts_in(ids[12]) == near(2 * hall.mean())


def test_it_is_never_before_now(hall: Hall) -> None:
    hall.create(1)
    hall.run("a.1", 1)
    ids = hall.create(3)
    running = hall.claim("a.2", max_batch_size=1)
    hall.age(jobs=running, process="a", seconds=60)
    assert [hall.starts_in(job_id) for job_id in ids[1:]] == [near(0), near(1)]


def test_an_idle_worker_takes_a_job_at_once_before_anything_was_measured(hall: Hall) -> None:
    first, second = hall.create(2)
    assert hall.starts_in(first) == near(0)
    assert hall.starts_in(second) is None, "nobody knows yet how long the first will take"


def test_it_is_unknown_where_nothing_runs_or_the_measurement_is_old(hall: Hall) -> None:
    hall.create(1)
    hall.run("a.1", 1)
    running, waiting = hall.create(2)
    hall.claim("a.2", max_batch_size=1)
    assert hall.starts_in(waiting) is not None
    assert hall.starts_in(running) is None, "it runs"

    mean, weight, measured = hall.redis.hget(ABOUT, "batch_time").split()
    hall.redis.hset(ABOUT, "batch_time", b"%b %b %d" % (mean, weight, int(measured) - 25 * 3600 * 10**6))
    assert hall.starts_in(waiting) is None, "it was measured yesterday"
    hall.redis.hset(ABOUT, "batch_time", b"%b %b %b" % (mean, weight, measured))

    hall.tell(max_batch_size=1)
    assert hall.starts_in(waiting) is not None, "a worker of the same version has come"
    hall.tell(version="2", max_batch_size=1)
    assert hall.starts_in(waiting) is None, "another version may be faster"
    hall.redis.hset(ABOUT, "batch_time", b"%b %b %b" % (mean, weight, measured))

    hall.join(state="loading")
    assert hall.starts_in(waiting) is None, "its worker loads"
    hall.join()
    hall.ledger.run(worker_commands.leave("echo", "w1"))
    assert hall.starts_in(waiting) is None, "no worker is there"
    hall.join()
    assert hall.starts_in(running) == near(0), "a new one has come, and it was given back"
    hall.api(lambda ledger: ledger.cancel(running))
    assert hall.starts_in(running) is None, "it has ended"


def test_nothing_is_left_of_processes_that_are_gone(hall: Hall) -> None:
    hall.create(3)
    for process in "abc":
        hall.claim(f"{process}.1", max_batch_size=1)
    hall.ledger.run(worker_commands.give_up("echo", "w1", "a.1", "lost", process="a"))
    assert hall.redis.hkeys(BUSY) == [b"b", b"c"]
    hall.lapse("w1")
    assert not hall.redis.exists(BUSY)


def test_a_job_that_pauses_starts_after_its_pause(hall: Hall) -> None:
    (job_id,) = hall.create(1)
    hall.claim("a.1")
    error = b'{"code":"predict_failed","message":"m"}'
    hall.ledger.run(
        worker_commands.complete("echo", "a.1", [Ending(job_id, Status.FAILED, error, b"{}", 1, pause_s=30)])
    )
    hall.claim("a.2")
    assert hall.get(job_id).status == Status.QUEUED and hall.starts_in(job_id) == near(30)


def test_a_chunk_of_a_batch_takes_the_time_of_its_rows(hall: Hall) -> None:
    hall.send_batch("one", 1)
    hall.run("a.1", 40)
    assert hall.mean("row_time") == pytest.approx(2, abs=0.05)
    hall.create(1)
    hall.run("a.2", 10)
    jobs = hall.create(3)
    hall.claim("a.3", max_batch_size=1)
    hall.send_batch("three", 3)
    (last,) = hall.create(1)
    assert [hall.starts_in(job_id) for job_id in jobs[1:]] == [near(10), near(20)]
    assert hall.starts_in(last) == near(10 + 2 * 10 + 3 * 40)
    for number in (4, 5):  # the jobs go, then a chunk is claimed; its process was done with the job before
        hall.complete(f"a.{number - 1}", *jobs[number - 4 : number - 3])
        hall.claim(f"a.{number}", max_batch_size=1)
    hall.complete("a.5", jobs[2])
    assert hall.claim("a.6") == ["three.0"]
    assert hall.starts_in(last) == near(3 * 40)


def test_chunks_are_found_wherever_they_stand(hall: Hall) -> None:
    hall.tell(max_batch_size=10)
    hall.create(1)
    hall.run("a.1", 1)
    hall.send_batch("measured", 1)
    hall.run("a.2", 40)

    hall.create(500)
    assert hall.forecast().chunks == [], "nothing but jobs"
    hall.send_batch("many", 40)
    hall.create(500)
    hall.send_batch("few", 1)
    hall.create(100)
    forecast = hall.forecast()
    now = forecast.start_us(0)
    found = [forecast.start_us(place) - now for place in (490, 500, 520, 530, 540, 1040, 1041, 1141)]
    # before the many, in their midst, behind them, before and behind the other one, at the end
    at = [49e6, 50e6, 850e6, 1250e6, 1650e6, 1700e6, 1740e6, 1750e6]
    assert found == pytest.approx(at, rel=0.06), "as near as 16 of 41 chunks tell"


def test_the_forecast_of_waiting_chunks_goes_with_them(hall: Hall) -> None:
    def waiting() -> list[str]:
        chunks = hall.redis.zrange("{echo}:chunks", 0, -1)
        assert chunks == [job_id for job_id in hall.redis.zrange("{echo}:waiting", 0, -1) if b"." in job_id]
        return [chunk.decode() for chunk in chunks]

    hall.create(2)
    hall.send_batch("one", 3)
    hall.send_batch("two", 2)
    assert waiting() == ["one.0", "one.1", "one.2", "two.0", "two.1"]
    hall.run("a.1", 1, max_batch_size=2)
    (first,) = hall.claim("a.2")
    assert waiting() == ["one.1", "one.2", "two.0", "two.1"]
    hall.ledger.run(worker_commands.give_up("echo", "w1", "a.2", "lost"))
    assert waiting()[0] == first, "it comes back"
    hall.api(lambda ledger: ledger.cancel_batch("one"))
    assert waiting() == ["two.0", "two.1"]
    hall.run("a.3", 1)
    hall.run("a.4", 1)
    assert waiting() == []
    hall.api(lambda ledger: ledger.retry_batch("one"))
    assert waiting() == ["one.0", "one.1", "one.2"]


def test_a_forecast_is_read_once_for_many_jobs(hall: Hall) -> None:
    async def ask_often(ledger: AsyncLedger) -> int:
        jobs = [NewJob(service="echo", input=b"{}") for _ in range(50)]
        await ledger.create(jobs)
        before = int(hall.redis.info("stats")["total_reads_processed"])
        for job in jobs[:20]:
            await ledger.get(job.id)
        return int(hall.redis.info("stats")["total_reads_processed"]) - before

    assert hall.api(ask_often) <= 20 + 5, "a request each, and a forecast now and then"


def test_an_answer_does_not_fail_or_wait_for_want_of_a_forecast() -> None:
    async def refuse(_: str) -> Forecast:
        raise StoreUnavailable

    async def hang(_: str) -> Forecast:
        await asyncio.Event().wait()
        raise AssertionError

    begun = time.monotonic()
    assert asyncio.run(Forecasts(refuse).of("echo")) is None
    assert asyncio.run(Forecasts(hang).of("echo")) is None
    assert time.monotonic() - begun < 2


# -- real processes ---------------------------------------------------------------------------------------------------

RUN_S = 0.15


def wait_of(job: dict[str, Any], field: str) -> float:
    """Seconds from a job's creation to a later time of it."""
    return (datetime.fromisoformat(job[field]) - datetime.fromisoformat(job["created_at"])).total_seconds()


def test_a_queue_starts_about_when_it_was_said_to(system: System) -> None:
    system.start_api()
    system.start_worker("echo", "-c", "2", SERVICES_MAX_BATCH_SIZE="1")
    request = {"service": "echo", "input": {"n": 1, "sleep_s": RUN_S}}
    with system.client() as client, Client(system.url) as python:
        for _ in range(4):  # one by one: its workers are idle in between, which tells nothing of their speed
            client.post("/jobs?wait=20", json=request).raise_for_status()
            time.sleep(random.random() * 2 * RUN_S)
        jobs = [client.post("/jobs", json=request).json() for _ in range(40)]

        told = [job for job in jobs if job["position"] >= 5]
        assert len(told) > 20 and all(job["estimated_start_at"] for job in told)
        shown = client.get(f"/jobs/{jobs[-1]['id']}").json()
        assert shown["status"] == "queued" and shown["estimated_start_at"]
        assert python.get(shown["id"]).estimated_start_at
        _, first, _ = next(listen_to(client, f"/jobs/{shown['id']}/events"))
        assert first["status"] == "queued" and first["estimated_start_at"]

        ended = [finished(client, job["id"]) for job in told]
        assert all(job["estimated_start_at"] is None for job in ended)
        # a broad factor: machines that run tests are busy. A worker more or less would make it two.
        ratios = sorted(
            wait_of(job, "estimated_start_at") / wait_of(end, "started_at")
            for job, end in zip(told, ended, strict=True)
        )
        assert 0.6 < ratios[len(ratios) // 2] < 1.6, ratios


def test_a_job_that_no_worker_will_take_has_no_estimate(system: System) -> None:
    system.start_api()
    with system.client() as client:
        job = client.post("/jobs", json={"service": "echo", "input": {"n": 1}}).json()
        assert job["position"] == 0 and job["estimated_start_at"] is None
        system.start_worker("echo")
        assert finished(client, job["id"])["estimated_start_at"] is None
        poll(lambda: client.get("/services/echo").json()["state"] == "ready")
