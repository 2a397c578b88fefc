"""The cost of one job in each part, for ``benchmarks.simulate``: measured here and now, never assumed.

Redis's costs are the processor time of its main thread for a call of the ledger with one job and with 64, through the
ledger's own clients and its own Lua; between the two a call's cost is a line. Those of API and worker are their
processor time under 64 clients.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.measures import folder
from benchmarks.stacks import BATCH, Ours, Stack, cpu_s, example_of
from tests.kit.system import RedisServer
from worker.ledger import commands, worker_commands
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.jobs import NewJob, Status
from worker.ledger.sync_ledger import Ledger
from worker.ledger.worker_commands import Ending
from worker.service import Service
from worker.settings import Settings

#: Jobs of each measurement of Redis, and how often each is made: the lowest counts, as others' load can only add to it.
JOBS = 6400
ROUNDS = 3
IDLE_S = 4.0
SERVICE = "calibration"
#: Seconds of a lease, as in a real worker.
LEASE_S = 4.0


@dataclass(frozen=True, slots=True)
class Line:
    """Microseconds of a call with a number of jobs: ``call`` and, for each of them, ``job``."""

    call: float
    job: float

    def us(self, jobs: float) -> float:
        """Of one call."""
        return self.call + self.job * jobs

    @classmethod
    def through(cls, one: float, many: float) -> Line:
        """From the cost of a call with one job, and of one with ``BATCH``."""
        job = max(0.0, (many - one) / (BATCH - 1))
        return cls(max(0.0, one - job), job)


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds of processor time."""

    create: Line  #: Redis: the API stores jobs
    claim: Line  #: Redis: a worker takes a batch
    complete: Line  #: Redis: and tells how it ended
    read: Line  #: Redis: the API reads ended jobs, for waiting clients
    tick: float  #: Redis: a worker renews its lease and sweeps
    wait: float  #: Redis: a worker that found nothing waits for a message
    idle: float = 0  #: Redis, a second: all that goes on beside an API and a worker with nothing to do, less its ticks
    api: float = 0  #: an API process, for a job that is waited for
    worker: float = 0  #: a pool process, for a job, beside its model

    def redis_us(self, group: float, batch: float) -> float:
        """Redis's microseconds for a job whose client waits, where this number is created, and run, together."""
        lines = ((self.create, group), (self.claim, batch), (self.complete, batch), (self.read, batch))
        return sum(line.us(jobs) / jobs for line, jobs in lines)


def measure_redis(jobs: int = JOBS, rounds: int = ROUNDS) -> Costs:
    """The URL of a Redis of its own, with an append-only file as in production."""
    runs = [_measure_redis(jobs) for _ in range(rounds)]
    steps = [
        [min(costs) for costs in zip(*run, strict=True)] for run in zip(*(lines for lines, _ in runs), strict=True)
    ]
    create, claim, complete, read = (Line.through(one, many) for one, many in zip(*steps, strict=True))
    tick, wait = (min(costs) for costs in zip(*(costs for _, costs in runs), strict=True))
    return Costs(create, claim, complete, read, tick, wait)


def _measure_redis(jobs: int) -> tuple[list[list[float]], tuple[float, float]]:
    server = RedisServer()
    try:
        server.start()
        return [_run(server, jobs, size) for size in (1, BATCH)], _tick(server)
    finally:
        server.remove()


def add_processes(costs: Costs, seconds: float) -> tuple[Costs, float, float]:
    """The costs of API and worker too, under 64 clients that wait for a service without a model.

    Also Redis's cost of a job then, and how many jobs a batch had.
    """
    with Ours(folder(), "noop") as stack:
        stack.measure(seconds=1)  # warm-up
        idle = _cost(stack.redis, lambda: time.sleep(IDLE_S)) / IDLE_S - 2 * costs.tick
        _, (api, worker, redis) = per_job(stack, 64, seconds)
        batch = mean_batch(stack)
    return replace(costs, idle=max(0.0, idle), api=api, worker=worker), redis, batch


def per_job(stack: Ours, clients: int, seconds: float) -> tuple[dict[str, float], list[float]]:
    """The measurements of this number of clients, with the microseconds a job of API, pool processes and Redis."""
    before, done = spent(stack), ended(stack)
    told = stack.measure(clients=clients, seconds=seconds)
    jobs = ended(stack) - done
    return told, [(late - early) / jobs * 1e6 for early, late in zip(before, spent(stack), strict=True)]


def mean_batch(stack: Ours) -> float:
    """Jobs in a batch, by the newest jobs that have ended."""
    key = f"{{{stack.model}}}"
    ids: Any = stack.redis.client.zrevrange(f"{key}:expires", 0, 999)
    sizes: Any = [stack.redis.client.hget(f"{key}:job:{job_id.decode()}", "batch_size") for job_id in ids]
    return 1 / statistics.mean(1 / int(size) for size in sizes)


def ended(stack: Ours) -> int:
    """How many jobs have ended until now."""
    return int(stack.redis.client.zcard(f"{{{stack.model}}}:expires"))


def main_thread_s(server: RedisServer) -> float:
    """Processor seconds of Redis's main thread, which runs all commands; the disk has others."""
    told = server.client.info("cpu")
    name = "used_cpu_{}_main_thread" if "used_cpu_user_main_thread" in told else "used_cpu_{}"
    return float(told[name.format("user")]) + float(told[name.format("sys")])


def _run(server: RedisServer, jobs: int, size: int) -> list[float]:
    """Microseconds of a call for a number of jobs at once: create, claim, complete, read."""
    settings = Settings(redis_url=server.url)
    ledger, text = Ledger(settings), json.dumps(example_of("tiny")).encode()
    calls = range(max(1, jobs // size if size > 1 else jobs // 4))
    groups = [[NewJob(service=SERVICE, input=text) for _ in range(size)] for _ in calls]
    for number in calls:  # a worker for each batch: none holds more than it would
        ledger.join(SERVICE, f"worker{number}", {})
    knobs, claims = Service.knobs() | {"max_batch_size": size}, list[list[str]]()

    def claim() -> None:
        claims.extend(
            ledger.run(worker_commands.claim(SERVICE, f"worker{number}", f"process.{number}", knobs)).ids
            for number in calls
        )

    def complete() -> None:
        for number, ids in enumerate(claims):
            ledger.run(
                worker_commands.complete(SERVICE, f"process.{number}", [_ending(job_id, size) for job_id in ids])
            )

    found = [_cost(server, lambda: asyncio.run(_create(settings, groups)))]
    found += [_cost(server, claim), _cost(server, complete)]
    found += [_cost(server, lambda: asyncio.run(_read(settings, claims)))]
    return [cost / len(calls) for cost in found]


def _tick(server: RedisServer) -> tuple[float, float]:
    """Microseconds of a worker's work twice a second, and of a wait for a message."""
    ledger, times = Ledger(Settings(redis_url=server.url)), 500
    ledger.join(SERVICE, "ticker", {})
    ledger.ring(SERVICE)

    def tick() -> None:
        for _ in range(times):
            ledger.run(worker_commands.renew(SERVICE, "ticker", LEASE_S, {}))
            ledger.run(commands.sweep(SERVICE, LEASE_S))

    def wait() -> None:
        for _ in range(times):
            ledger.wait(SERVICE, 1)

    return _cost(server, tick) / times, _cost(server, wait) / times


def _cost(server: RedisServer, step: Callable[[], object]) -> float:
    begun = main_thread_s(server)
    step()
    return (main_thread_s(server) - begun) * 1e6


async def _create(settings: Settings, groups: list[list[NewJob]]) -> None:
    ledger = AsyncLedger(settings)
    for group in groups:
        await ledger.create(group)
    await ledger.close()


async def _read(settings: Settings, claims: list[list[str]]) -> None:
    ledger = AsyncLedger(settings)
    for ids in claims:
        for job_id in ids:
            ledger._places[job_id] = SERVICE  # as in the process that created them
        await ledger.get_ended(ids)
    await ledger.close()


def _ending(job_id: str, size: int) -> Ending:
    timings = b'{"queued_ms":1.234,"preprocess_ms":0.123,"predict_ms":1.234,"postprocess_ms":0.123}'
    return Ending(job_id, Status.SUCCEEDED, b'{"score":0.123456789}', timings, size)


def spent(stack: Stack) -> list[float]:
    """Processor seconds until now: of API, pool processes, Redis's main thread."""
    api, *workers = stack.processes
    children = [pid for worker in workers for pid in worker.children]
    return [cpu_s(api.pid), sum(map(cpu_s, children)), main_thread_s(stack.redis)]
