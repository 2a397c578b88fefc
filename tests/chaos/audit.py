"""Read every accepted job back through HTTP, and compare with what was accepted and with what really ran."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.chaos.load import Accepted, Load
from tests.chaos.stack import TERMINAL, Stack, ask

#: The services that the load is for.
SERVICES = ("chaos", "poison", "long", "heavy")

#: How each kind of job has to end.
EXPECTED = {
    "": ("succeeded", None),
    "raise": ("failed", "predict_failed"),
    "exit": ("failed", "worker_lost"),
    "fork": ("succeeded", None),
    "program": ("succeeded", None),
    "large": ("succeeded", None),
    "too_large": ("failed", "invalid_output"),
}

#: ``max_attempts`` of the service ``poison``.
POISON_ATTEMPTS = 3

#: What is promised: begun again elsewhere within so many seconds.
RECOVERY_S = 10.0

#: Kills after which ``recovery`` is measured: the worker is gone, and with it whoever could tell.
WORKER_KILLS = ("kill_worker", "kill_all_workers", "kill_long_worker")


@dataclass
class Report:
    """What a campaign found."""

    stack: str
    seed: int
    seconds: float = 0
    faults: dict[str, int] = field(default_factory=dict)
    accepted: int = 0
    refused: int = 0
    unanswered: int = 0
    asked_again: int = 0  #: accepted jobs whose first POST got no answer
    slowest_answer_s: float = 0
    lost: list[Any] = field(default_factory=list)  #: accepted jobs that have not ended, or are unknown
    wrong: list[Any] = field(default_factory=list)  #: ended otherwise than they had to
    miscounted: list[Any] = field(default_factory=list)  #: attempts other than what ran and was killed
    changed: list[Any] = field(default_factory=list)  #: terminal jobs that read otherwise later
    overlaps: list[str] = field(default_factory=list)  #: runs of one job at the same time
    doubled: list[str] = field(default_factory=list)  #: POSTs that made more than one job
    repeated: int = 0  #: jobs that ran to their end more than once
    bad_exits: list[int] = field(default_factory=list)  #: exit codes but 0 of workers that were asked to stop
    gave_up: list[int] = field(default_factory=list)  #: exit codes of workers that ended by themselves
    left_keys: list[str] = field(default_factory=list)
    left_processes: list[str] = field(default_factory=list)  #: that plugins had started, once all workers were gone
    #: From a worker's kill -9 to the next start of what it ran: short jobs, long ones, and either where another
    #: fault came in between.
    recovery_s: list[float] = field(default_factory=list)
    long_recovery_s: list[float] = field(default_factory=list)
    disturbed_recovery_s: list[float] = field(default_factory=list)
    drained_s: float = 0  #: from the end of the load to the end of the last job

    @property
    def broken(self) -> dict[str, Any]:
        """The guarantees that did not hold, each with the first few cases."""
        named = (
            "lost",
            "wrong",
            "miscounted",
            "changed",
            "overlaps",
            "doubled",
            "bad_exits",
            "gave_up",
            "left_keys",
            "left_processes",
            "late",
        )
        return {name: getattr(self, name)[:5] for name in named if getattr(self, name)}

    @property
    def late(self) -> list[float]:
        """Recoveries that took longer than is promised."""
        return [seconds for seconds in self.recovery_s + self.long_recovery_s if seconds > RECOVERY_S]

    def to_dict(self) -> dict[str, Any]:
        """As JSON; long lists are cut."""
        told = asdict(self)
        for name in ("recovery_s", "long_recovery_s", "disturbed_recovery_s"):
            told[name] = summarise(told[name])
        for name in ("lost", "wrong", "miscounted", "changed", "overlaps", "doubled"):
            told[name] = {"count": len(told[name]), "first": told[name][:5]}
        return told | {"broken": sorted(self.broken)}


def summarise(seconds: list[float]) -> dict[str, float]:
    """How many, their median and the worst."""
    if not seconds:
        return {"count": 0}
    return {"count": len(seconds), "median": round(statistics.median(seconds), 2), "worst": round(max(seconds), 2)}


@dataclass
class Run:
    """One run of a job, by the trace that the service left."""

    n: int
    pid: int
    start_ns: int
    end_ns: int = 0


def audit(stack: Stack, load: Load, seed: int, patience_s: float = 60) -> Report:
    """Wait until all accepted jobs have ended, at most ``patience_s`` without any progress, and judge."""
    report = Report(stack.kind.name, seed, refused=load.refused, unanswered=load.unanswered)
    report.accepted, report.slowest_answer_s = len(load.accepted), round(load.slowest_s, 2)
    started = time.monotonic()
    connection = HTTPConnection("127.0.0.1", stack.port, timeout=30)
    jobs, report.lost = read_back(connection, load.accepted, patience_s)
    report.drained_s = round(time.monotonic() - started, 1)
    for job in jobs.values():
        load.note(job)
    report.changed = load.changed
    runs = read_trace(stack.folder / "trace" / "log")
    report.wrong = [wrong for one in load.accepted if one.id in jobs and (wrong := judge(one, jobs[one.id], runs))]
    if stack.kind.is_ours:
        report.miscounted = judge_attempts(connection, [one for one in load.accepted if one.id in jobs], jobs, runs)
    report.asked_again = sum(one.asked_again for one in load.accepted)
    report.doubled = find_doubled(stack) if stack.kind.is_ours else []
    connection.close()
    overlaps = stack.folder / "trace" / "overlaps"
    report.overlaps = overlaps.read_text().splitlines() if overlaps.exists() else []
    report.repeated = sum(sum(bool(run.end_ns) for run in of_job) > 1 for of_job in runs.values())
    measure_recovery(report, stack, runs, {one.n for one in load.accepted if one.service == "long"})
    report.gave_up = stack.gave_up
    report.bad_exits = [code for code in stack.exit_codes if code != 0]
    return report


def read_back(
    connection: HTTPConnection, accepted: list[Accepted], patience_s: float
) -> tuple[dict[str, Any], list[Any]]:
    """The jobs that have ended, by id, and those that have not while nothing else did for ``patience_s``."""
    jobs: dict[str, Any] = {}
    waiting = list(accepted)
    progressed = time.monotonic()
    while waiting and time.monotonic() - progressed < patience_s:
        still = []
        for one in waiting:
            status, job = ask(connection, "GET", f"/jobs/{one.id}")
            if status == 200 and job["status"] in TERMINAL:
                jobs[one.id] = job
                progressed = time.monotonic()
            else:
                still.append((one, status, job))
        waiting = [one for one, _, _ in still]
        if still:
            time.sleep(0.2)
    return jobs, [{"n": one.n, "id": one.id, "status": status, "job": job} for one, status, job in still[:1000]]


def find_doubled(stack: Stack) -> list[str]:
    """The numbers that more than one job has: each was meant for one, however often its POST was sent."""
    found: Counter[str] = Counter()
    for service in SERVICES:
        keys = list(stack.redis.client.scan_iter(f"{{{service}}}:job:*", count=10_000))
        for begin in range(0, len(keys), 1000):
            pipe = stack.redis.client.pipeline(transaction=False)
            for key in keys[begin : begin + 1000]:
                pipe.hget(key, "input")
            found.update(f"{service} {json.loads(text)['n']}" for text in pipe.execute() if text)
    return [name for name, many in found.items() if many > 1]


def read_trace(path: Path) -> dict[int, list[Run]]:
    """Every run of every job, in the order of their starts."""
    runs: dict[int, list[Run]] = defaultdict(list)
    for line in path.read_text().splitlines():
        n, what, pid, ns = line.split()
        of_job = runs[int(n)]
        if what == "start":
            of_job.append(Run(int(n), int(pid), int(ns)))
        else:
            next(run for run in reversed(of_job) if run.pid == int(pid)).end_ns = int(ns)
    return runs


def judge(one: Accepted, job: Any, runs: dict[int, list[Run]]) -> Any:
    """What is wrong with how a job ended; None where nothing is."""
    status, code = EXPECTED[one.do]
    found = (job["status"], job["error"] and job["error"]["code"])
    text = {"text": "x" * (2**20 if one.do == "large" else 0)} if one.service == "heavy" else {}
    fits = found == (status, code) and (status != "succeeded" or job["output"] == {"n": one.n, **text})
    # An attempt whose worker died between the claim and the start has left no trace, and may be charged.
    if not fits or not runs[one.n] or (one.do == "exit" and job["attempt"] != POISON_ATTEMPTS):
        return {"n": one.n, "expected": status, "job": job, "runs": len(runs[one.n])}
    return None


def judge_attempts(
    connection: HTTPConnection, accepted: list[Accepted], jobs: dict[str, Any], runs: dict[int, list[Run]]
) -> list[Any]:
    """Jobs whose attempts do not fit: of those that ran in more than one process, or are charged more than one attempt.

    Every process that ran it is an attempt; those before the last one were cut off; who was cut off is charged only
    where it was alone, so that nobody pays for a neighbour.
    """
    found = []
    for one in accepted:
        processes = [pid for pid, _ in itertools.groupby(runs[one.n], lambda run: run.pid)]
        if len(processes) == 1 and jobs[one.id]["attempt"] == 1:
            continue
        status, job = ask(connection, "GET", f"/jobs/{one.id}?include=attempts")
        attempts = job["attempts"] if status == 200 else []
        charged = [attempt for attempt in attempts if attempt["charged"]]
        fits = len(charged) == jobs[one.id]["attempt"] and len(processes) <= len(attempts)
        fits = fits and {attempt["outcome"] for attempt in attempts[:-1]} <= {"lost", "handed_back"}
        if not fits or any(attempt["batch_size"] != 1 for attempt in charged[:-1]):
            found.append({"n": one.n, "job": job, "processes": processes})
    return found


def measure_recovery(report: Report, stack: Stack, runs: dict[int, list[Run]], long: set[int]) -> None:
    """Seconds from each kill -9 of a worker to the next start of each job that it had started and not ended."""
    for kill in (kill for kill in stack.kills if kill.fault in WORKER_KILLS):
        later = [at for _, at in stack.faults if at > kill.at_ns]
        for n, of_job in runs.items():
            for run, after in itertools.pairwise(of_job):
                if run.pid in kill.pids and not run.end_ns and run.start_ns <= kill.at_ns < after.start_ns:
                    found = report.long_recovery_s if n in long else report.recovery_s
                    if any(at < after.start_ns for at in later):
                        found = report.disturbed_recovery_s
                    found.append((after.start_ns - kill.at_ns) / 1e9)
