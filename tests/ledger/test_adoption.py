"""Between the queue and the ledger no message is lost; each is known by its id from the moment in which it is told."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.bench import KNOBS, Bench
from tests.kit.system import RedisServer
from worker.broker.adopt import adopt
from worker.ledger import commands, worker_commands
from worker.ledger.jobs import Status


@pytest.fixture
def bench(redis_server: RedisServer) -> Iterator[Bench]:
    made = Bench(redis_server.url)
    made.ledger.join("echo", "w1", {})
    yield made
    made.redis.close()


def message(job_id: str, n: int = 1, **headers: Any) -> bytes:
    told = {"id": job_id, "task": "echo.predict", **headers}
    kept = {"body": json.dumps([[{"n": n}], {}, {}]), "content-type": "application/json", "headers": told}
    return json.dumps({**kept, "properties": {}}).encode()


def take(bench: Bench, token: str) -> list[bytes]:
    claim = bench.ledger.run(worker_commands.claim("echo", "w1", token, KNOBS))
    return [raw for _, raw in claim.messages]


def test_a_message_that_could_not_be_adopted_returns_to_its_process_and_waits_again_when_that_dies(
    bench: Bench,
) -> None:
    bench.redis.lpush("echo", b"one", b"two")
    assert take(bench, "p1.0") == [b"one", b"two"]
    assert take(bench, "p2.0") == [], "another process does not get it"
    assert take(bench, "p1.0") == [b"one", b"two"], "Redis was away as it was adopted: its process gets it again"
    bench.ledger.run(worker_commands.give_up("echo", "w1", "", "lost", process="p1"))
    assert sorted(take(bench, "p2.1")) == [b"one", b"two"]


def test_a_message_that_cannot_be_stored_is_dropped_alone(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    adopt(bench.ledger, bench.settings, "echo", [message("a"), message("\ud800"), b"junk", message("b")])
    assert [bench.get(job_id).status for job_id in "ab"] == [Status.QUEUED] * 2
    assert sum("dropped a message in queue echo" in line for line in caplog.messages) == 2


def test_a_revoke_holds_in_its_service_for_queued_running_and_unknown_jobs(bench: Bench) -> None:
    queued, running = bench.create(2)
    assert bench.claim("t1", max_batch_size=1) == [queued]
    queued, running = running, queued
    assert bench.ledger.run(commands.revoke("echo", [queued, running, "later"], running=False)) == [
        "queued",
        "running",
        "",
    ]
    adopt(bench.ledger, bench.settings, "echo", [message("later"), message("other")])
    found = [bench.get(job_id).status for job_id in (queued, running, "later", "other")]
    assert found == [Status.CANCELLED, Status.RUNNING, Status.CANCELLED, Status.QUEUED]
    assert bench.ledger.run(commands.revoke("echo", [running, queued], running=True)) == ["running", "cancelled"]
    assert bench.get(running).status == Status.CANCELLED
    assert 0 < bench.redis.pttl("{echo}:revoked:later") <= bench.settings.remember_for_s * 1000


def test_the_same_message_is_the_same_job_and_another_one_with_its_id_is_told(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for n in (1, 1, 2):
        adopt(bench.ledger, bench.settings, "echo", [message("a", n)])
    (said,) = [line for line in caplog.messages if "sent again with another input" in line]
    assert "job a of service echo" in said
    assert bench.get("a").input == b'{"n":1}'


def test_waiters_for_the_rest_of_a_chain_are_told(bench: Bench) -> None:
    step = {"task": "echo.predict", "args": [], "options": {"task_id": "second"}}
    raw = json.loads(message("first"))
    raw["body"] = json.dumps([[{"n": 1}], {}, {"chain": [step]}])
    adopt(bench.ledger, bench.settings, "echo", [json.dumps(raw).encode()])
    assert bench.get("first").status == Status.FAILED
    meta = json.loads(bench.redis.get("celery-task-meta-second"))
    assert meta["status"] == "FAILURE" and "it was to follow task first" in meta["result"]["exc_message"][0]
