"""Predict throughput and latency of more workers than this machine has: a discrete-event simulation.

Clients in a closed loop, API processes, one Redis and workers, as the real parts work: an API has one ``create`` on its
way for a service and gathers meanwhile (``api/jobs/writer.py``); a free worker takes the waiting jobs, and claims a
whole further batch while its model computes (``worker/pool/feeder.py``); Redis serves one call at a time. A call's cost
is measured first (``calibrate.py``), and before it predicts, it is held against real workers.

It leaves out network bandwidth, garbage collection, and that parts share cores. Each process has one of its own.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import shutil
import statistics
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import measures
from benchmarks.calibrate import Costs, Line, add_processes, measure_redis, per_job
from benchmarks.measures import folder
from benchmarks.models import Slow8
from benchmarks.stacks import BATCH, Ours

#: Seconds between two renewals of a worker's lease.
TICK_S = 0.5
#: A model takes more or less than its nominal time, at random: without it, workers fall into step.
JITTER = 0.05
#: Clients begin within this time.
SPREAD_US = 200_000
#: The same as in ``api/jobs/writer.py``: jobs in one ``create``.
GROUP = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """The simulated system."""

    workers: int
    clients: int
    batch: int  #: the service's max_batch_size
    model: Line  #: microseconds of ``predict_batch``
    apis: int = 1
    trip_us: float = 100  #: there and back between two processes
    seconds: float = 4
    warm_up: float = 1


@dataclass(frozen=True, slots=True)
class Told:
    """The result."""

    jobs_s: float
    p50_ms: float
    p99_ms: float
    redis: float  #: its share of a core
    api: float  #: the share of a core of one API process
    batch: float  #: jobs in a batch, on average

    def __str__(self) -> str:
        shares = f"Redis {self.redis:4.0%}  each API {self.api:4.0%}  batches of {self.batch:.1f}"
        return f"{self.jobs_s:8,.0f} jobs/s  p50 {self.p50_ms:7.1f} ms  p99 {self.p99_ms:7.1f} ms  {shares}"


class Server:
    """Something that does one thing after another."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting: deque[tuple[Callable[[], float], Callable[[], None]]] = deque()
        self._busy = False
        self.used_us = 0.0

    def ask(self, work: Callable[[], float], then: Callable[[], None]) -> None:
        """Have work done (it gives its cost as it begins), and go on afterwards."""
        self._waiting.append((work, then))
        if not self._busy:
            self._begin()

    def _begin(self) -> None:
        self._busy = bool(self._waiting)
        if not self._busy:
            return
        work, then = self._waiting.popleft()
        cost = work()
        self.used_us += cost

        def end() -> None:
            then()
            self._begin()

        self._world.after(cost, end)


class World:
    """One run of a plan."""

    def __init__(self, plan: Plan, costs: Costs) -> None:
        self.plan, self.costs = plan, costs
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self.random = random.Random(plan.workers)
        self.redis = Server(self)
        self.apis = [Api(self) for _ in range(plan.apis)]
        self.waiting: deque[Job] = deque()
        self.idle: set[Worker] = set()
        self.latencies: list[float] = []
        self.batches: list[int] = []
        self.workers = [Worker(self) for _ in range(plan.workers)]
        for number in range(plan.clients):
            self.after(self.random.uniform(0, SPREAD_US), Job(self, self.apis[number % plan.apis]).send)

        self._hum()

    def _hum(self) -> None:
        self.redis.ask(lambda: self.costs.idle / 10, lambda: None)
        self.after(100_000, self._hum)

    def after(self, us: float, then: Callable[[], None]) -> None:
        """Go on then."""
        heapq.heappush(self._events, (self.now + us, next(self._number), then))

    def call(self, work: Callable[[], float], then: Callable[[], None]) -> None:
        """A call of Redis over the network."""
        half = self.plan.trip_us / 2
        self.after(half, lambda: self.redis.ask(work, lambda: self.after(half, then)))

    def run(self) -> Told:
        """Until the plan's time is over."""
        begun = self.plan.warm_up * 1e6
        self._run_until(begun)
        self.latencies.clear()
        self.batches.clear()
        redis, apis = self.redis.used_us, sum(api.used_us for api in self.apis)
        self._run_until(begun + self.plan.seconds * 1e6)
        us = self.plan.seconds * 1e6
        cuts = statistics.quantiles(self.latencies, n=100)
        return Told(
            jobs_s=len(self.latencies) / self.plan.seconds,
            p50_ms=cuts[49] / 1000,
            p99_ms=cuts[98] / 1000,
            redis=(self.redis.used_us - redis) / us,
            api=(sum(api.used_us for api in self.apis) - apis) / us / len(self.apis),
            batch=statistics.mean(self.batches),
        )

    def _run_until(self, moment: float) -> None:
        while self._events[0][0] <= moment:
            self.now, _, then = heapq.heappop(self._events)
            then()

    def queue(self, jobs: list[Job]) -> None:
        """They wait now; all workers that sleep hear of it."""
        self.waiting.extend(jobs)
        for worker in sorted(self.idle, key=lambda worker: worker.number):
            self.after(self.plan.trip_us / 2, worker.claim)
        self.idle.clear()


class Api(Server):
    """One process: about half of a job's cost falls before its record is stored, the rest after its end."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._world = world
        self._gathered: deque[Job] = deque()
        self._storing = False

    def _cost(self) -> float:
        return self._world.random.expovariate(2 / self._world.costs.api)

    def accept(self, job: Job) -> None:
        """A request has come."""

        def checked() -> None:
            self._gathered.append(job)
            if not self._storing:
                self._store()

        self.ask(self._cost, checked)

    def _store(self) -> None:
        group = [self._gathered.popleft() for _ in range(min(GROUP, len(self._gathered)))]
        self._storing = bool(group)
        if not group:
            return
        cost = self._world.costs.create.us(len(group))

        def stored() -> None:
            self._world.queue(group)
            self._world.after(self._world.plan.trip_us / 2, self._store)

        self._world.after(self._world.plan.trip_us / 2, lambda: self._world.redis.ask(lambda: cost, stored))

    def hear(self, jobs: list[Job]) -> None:
        """Jobs have ended: read them in one call, then answer each."""

        def answer() -> None:
            for job in jobs:
                self.ask(self._cost, job.answered)

        self._world.call(lambda: self._world.costs.read.us(len(jobs)), answer)


class Job:
    """One job of one client, which sends the next when it has the answer."""

    def __init__(self, world: World, api: Api) -> None:
        self._world, self.api, self._sent = world, api, 0.0  # microseconds

    def send(self) -> None:
        """To the API."""
        self._sent = self._world.now
        self._world.after(self._world.plan.trip_us / 2, lambda: self.api.accept(self))

    def answered(self) -> None:
        """The answer is on its way."""
        self._world.after(self._world.plan.trip_us / 2, self._done)

    def _done(self) -> None:
        self._world.latencies.append(self._world.now - self._sent)
        Job(self._world, self.api).send()


class Worker:
    """One pool process."""

    _numbers = itertools.count()

    def __init__(self, world: World) -> None:
        self._world = world
        self.number = next(self._numbers)
        self._ahead: list[Job] = []  # claimed while another batch computes
        self._ahead_more = self._computing = self._asked = False
        self.claim()
        world.after(self.number % 97 / 97 * TICK_S * 1e6, self._tick)

    def claim(self) -> None:
        """Ask for a batch."""
        batch: list[Job] = []
        more = False

        def take() -> float:
            nonlocal more
            waiting, most = self._world.waiting, self._world.plan.batch
            batch.extend(waiting.popleft() for _ in range(min(most, len(waiting))))
            more = len(waiting) >= most
            return self._world.costs.claim.us(len(batch))

        def taken() -> None:
            self._asked = False
            if self._computing:
                self._ahead, self._ahead_more = batch, more
            elif batch:
                self._begin(batch, more)
            elif self._world.waiting:
                self.claim()
            else:
                self._world.idle.add(self)  # it blocks on the queue, and wakes as jobs come
                self._world.call(lambda: self._world.costs.wait, lambda: None)

        self._asked = True
        self._world.call(take, taken)

    def _begin(self, batch: list[Job], more: bool) -> None:
        self._computing = True
        self._world.batches.append(len(batch))
        if more:
            self.claim()
        model_us = self._world.plan.model.us(len(batch)) * self._world.random.uniform(1 - JITTER, 1 + JITTER)
        us = model_us + self._world.costs.worker * len(batch)
        self._world.after(us, lambda: self._complete(batch))

    def _complete(self, batch: list[Job]) -> None:
        def told() -> None:
            by_api: dict[Api, list[Job]] = {}
            for job in batch:
                by_api.setdefault(job.api, []).append(job)
            for api, jobs in by_api.items():
                api.hear(jobs)
            self._next()

        self._world.call(lambda: self._world.costs.complete.us(len(batch)), told)

    def _next(self) -> None:
        self._computing = False
        ahead, self._ahead = self._ahead, []
        if ahead:
            self._begin(ahead, self._ahead_more)
        elif not self._asked:
            self.claim()

    def _tick(self) -> None:
        self._world.redis.ask(lambda: self._world.costs.tick, lambda: None)
        self._world.after(TICK_S * 1e6, self._tick)


def simulate(plan: Plan, costs: Costs) -> Told:
    """One run."""
    return World(plan, costs).run()


#: Each by its name: the model, its max_batch_size, clients a worker.
MODELS = {
    "100 ms for up to 8 jobs (a model on another device)": (Line(100_000, 0), Slow8.max_batch_size, 16),
    "5 ms and 0.05 ms a job, up to 64 (a fast model)": (Line(5000, 50), BATCH, 2 * BATCH),
}


def main() -> int:
    """Measure a job's costs, hold the simulation against real workers, then predict."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__)
    parser.add_argument("--seconds", type=float, default=6, help="of each real measurement")
    parser.add_argument("--validate", type=int, default=2, help="up to so many real workers; 0: none")
    parser.add_argument("--workers", type=int, default=64, help="predict up to so many")
    parser.add_argument("--apis", type=int, default=16, help="API processes where they shall not be the limit")
    parser.add_argument("--trip-us", type=float, default=300, help="there and back on the predicted network")
    given = parser.parse_args()
    try:
        costs = _measure(given.seconds)
        if given.validate:
            _validate(costs, given.seconds, given.validate)
    finally:
        shutil.rmtree(measures.root(), ignore_errors=True)
    for about, (model, batch, clients) in MODELS.items():
        for apis in (1, given.apis):
            print(f"\nPredicted: {about}, {clients} clients a worker, {apis} API process(es)")
            for workers in _doubled(given.workers):
                plan = Plan(workers, workers * clients, batch, model, apis, given.trip_us)
                print(f"{workers:3} worker(s)  {simulate(plan, costs)}", flush=True)
    return 0


def _measure(seconds: float) -> Costs:
    costs, redis_us, size = add_processes(measure_redis(), seconds)
    print("Measured, µs of processor time: a call of Redis, and more for each job in it")
    for name in ("create", "claim", "complete", "read"):
        line: Line = getattr(costs, name)
        print(f"  {name:8}  {line.call:5.1f} + {line.job:4.1f} a job")
    print(f"  a worker's renewal and sweep, twice a second: {costs.tick:.0f}; a wait for work: {costs.wait:.0f}")
    print(f"  all else beside an idle API and worker, a second: {costs.idle:.0f}")
    print(f"  an API process, a job: {costs.api:.0f}; a pool process without a model, a job: {costs.worker:.0f}")
    for batch in (1, 8, BATCH):
        us = costs.redis_us(batch, batch)
        print(
            f"  Redis, a job that is created, run and read in batches of {batch}: {us:.0f}, so {1e6 / us:,.0f} jobs/s"
        )
    expected = simulate(Plan(1, 64, BATCH, Line(0, 0)), costs)
    by_lines, simulated = costs.redis_us(size, size), expected.redis / expected.jobs_s * 1e6
    told = f"measured {redis_us:.0f}, by the lines {by_lines:.0f}, simulated {simulated:.0f}"
    print(f"  Redis, a job, under 64 clients without a model, in batches of {size:.1f}: {told}")
    return costs


def _validate(costs: Costs, seconds: float, most: int) -> None:
    """Real workers of a model that sleeps, so that cores are not the limit, beside the prediction."""
    print("\nReal workers that sleep 100 ms for up to 8 jobs, 16 clients each, against the prediction")
    with Ours(folder(), "slow8") as stack:
        for workers in _doubled(most):
            while len(stack.processes) < workers + 1:
                stack.start_worker()
            clients = workers * 16
            told, (*_, redis_us) = per_job(stack, clients, seconds)
            plan = Plan(workers, clients, Slow8.max_batch_size, Line(100_000, 0))
            expected = simulate(plan, costs)
            pairs = {
                "jobs/s": (told["jobs_s"], expected.jobs_s),
                "p50 ms": (told["p50_ms"], expected.p50_ms),
                "Redis µs a job": (redis_us, expected.redis / expected.jobs_s * 1e6),
            }
            for name, (real, predicted) in pairs.items():
                off = predicted / real - 1
                print(f"{workers:3} worker(s)  {name:14}  measured {real:8.1f}  predicted {predicted:8.1f}  {off:+.1%}")


def _doubled(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length())]


if __name__ == "__main__":
    sys.exit(main())
