"""Large results in the ledger: parts that never mix, and outputs that are copied a few at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kit.bench import KNOBS, CacheBench, send_chunk
from tests.kit.system import RedisServer, poll
from worker.ledger import commands, worker_commands
from worker.ledger.jobs import Status
from worker.ledger.worker_commands import Ending

MB = 2**20
KEY = "{echo}:job:b.0"


@pytest.fixture
def bench(redis_server: RedisServer) -> Iterator[CacheBench]:
    made = CacheBench(redis_server.url)
    made.ledger.join("echo", "w1", {"state": "ready"})
    made.ledger.run(worker_commands.tell("echo", "1", KNOBS | {"cache_for_s": 60}))
    yield made
    made.redis.close()


def fields(bench: CacheBench) -> dict[str, bytes]:
    record = bench.redis.hgetall(KEY)
    names = ("partial", "so_far", "merged", "out", "output")
    return {n.decode(): v for n, v in record.items() if b"." in n or n.decode() in names}


def claim(bench: CacheBench, token: str) -> None:
    assert bench.take(token) == ["b.0"]


def test_parts_of_a_stale_attempt_never_mix_with_the_next_ones(bench: CacheBench) -> None:
    bench.api(send_chunk)
    ledger = bench.ledger
    claim(bench, "t.1")
    assert ledger.run(worker_commands.put_part("echo", "t.1", "b.0", "so_far", 1, [b"stale 0", b"stale 1"]))
    assert ledger.run(worker_commands.put_part("echo", "t.1", "b.0", "so_far", 1, [b"stale 0", b"stale 1"])), (
        "said again"
    )
    assert not ledger.run(worker_commands.put_part("echo", "other", "b.0", "so_far", 2, [b"forged"])), "fenced"
    ledger.run(
        worker_commands.give_up("echo", "w1", "t.1", "handed_back")
    )  # uncharged: the next one has the same number, and reads nothing
    claim(bench, "t.2")
    assert not ledger.run(worker_commands.put_part("echo", "t.1", "b.0", "so_far", 2, [b"late"]))
    assert ledger.run(worker_commands.progress("echo", "t.2", "b.0", [b"new 0"])) and fields(bench) == {
        "partial": b"new 0"
    }
    assert ledger.run(worker_commands.put_part("echo", "t.2", "b.0", "so_far", 1, [b"new 0", b"new 1"]))
    assert fields(bench) == {"1.1": b"new 0\nnew 1", "so_far": b"1 1"}, "the part has the lines of the rest"
    assert ledger.run(worker_commands.progress("echo", "t.2", "b.0", [b"new 2"], 1))

    # a run that was lost goes on after its parts
    ledger.run(worker_commands.give_up("echo", "w1", "t.2", "lost"))
    claim(bench, "t.3")
    rerun = ledger.fetch(worker_commands.fetch_rerun("echo", "b.0"))
    assert (rerun.parts, rerun.results, rerun.careful) == (("1.1",), [b"new 2"], True)
    assert ledger.fetch(worker_commands.fetch_part("echo", "b.0", "1.1")) == [b"new 0", b"new 1"]
    end = Ending("b.0", Status.SUCCEEDED, b"new 2\nnew 3", b"{}", 4, b"1,3\nrow 1\nrow 3")
    assert ledger.run(worker_commands.complete("echo", "t.3", [end], parts="so_far")) == [1]
    assert fields(bench) == {"1.1": b"new 0\nnew 1", "out": b"1 1", "output": b"new 2\nnew 3"}

    # what is run again and merged leaves what there was until it ends
    bench.api(lambda ledger: ledger.retry_batch("b"))
    claim(bench, "t.4")
    assert ledger.run(worker_commands.put_part("echo", "t.4", "b.0", "so_far", 1, [b"again 1"]))
    assert ledger.run(worker_commands.put_part("echo", "t.4", "b.0", "merged", 1, [b"new 0", b"again 1"]))
    rerun = ledger.fetch(worker_commands.fetch_rerun("echo", "b.0"))
    assert (rerun.settled_parts, rerun.settled, rerun.parts) == (("1.1",), [b"new 2", b"new 3"], ("2.1",))
    end = Ending("b.0", Status.SUCCEEDED, b"new 2\nagain 3", b"{}", 2)
    assert ledger.run(worker_commands.complete("echo", "t.4", [end], parts="merged")) == [1]
    assert fields(bench) == {"3.1": b"new 0\nagain 1", "out": b"3 1", "output": b"new 2\nagain 3"}


def test_a_cancelled_chunk_drops_its_partial_results_and_keeps_the_settled_ones(bench: CacheBench) -> None:
    bench.api(send_chunk)
    claim(bench, "t.1")
    end = Ending("b.0", Status.SUCCEEDED, b"a\nb\nc\nd", b"{}", 4, b"0\nrow 0")
    assert bench.ledger.run(worker_commands.complete("echo", "t.1", [end])) == [1]
    bench.api(lambda ledger: ledger.retry_batch("b"))
    claim(bench, "t.2")
    assert bench.ledger.run(worker_commands.put_part("echo", "t.2", "b.0", "so_far", 1, [b"x"]))
    assert bench.ledger.run(worker_commands.put_part("echo", "t.2", "b.0", "merged", 1, [b"x"]))
    bench.api(lambda ledger: ledger.cancel_batch("b"))
    assert fields(bench) == {"output": b"a\nb\nc\nd"}


def test_an_output_is_taken_over_by_a_few_equal_jobs_a_call(bench: CacheBench) -> None:
    output = b'"' + b"x" * 3 * MB + b'"'
    leader = bench.send()
    assert bench.take("t.1") == [leader]
    equals = [bench.send() for _ in range(10)]
    bench.redis.config_set("slowlog-log-slower-than", 0)
    bench.end("t.1", leader, output)
    states = bench.states(*equals)
    assert states.count("succeeded") == 3 and states.count("queued") == 7, "three outputs of 3 MB are over 8 MB"
    bench.api(lambda ledger: ledger.cancel(equals[9]))

    def swept() -> bool:
        bench.ledger.run(commands.sweep("echo", 2))
        return bench.states(*equals[:9]) == ["succeeded"] * 9

    poll(swept, what="the sweeps let the others take it over")
    assert [bench.get(job).cached_from for job in equals[:9]] == [leader] * 9 and bench.parked() == 0
    assert bench.get(equals[9]).status == Status.CANCELLED and bench.waiting() == []
    assert not bench.ledger.run(worker_commands.claim("echo", "w1", "t.2", KNOBS)).jobs, "none of them runs"


def test_a_job_with_a_dropped_leader_runs_by_itself(bench: CacheBench) -> None:
    leader = bench.send()
    assert bench.take("t.1") == [leader]
    equals = [bench.send() for _ in range(4)]
    bench.end("t.1", leader, b'"' + b"x" * 5 * MB + b'"')
    assert bench.states(*equals).count("queued") == 2
    bench.redis.delete(f"{{echo}}:job:{leader}")
    bench.ledger.run(commands.sweep("echo", 2))
    assert len(bench.take("t.2")) == 1 and bench.parked() == 1, "one runs for both"
