"""A whole run: load, faults by a seeded schedule, audit."""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.audit import WORKER_KILLS, Report, audit, read_trace
from tests.chaos.faults import FAULTS, Fault, NothingToBreak, kill_long_worker
from tests.chaos.load import SLEEPS, Load
from tests.chaos.stack import Kind, Stack
from tests.kit.system import poll

#: After this share of the kills of workers (and each of the long job's), nothing else happens until what it cut off
#: has begun again, at most for so long.
WATCHED, WATCH_S = 0.4, 10.0

#: How long a long job runs at least: longer than a lease.
LEAST_LONG_S = 10.0

#: Keys that may stay once all jobs have ended, below ``{chaos}:``; the jobs' own live ``keep_for_s`` and a day longer.
KEPT = {"about", "index", "expires", "swept", "workers", "workers:info"}
KEPT_BY_JOBS = ("job:", "seen:", "idempotency:")
KEPT_BY_CELERY = ("_kombu", "unacked", "celery", "services", "/")


def run(
    kind: Kind,
    folder: Path,
    seconds: float,
    seed: int,
    rate: float,
    faults: dict[Fault, int] | list[Fault] = FAULTS,
    appendfsync: str = "everysec",
    patience_s: float = 60,
    still_s: float = 0,
    sleeps: list[tuple[float, float]] = SLEEPS,
    rabbit: bool = False,
) -> Report:
    """Faults one after the other for so long (drawn by weight), or each of a list once; then the audit.

    ``patience_s``: how long the audit waits without any progress, beyond the length of the longest job;
    ``still_s``: load after the last fault;
    ``sleeps``: how long runs sleep, with their weights. A long job runs for half the time;
    ``rabbit``: RabbitMQ is Celery's broker, and half of the jobs come by it, as from another Celery producer.
    """
    choice = random.Random(seed)
    stack = Stack(kind, folder, appendfsync=appendfsync, rabbit=rabbit)
    long_s = max(LEAST_LONG_S, seconds / 2) if len(kind.workers) > stack.STRUCK else 0
    load = Load(stack, rate, seed, long_s=long_s, sleeps=sleeps)
    stack.read_back = load.read_back
    happened: Counter[str] = Counter()
    try:
        stack.start()
        load.start()
        began = time.monotonic()
        for fault in schedule(faults, choice, began + seconds):
            time.sleep(choice.uniform(0.2, 1.5))
            print(f"{time.monotonic() - began:6.1f} s  {fault.__name__}", flush=True)
            at = time.monotonic_ns()
            try:
                fault(stack, choice)
            except NothingToBreak:
                continue
            finally:
                stack.revive()
            stack.faults.append((fault.__name__, at))
            happened[fault.__name__] += 1
            if fault is kill_long_worker or (fault.__name__ in WORKER_KILLS and choice.random() < WATCHED):
                await_recovery(stack)
        time.sleep(still_s)
        load.stop()
        report = audit(stack, load, seed, patience_s + load.long_s)
        report.seconds, report.faults = round(time.monotonic() - began, 1), dict(sorted(happened.items()))
        if kind.is_ours:
            report.left_keys = left_keys(stack)
            report.left_processes = left_processes(stack)
        return report
    finally:
        load.stop()
        stack.stop()


def await_recovery(stack: Stack) -> None:
    """Leave the stack alone after a kill, so that its recovery can be measured; the audit says how long it took."""
    pids, until = stack.kills[-1].pids, time.monotonic() + WATCH_S
    while time.monotonic() < until:
        time.sleep(0.5)
        last = [of_job[-1] for of_job in read_trace(stack.folder / "trace" / "log").values()]
        if not any(run.pid in pids and not run.end_ns for run in last):
            return


def schedule(faults: dict[Fault, int] | list[Fault], choice: random.Random, until: float) -> Iterator[Fault]:
    """Each of a list once; else drawn by their weights until the time is over."""
    if isinstance(faults, list):
        yield from faults
        return
    while time.monotonic() < until:
        yield choice.choices(list(faults), list(faults.values()))[0]


def left_processes(stack: Stack) -> list[str]:
    """Programs and forks of plugins that live on once all workers were killed."""
    stack.end_workers()
    with contextlib.suppress(AssertionError):
        poll(lambda: not stack.find_left(), 5)
    return stack.find_left()


def left_keys(stack: Stack) -> list[str]:
    """Keys that nothing accounts for, once the workers have had time to work off surplus messages."""

    def look() -> list[str]:
        found = []
        for key in stack.redis.client.scan_iter(count=10_000):
            name = key.decode()
            inner = re.sub(r"^\{\w+\}:", "", name)
            ours = inner in KEPT or inner.startswith(KEPT_BY_JOBS)
            if not (ours if inner != name else name.startswith(KEPT_BY_CELERY)):
                found.append(name)
        return found

    left: list[str] = []

    def none() -> bool:
        left[:] = look()
        return not left

    try:
        poll(none, 10)
    except AssertionError:
        return left
    return []
