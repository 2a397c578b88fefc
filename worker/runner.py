"""One batch, in a pool process: the stages of ``stages.py``, then complete, which writes how each job ended."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis
from pydantic_core import to_json

from worker.attach import Attachments
from worker.bulk import Rerun, dump_failed, error_line, find_failed, merge, output_line
from worker.errors import ServicesError, TimedOut, WorkerLost
from worker.feeder import Batch
from worker.jobs import Status
from worker.ledger import Ending, Held, Ledger, Stored
from worker.passage import Outcome, Passage
from worker.service import Service
from worker.stages import Timings, may_hold_constants, run_stages, say
from worker.store import DiskFull
from worker.telling import Teller

log = logging.getLogger("services.worker")

#: What passes by itself when Redis is back, has loaded its file, has room again or has a new master.
AWAY = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.BusyLoadingError,
    redis.OutOfMemoryError,
    redis.ReadOnlyError,
    DiskFull,
)

#: Stage 5 of a batch: writes every end, in one call, and says what became of each.
Complete = Callable[[], "list[Ended]"]

#: A chunk of which nothing is known yet.
FIRST_RUN = Rerun(results=[], reason="", skip=False, careful=False, numbers=[], settled=[])

#: After so long, a chunk makes room between two calls of the model for a job that is to be run before its rest.
PAUSE_S = 0.25

#: Longest pause before a further attempt.
MAX_BACKOFF_S = 300


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of one job of a batch, for Celery's events."""

    job_id: str
    outcome: Outcome
    became: Stored
    seconds: float

    def describe(self) -> dict[str, Any]:
        """In JSON's types."""
        error = result = None
        if isinstance(self.outcome, ServicesError):
            error = self.outcome.message
        else:
            result = self.outcome[:200].decode(errors="replace")
        retried = self.became == Stored.RETRIED
        return {"id": self.job_id, "error": error, "retried": retried, "result": result, "seconds": self.seconds}


def run_batch(
    service: Service[Any, Any],
    ledger: Ledger,
    batch: Batch,
    cancelled: Collection[str] = (),
    tell: Callable[[str], None] = lambda _: None,
    attachments: Attachments | None = None,
    teller: Teller | None = None,
) -> Complete:
    """Run these jobs. How they ended is written where what this gives is called.

    ``tell`` is called with "begun" and "computed" around the stages that the service's time limit is for: waiting for a
    Redis that is away is none of them.
    """
    started = time.perf_counter()
    if len(batch.jobs) == 1 and batch.jobs[0].first is not None:
        return run_chunk(service, batch.service, ledger, batch.token, batch.jobs[0], cancelled, tell, attachments)
    jobs = batch.jobs
    passage = Passage([job.input for job in jobs], [job.id for job in jobs], cancelled)
    tell("begun")
    files = attachments.of_batch(batch.service, tell, _persist) if attachments else None
    with teller.listening(batch.service, batch.token) if teller else nullcontext():
        timings = run_stages(service, passage, files)
    tell("computed")
    if teller:
        _persist(teller.flush)
    timings.waited_ms = round(batch.waited_s * 1000, 3)
    told = timings.to_json()
    outcomes: list[Outcome] = passage.outcomes()
    size = timings.batch_size
    endings = [_ending(service, job, outcome, told, size) for job, outcome in zip(jobs, outcomes, strict=True)]

    def complete() -> list[Ended]:
        stored: list[Stored] = _persist(lambda: ledger.complete(batch.service, batch.token, endings))
        seconds = time.perf_counter() - started
        ends = zip(jobs, outcomes, stored, strict=True)
        ended = [Ended(job.id, outcome, became, seconds) for job, outcome, became in ends]
        _log_ends(batch, ended, size)
        return [one for one in ended if one.became]

    return complete


def run_chunk(
    service: Service[Any, Any],
    name: str,
    ledger: Ledger,
    token: str,
    chunk: Held,
    cancelled: Collection[str],
    tell: Callable[[str], None],
    attachments: Attachments | None = None,
) -> Complete:
    """The rows of a chunk, ``max_batch_size`` at a time; one by one after a run that was lost, to find the culprit."""
    started = time.perf_counter()
    rows, first = chunk.input.split(b"\n"), chunk.first or 0
    before = _persist(lambda: ledger.rerun(name, chunk.id)) if chunk.attempt > 1 else FIRST_RUN
    numbers: Sequence[int] = before.numbers or range(first, first + len(rows))
    results: list[bytes] = [*before.results]
    suspicious = may_hold_constants(chunk.input)
    if before.careful and before.skip and len(results) < len(rows):
        error = TimedOut() if before.reason == "timed_out" else WorkerLost()
        results.append(error_line(numbers[len(results)], error))
        _persist(lambda: ledger.progress(name, token, chunk.id, results))
    total, clean = Timings(batch_size=service.max_batch_size), not results
    while len(results) < len(rows) and chunk.id not in cancelled:
        begin = len(results)
        end = begin + (1 if before.careful else service.max_batch_size)
        passage = Passage(rows[begin:end])
        tell("begun")
        files = attachments.of_batch(name, tell, _persist, chunk.id) if attachments else None
        total.add(run_stages(service, passage, files, strictly=suspicious))
        tell("computed")
        results.extend(_as_lines(numbers[begin:end], passage.outcomes(), chunk.id))
        clean = clean and not passage.has_failed
        if before.careful and not _persist(lambda: ledger.progress(name, token, chunk.id, results)):
            break
        is_long = end < len(rows) and time.perf_counter() - started > PAUSE_S and not before.careful
        done = len(results) - len(before.results)
        if is_long and _persist(partial(ledger.pause, name, token, chunk.id, results, done)):
            break
    if len(results) < len(rows):
        return list  # cancelled, paused, or others' now
    failed = [] if clean else find_failed(results)
    output = merge(before.settled, first, numbers, results) if before.settled else b"\n".join(results)
    ending = Ending(chunk.id, Status.SUCCEEDED, output, total.to_json(), len(rows), dump_failed(failed, numbers, rows))

    def complete() -> list[Ended]:
        (became,) = _persist(lambda: ledger.complete(name, token, [ending]))
        told = b"%d rows, %d failed" % (len(rows), len(failed))
        ended = Ended(chunk.id, told, became, time.perf_counter() - started)
        _log_end(name, token, ended, chunk.attempt, len(rows))
        return [ended] if became else []

    return complete


def _as_lines(numbers: Sequence[int], outcomes: Sequence[Outcome], chunk_id: str) -> list[bytes]:
    """The results of rows."""
    lines = []
    for number, outcome in zip(numbers, outcomes, strict=True):
        if isinstance(outcome, ServicesError):
            lines.append(error_line(number, outcome))
            if outcome.__cause__:
                log.warning("row %d of batch %s failed: %s", number, chunk_id, outcome.message)
        else:
            lines.append(output_line(number, outcome))
    return lines


def _ending(service: Service[Any, Any], job: Held, outcome: Outcome, timings: bytes, batch_size: int) -> Ending:
    if not isinstance(outcome, ServicesError):
        return Ending(job.id, Status.SUCCEEDED, outcome, timings, batch_size)
    pause_s = 0.0
    if isinstance(outcome.__cause__, service.retry_on):
        outcome.retryable = True
        pause_s = backoff_s(service.retry_backoff_s, job.attempt)
    return Ending(job.id, Status.FAILED, to_json(outcome.to_dict()), timings, batch_size, pause_s=pause_s)


def backoff_s(first_s: float, attempt: int) -> float:
    """Seconds before the next attempt: doubled for each, by a factor of 0.5 to 1.5 so that retries do not meet."""
    longest = min(MAX_BACKOFF_S, first_s * 1.5 * 2.0 ** min(attempt - 1, 30))
    return longest * random.uniform(1 / 3, 1)


def _persist(call: Callable[[], Any]) -> Any:
    """Call until Redis answers. A worker without Redis has nothing else to do, and its lease guards the others."""
    pause = 0.1
    while True:
        try:
            return call()
        except AWAY as error:
            log.warning("Redis is away (%s); trying again in %.1f s", say(error), pause)
            time.sleep(pause)
            pause = min(pause * 2, 1)


def _log_ends(batch: Batch, ended: Sequence[Ended], batch_size: int) -> None:
    """One line a job; nothing is put together that nobody reads."""
    all_ended = log.isEnabledFor(logging.INFO)
    for job, one in zip(batch.jobs, ended, strict=True):
        if all_ended or isinstance(one.outcome, ServicesError):
            _log_end(batch.service, batch.token, one, job.attempt, batch_size)


def _log_end(name: str, token: str, ended: Ended, attempt: int, batch_size: int) -> None:
    """One line a job. ``batch`` is also in the job's attempts, so that a failed job leads to its traceback here."""
    error = ended.outcome if isinstance(ended.outcome, ServicesError) else None
    became = {Stored.DROPPED: "dropped (it was no longer this batch's)", Stored.RETRIED: "will be retried"}.get(
        ended.became, "failed" if error else "succeeded"
    )
    told = error if ended.became else None
    line = "job %s id=%s service=%s attempt=%d batch=%s batch_size=%d ms=%.1f"
    values = [became, ended.job_id, name, attempt, token, batch_size, ended.seconds * 1000]
    if told:
        line, values = line + " error=%s: %s", [*values, told.code, told.message]
    log.log(logging.WARNING if told else logging.INFO, line, *values, exc_info=told and told.__cause__)
