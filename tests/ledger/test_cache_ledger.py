"""The cache's Lua on a real Redis: who runs, who waits for whom, and what is left behind."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.bench import DONE, KNOBS, MODEL, CacheBench
from tests.kit.system import RedisServer, poll
from worker.errors import QueueFull, RateLimited, StoreUnavailable
from worker.ledger import commands, scripts, worker_commands
from worker.ledger.equal_jobs import ask, digest_model
from worker.ledger.jobs import TERMINAL, NewJob, Priority, Status
from worker.ledger.scripts import read_script
from worker.ledger.worker_commands import Stored


@pytest.fixture
def bench(redis_server: RedisServer) -> Iterator[CacheBench]:
    made = CacheBench(redis_server.url)
    made.ledger.join("echo", "w1", {"state": "ready"})
    made.ledger.join("echo", "w2", {"state": "ready"})
    made.ledger.run(worker_commands.tell("echo", "1", KNOBS | {"cache_for_s": 60}))
    yield made
    made.redis.close()


def test_a_result_is_given_to_later_equals_and_to_no_others(bench: CacheBench) -> None:
    first = bench.send()
    assert bench.take("t1") == [first]
    bench.end("t1", first, b'{"n":7}')
    hit, other, own = bench.send(metadata=b'{"mine":1}'), bench.send(input=2), bench.send(cache_for_s=0.0001)

    job = bench.get(hit)
    assert (job.status, job.output, job.cached_from, job.attempt) == (Status.SUCCEEDED, b'{"n":7}', first, 0)
    assert job.metadata == b'{"mine":1}' and job.id != first and job.started_us == job.finished_us
    assert bench.states(other, own) == ["queued", "queued"], "another input; a result younger than any"
    assert bench.take("t2") == [other, own]
    assert bench.get(first).cached_from == ""


def test_equals_wait_for_one_run_and_end_in_its_step(bench: CacheBench) -> None:
    jobs = [bench.send() for _ in range(5)]
    assert (bench.waiting(), bench.parked()) == (jobs[:1], 4)
    assert [bench.get(job_id).position for job_id in jobs] == [0, 0, 0, 0, 0]
    assert bench.take("t1") == jobs[:1]
    late = bench.send()
    assert (bench.waiting(), bench.parked(), bench.get(late).position) == ([], 5, 0)
    pubsub = bench.redis.pubsub()
    pubsub.subscribe("jobs:ended")
    pubsub.get_message(timeout=1)
    bench.end("t1", jobs[0])
    told = pubsub.get_message(timeout=1)["data"].decode()
    assert all(job_id in told for job_id in [*jobs, late]), "in one message, so in one step"
    pubsub.close()
    assert {bench.get(job_id).cached_from for job_id in [*jobs[1:], late]} == {jobs[0]}
    assert {bench.get(job_id).output for job_id in [*jobs, late]} == {DONE}
    bench.check()
    about = bench.redis.hgetall("{echo}:about")
    assert (about[b"parked"], about[b"waiting_bytes"], about[b"ended:succeeded"], about[b"reused"]) == (
        b"0",
        b"0",
        b"6",
        b"5",
    )
    assert bench.end("t1", jobs[0]) is Stored.ENDED, "said again"
    assert bench.redis.hget("{echo}:about", "ended:succeeded") == b"6"


def test_the_most_urgent_equal_waits_for_all(bench: CacheBench) -> None:
    low, normal = bench.send(priority=Priority.LOW), bench.send()
    other = bench.send(input=2)
    high = bench.send(priority=Priority.HIGH)
    assert bench.waiting() == [high, other] and bench.parked() == 2
    assert bench.get(low).position == 0, "with the first of its equals"
    bench.check()
    assert bench.take("t1", most=1) == [high]
    bench.end("t1", high)
    assert bench.states(low, normal, high, other) == ["succeeded", "succeeded", "succeeded", "queued"]


def test_the_next_of_equal_jobs_waits_when_the_first_is_cancelled(bench: CacheBench) -> None:
    first, second, third = (bench.send() for _ in range(3))
    bench.ledger.cancel(second)
    assert (bench.waiting(), bench.parked()) == ([first], 1)
    bench.ledger.cancel(first)
    assert (bench.waiting(), bench.parked()) == ([third], 0)
    bench.check()
    bench.ledger.cancel(third)
    assert bench.waiting() == [] and bench.keys_of_cache() == [] and bench.parked() == 0
    assert bench.states(first, second, third) == ["cancelled"] * 3


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_one_of_equal_jobs_runs_when_their_runner_is_stopped(bench: CacheBench, how: str) -> None:
    first = bench.send(finish_within_s=1000 if how == "deadline" else 0)
    second, third = bench.send(), bench.send()
    bench.take("t1")
    if how == "cancel":
        bench.ledger.cancel(first)
    else:
        bench.redis.hset(f"{{echo}}:job:{first}", "finish_by", 1)
        bench.redis.zadd("{echo}:deadlines", {first: 1})
        bench.sweep()
    assert bench.states(first) == ["cancelled" if how == "cancel" else "failed"]
    assert (bench.waiting(), bench.parked()) == ([second], 1)
    bench.end("t1", first)
    assert bench.take("t2", worker="w2") == [second], "the late result of a stopped run is nobody's"
    bench.end("t2", second)
    assert bench.states(second, third) == ["succeeded", "succeeded"] and bench.get(third).cached_from == second
    bench.check()


def test_where_a_run_fails_each_of_its_equals_runs_by_itself(bench: CacheBench) -> None:
    jobs = [bench.send() for _ in range(4)]
    bench.take("t1")
    bench.fail("t1", jobs[0])
    assert bench.states(jobs[0]) == ["failed"] and bench.waiting() == jobs[1:] and bench.parked() == 0
    assert bench.take("t2") == jobs[1:], "at once, in one batch"
    bench.end("t2", jobs[1])
    bench.fail("t2", jobs[2])
    bench.end("t2", jobs[3], b'{"n":3}')
    assert bench.states(*jobs) == ["failed", "succeeded", "failed", "succeeded"], "each its own outcome"
    assert bench.get(jobs[3]).output == b'{"n":3}' and bench.keys_of_cache() == []


def test_while_a_job_pauses_before_its_retry_an_equal_one_runs(bench: CacheBench) -> None:
    first, second = bench.send(), bench.send()
    bench.take("t1")
    bench.fail("t1", first, pause_s=1000)
    assert bench.states(first) == ["queued"] and bench.waiting() == [second]
    assert bench.get(first).position == 1
    bench.check()
    assert bench.take("t2") == [second]
    bench.redis.zadd("{echo}:delayed", {first: 1})
    bench.sweep()  # its pause is over while the other runs
    assert (bench.waiting(), bench.parked()) == ([], 1)
    bench.end("t2", second)
    assert bench.states(first, second) == ["succeeded", "succeeded"]
    job = bench.get(first)
    assert (job.cached_from, job.attempt, len(job.history)) == (second, 1, 1)


@pytest.mark.parametrize("how", ["lost", "handed_back"])
def test_a_run_that_is_lost_is_run_again_for_all(bench: CacheBench, how: str) -> None:
    first, second = bench.send(), bench.send()
    bench.take("t1")
    if how == "lost":
        bench.lapse("w1")
    else:
        bench.ledger.run(worker_commands.leave("echo", "w1"))
    assert (bench.states(first, second), bench.waiting(), bench.parked()) == (["queued", "queued"], [first], 1)
    bench.check()
    assert bench.end("t1", first) is Stored.DROPPED and bench.keys_of_cache() != []
    assert bench.take("t2", worker="w2") == [first]
    bench.end("t2", first)
    assert bench.states(first, second) == ["succeeded", "succeeded"]


def test_a_job_that_kills_its_workers_takes_none_of_its_equals_along(bench: CacheBench) -> None:
    first, second = bench.send(), bench.send()
    for attempt in range(KNOBS["max_attempts"]):  # type: ignore[call-overload]
        worker = f"doomed-{attempt}"
        bench.ledger.join("echo", worker, {})
        assert bench.take(f"t{attempt}", worker=worker) == [first]
        bench.lapse(worker)
    assert bench.states(first, second) == ["failed", "queued"]
    bench.ledger.join("echo", "w3", {})
    assert bench.take("t9", worker="w3") == [second]
    bench.end("t9", second)
    assert bench.states(second) == ["succeeded"] and bench.get(second).cached_from == ""


def test_another_model_neither_takes_results_nor_gives_any(bench: CacheBench) -> None:
    first = bench.send()
    bench.take("t1")
    bench.end("t1", first)
    newer = KNOBS | {"max_batch_size": 3, "cache_for_s": 60}
    bench.ledger.run(worker_commands.tell("echo", "1", newer))
    second, third = bench.send(), bench.send()
    assert bench.states(second, third) == ["queued", "queued"], "other knobs"
    assert bench.take("t2") == [second], "by a worker that still has the old ones"
    assert bench.waiting() == [third], "who was equal for the new model runs by itself"
    bench.end("t2", second)
    assert bench.states(third) == ["queued"]
    assert bench.take("t3", model=digest_model("1", newer)) == [third]
    bench.end("t3", third)
    assert bench.states(bench.send()) == ["queued"], "what ran by itself is kept for nobody"
    bench.ledger.run(worker_commands.tell("echo", "2", KNOBS | {"cache_for_s": 60}))
    other = bench.send()
    assert b"cache" not in bench.redis.hgetall(f"{{echo}}:job:{other}"), "the API has read it by version 1"


def test_without_a_worker_that_told_its_model_nothing_is_shared(bench: CacheBench) -> None:
    bench.redis.hdel("{echo}:about", "model", "version", "cache_for")
    first, second = bench.send(cache_for_s=60), bench.send(cache_for_s=60)
    assert bench.waiting() == [first, second]


def test_a_result_lives_no_longer_than_asked_and_than_its_job(bench: CacheBench) -> None:
    for number, (cache_for_s, keep_for_s, life_s) in enumerate([(None, 1000, 60), (5, 1000, 5), (1000, 7, 7)]):
        job_id = bench.send(number, cache_for_s, keep_for_s=keep_for_s)
        bench.take(f"t{number}")
        bench.end(f"t{number}", job_id)
        (key,) = (key for key in bench.keys_of_cache() if f":f{number}." in key)
        assert life_s - 2 < bench.redis.pttl(key) / 1000 <= life_s
    bench.redis.delete(f"{{echo}}:job:{job_id}")
    assert bench.states(bench.send(number)) == ["queued"], "the record is gone before its time: no result"


def test_outputs_with_files_stay_with_their_job(bench: CacheBench) -> None:
    first, second = bench.send(), bench.send()
    bench.take("t1")
    bench.end("t1", first, b'{"f":{"file":"00","url":"/files/00/content"}}')
    assert bench.states(first, second) == ["succeeded", "queued"] and bench.waiting() == [second]
    assert bench.keys_of_cache() == []


def test_equals_that_wait_count_for_the_limits_and_a_result_needs_no_room(bench: CacheBench) -> None:
    bench.ledger.run(worker_commands.tell("echo", "1", KNOBS | {"max_queue_size": 2, "cache_for_s": 60}))
    bench.send(), bench.send()
    with pytest.raises(QueueFull):
        bench.send()
    with pytest.raises(QueueFull):
        bench.send(input=2)
    assert bench.api(lambda ledger: ledger.run(commands.overview("echo"))).depth == 2
    model = digest_model("1", KNOBS | {"max_queue_size": 2})
    (leader,) = bench.take("t1", model=model)
    bench.end("t1", leader)
    full = [bench.send(input=2), bench.send(input=3)]
    assert bench.states(bench.send()) == ["succeeded"]
    for job_id in full:
        bench.ledger.cancel(job_id)

    owned = [bench.send(input=4, owner="k", most_open=1)]
    with pytest.raises(RateLimited):
        bench.send(input=4, owner="k", most_open=1)
    assert bench.redis.hget("{echo}:open", "k") == b"1"
    bench.ledger.cancel(owned[0])
    assert bench.redis.hget("{echo}:open", "k") is None
    assert bench.states(bench.send(owner="k", most_open=0)) == ["succeeded"], (
        "fingerprints hold the owner, not the ledger"
    )
    assert bench.redis.hget("{echo}:open", "k") is None


def test_deadlines_of_equals(bench: CacheBench) -> None:
    first = bench.send()
    late, hasty, begun = bench.send(start_within_s=0.001), bench.send(finish_within_s=0.001), bench.send()
    poll(lambda: bench.sweep() == [] and bench.states(first, late, hasty) == ["queued", "expired", "failed"])
    bench.take("t1")
    begun = bench.send(start_within_s=0.001)
    hasty = bench.send(finish_within_s=0.001)
    poll(lambda: bench.sweep() == [] and bench.states(hasty) == ["failed"])
    assert bench.states(begun) == ["queued"], "an equal one's run is a start, but no end"
    bench.ledger.cancel(first)
    bench.sweep()
    assert bench.states(begun) == ["queued"]
    bench.check()


def test_more_equals_than_one_end_settles_run_by_themselves(bench: CacheBench) -> None:
    jobs = [
        NewJob(service="echo", version="1", input=b'{"n":1}', cache=ask("f1", None), owner="k") for _ in range(1003)
    ]
    bench.api(lambda ledger: ledger.create(jobs))
    assert len(bench.waiting()) == 4 and bench.parked() == 999
    bench.check()
    taken = bench.take("t1")
    assert len(taken) == 4
    for job_id in taken:
        bench.end("t1", job_id)
    assert bench.redis.hget("{echo}:about", "ended:succeeded") == b"1003" and bench.parked() == 0
    assert bench.redis.hget("{echo}:open", "k") is None


def test_equals_take_one_turn_and_those_that_run_by_themselves_their_own(bench: CacheBench) -> None:
    blocked = bench.send(input=9, owner="a")
    equals = [bench.send(input=1, owner="a") for _ in range(50)]
    own, others = bench.send(input=2, owner="a"), bench.send(input=3, owner="b")
    assert bench.waiting() == [blocked, others, equals[0], own], "fifty equals push a's next job back by one"
    assert bench.take("t1", most=1) == [blocked] and bench.take("t2", most=2) == [others, equals[0]]
    later = bench.send(input=4, owner="b")
    bench.fail("t2", equals[0])
    assert later in bench.waiting()[:3], "that they run now is a's own turn, not b's"
    assert len(bench.waiting()) == 51


def test_a_retry_shares_a_run_and_takes_no_older_result(bench: CacheBench) -> None:
    first = bench.send()
    bench.ledger.cancel(first)
    second = bench.send()
    bench.take("t1")
    bench.end("t1", second)
    bench.ledger.retry(first)
    assert bench.states(first) == ["queued"] and bench.take("t2") == [first]
    bench.end("t2", first, b'{"n":2}')
    assert bench.get(first).output == b'{"n":2}' and bench.get(bench.send()).output == b'{"n":2}'


def without_equal_jobs(operation: str) -> dict[str, str]:
    """The files of an operation, in which every function of the files of equal jobs fails."""
    texts = read_script(operation)
    for file, text in texts.items():
        if file.startswith("lib/equal_jobs/"):
            names = re.findall(r"^local function (\w+)", text, re.M)
            texts[file] = "".join(f"local function {name}() error('of equal jobs') end\n" for name in names)
            texts[file] += "\n".join(re.findall(r"^local \w+ = \d+", text, re.M)) + "\n"
    return texts


def test_jobs_that_use_no_cache_have_nothing_to_do_with_it(bench: CacheBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "script_of", lambda operation: scripts.combine(without_equal_jobs(operation)))
    bench.ledger._script = scripts.Scripts(bench.redis)
    with pytest.raises(StoreUnavailable, match="ResponseError"):
        bench.send()
    first, second, third = bench.create(3, version="1")
    assert bench.take("t1") == [first, second, third]
    bench.end("t1", first)
    bench.fail("t1", second)
    bench.ledger.run(worker_commands.leave("echo", "w1"))
    bench.ledger.cancel(third)
    bench.ledger.retry(second)
    bench.sweep()
    assert bench.states(first, second, third) == ["succeeded", "queued", "cancelled"]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_every_job_ends_once_and_nothing_is_left(bench: CacheBench, seed: int) -> None:
    chance = random.Random(seed)
    jobs: list[str] = []
    running: dict[str, str] = {}
    ended: dict[str, Any] = {}

    def settle() -> None:
        for job_id in jobs:
            record = bench.redis.hgetall(f"{{echo}}:job:{job_id}")
            now = {name: record.get(name) for name in (b"status", b"output", b"error", b"finished")}
            if record[b"status"].decode() in TERMINAL:
                assert ended.setdefault(job_id, now) == now, "a terminal state has changed"
                running.pop(job_id, None)

    def step() -> None:
        what = chance.choice(
            ["send"] * 5 + ["take"] * 3 + ["end"] * 3 + ["fail", "cancel", "lapse", "retry", "sweep", "tell"]
        )
        token = f"t{chance.random()}"
        priority = chance.choice(list(Priority))
        bench.ledger.join("echo", "w1", {})  # the lease lapses when the test says so, however slow the machine is
        if what == "send":
            hurry = {chance.choice(["start_within_s", "finish_within_s"]): 0.01} if chance.random() < 0.1 else {}
            jobs.append(bench.send(chance.randrange(3), chance.choice([None, 0.05]), priority=priority, **hurry))
        elif what == "take":
            model = chance.choice([MODEL] * 5 + ["other"])
            running.update(dict.fromkeys(bench.take(token, chance.randrange(1, 4), model), token))
        elif what in ("end", "fail") and running:
            job_id = chance.choice(sorted(running))
            held = running.pop(job_id)
            if what == "end":
                bench.end(held, job_id, str(len(ended)).encode())
            else:
                bench.fail(held, job_id, chance.choice([0, 0.01]))
        elif what == "cancel" and jobs:
            bench.ledger.cancel(chance.choice(jobs))
        elif what == "retry" and ended:
            job_id = chance.choice(sorted(ended))
            if ended[job_id][b"status"] != b"succeeded":
                del ended[job_id]
                bench.ledger.retry(job_id)
        elif what == "lapse" and chance.random() < 0.3:
            bench.lapse("w1")
            bench.ledger.join("echo", "w1", {})
            running.clear()
        elif what == "sweep":
            bench.sweep()
        elif what == "tell":
            bench.ledger.run(worker_commands.tell("echo", "1", KNOBS | {"cache_for_s": chance.choice([0, 60])}))

    for _ in range(400):
        step()
        settle()
        bench.check()
    bench.ledger.run(worker_commands.tell("echo", "1", KNOBS | {"cache_for_s": 60}))
    bench.lapse("w1")
    for turn in range(1000):
        settle()
        if len(ended) == len(jobs):
            break
        bench.redis.eval(
            "for _, i in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do redis.call('ZADD', KEYS[1], 1, i) end",
            1,
            "{echo}:delayed",
        )
        bench.sweep()
        bench.ledger.join("echo", "w2", {})
        for job_id in bench.take(f"last{turn}", worker="w2"):
            bench.end(f"last{turn}", job_id)
        bench.check()
    settle()
    assert len(ended) == len(jobs)
    assert not [key for key in bench.keys_of_cache() if ":cached:" not in key] and bench.parked() == 0
    assert bench.redis.hget("{echo}:about", "waiting_bytes") == b"0" and bench.waiting() == []
