"""One batch, in a pool process: the stages of ``stages.py``, then complete, which writes how each job ended."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import redis
from pydantic_core import to_json

from worker.errors import CallCut, ServicesError, TimedOut, WorkerLost, say
from worker.inference.items import BatchItems, Outcome
from worker.inference.reporting import EventSender
from worker.inference.results import Persist, Results
from worker.inference.stages import Files, Timings, may_hold_constants, run_stages
from worker.ledger import worker_commands
from worker.ledger.batches import PartKind, Rerun, dump_failed, error_line, output_line
from worker.ledger.jobs import Status
from worker.ledger.sync_ledger import Ledger
from worker.ledger.worker_commands import Batch, ClaimedJob, Ending, Stored
from worker.net.redis_clients import AWAY
from worker.service import Service
from worker.settings import MAX_OUTPUT_BYTES

log = logging.getLogger("services.worker")

#: Sends a message about the run to the worker's main process.
Tell = Callable[[str], None]

#: Stage 5 of a batch: writes every end, in one call, and gives the effect of each.
Complete = Callable[[], "list[JobOutcome]"]

#: A chunk of which nothing is known yet.
FIRST_RUN = Rerun(results=[], reason="", skip=False, careful=False, numbers=[], settled=[])

#: Seconds after which a chunk makes room, between two calls of the model, for a job that is to be run before its rest.
PAUSE_S = 0.25

#: Bytes of ends that are reported to the ledger in one call, about: Redis takes them in some 26 ms (measured).
COMPLETE_BYTES = 8 * 2**20

#: A call that Redis cuts off so often, although it answers others, is given up.
MOST_CUTS = 4

#: Longest pause before a further attempt.
MAX_BACKOFF_S = 300


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """The end of one job of a batch, for Celery's events."""

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


class FileSource(Protocol):
    """Where a run gets the files of its inputs, and stores those of its outputs (``worker.filestore``)."""

    def of_batch(self, service: str, tell: Tell, persist: Persist, job_id: str = "") -> Files:
        """The files of one run of the stages. ``job_id``: the chunk, where the items are its rows."""


def run_batch(
    service: Service[Any, Any],
    ledger: Ledger,
    batch: Batch,
    cancelled: Collection[str] = (),
    tell: Tell = lambda _: None,
    attachments: FileSource | None = None,
    teller: EventSender | None = None,
    most_bytes: int = MAX_OUTPUT_BYTES,
) -> Complete:
    """Run these jobs. The returned function writes how they ended.

    ``tell`` is called with "begun" and "computed" around the stages that the service's time limit is for: waiting for a
    Redis that is away is none of them. ``most_bytes``: of one output.
    """
    started = time.perf_counter()
    if len(batch.jobs) == 1 and batch.jobs[0].first is not None:
        chunk = ChunkRun(service, ledger, batch, cancelled, tell, attachments, most_bytes)
        return chunk.run()
    jobs = batch.jobs
    batch_items = BatchItems([job.input for job in jobs], [job.id for job in jobs], cancelled, most_bytes)
    tell("begun")
    persist = partial(_persist, ledger=ledger)
    files = attachments.of_batch(batch.service, tell, persist) if attachments else None
    with teller.listening(batch.service, batch.token) if teller else nullcontext():
        timings = run_stages(service, batch_items, files)
    tell("computed")
    if teller:
        _flush(teller, ledger)
    timings.waited_ms = round(batch.waited_s * 1000, 3)
    timings_text = timings.to_json()
    outcomes: list[Outcome] = batch_items.outcomes()
    size = timings.batch_size
    endings = [_ending(service, job, outcome, timings_text, size) for job, outcome in zip(jobs, outcomes, strict=True)]

    def complete() -> list[JobOutcome]:
        stored = _store_ends(ledger, batch, endings, outcomes)
        seconds = time.perf_counter() - started
        ends = zip(jobs, outcomes, stored, strict=True)
        ended = [JobOutcome(job.id, outcome, became, seconds) for job, outcome, became in ends]
        _log_ends(batch, ended, size)
        return [one for one in ended if one.became]

    return complete


class ChunkRun:
    """The rows of a chunk, ``max_batch_size`` at a time; one by one after a run that was lost, to find the culprit."""

    def __init__(
        self,
        service: Service[Any, Any],
        ledger: Ledger,
        batch: Batch,
        cancelled: Collection[str],
        tell: Callable[[str], None],
        attachments: FileSource | None,
        most_bytes: int,
    ) -> None:
        self._started = time.perf_counter()
        self._service, self._ledger, self._cancelled, self._tell = service, ledger, cancelled, tell
        self._name, self._token, self._chunk = batch.service, batch.token, batch.jobs[0]
        self._attachments, self._most_bytes = attachments, most_bytes
        self._persist = partial(_persist, ledger=ledger)
        self._rows = self._chunk.input.split(b"\n")
        self._first = self._chunk.first or 0
        self._total = Timings(batch_size=service.max_batch_size)

    def run(self) -> Complete:
        """Run all rows that have no result yet; the returned function writes the chunk's end."""
        try:
            ending, parts, failed = self._compute() or (None, None, 0)
        except CallCut as error:
            return partial(self._complete, self._failure(error), None, len(self._rows))
        return partial(self._complete, ending, parts, failed) if ending else list

    def _compute(self) -> tuple[Ending, PartKind | None, int] | None:
        """The chunk's end, and how many rows failed; None where it was cancelled, was paused, or is others' now."""
        chunk, rows, first = self._chunk, self._rows, self._first
        rerun = worker_commands.fetch_rerun(self._name, chunk.id)
        before = self._persist(partial(self._ledger.fetch, rerun)) if chunk.attempt > 1 else FIRST_RUN
        numbers: Sequence[int] = before.numbers or range(first, first + len(rows))
        results = Results(self._ledger, self._name, self._token, chunk.id, self._persist, before)
        if before.careful and before.skip and results.count < len(rows):
            error = TimedOut() if before.reason == "timed_out" else WorkerLost()
            results.add([error_line(numbers[results.count], error)], has_failed=True)
            results.keep()
        if not self._run_rows(results, numbers, before.careful):
            return None
        output = results.output(first, numbers)
        if output is None:
            return None
        failed_rows = dump_failed(results.failed, numbers, rows)
        ending = Ending(chunk.id, Status.SUCCEEDED, output[0], self._total.to_json(), len(rows), failed_rows)
        return ending, output[1], len(results.failed)

    def _run_rows(self, results: Results, numbers: Sequence[int], careful: bool) -> bool:
        """Batch after batch; False where the chunk is to go no further."""
        rows, chunk, begun_at = self._rows, self._chunk, results.count
        suspicious = may_hold_constants(chunk.input)
        while results.count < len(rows):
            if chunk.id in self._cancelled:
                return False
            begin = results.count
            end = begin + (1 if careful else self._service.max_batch_size)
            batch_items = BatchItems(rows[begin:end], most_bytes=self._most_bytes)
            self._tell("begun")
            files = self._files()
            self._total.add(run_stages(self._service, batch_items, files, strictly=suspicious))
            self._tell("computed")
            lines = _as_lines(numbers[begin:end], batch_items.outcomes(), chunk.id)
            if not results.add(lines, batch_items.has_failed) or (careful and not results.keep()):
                return False
            is_long = end < len(rows) and time.perf_counter() - self._started > PAUSE_S and not careful
            if is_long and results.pause(results.count - begun_at):
                return False
        return True

    def _files(self) -> Files | None:
        if not self._attachments:
            return None
        return self._attachments.of_batch(self._name, self._tell, self._persist, self._chunk.id)

    def _complete(self, ending: Ending, parts: PartKind | None, failed: int) -> list[JobOutcome]:
        chunk, rows = self._chunk, len(self._rows)
        try:
            (became,) = self._tell_end(ending, parts)
            outcome: Outcome = b"%d rows, %d failed" % (rows, failed)
        except CallCut as error:
            (became,), outcome = self._tell_end(self._failure(error), None), error
        ended = JobOutcome(chunk.id, outcome, became, time.perf_counter() - self._started)
        _log_end(self._name, self._token, ended, chunk.attempt, rows)
        return [ended] if became else []

    def _tell_end(self, ending: Ending, parts: PartKind | None) -> list[Stored]:
        command = worker_commands.complete(self._name, self._token, [ending], parts=parts or "")
        stored: list[Stored] = self._persist(partial(self._ledger.run, command))
        return stored

    def _failure(self, error: ServicesError) -> Ending:
        error_text = to_json(error.to_dict())
        return Ending(self._chunk.id, Status.FAILED, error_text, self._total.to_json(), len(self._rows))


def _store_ends(ledger: Ledger, batch: Batch, endings: Sequence[Ending], outcomes: list[Outcome]) -> list[Stored]:
    """Report the ends to the ledger, in calls of limited size. An end that Redis does not take becomes a failure."""
    stored: list[Stored] = []
    groups = _cut_ends(endings)
    while groups:
        group = groups.pop(0)
        earlier = -1 if groups else len(stored)
        complete = partial(worker_commands.complete, batch.service, batch.token, group, earlier)
        try:
            stored += _persist(partial(ledger.run, complete()), ledger)
        except CallCut as error:
            if len(group) > 1:
                groups[:0] = [[end] for end in group]
                continue
            outcomes[len(stored)] = error
            group[0] = replace(group[0], status=Status.FAILED, value=to_json(error.to_dict()), pause_s=0)
            stored += _persist(partial(ledger.run, complete()), ledger)
    return stored


def _cut_ends(endings: Sequence[Ending]) -> list[list[Ending]]:
    sizes = [len(end.value) for end in endings]
    if sum(sizes) <= COMPLETE_BYTES:
        return [[*endings]]
    groups: list[list[Ending]] = []
    left = 0
    for end, size in zip(endings, sizes, strict=True):
        if not groups or size > left:
            groups.append([])
            left = COMPLETE_BYTES
        groups[-1].append(end)
        left -= size
    return groups


def _flush(teller: EventSender, ledger: Ledger) -> None:
    """Send the jobs' reports; a report that Redis refuses is lost, and the jobs continue."""
    try:
        _persist(teller.flush, ledger)
    except CallCut as error:
        log.warning("what the jobs of a batch said is not kept: %s", error.message)


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


def _ending(service: Service[Any, Any], job: ClaimedJob, outcome: Outcome, timings: bytes, batch_size: int) -> Ending:
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


def _persist(call: Callable[[], Any], ledger: Ledger) -> Any:
    """Call until Redis answers. A worker without Redis has nothing else to do, and its lease guards the others.

    Raises ``CallCut`` where Redis answers other calls, but cuts this one off each time.
    """
    pause, cuts = 0.1, 0
    while True:
        try:
            return call()
        except AWAY as error:
            is_cut = isinstance(error, redis.ConnectionError) and not isinstance(error, redis.BusyLoadingError)
            cuts = cuts + 1 if is_cut and ledger.answers() else 0
            if cuts >= MOST_CUTS:
                raise CallCut from None
            log.warning("Redis is away (%s); trying again in %.1f s", say(error), pause)
            time.sleep(pause)
            pause = min(pause * 2, 1)


def _log_ends(batch: Batch, ended: Sequence[JobOutcome], batch_size: int) -> None:
    """One line a job; nothing is put together that nobody reads."""
    all_ended = log.isEnabledFor(logging.INFO)
    for job, one in zip(batch.jobs, ended, strict=True):
        if all_ended or isinstance(one.outcome, ServicesError):
            _log_end(batch.service, batch.token, one, job.attempt, batch_size)


def _log_end(name: str, token: str, ended: JobOutcome, attempt: int, batch_size: int) -> None:
    """One line a job. ``batch`` is also in the job's attempts, so that a failed job leads to its traceback here."""
    error = ended.outcome if isinstance(ended.outcome, ServicesError) else None
    became = {Stored.DROPPED: "dropped (it was no longer this batch's)", Stored.RETRIED: "will be retried"}.get(
        ended.became, "failed" if error else "succeeded"
    )
    failure = error if ended.became else None
    line = "job %s id=%s service=%s attempt=%d batch=%s batch_size=%d ms=%.1f"
    values = [became, ended.job_id, name, attempt, token, batch_size, ended.seconds * 1000]
    if failure:
        line, values = line + " error=%s: %s", [*values, failure.code, failure.message]
    log.log(logging.WARNING if failure else logging.INFO, line, *values, exc_info=failure and failure.__cause__)
