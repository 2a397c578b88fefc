"""The ledger's Lua on a real Redis: states, fencing, recovery, order."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.kit.bench import KNOBS, Bench, send_chunk
from worker.errors import (
    IdempotencyConflict,
    JobExpired,
    JobFinished,
    JobNotFound,
    JobNotRetryable,
    QueueFull,
    StoreUnavailable,
)
from worker.ledger import batch_commands, commands, worker_commands
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.batches import Chunk, NewBatch
from worker.ledger.commands import Repeated
from worker.ledger.jobs import TERMINAL, TRANSITIONS, Job, NewJob, Priority, Status
from worker.ledger.scripts import read_script
from worker.settings import Settings

from tests.kit.system import RedisServer, poll  # isort: skip


@pytest.fixture
def bench(redis_server: RedisServer) -> Iterator[Bench]:
    made = Bench(redis_server.url)
    made.ledger.join("echo", "w1", {"state": "ready"})
    made.ledger.join("echo", "w2", {"state": "ready"})
    yield made
    made.redis.close()


def test_the_one_table_of_transitions_is_the_luas_too() -> None:
    lua: dict[Status, set[Status]] = {}
    for states, edges in re.findall(
        r"if (from == .*) then may = (.*)", read_script("lib/transitions")["lib/transitions"]
    ):
        for state in re.findall(r"from == '(\w+)'", states):
            lua[Status(state)] = {Status(name) for name in re.findall(r"to == '(\w+)'", edges)}
    assert lua == {state: set(edges) for state, edges in TRANSITIONS.items() if edges}
    assert all(TRANSITIONS[state] <= {Status.QUEUED} for state in TERMINAL), "by retry alone"


def test_the_life_of_a_job(bench: Bench) -> None:
    (job_id,) = bench.create()
    assert (bench.get(job_id).status, bench.get(job_id).position) == (Status.QUEUED, 0)
    assert bench.claim("t1") == [job_id]
    assert (bench.get(job_id).status, bench.get(job_id).attempt) == (Status.RUNNING, 1)
    assert bench.complete("t1", job_id) == [True]
    job = bench.get(job_id)
    assert (job.status, job.output, job.error, job.position) == (Status.SUCCEEDED, b'{"n":1}', None, None)
    assert bench.claim("t2") == []


def test_a_deadline_below_a_microsecond_is_no_missing_one(bench: Bench) -> None:
    bench.create(start_within_s=1e-9)
    assert bench.claim("t1") == []


@pytest.mark.parametrize("end", sorted(TERMINAL))
def test_a_terminal_state_is_never_changed(bench: Bench, end: Status) -> None:
    # given a job that ended in each of the four ways
    (job_id,) = bench.create(start_within_s=0.000001 if end is Status.EXPIRED else 0)
    if end is Status.CANCELLED:
        bench.ledger.cancel(job_id)
    else:
        bench.claim("t1")
    if end in (Status.SUCCEEDED, Status.FAILED):
        bench.complete("t1", job_id, status=end)
    before = bench.get(job_id)
    assert before.status is end

    # when everything that changes states is tried on it
    bench.complete("t1", job_id, status=Status.FAILED if end is Status.SUCCEEDED else Status.SUCCEEDED)
    bench.ledger.cancel(job_id)
    bench.ledger.run(worker_commands.give_up("echo", "w1", "t1", "lost"))
    assert bench.claim("t2") == []
    bench.lapse("w1")
    with pytest.raises(JobFinished):
        bench.api(lambda ledger: ledger.cancel(job_id))

    assert bench.get(job_id) == before


def test_lua_refuses_an_edge_that_is_not_in_the_table(bench: Bench) -> None:
    (job_id,) = bench.create()
    bench.redis.hset(f"{{echo}}:job:{job_id}", "status", "succeeded")
    bench.redis.zadd("{echo}:waiting", {job_id: 1})
    with pytest.raises(redis.ResponseError, match="cannot go from succeeded to running"):
        bench.claim("t1")


def test_a_claim_that_is_sent_twice_gives_the_same_batch(bench: Bench) -> None:
    ids = bench.create(25)
    assert sorted(bench.claim("t1")) == sorted(bench.claim("t1")) == sorted(ids[:10])
    assert {bench.get(i).attempt for i in ids[:10]} == {1}
    assert bench.claim("t2") == ids[10:20]


def test_a_create_that_is_sent_twice_makes_one_job(bench: Bench) -> None:
    job = NewJob(service="echo", input=b"{}")
    (first,), (second,) = (bench.api(lambda ledger: ledger.create([job])) for _ in range(2))
    assert isinstance(first, Job) and isinstance(second, Job)
    assert first._replace(estimated_start_us=0) == second._replace(estimated_start_us=0)
    assert bench.redis.llen("echo") == 1 and bench.claim("t1") == [job.id]


def test_a_key_belongs_to_one_job_and_one_body_until_that_job_is_dropped(bench: Bench) -> None:
    def send(body: str, **fields: Any) -> Any:
        job = NewJob(service="echo", input=b"{}", idempotency_key="key", body_hash=body, **fields)
        return bench.api(lambda ledger: ledger.create([job]))[0]

    first = send("a", keep_for_s=0.3)
    assert send("a") == Repeated(first.id)
    assert isinstance(send("b"), IdempotencyConflict)
    assert bench.redis.llen("echo") == 1 and bench.redis.zcard("{echo}:waiting") == 1, "nothing was added"

    bench.claim("t1")
    bench.complete("t1", first.id, status=Status.FAILED)
    assert send("a") == Repeated(first.id), "it has ended"
    bench.ledger.retry(first.id)
    assert bench.redis.pttl(f"{{echo}}:idempotency:{hashlib.sha256(b'key').hexdigest()}") == -1
    bench.claim("t2")
    bench.complete("t2", first.id)
    poll(lambda: not bench.redis.exists(f"{{echo}}:job:{first.id}"), what="the record is dropped")
    second = poll(lambda: isinstance(made := send("a"), Job) and made, what="the key is free again")
    assert second.id != first.id


def test_an_api_sweeps_all_services_in_two_round_trips(bench: Bench) -> None:
    services = ["echo", *(f"service{i}" for i in range(20))]
    for service in services:
        bench.create(service=service)
        bench.ledger.join(service, "gone", {})
        bench.ledger.run(worker_commands.claim(service, "gone", f"token of {service}", KNOBS))
        bench.redis.zadd(f"{{{service}}}:workers", {"gone": 0})
        bench.redis.set(f"{{{service}}}:swept", int((time.time() - 0.45) * 1e6))

    def requests() -> int:
        return int(bench.redis.info("stats")["total_reads_processed"])

    before = requests()
    assert len(bench.api(lambda ledger: ledger.run_each([commands.sweep(name, 2) for name in services]))) == len(
        services
    )
    assert requests() - before < len(services), "a new connection says hello, too"
    overviews = bench.api(lambda ledger: ledger.overviews(services))
    assert [overview.depth for overview in overviews] == [1] * len(services)


def test_equal_requests_of_one_commit_make_one_job(bench: Bench) -> None:
    jobs = [NewJob(service="echo", input=b"{}", idempotency_key="key", body_hash="a") for _ in range(5)]
    first, *others = bench.api(lambda ledger: ledger.create(jobs))
    assert others == [Repeated(first.id)] * 4 and bench.claim("t1") == [first.id]


def test_a_complete_that_is_sent_twice_says_the_same(bench: Bench) -> None:
    (job_id,) = bench.create()
    bench.claim("t1")
    assert bench.complete("t1", job_id) == bench.complete("t1", job_id) == [True]


def test_a_late_worker_is_fenced(bench: Bench) -> None:
    (job_id,) = bench.create()
    bench.claim("t1", "w1")
    bench.lapse("w1")
    assert bench.claim("t2", "w2") == [job_id]

    assert bench.complete("t1", job_id) == [False]
    assert bench.ledger.run(worker_commands.give_up("echo", "w1", "t1", "lost")) == {}
    assert bench.ledger.run(worker_commands.claim("echo", "w1", "t3", KNOBS)).kind == "fenced"
    assert bench.ledger.run(worker_commands.renew("echo", "w1", 2, {})) == (False, [])
    assert bench.get(job_id).status is Status.RUNNING
    assert bench.complete("t2", job_id) == [True]


@pytest.mark.parametrize("last_s_ago", [3, 3600, -3600])
def test_after_a_silence_or_a_jump_of_the_clock_no_lease_has_lapsed(bench: Bench, last_s_ago: float) -> None:
    bench.create()
    bench.claim("t1")
    bench.redis.zadd("{echo}:workers", {"w1": 1})
    assert bench.sweep(last_s_ago) == []
    assert bench.ledger.run(commands.sweep("echo", 2)) == [], "which is soon after"
    # one that does not renew its lease is dead all the same
    poll(lambda: len(bench.ledger.run(commands.sweep("echo", 2))) == 1, 3)


def test_a_clock_that_goes_back_leaves_the_order_as_it_was(bench: Bench) -> None:
    ids = bench.create(10)
    bench.claim("t1", max_batch_size=2)
    for job_id in ids:
        for name in ("score", "created"):
            bench.redis.hincrby(f"{{echo}}:job:{job_id}", name, 3_600_000_000)
        if job_id in ids[2:]:
            bench.redis.zincrby("{echo}:waiting", 3600e6, job_id)
    bench.sweep(-3600)
    later = bench.create(1)
    assert bench.claim("t2", max_batch_size=20) == ids[2:] + later, "stored while the clock was an hour ahead"

    # what ran meanwhile and comes back goes before what came after it
    last = bench.create(1)
    bench.ledger.run(worker_commands.give_up("echo", "w1", "t1", "handed_back"))
    assert bench.redis.zcount("{echo}:waiting", "-inf", bench.redis.time()[0] * 1e6 + 60e6) == 3
    assert set(bench.claim("t3", max_batch_size=20)) == {*ids[:2], *last}


@pytest.mark.parametrize(("left_s", "then_s"), [(1.5, 1.5), (0.2, 1), (7, 2)])
def test_a_silence_does_not_count_for_a_lease_but_is_no_new_one(bench: Bench, left_s: float, then_s: float) -> None:
    """Or a worker that died just before it would be missed for two leases."""
    seconds, microseconds = bench.redis.time()
    last = seconds - 30 + microseconds / 1e6
    bench.redis.zadd("{echo}:workers", {"w1": (last + left_s) * 1e6})
    bench.sweep(30)
    lapses: Any = bench.redis.zscore("{echo}:workers", "w1")
    assert lapses / 1e6 - 30 - last == pytest.approx(then_s, abs=0.1)


def test_jobs_of_a_time_to_come_do_not_wait_for_it(bench: Bench) -> None:
    (early,) = bench.create()
    for key, id_ in (("waiting", early), ("index", early)):
        bench.redis.zincrby(f"{{echo}}:{key}", 3600e6, id_)
    for name in ("score", "created"):
        bench.redis.hincrby(f"{{echo}}:job:{early}", name, 3_600_000_000)
    (late,) = bench.create()
    assert bench.get(early).position == 1, "stored while the clock was an hour ahead"
    bench.sweep(-3600)
    bench.create()
    assert bench.get(early).position == 1 and bench.get(late).position == 0


def test_poison_in_a_batch_is_run_alone_and_charged_alone(bench: Bench) -> None:
    poison, mate = bench.create(2)
    bench.claim("t0")
    bench.ledger.run(worker_commands.give_up("echo", "w1", "t0", "lost"))
    assert {bench.get(i).attempt for i in (poison, mate)} == {0}, "nobody is charged for a batch"

    for attempt in (1, 2, 3):
        assert bench.claim(f"p{attempt}") == [poison], "each runs alone now"
        assert bench.get(poison).attempt == attempt
        bench.ledger.run(worker_commands.give_up("echo", "w1", f"p{attempt}", "lost"))

    job = bench.get(poison)
    assert (job.status, job.attempt) == (Status.FAILED, 3)
    assert job.error is not None and b'"worker_lost"' in job.error and b"3 attempts" in job.error
    assert bench.claim("m") == [mate] and bench.complete("m", mate) == [True]
    assert bench.get(mate).attempt == 1


def test_a_job_that_is_handed_back_is_not_charged_and_keeps_its_place(bench: Bench) -> None:
    ids = bench.create(3)
    bench.claim("t1", max_batch_size=2)
    assert sorted(bench.ledger.run(worker_commands.leave("echo", "w1"))) == sorted(ids[:2])
    assert [bench.get(i).position for i in ids] == [0, 1, 2]
    assert bench.claim("t2", "w2") == ids
    assert {bench.get(i).attempt for i in ids} == {1}


def test_runs_that_are_handed_back_again_and_again_are_charged_at_last(bench: Bench) -> None:
    (job_id,) = bench.create()
    for turn in range(23):
        assert bench.get(job_id).status is Status.QUEUED
        bench.claim(f"t{turn}")
        bench.ledger.run(worker_commands.give_up("echo", "w1", f"t{turn}", "handed_back"))
        assert bench.get(job_id).attempt == max(0, turn - 19)
    job = bench.get(job_id)
    assert job.status is Status.FAILED and job.error is not None and b"worker_lost" in job.error
    bench.ledger.retry(job_id)
    bench.claim("again")
    bench.ledger.run(worker_commands.give_up("echo", "w1", "again", "handed_back"))
    assert bench.get(job_id).status is Status.QUEUED, "a retry begins anew"


def test_a_timeout_alone_fails_at_once(bench: Bench) -> None:
    (job_id,) = bench.create()
    bench.claim("t1")
    bench.ledger.run(worker_commands.give_up("echo", "w1", "t1", "timed_out"))
    job = bench.get(job_id)
    assert job.status is Status.FAILED and job.error is not None and b'"timed_out"' in job.error


def test_urgent_jobs_go_first_and_old_ones_are_not_starved(bench: Bench) -> None:
    low, normal, high = (bench.create(priority=p)[0] for p in (Priority.LOW, Priority.NORMAL, Priority.HIGH))
    assert bench.claim("t1") == [high, normal, low]

    # a low job that came two steps before a high one goes before it
    hurried = Settings(redis_url=bench.settings.redis_url, priority_step_s=0.01)
    ids = []

    async def create(priority: Priority) -> None:
        ledger = AsyncLedger(hurried)
        job = NewJob(service="echo", input=b"{}", priority=priority)
        await ledger.create([job])
        await ledger.close()
        ids.append(job.id)

    asyncio.run(create(Priority.LOW))
    time.sleep(0.05)  # the passing of time is what is tested
    asyncio.run(create(Priority.HIGH))
    assert bench.claim("t2") == ids


def test_a_full_queue_refuses_jobs_that_do_not_fit(bench: Bench) -> None:
    bench.ledger.run(worker_commands.tell("echo", "1", KNOBS | {"max_queue_size": 2}))
    jobs = [NewJob(service="echo", input=b"{}") for _ in range(3)]
    made = bench.api(lambda ledger: ledger.create(jobs))
    assert [isinstance(one, QueueFull) for one in made] == [False, False, True]
    assert bench.redis.keys("{echo}:job:*") and not bench.redis.exists(f"{{echo}}:job:{jobs[2].id}")


def test_a_queue_is_full_by_its_bytes_too_and_has_room_again_as_it_is_worked_off(bench: Bench) -> None:
    bench.ledger.run(worker_commands.tell("echo", "1", KNOBS | {"max_queue_bytes": 100}))
    jobs = [NewJob(service="echo", input=b'"%s"' % (b"x" * 28)) for _ in range(4)]
    made = bench.api(lambda ledger: ledger.create(jobs))
    assert [isinstance(one, QueueFull) for one in made] == [False, False, False, True]
    bench.claim("t1", max_batch_size=1)
    bench.ledger.cancel(jobs[1].id)
    assert bench.redis.hget("{echo}:about", "waiting_bytes") == b"30"
    assert bench.ledger.run(worker_commands.leave("echo", "w1")) == [jobs[0].id], "what comes back is counted again"
    assert bench.redis.hget("{echo}:about", "waiting_bytes") == b"60"
    bench.claim("t2", "w2")
    assert bench.redis.hget("{echo}:about", "waiting_bytes") == b"0"


def test_ends_and_repeated_queueings_are_counted_once(bench: Bench) -> None:
    first, second = bench.create(2)
    bench.claim("t1")
    bench.ledger.run(worker_commands.give_up("echo", "w1", "t1", "lost"))
    bench.claim("t2")
    for _ in range(2):  # the answer was lost
        bench.complete("t2", first)
    bench.ledger.cancel(second)
    overview = bench.api(lambda ledger: ledger.run(commands.overview("echo")))
    counts = {name: count for name, count in overview.counts.items() if ":" in name}
    assert counts == {"requeued:lost": 2, "ended:succeeded": 1, "ended:cancelled": 1}
    assert overview.running == 0 and overview.rate > 0


def test_retry_after_follows_the_measured_rate(bench: Bench) -> None:
    bench.ledger.run(worker_commands.tell("echo", "1", KNOBS | {"max_queue_size": 1000}))

    def refused() -> int:
        made = bench.api(lambda ledger: ledger.create([NewJob(service="echo", input=b"{}")] * 1))
        assert isinstance(made[0], QueueFull)
        return made[0].retry_after_s

    bench.create(1000)
    assert refused() == 60, "nothing is known yet"
    for turn in range(20):
        ids = bench.claim(f"t{turn}")
        bench.complete(f"t{turn}", *ids)
    bench.create(200)
    # 200 jobs in well under ten seconds count as 20 a second; a tenth of the queue are 100 jobs.
    assert 4 <= refused() <= 7


def test_jobs_that_a_dead_worker_had_claimed_ahead_are_neither_charged_nor_suspected(bench: Bench) -> None:
    ids = bench.create(4)
    assert bench.claim("process.1", max_batch_size=2) == ids[:2], "it runs"
    assert bench.claim("process.2", max_batch_size=2) == ids[2:], "claimed while the model computed"

    bench.lapse("w1")

    assert [bench.claim(f"t{i}", "w2") for i in range(3)] == [ids[:1], ids[1:2], ids[2:]], "only what ran runs alone"
    assert [bench.get(job_id).attempt for job_id in ids] == [1, 1, 1, 1]


def test_a_sweep_forgets_more_expired_jobs_than_end_between_two(bench: Bench) -> None:
    ids = {f"j{number}": 1 for number in range(3500)}  # a queue without a model ends some 11,000 a second
    bench.redis.zadd("{echo}:expires", ids)
    bench.redis.zadd("{echo}:index", ids)
    bench.sweep()
    assert bench.redis.exists("{echo}:expires", "{echo}:index") == 0


def test_a_retry_runs_again_with_the_same_id_and_a_history(bench: Bench) -> None:
    (job_id,) = bench.create()
    bench.claim("t1")
    bench.complete("t1", job_id, status=Status.FAILED)
    assert list(bench.ledger.failed("echo")) == [job_id]

    job = bench.api(lambda ledger: ledger.retry(job_id))

    assert (job.status, job.attempt, job.error, job.finished_us, job.expires_us) == (Status.QUEUED, 1, None, 0, 0)
    assert bench.redis.ttl(f"{{echo}}:job:{job_id}") == -1
    assert not bench.redis.exists(f"{{echo}}:seen:{job_id}"), "written anew at its next end"
    assert bench.claim("t2") == [job_id]
    assert bench.complete("t2", job_id) == [True]
    shown = json.loads(bench.get(job_id).to_json(frozenset({"attempts", "input"})))
    assert shown["input"] == {"n": 1}
    told = [(a["attempt"], a["outcome"], a["charged"], a["batch"], a["worker"]) for a in shown["attempts"]]
    assert told == [(1, "failed", True, "t1", "w1"), (2, "succeeded", True, "t2", "w1")]
    assert shown["attempts"][0]["error"]["code"] == "predict_failed"
    with pytest.raises(JobNotRetryable):
        bench.ledger.retry(job_id)


def test_a_retry_does_not_overlap_with_a_cancelled_run(bench: Bench) -> None:
    (job_id,) = bench.create()
    bench.claim("t1")
    bench.ledger.cancel(job_id)
    bench.ledger.retry(job_id)
    assert bench.claim("t2") == [], "the run before may end within four seconds"
    assert bench.get(job_id).position == 0
    bench.redis.zadd("{echo}:delayed", {job_id: 1})
    bench.ledger.run(commands.sweep("echo", 2))
    assert bench.claim("t3") == [job_id]


def test_a_retried_chunk_does_not_overlap_with_its_cancelled_run(bench: Bench) -> None:
    async def send(ledger: AsyncLedger) -> None:
        for number in (0, 1):
            await ledger.run(batch_commands.stage("echo", Chunk("b", number, number, [b'{"n":1}'])))
        await ledger.seal(NewBatch("echo", "1", 2, 2, 14, Priority.NORMAL, 60, b"{}", "b"))

    bench.api(send)
    assert bench.claim("t1") == ["b.0"]
    bench.api(lambda ledger: ledger.cancel_batch("b"))
    bench.api(lambda ledger: ledger.retry_batch("b"))
    assert bench.claim("t2") == ["b.1"], "b.0 was running, and may be for four seconds"
    assert bench.claim("t3") == []
    assert bench.redis.zrange("{echo}:delayed", 0, -1) == [b"b.0"]
    bench.redis.zadd("{echo}:delayed", {"b.0": 1})
    bench.ledger.run(commands.sweep("echo", 2))
    assert bench.claim("t4") == ["b.0"]


def test_a_quick_chunk_that_is_next_is_a_whole_batch_to_claim_ahead(bench: Bench) -> None:
    async def send(ledger: AsyncLedger) -> None:
        for number in range(4):
            await ledger.run(batch_commands.stage("echo", Chunk("b", number, number * 2, [b"1", b"2"])))
        await ledger.seal(NewBatch("echo", "1", 8, 4, 12, Priority.NORMAL, 60, b"{}", "b"))

    bench.api(send)
    claims = []
    for number, pace_us in enumerate(("", 125_000, 125_001, 125_000)):  # a row; two are to take 0.25 s at most
        if pace_us:
            bench.redis.hset("{echo}:about", "pace", pace_us)
        claims.append(bench.ledger.run(worker_commands.claim("echo", "w1", f"p{number}.0", KNOBS)))
    assert [job.id for claim in claims for job in claim.jobs] == ["b.0", "b.1", "b.2", "b.3"]
    assert [claim.more for claim in claims] == [False, True, False, False], "unknown, quick, slow, and none is left"
    bench.create(9)
    assert not bench.ledger.run(worker_commands.claim("echo", "w1", "p4.0", KNOBS | {"max_batch_size": 5})).more
    bench.create(3)
    assert bench.ledger.run(worker_commands.claim("echo", "w1", "p5.0", KNOBS | {"max_batch_size": 3})).more


def test_a_chunk_makes_room_for_more_urgent_jobs_and_keeps_its_results(bench: Bench) -> None:
    bench.api(send_chunk)
    assert bench.claim("t1") == ["b.0"]
    bench.create(priority=Priority.NORMAL)
    assert not bench.ledger.run(worker_commands.pause("echo", "t1", "b.0", [b"zero"], 1)), "what came later comes later"
    (urgent,) = bench.create(priority=Priority.HIGH)
    assert bench.ledger.run(worker_commands.pause("echo", "t1", "b.0", [b"zero", b"one"], 2))
    assert bench.ledger.run(worker_commands.pause("echo", "t1", "b.0", [b"zero", b"one"], 2)), (
        "said again: it is no longer this run's"
    )
    assert bench.claim("t2", max_batch_size=1) == [urgent]
    (chunk,) = bench.ledger.run(worker_commands.claim("echo", "w1", "t3", KNOBS)).jobs
    assert (chunk.id, chunk.input, chunk.attempt) == ("b.0", b"0\n1\n2\n3", 2)
    rerun = bench.ledger.fetch(worker_commands.fetch_rerun("echo", "b.0"))
    assert rerun.results == [b"zero", b"one"] and not rerun.careful and not rerun.skip

    bench.ledger.run(worker_commands.give_up("echo", "w1", "t3", "lost"))
    bench.claim("t4", max_batch_size=1)
    rerun = bench.ledger.fetch(worker_commands.fetch_rerun("echo", "b.0"))
    assert rerun.results == [b"zero", b"one"] and rerun.careful and not rerun.skip, "a lost run still counts"
    bench.complete("t4", "b.0")
    found = bench.api(lambda ledger: ledger.get_batch("b"))
    assert found and found.counts == {"queued": 0, "running": 0, "succeeded": 4, "failed": 0, "cancelled": 0}


def test_a_retry_gives_all_attempts_again(bench: Bench) -> None:
    (job_id,) = bench.create()
    for attempt in (1, 2, 3):
        bench.claim(f"t{attempt}")
        bench.ledger.run(worker_commands.give_up("echo", "w1", f"t{attempt}", "lost"))
    assert bench.get(job_id).status is Status.FAILED
    bench.ledger.retry(job_id)
    for attempt in (4, 5, 6):
        assert bench.claim(f"u{attempt}") == [job_id]
        assert bench.get(job_id).attempt == attempt
        bench.ledger.run(worker_commands.give_up("echo", "w1", f"u{attempt}", "lost"))
    assert bench.get(job_id).status is Status.FAILED


def test_a_history_forgets_its_oldest_attempts_first(bench: Bench) -> None:
    (job_id,) = bench.create()
    for turn in range(300):
        bench.redis.hdel(f"{{echo}}:job:{job_id}", "uncharged")  # of which there may be 20
        bench.claim(f"t{turn}")
        bench.ledger.run(worker_commands.leave("echo", "w1"))
        bench.ledger.join("echo", "w1", {})
    history = bench.get(job_id).history
    assert sum(map(len, history)) < 33_000
    assert b'"batch":"t299"' in history[-1] and len(history) > 50


def test_a_full_redis_refuses_new_jobs_and_ends_those_that_it_has(bench: Bench) -> None:
    ids = bench.create(20)
    bench.claim("t1")
    bench.redis.config_set("maxmemory", 1)
    with pytest.raises(StoreUnavailable):
        bench.create()
    assert all(bench.complete("t1", *ids[:10]))
    assert bench.ledger.run(worker_commands.renew("echo", "w1", 2, {})) == (True, [])
    assert bench.claim("t2") == ids[10:]
    assert all(bench.complete("t2", *ids[10:]))


def test_a_batch_is_held_back_for_more_but_not_longer_than_its_oldest_job_may_wait(bench: Bench) -> None:
    bench.create(1)
    claim = bench.ledger.run(worker_commands.claim("echo", "w1", "t1", KNOBS | {"max_queue_delay_ms": 200}))
    assert claim.kind == "hold" and 0 < claim.hold_s <= 0.2
    held = lambda: bench.ledger.run(worker_commands.claim("echo", "w1", "t1", KNOBS | {"max_queue_delay_ms": 200}))  # noqa: E731
    assert len(poll(lambda: held().ids)) == 1
    bench.create(10)
    assert (
        len(bench.ledger.run(worker_commands.claim("echo", "w1", "t2", KNOBS | {"max_queue_delay_ms": 60_000})).ids)
        == 10
    ), "a full one goes"


def test_the_largest_preferred_size_that_can_be_reached_is_taken(bench: Bench) -> None:
    def claim(token: str, delay_ms: float = 60_000) -> tuple[str, int]:
        knobs = KNOBS | {"preferred_batch_sizes": [4, 2, 8], "max_queue_delay_ms": delay_ms}
        got = bench.ledger.run(worker_commands.claim("echo", "w1", token, knobs))
        return got.kind, len(got.ids)

    bench.create(15)
    assert [claim(f"t{i}") for i in range(3)] == [("batch", 8), ("batch", 4), ("batch", 2)]
    assert claim("t3") == ("hold", 0), "one job alone is of no preferred size, and may wait"
    assert claim("t3", delay_ms=0) == ("batch", 1)
    bench.create(1)
    assert claim("t4", delay_ms=10_000)[0] == "hold"
    bench.create(1)
    assert claim("t4", delay_ms=10_000) == ("batch", 2), "held back no longer than until it is of a preferred size"


def test_another_producers_message_outlives_the_worker_that_took_it(bench: Bench) -> None:
    bench.redis.lpush("echo", b'{"headers": {"id": "theirs"}}')
    claim = bench.ledger.run(worker_commands.claim("echo", "w1", "t1", KNOBS))
    assert claim.kind == "foreign" and [message for _, message in claim.messages] == [b'{"headers": {"id": "theirs"}}']
    assert bench.redis.llen("echo") == 0

    bench.lapse("w1")

    assert bench.redis.lrange("echo", 0, -1) == [b'{"headers": {"id": "theirs"}}']


def test_a_dropped_record_answers_410_and_an_unknown_id_404(bench: Bench) -> None:
    (job_id,) = bench.create(keep_for_s=0.05)
    bench.claim("t1")
    bench.complete("t1", job_id)
    poll(lambda: not bench.redis.exists(f"{{echo}}:job:{job_id}"), what="the record is dropped")
    with pytest.raises(JobExpired):
        bench.get(job_id)
    with pytest.raises(JobNotFound):
        bench.get("never")
    poll(
        lambda: bench.ledger.run(commands.sweep("echo", 2)) or not bench.redis.zcard("{echo}:index"),
        what="its index entries too",
    )


def test_paging_meets_every_job_once_also_where_times_are_equal(bench: Bench) -> None:
    ids = bench.create(30) + bench.create(30, service="other")
    moment = bench.redis.zscore("{echo}:index", ids[0])
    for i in ids[:30]:  # all of one service at the same microsecond
        bench.redis.zadd("{echo}:index", {i: moment})
        bench.redis.hset(f"{{echo}}:job:{i}", "created", int(moment))

    seen: list[str] = []
    before = None
    for _ in itertools.count():
        page = bench.api(lambda ledger, before=before: ledger.page(["echo", "other"], None, 7, before))
        seen += [job.id for job in page.jobs]
        before = page.next
        if before is None:
            break

    assert len(seen) == 60 and set(seen) == set(ids)


def test_a_page_of_a_rare_state_may_be_short_but_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.ledger.commands.LOOK_AT", 10)
    ids = bench.create(35)
    bench.ledger.cancel(ids[2])
    found: list[str] = []
    before, pages = None, 0
    while pages == 0 or before:
        page = bench.api(lambda ledger, before=before: ledger.page(["echo"], Status.CANCELLED, 5, before))
        found += [job.id for job in page.jobs]
        before, pages = page.next, pages + 1
    assert found == [ids[2]] and pages > 3
