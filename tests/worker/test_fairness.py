"""Fair sharing between API keys of one service: in the ledger's Lua, and with real processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.kit.bench import Bench, send_chunk
from tests.kit.system import RedisServer, System, finished, poll
from worker.ledger import commands, worker_commands
from worker.ledger.api_keys import Key, Keys
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.jobs import NewJob, Priority
from worker.settings import Settings


@pytest.fixture
def bench(redis_server: RedisServer) -> Iterator[Bench]:
    made = Bench(redis_server.url)
    made.ledger.join("echo", "w1", {"state": "ready"})
    yield made
    made.redis.close()


class Order:
    """Claims one job after the other, and tells whose it was."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._count = 0

    def next(self, jobs: int) -> str:
        told = ""
        for _ in range(jobs):
            self._count += 1
            token = f"t{self._count}"
            (job_id,) = self._bench.claim(token, max_batch_size=1)
            told += self._bench.get(job_id).owner[:1] or "-"
            self._bench.complete(token, job_id)
        return told


def test_keys_take_turns_and_a_newcomer_waits_behind_nobodys_queue(bench: Bench) -> None:
    order = Order(bench)
    bench.create(30, owner="alice")
    assert order.next(5) == "aaaaa"
    bench.create(3, owner="bob")
    told = order.next(6)
    assert told.count("b") == 3 and "b" in told[:2]
    bench.create(2, owner="carol")
    bench.create(2, owner="dave")
    assert sorted(order.next(4)[:3]) == ["a", "c", "d"], "one each"
    bench.create(10, owner="alice")
    (job_id,) = bench.create(owner="erin")
    assert (bench.get(job_id).position or 0) <= 2


def test_without_owners_the_order_is_that_of_creation(bench: Bench) -> None:
    ids = bench.create(5)
    scores = [bench.redis.zscore("{echo}:waiting", job_id) for job_id in ids]
    assert scores == [bench.get(job_id).created_us for job_id in ids]
    assert not bench.redis.exists("{echo}:turns", "{echo}:open")
    assert [bench.claim(f"t{n}", max_batch_size=1)[0] for n in range(5)] == ids


def test_turns_end_with_the_waiting_jobs_and_leave_nothing(bench: Bench) -> None:
    bench.create(200, owner="alice")
    for n in range(20):
        bench.complete(f"t{n}", *bench.claim(f"t{n}"))
    assert not bench.redis.exists("{echo}:turns", "{echo}:open") and not bench.redis.hget("{echo}:about", "turn")
    assert bench.redis.hget("{echo}:about", "pace"), "an input's time was measured"
    before = bench.redis.time()[0] * 1e6
    (job_id,) = bench.create(owner="alice")
    score = bench.redis.zscore("{echo}:waiting", job_id)
    assert score - before < 5e6, "what was is not held against it"


def test_a_job_that_comes_back_keeps_its_place_and_a_retried_one_gets_a_new_one(bench: Bench) -> None:
    order = Order(bench)
    bench.create(10, owner="alice")
    first = bench.claim("x", max_batch_size=1)
    bench.create(1, owner="bob")
    bench.ledger.run(worker_commands.give_up("echo", "w1", "x", "handed_back"))
    assert bench.claim("y", max_batch_size=1) == first
    bench.ledger.run(worker_commands.give_up("echo", "w1", "y", "handed_back"))
    bench.api(lambda ledger: ledger.cancel(first[0]))
    bench.api(lambda ledger: ledger.retry(first[0]))
    assert bench.get(first[0]).position == 10, "behind what its key has sent meanwhile, and before nobody else's"
    assert order.next(11).count("a") == 10


def test_the_rest_of_a_chunk_waits_behind_another_keys_job(bench: Bench) -> None:
    bench.api(lambda ledger: send_chunk(ledger, owner="alice"))
    assert bench.claim("t1") == ["b.0"]
    assert not bench.ledger.run(worker_commands.pause("echo", "t1", "b.0", [b"zero"], 1)), "nobody waits"
    (job_id,) = bench.create(owner="bob")
    assert bench.ledger.run(worker_commands.pause("echo", "t1", "b.0", [b"zero", b"one"], 2))
    assert [bench.claim(f"u{n}", max_batch_size=1) for n in range(3)] == [[job_id], ["b.0"], []]


def test_low_priority_under_endless_high_load_still_ends(bench: Bench) -> None:
    bench.settings = Settings(redis_url=bench.settings.redis_url, lease_s=2, priority_step_s=0.2)
    (low,) = bench.create(owner="bob", priority=Priority.LOW)
    for n in range(500):
        bench.create(10, owner="alice", priority=Priority.HIGH)
        claimed = bench.claim(f"t{n}")
        time.sleep(0.01)  # what a batch takes; the measured pace follows it
        bench.complete(f"t{n}", *claimed)
        if low in claimed:
            break
    assert 10 < n < 400, "it waits for its turn, and its turn comes"


def test_a_clock_that_goes_back_leaves_no_turn_ahead(bench: Bench) -> None:
    ids = bench.create(20, owner="alice")
    now = bench.redis.time()[0] * 10**6
    for n, job_id in enumerate(ids):  # as if all were made an hour from now
        moved = now + 3600 * 10**6 + n * 1000
        changed = {"created": now + 3600 * 10**6, "score": moved, "turn": moved}
        bench.redis.hset(f"{{echo}}:job:{job_id}", mapping=changed)
        bench.redis.zadd("{echo}:waiting", {job_id: moved})
    bench.redis.hset("{echo}:about", "turn", now + 3600 * 10**6)
    bench.redis.set("{echo}:swept", now + 3600 * 10**6)
    bench.ledger.run(commands.sweep("echo", 2))
    assert bench.claim("x", max_batch_size=1) == ids[:1]
    (job_id,) = bench.create(owner="bob")
    assert (bench.get(job_id).position or 0) <= 1


# -- real processes ---------------------------------------------------------------------------------------------------


def fill(system: System, owner: str, count: int, sleep_s: float) -> None:
    """So many queued jobs of one key, past the API."""

    async def run() -> None:
        ledger = AsyncLedger(Settings(redis_url=system.redis.url))
        text = b'{"n":1,"sleep_s":%g}' % sleep_s
        for begin in range(0, count, 1000):
            jobs: Sequence[NewJob] = [NewJob("echo", text, owner=owner) for _ in range(min(1000, count - begin))]
            await ledger.create(jobs)
        await ledger.close()

    asyncio.run(run())


def test_a_single_job_passes_another_keys_hundred_thousand(system: System) -> None:
    keys = Keys(Settings(redis_url=system.redis.url))
    many, bulk, single = (keys.create(Key(id="", name=name)) for name in ("many", "bulk", "single"))
    keys.redis.close()
    system.start_api()
    fill(system, many[1].id, 100_000, 0.005)
    headers: Any = {"Authorization": f"Bearer {bulk[0]}"}
    lines = b'{"n":1,"sleep_s":0.005}\n' * 20_000
    with system.client() as client:
        sent = {"Content-Type": "application/x-ndjson", **headers}
        batch = client.post("/batches?service=echo", content=lines, headers=sent).raise_for_status().json()
        system.start_worker("echo")
        poll(lambda: len(system.redis.client.keys("{echo}:running:*")) > 0, what="batches run")

        took, headers = [], {"Authorization": f"Bearer {single[0]}"}
        for _ in range(5):
            begun = time.monotonic()
            answer = client.post("/jobs", json={"service": "echo", "input": {"n": 7}}, headers=headers)
            client.headers.update(headers)
            job = finished(client, answer.raise_for_status().json()["id"])
            took.append(time.monotonic() - begun)
            assert job["status"] == "succeeded"
        # a batch in flight is 16 jobs of 5 ms, or a chunk of 64 rows of 5 ms; nothing else may go before it
        assert sorted(took)[2] < 2, took
        assert client.get("/services/echo").json()["queue_depth"] > 90_000
        assert client.get(batch["links"]["self"]).status_code == 404
