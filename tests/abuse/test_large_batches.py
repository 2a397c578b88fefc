"""Operations on a batch of many chunks leave Redis to others."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import pytest

from tests.kit.bench import Bench
from tests.kit.system import RedisServer
from worker.ledger import batch_commands, commands, worker_commands
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.batches import NewBatch, StoredBatch
from worker.ledger.jobs import Priority, Status
from worker.ledger.worker_commands import Ending

#: Chunks of a million rows at ``max_batch_size`` 1.
MANY = 33_000
#: Chunks that one call may change, and the limit for the median time of such a call, in microseconds. The longest call
#: would measure how long a busy system puts Redis aside.
PAGE, MOST_US = 1000, 100_000
DONE = b'{"index":0,"output":{}}'


@pytest.fixture
def bench(redis_server: RedisServer) -> Iterator[Bench]:
    bench = Bench(redis_server.url)
    bench.ledger.join("echo", "w1", {})
    yield bench
    bench.redis.close()


async def send(ledger: AsyncLedger, chunks: int, owner: str = "") -> None:
    for start in range(0, chunks, 1000):
        async with ledger.pipeline() as pipe:
            for number in range(start, min(start + 1000, chunks)):
                chunk = {"group": "b", "first": number, "rows": 1, "input": b'{"n":1}'}
                pipe.hset(f"{{echo}}:job:b.{number}", mapping=chunk)
                pipe.pexpire(f"{{echo}}:job:b.{number}", 600_000)
            await pipe.execute()
    await ledger.seal(NewBatch("echo", "1", chunks, chunks, 7 * chunks, Priority.NORMAL, 60, b"{}", "b", owner=owner))


def get(bench: Bench) -> StoredBatch:
    return bench.api(lambda ledger: ledger.get_batch("b"))


def test_cancel_and_retry_of_a_million_rows_hold_redis_for_less_than_100_ms(bench: Bench) -> None:
    bench.api(lambda ledger: send(ledger, MANY))
    bench.redis.slowlog_reset()
    bench.redis.config_set("slowlog-max-len", 10_000)
    bench.redis.config_set("slowlog-log-slower-than", 1000)
    assert bench.api(lambda ledger: ledger.cancel_batch("b")).cancelled == MANY
    assert bench.api(lambda ledger: ledger.retry_batch("b")).counts["queued"] == MANY
    assert bench.redis.zcard("{echo}:waiting") == MANY
    assert bench.api(lambda ledger: ledger.cancel_batch("b")).ended
    assert bench.redis.zcard("{echo}:waiting") == 0 and not bench.redis.exists("{echo}:pages")
    calls = [e["duration"] for e in bench.redis.slowlog_get(10_000) if e["command"].startswith(b"EVALSHA")]
    assert median(calls) < MOST_US
    assert 0 < bench.redis.pttl(f"{{echo}}:job:b.{MANY - 1}") <= 60_000


def test_sweeps_finish_a_cancel_and_a_retry_of_an_api_that_has_ended(bench: Bench) -> None:
    bench.api(lambda ledger: send(ledger, 3500, owner="k"))
    assert bench.ledger.run(batch_commands.cancel_batch("echo", "b"))
    assert get(bench).cancelled == PAGE
    sweep_until_quiet(bench)
    assert get(bench).cancelled == 3500 and get(bench).status == "cancelled"
    assert bench.redis.hget("{echo}:open", "k") is None
    assert bench.ledger.run(batch_commands.retry_batch(bench.settings, get(bench), ""))
    assert bench.redis.zcard("{echo}:waiting") == PAGE
    assert get(bench).counts["queued"] == 3500 and bench.redis.hget("{echo}:open", "k") == b"3500"
    sweep_until_quiet(bench)
    assert bench.redis.zcard("{echo}:waiting") == 3500


def test_a_batch_that_is_cancelled_while_its_retry_is_being_queued_ends_with_right_counts(bench: Bench) -> None:
    bench.api(lambda ledger: send(ledger, 3500, owner="k"))
    bench.api(lambda ledger: ledger.cancel_batch("b"))
    bench.ledger.run(batch_commands.retry_batch(bench.settings, get(bench), ""))
    batch = bench.api(lambda ledger: ledger.cancel_batch("b"))
    assert batch.ended and batch.counts["cancelled"] == 3500 and batch.counts["queued"] == 0
    assert bench.redis.hget("{echo}:open", "k") is None and bench.redis.zcard("{echo}:waiting") == 0


def test_a_retry_whose_last_pages_have_nothing_to_run_ends_with_its_first_rows(bench: Bench) -> None:
    bench.api(lambda ledger: send(ledger, 2500))
    for number in range(2500):
        (job_id,) = bench.claim(f"t{number}")
        end = Ending(job_id, Status.SUCCEEDED, DONE, b"{}", 1) if number else failed(job_id)
        bench.ledger.run(worker_commands.complete("echo", f"t{number}", [end]))
    assert get(bench).counts == {"queued": 0, "running": 0, "succeeded": 2499, "failed": 1, "cancelled": 0}
    assert bench.ledger.run(batch_commands.retry_batch(bench.settings, get(bench), ""))
    assert bench.claim("again") == ["b.0"]
    bench.ledger.run(worker_commands.complete("echo", "again", [Ending("b.0", Status.SUCCEEDED, DONE, b"{}", 1)]))
    assert not get(bench).ended
    sweep_until_quiet(bench)
    assert get(bench).status == "succeeded" and get(bench).succeeded == 2500
    assert bench.claim("last") == []


def failed(job_id: str) -> Ending:
    return Ending(job_id, Status.FAILED, b'{"code":"predict_failed","message":"m"}', b"{}", 1)


def sweep_until_quiet(bench: Bench) -> None:
    for _ in range(20):
        bench.ledger.run(commands.sweep("echo", 2))
        if not bench.redis.exists("{echo}:pages"):
            return
    raise AssertionError("the sweeps did not finish the pages")
