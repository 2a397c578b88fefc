"""Find the next batch for a pool process.

Work-conserving: a free process claims the waiting jobs at once, up to ``max_batch_size``. While all processes are busy,
the next batch grows in Redis. There is nothing to tune, and no process claims a job before it can run it, with one
exception: if a full further batch waits, and the run is expected to end within ``AHEAD_S``, that batch is claimed while
the model computes, since waiting would not make it fuller. If the run then takes longer than expected, the process's
slot (``slots.Slot``) gives the batch back, so that no job waits behind a long run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import redis

from worker.broker.adopt import adopt
from worker.ledger import worker_commands
from worker.ledger.equal_jobs import digest_model
from worker.ledger.sync_ledger import Ledger
from worker.ledger.worker_commands import Batch, Claim
from worker.settings import Settings

log = logging.getLogger("services.worker")

#: Seconds before the expected end of a run at which the next batch is claimed.
AHEAD_S = 0.03
#: Longest run, in seconds, during which the next batch is claimed ahead: beside a longer run, a claim costs nothing.
MAX_AHEAD_RUN_S = 0.25
#: Weight of the last run in the moving average of the runs' times.
LAST_RUN = 0.25

#: Seconds to wait for a message before claiming again, which finds jobs whose message was lost.
LOOK_AGAIN_S = 1.0
#: The same for a worker of several queues, since a process can wait on only one of them at a time.
TURN_S = 0.02
#: Seconds between two checks of a batch that waits for more jobs (``max_queue_delay_ms``).
HOLD_STEP_S = 0.002
#: Seconds before the next attempt when Redis is away, or when the worker's lease has expired and is not renewed yet.
AWAY_S = 0.2


class RunTimes:
    """Moving averages of this process's run times: per batch of jobs, and per row of a chunk."""

    def __init__(self) -> None:
        self._mean: dict[bool, float] = {}

    def expect(self, batch: Batch) -> float | None:
        """Seconds that this batch's run is expected to take; None before the first such run was measured."""
        rows = batch.chunk_rows
        mean = self._mean.get(rows > 0)
        return None if mean is None else mean * (rows or 1)

    def add(self, batch: Batch, seconds: float) -> None:
        """Record the time of a run that has ended."""
        rows = batch.chunk_rows
        each = seconds / (rows or 1)
        mean = self._mean.get(rows > 0, each)
        self._mean[rows > 0] = mean + LAST_RUN * (each - mean)


class Feeder:
    """Claims batches for one pool process.

    Args:
        process: the process's name, with which all its tokens begin.
        worker: returns the worker's id.
        about: each service's version and knobs.
        on_fenced: called when the ledger does not know the worker (any more).
        on_ahead: called, in the feeder's thread, with a batch that was claimed ahead.
        take: called with a batch that was claimed ahead, before it runs; returns whether this process still owns it.
    """

    def __init__(
        self,
        settings: Settings,
        process: str,
        worker: Callable[[], str],
        about: dict[str, tuple[str, dict[str, Any]]],
        on_fenced: Callable[[], None],
        on_ahead: Callable[[Batch], None] = lambda _: None,
        take: Callable[[Batch], bool] = lambda _: True,
    ) -> None:
        self._settings = settings
        self._ledger = Ledger(settings)
        self._process = process
        self._worker = worker
        self._about = about
        self._names = list(about)
        self._models = {name: digest_model(*model) for name, model in about.items()}
        self._on_fenced = on_fenced
        self._on_ahead = on_ahead
        self._take = take
        self.times = RunTimes()
        self._number = 0
        self._stopping = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feeder")
        self._ahead: Future[Batch | None] | None = None
        self._run_ended = threading.Event()

    def stop(self) -> None:
        """Claim no further batch; may be called from any thread."""
        self._stopping.set()

    def next_batch(self) -> Batch | None:
        """Wait for the next batch, without a time limit; None once stopped."""
        while not self._stopping.is_set():
            try:
                batch = self._take_ahead() or self._ask()
            except redis.RedisError as error:
                log.debug("no batch: %s", error)  # the lease thread logs that Redis is away
                self._stopping.wait(AWAY_S)
                continue
            if batch:
                return batch
        return None

    def look_ahead(self, batch: Batch) -> None:
        """While ``batch`` computes, claim the next batch if a full batch waits and the run is about to end.

        Measured: the throughput of jobs without a model is 1.1 times as high, since Redis and the process work at the
        same time.
        """
        if not batch.more or len(self._names) > 1 or self._stopping.is_set():
            return
        expected_s = self.times.expect(batch)
        if expected_s is not None and expected_s <= MAX_AHEAD_RUN_S:
            self._run_ended.clear()
            self._ahead = self._thread.submit(self._claim_ahead, expected_s - AHEAD_S)

    @property
    def is_ahead(self) -> bool:
        """Whether the next batch is claimed already, or is about to be claimed."""
        return self._ahead is not None

    def hand_back(self) -> None:
        """Give back a batch that was claimed ahead and has not begun."""
        self._run_ended.set()
        with self._thread:  # waits for a claim in progress
            pass
        try:
            batch = self._take_ahead()
            if batch:
                self._ledger.run(worker_commands.give_up(batch.service, batch.worker, batch.token, "handed_back"))
        except redis.RedisError as error:
            log.warning("could not give back the batch that had not begun: %s; its worker does so as it stops", error)

    def _claim_ahead(self, pause_s: float) -> Batch | None:
        """Claim after this pause; None if the run has ended by then, since a claim without a pause follows at once."""
        if pause_s > 0 and self._run_ended.wait(pause_s):
            return None
        batch = self._claim(self._names[0])
        if batch:
            self._on_ahead(batch)
        return batch

    def _take_ahead(self) -> Batch | None:
        """The batch that was claimed ahead, if it still belongs to this process."""
        ahead, self._ahead = self._ahead, None
        self._run_ended.set()
        batch = ahead.result() if ahead else None
        if batch is None or not self._take(batch):
            return None
        return replace(batch, waited_s=time.monotonic() - batch.claimed)

    def _ask(self) -> Batch | None:
        """A batch, or None after about a second without work."""
        for _ in self._names:
            name = self._names[0]
            self._names.append(self._names.pop(0))  # in turn, so that no queue starves another
            batch = self._claim(name)
            if batch:
                return batch
        if not self._stopping.is_set():
            self._ledger.wait(self._names[0], TURN_S if len(self._names) > 1 else LOOK_AGAIN_S)
        return None

    def _claim(self, name: str) -> Batch | None:
        """Claim; adopt other producers' messages, and wait for a fuller batch as ``max_queue_delay_ms`` says."""
        version, knobs = self._about[name]
        worker, token = self._worker(), f"{self._process}.{self._number}"
        while not self._stopping.is_set():
            claim = self._ledger.run(worker_commands.claim(name, worker, token, knobs, version, self._models[name]))
            match claim.kind:
                case "foreign":
                    adopt(self._ledger, self._settings, name, [raw for _, raw in claim.messages])
                    self._ledger.run(worker_commands.adopted(name, worker, [field for field, _ in claim.messages]))
                case "hold":
                    time.sleep(min(claim.hold_s, HOLD_STEP_S))
                case "fenced":
                    self._on_fenced()
                    self._stopping.wait(AWAY_S)
                    return None
                case "batch":
                    return self._as_batch(claim, name, worker, token)
        return None

    def _as_batch(self, claim: Claim, name: str, worker: str, token: str) -> Batch | None:
        if not claim.jobs:
            return None
        number = self._number
        self._number += 1  # only now: a claim whose reply was lost is repeated under the same token
        return Batch(name, worker, token, claim.jobs, claim.more, number, time.monotonic())
