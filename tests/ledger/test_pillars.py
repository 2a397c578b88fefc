"""The statements that the guarantees rest on: with each of them a guarantee holds, and without them it does not.

They are marked in the Lua (``-- pillar: NAME``). ``make chaos`` does the same with whole systems, in which the
statements of Python are taken out too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.chaos.stack import take_out
from tests.kit.bench import Bench
from tests.kit.system import RedisServer
from worker.ledger import commands, scripts, worker_commands
from worker.ledger.jobs import Status
from worker.ledger.worker_commands import Ending


def script_without(pillar: str) -> Callable[[str], str]:
    """Makes an operation's script without the pillar's statements."""

    def script_of(operation: str) -> str:
        texts = scripts.read_script(operation)
        for name, text in texts.items():
            texts[name] = "\n".join(take_out(pillar, text.splitlines(), is_lua=True)[0]) + "\n"
        return scripts.combine(texts)

    return script_of


@pytest.fixture(params=["", "sweep", "fencing", "lease"])
def bench(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Bench]:
    if request.param:
        monkeypatch.setattr(scripts, "script_of", script_without(request.param))
    made = Bench(redis_server.url)
    made.without = request.param  # type: ignore[attr-defined]
    made.ledger.join("echo", "w1", {"state": "ready"})
    made.ledger.join("echo", "w2", {"state": "ready"})
    yield made
    made.redis.close()


def test_a_dead_workers_job_runs_again(bench: Bench) -> None:
    (job_id,) = bench.create()
    bench.claim("t1")
    bench.lapse("w1")
    recovered = bench.get(job_id).status == Status.QUEUED
    assert recovered == (bench.without != "sweep")  # type: ignore[attr-defined]


def test_a_late_worker_changes_no_end(bench: Bench) -> None:
    (job_id,) = bench.create()
    bench.claim("t1")
    bench.ledger.run(worker_commands.give_up("echo", "w1", "t1", "handed_back"))
    bench.claim("t2", "w2")
    bench.complete("t2", job_id)
    late = Ending(job_id, Status.SUCCEEDED, b'{"n":"late"}', b"{}", 1)
    bench.ledger.run(worker_commands.complete("echo", "t1", [late]))
    is_kept = bench.get(job_id).output == b'{"n":1}'
    assert is_kept == (bench.without != "fencing")  # type: ignore[attr-defined]


def test_a_living_workers_job_does_not_run_elsewhere(bench: Bench) -> None:
    (job_id,) = bench.create()
    bench.claim("t1")
    end = time.monotonic() + 2.6  # seconds; the lease is 2 s
    while time.monotonic() < end:
        bench.ledger.run(worker_commands.renew("echo", "w1", 2, {}))
        bench.ledger.run(worker_commands.extend("echo", "w1", 2))
        bench.ledger.run(commands.sweep("echo", 2))
        time.sleep(0.2)
    is_alone = bench.get(job_id).status == Status.RUNNING
    assert is_alone == (bench.without != "lease")  # type: ignore[attr-defined]
