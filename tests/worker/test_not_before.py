"""Jobs that are not to run before a time: ``not_before`` over HTTP, by the client, and in the ledger."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.client import Client
from tests.kit.http import assert_problem
from tests.kit.services import SCHEMA
from tests.kit.system import RedisServer, System, finished, poll, running_system, write_plugin
from worker.ledger import commands, worker_commands
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.jobs import Job, NewJob, Priority, Status
from worker.ledger.sync_ledger import Ledger
from worker.ledger.worker_commands import Ending
from worker.settings import Settings

SOON_S = 1.5

PLUGIN = """
from worker.service import Service
from {name}.schema import Input, Output

class Plugin(Service[Input, Output]):
    max_batch_size = 1

    def predict(self, item):
        return {{"n": item.n, "batch": 1}}
"""


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The API and a worker of ``echo``, which takes one job at a time; nobody works for ``tight`` and ``idle``."""
    folder = tmp_path_factory.mktemp("timed-plugins")
    for name in ("echo", "tight", "idle"):
        write_plugin(folder, name, SCHEMA, PLUGIN.format(name=name))
    with running_system(tmp_path_factory.mktemp("timed"), folder) as made:
        made.redis.client.hset("{tight}:about", mapping={"max_queue_size": 1, "max_queue_bytes": 1000})
        made.start_api()
        made.start_worker("echo")
        yield made


@pytest.fixture
def client(timed: System) -> Iterator[httpx.Client]:
    with timed.client() as made:
        yield made


def ahead(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def send(client: httpx.Client, service: str = "echo", **more: Any) -> Any:
    answer = client.post("/jobs", json={"service": service, "input": {"n": 1}} | more)
    assert answer.status_code == 202, answer.text
    return answer.json()


def read_time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def about(client: httpx.Client, service: str) -> Any:
    return client.get(f"/services/{service}").raise_for_status().json()


def test_it_starts_soon_after_its_time_and_not_before(client: httpx.Client) -> None:
    job = send(client, not_before=ahead(SOON_S))
    assert (job["status"], job["position"], job["estimated_start_at"]) == ("queued", None, None)
    asked = client.get(f"/jobs/{job['id']}").json()
    assert (asked["status"], asked["position"], asked["estimated_start_at"]) == ("queued", None, None)
    assert asked["not_before"] == job["not_before"] and asked["not_before"].endswith("Z")
    done = client.get(f"/jobs/{job['id']}", params={"wait": "20"}).json()
    assert done["status"] == "succeeded"
    late = read_time(done["started_at"]) - read_time(done["not_before"])
    # About half a second on an idle worker; this machine may be busy.
    assert timedelta(0) <= late < timedelta(seconds=3)
    waited = timedelta(milliseconds=done["timings"]["queued_ms"])
    assert abs(waited - late) < timedelta(milliseconds=1)  # the wait in the queue alone
    assert done["timings"]["total_ms"] < 1000 * SOON_S + 3000


def test_a_time_that_is_over_means_now(client: httpx.Client) -> None:
    job = send(client, not_before="2020-01-01T00:00:00+02:00")
    assert job["not_before"] == "2019-12-31T22:00:00.000000Z"
    done = finished(client, job["id"])
    assert done["status"] == "succeeded" and done["timings"]["queued_ms"] < 20_000
    assert finished(client, send(client, not_before=None)["id"])["not_before"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        "tomorrow",
        "",
        "2026-12-01",
        "2026-12-01T09:30:00",
        "2026-12-01T09:30:00 Z",
        "2026-13-01T09:30:00Z",
        "2026-12-01T09:30:00+25:00",
        "0001-01-01T00:00:00+23:00",
        "2026-W01-1T09:30:00Z",
        1764581400,
        True,
        ["2026-12-01T09:30:00Z"],
        pytest.param("too far", id="too far ahead"),
        "9999-12-31T23:59:59Z",
    ],
)
def test_a_text_that_is_no_time_or_too_far_ahead_is_refused(client: httpx.Client, wrong: Any) -> None:
    wrong = ahead(30 * 86_400 + 60) if wrong == "too far" else wrong
    if wrong == "0001-01-01T00:00:00+23:00":  # a time all the same, long ago
        assert finished(client, send(client, not_before=wrong)["id"])["status"] == "succeeded"
        return
    answer = client.post("/jobs", json={"service": "echo", "input": {"n": 1}, "not_before": wrong})
    problem = assert_problem(answer, 422, "invalid_input")
    (error,) = problem["errors"]
    assert error["loc"] == ["body", "not_before"]
    assert "expected" in error["msg"] and repr(wrong)[:90] in error["msg"]


def test_thirty_days_ahead_is_taken_and_delete_ends_it(client: httpx.Client) -> None:
    job = send(client, "idle", not_before=ahead(30 * 86_400 - 60))
    listed = client.get("/jobs", params={"service": "idle", "status": "queued"}).json()["jobs"]
    assert [each["id"] for each in listed] == [job["id"]] and listed[0]["not_before"] == job["not_before"]
    assert client.delete(f"/jobs/{job['id']}").status_code == 202
    ended = client.get(f"/jobs/{job['id']}").json()
    assert ended["status"] == "cancelled" and ended["expires_at"]
    assert_problem(client.delete(f"/jobs/{job['id']}"), 409, "job_finished")
    again = client.post(f"/jobs/{job['id']}/retry")
    assert again.status_code == 202
    assert (again.json()["status"], again.json()["position"]) == ("queued", None)
    assert client.delete(f"/jobs/{job['id']}").status_code == 202


def test_a_retry_runs_a_cancelled_due_job_at_once(client: httpx.Client) -> None:
    job = send(client, not_before=ahead(1), start_within_s=20)
    client.delete(f"/jobs/{job['id']}")
    time_of = read_time(job["not_before"])
    poll(lambda: datetime.now(UTC) > time_of, what="its time comes")
    client.post(f"/jobs/{job['id']}/retry").raise_for_status()
    assert finished(client, job["id"])["status"] == "succeeded"


def test_deadlines_count_from_it(client: httpx.Client) -> None:
    expiring = send(client, "idle", not_before=ahead(SOON_S), start_within_s=0.5)
    failing = send(client, "idle", not_before=ahead(SOON_S), finish_within_s=0.5)
    started = send(client, not_before=ahead(SOON_S), start_within_s=60, finish_within_s=60)
    for job, status in ((expiring, "expired"), (failing, "failed")):
        done = finished(client, job["id"])
        assert done["status"] == status
        assert read_time(done["finished_at"]) - read_time(done["not_before"]) >= timedelta(seconds=0.5)
    assert finished(client, started["id"])["status"] == "succeeded"


def test_it_counts_in_bytes_but_not_in_depth(client: httpx.Client) -> None:
    assert about(client, "tight")["queue_depth"] == 0
    later = [send(client, "tight", not_before=ahead(600), metadata={"i": i}) for i in range(3)]
    found = about(client, "tight")
    assert (found["queue_depth"], found["oldest_age_s"], found["scheduled"]) == (0, 0, 3)
    metrics = client.get("/metrics").text
    assert 'services_queue_depth{service="tight"} 0' in metrics
    assert 'services_jobs_scheduled{service="tight"} 3' in metrics
    waiting = send(client, "tight")  # max_queue_size is 1
    assert waiting["position"] == 0
    refused = client.post("/jobs", json={"service": "tight", "input": {"n": 1}})
    assert_problem(refused, 429, "queue_full")
    send(client, "tight", not_before=ahead(600))
    large = {"service": "tight", "input": {"n": 1, "do": "x" * 990}, "not_before": ahead(600)}
    assert_problem(client.post("/jobs", json=large), 429, "queue_full")
    for job in [*later, waiting]:
        assert client.delete(f"/jobs/{job['id']}").status_code == 202
    assert client.post("/jobs", json=large | {"input": {"n": 1, "do": "x" * 800}}).status_code == 202


def test_the_same_request_is_the_same_job(client: httpx.Client) -> None:
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    headers = {"Idempotency-Key": "reminder-1"}
    asked = {"service": "idle", "input": {"n": 1}, "not_before": moment.isoformat()}
    first = client.post("/jobs", json=asked, headers=headers)
    again = client.post("/jobs", json=asked | {"not_before": f"{moment:%Y-%m-%dT%H:%M:%SZ}"}, headers=headers)
    assert (first.status_code, again.status_code) == (202, 200) and first.json()["id"] == again.json()["id"]
    other = asked | {"not_before": (moment + timedelta(seconds=1)).isoformat()}
    assert_problem(client.post("/jobs", json=other, headers=headers), 409, "idempotency_conflict")
    own = "/jobs/0b9f6d4e-2c1a-4b7e-9a51-3d8c7f60e2a4"
    assert client.put(own, json=asked).json()["not_before"] == first.json()["not_before"]
    assert client.put(own, json=asked).status_code == 200


def test_batches_do_not_take_it(client: httpx.Client) -> None:
    moment = ahead(60)
    answer = client.post("/batches", json={"service": "echo", "inputs": [{"n": 1}], "not_before": moment})
    assert assert_problem(answer, 422, "invalid_input")["errors"][0]["loc"] == ["body", "not_before"]
    lines = client.post("/batches", params={"service": "echo", "not_before": moment}, content=b'{"n": 1}\n')
    assert_problem(lines, 422, "invalid_input")


def test_the_client_takes_a_datetime_with_a_zone_or_a_text(timed: System) -> None:
    with Client(timed.url) as client:
        moment = datetime.now(UTC) + timedelta(hours=1)
        job = client.submit("idle", {"n": 1}, not_before=moment)
        assert job.not_before == moment and job.position is None
        assert client.submit("idle", {"n": 1}, not_before=moment.isoformat()).not_before == moment
        assert client.submit("idle", {"n": 1}).not_before is None
        with pytest.raises(ValueError, match="not_before: expected a datetime with its zone"):
            client.submit("idle", {"n": 1}, not_before=datetime(2026, 12, 1))


def test_its_events_and_its_webhook_carry_it(client: httpx.Client) -> None:
    job = send(client, not_before=ahead(SOON_S))
    text = client.get(f"/jobs/{job['id']}/events").text
    assert text.count("event: status") == 3 and text.count(job["not_before"]) == 3


# The ledger alone, at times of the test's own.


class Bench:
    """A ledger whose scheduled jobs are made due by the test."""

    def __init__(self, server: RedisServer) -> None:
        settings = Settings(redis_url=server.url)
        self.redis: Any = server.client
        self.ledger, self.settings = Ledger(settings), settings
        self.ledger.join("echo", "w1", {})

    def send(self, not_before_s: float = 0, **more: Any) -> str:
        us = self.now() + round(not_before_s * 1e6) if not_before_s else 0

        async def create() -> str:
            ledger = AsyncLedger(self.settings)
            try:
                (job,) = await ledger.create([NewJob("echo", b'{"n":1}', not_before_us=us, **more)])
            finally:
                await ledger.close()
            assert isinstance(job, Job), job
            return job.id

        return asyncio.run(create())

    def now(self) -> int:
        seconds, us = self.redis.time()
        return int(seconds) * 1_000_000 + int(us)

    def come_due(self, job_id: str, us: int = 0) -> None:
        """Its time is now, or was then."""
        key, due = f"{{echo}}:job:{job_id}", us or self.now()
        offset = int(self.redis.hget(key, "score")) - int(self.redis.hget(key, "not_before"))
        self.redis.hset(key, mapping={"not_before": due, "score": due + offset})
        self.redis.zadd("{echo}:scheduled", {job_id: due})
        self.ledger.run(commands.sweep("echo", 2))

    def waiting(self) -> list[str]:
        return [job_id.decode() for job_id in self.redis.zrange("{echo}:waiting", 0, -1)]

    def take(self, token: str) -> list[str]:
        knobs = {"max_batch_size": 1, "max_queue_delay_ms": 0, "max_attempts": 3, "preferred_batch_sizes": ()}
        return self.ledger.run(worker_commands.claim("echo", "w1", token, knobs, "1", "m")).ids

    def end(self, token: str, job_id: str) -> None:
        self.ledger.run(worker_commands.complete("echo", token, [Ending(job_id, Status.SUCCEEDED, b"{}", b"{}", 1)]))


@pytest.fixture
def bench(redis_server: RedisServer) -> Iterator[Bench]:
    made = Bench(redis_server)
    with closing(made.ledger.redis):
        yield made


def test_its_place_is_that_of_its_time_neither_before_nor_behind(bench: Bench) -> None:
    early = bench.send(60)
    urgent = bench.send(60, priority=Priority.HIGH)
    first = bench.send()
    bench.come_due(early)
    last = bench.send()
    assert bench.waiting() == [first, early, last]
    bench.come_due(urgent)
    assert bench.waiting() == [urgent, first, early, last]
    assert bench.redis.zcard("{echo}:scheduled") == 0 and bench.redis.llen("echo") == 4


def test_nobody_looked_for_a_while_and_it_keeps_its_age(bench: Bench) -> None:
    late = bench.send(60)
    other = bench.send()
    bench.come_due(late, bench.now() - 60_000_000)
    assert bench.waiting() == [late, other]


def test_it_takes_its_turn_among_api_keys_when_it_is_due(bench: Bench) -> None:
    mine = [bench.send(60, owner="a"), bench.send(60, owner="a")]
    assert not bench.redis.hgetall("{echo}:turns")  # none is taken before
    others = [bench.send(owner="b") for _ in range(3)]
    for job_id in mine:
        bench.come_due(job_id)
    assert bench.waiting() == [others[0], mine[0], others[1], mine[1], others[2]] or bench.waiting() == [
        others[0], others[1], mine[0], others[2], mine[1]
    ]  # fmt: skip


def test_equal_jobs_do_not_wait_for_one_that_is_not_due(bench: Bench) -> None:
    bench.redis.hset("{echo}:about", mapping={"version": "1", "model": "m", "cache_for": 60_000_000})
    same: dict[str, Any] = {"version": "1", "cache": "f 60000000"}
    later = bench.send(60, **same)
    now = bench.send(**same)
    assert bench.waiting() == [now]
    assert bench.take("t.0") == [now]
    bench.come_due(later)  # its equal runs: it waits for that one's end
    assert bench.waiting() == [] and bench.redis.hget("{echo}:about", "parked") == b"1"
    bench.end("t.0", now)
    assert bench.redis.hget(f"{{echo}}:job:{later}", "status") == b"succeeded"
    third = bench.send(60, **same)  # there is a result already, which may be too old by then
    assert bench.redis.hget(f"{{echo}}:job:{third}", "status") == b"queued"
    bench.come_due(third)
    assert bench.redis.hget(f"{{echo}}:job:{third}", "status") == b"succeeded"
    assert bench.redis.hget("{echo}:about", "waiting_bytes") == b"0"


def test_a_jump_of_the_clock_makes_it_due_only_where_its_time_has_come() -> None:
    server = RedisServer()
    if not server.fake_clock():
        pytest.skip("no C compiler for the clock")
    try:
        server.start()
        bench = Bench(server)
        job_id = bench.send(60)
        for _ in range(2):  # the second one is no longer the first look after the jump
            bench.ledger.run(commands.sweep("echo", 2))
        server.jump_clock(-1000)
        bench.ledger.run(commands.sweep("echo", 2))
        assert bench.waiting() == [] and bench.redis.zcard("{echo}:scheduled") == 1
        server.jump_clock(+100)
        bench.ledger.run(commands.sweep("echo", 2))
        assert bench.waiting() == [job_id]
        server.jump_clock(-1000)
        bench.ledger.run(commands.sweep("echo", 2))
        assert bench.waiting() == [job_id]  # a job in the queue keeps its place
        bench.ledger.redis.close()
    finally:
        server.remove()


def test_it_is_still_there_after_redis_was_killed(tmp_path: Path) -> None:
    folder = write_plugin(tmp_path / "plugins", "echo", SCHEMA, PLUGIN.format(name="echo"))
    with running_system(tmp_path, folder) as system:
        system.start_api()
        with system.client() as client:
            job = send(client, not_before=ahead(2))
            poll(lambda: system.redis.client.config_set("appendfsync", "always"), what="it is on the disk")
            system.redis.stop(signal.SIGKILL)
            system.redis.start()
            poll(lambda: client.get("/readyz").status_code == 200, what="Redis is back")
            assert client.get(f"/jobs/{job['id']}").json()["position"] is None
            system.start_worker("echo")
            done = finished(client, job["id"])
            assert done["status"] == "succeeded" and done["started_at"] >= done["not_before"]
