"""Find the next batch for a pool process.

Work-conserving: a free process takes the waiting jobs, up to ``max_batch_size``, at once; while all are busy, the next
batch grows in Redis. So there is nothing to tune, and no job is in a process's hands before it can run, with one
exception: where a whole further batch waits already, and the run is measured to end within ``AHEAD_S``, that batch is
claimed while the model computes, since waiting would not make it any fuller. Where the run takes longer than it was
measured to, the process's slot gives the batch back (``pool.Slot``), so that no job waits behind a long one.
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
#: Seconds of the longest run that has the next batch claimed ahead: beside a longer one, a claim takes no time at all.
MAX_AHEAD_RUN_S = 0.25
#: Weight of the last run in the mean of the runs' times.
LAST_RUN = 0.25

#: Seconds to wait for a message before looking at the ledger again, which finds jobs whose message was lost.
LOOK_AGAIN_S = 1.0
#: The same with several queues, of which only one can be waited on at a time.
TURN_S = 0.02
#: Seconds between two looks at a batch that is held back for more.
HOLD_STEP_S = 0.002
#: Pause before asking again where Redis is away, or where the worker's lease has lapsed and is not renewed yet.
AWAY_S = 0.2


class RunTimes:
    """How long this process's runs take: the mean of the last ones, for a batch of jobs, and for a row of a chunk."""

    def __init__(self) -> None:
        self._mean: dict[bool, float] = {}

    def expect(self, batch: Batch) -> float | None:
        """Seconds that this batch's run is expected to take; None where no such run was measured yet."""
        rows = batch.chunk_rows
        mean = self._mean.get(rows > 0)
        return None if mean is None else mean * (rows or 1)

    def add(self, batch: Batch, seconds: float) -> None:
        """A run has ended."""
        rows = batch.chunk_rows
        each = seconds / (rows or 1)
        mean = self._mean.get(rows > 0, each)
        self._mean[rows > 0] = mean + LAST_RUN * (each - mean)


class Feeder:
    """Claims batches for one pool process.

    Args:
        process: the process's name, with which all its tokens begin.
        worker: gives the worker's id.
        about: each service's version and its author's knobs.
        on_fenced: called when the ledger does not know the worker (any more).
        on_ahead: called, in a thread of the feeder's, with a batch that was claimed ahead.
        take: called with a batch that was claimed ahead, before it runs: whether it is still this process's.
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
        self._models = {name: digest_model(*told) for name, told in about.items()}
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
        """Claim nothing more; from any thread."""
        self._stopping.set()

    def next_batch(self) -> Batch | None:
        """The next batch, however long it takes to come; None once stopped."""
        while not self._stopping.is_set():
            try:
                batch = self._take_ahead() or self._ask()
            except redis.RedisError as error:
                log.debug("no batch: %s", error)  # the keeper says that Redis is away
                self._stopping.wait(AWAY_S)
                continue
            if batch:
                return batch
        return None

    def look_ahead(self, batch: Batch) -> None:
        """While ``batch`` computes, claim the next one, if a whole one waits and this one is about to end.

        Measured: a queue of jobs without a model is worked off 1.1 times as fast, since Redis and the process work at
        the same time.
        """
        if not batch.more or len(self._names) > 1 or self._stopping.is_set():
            return
        expected_s = self.times.expect(batch)
        if expected_s is not None and expected_s <= MAX_AHEAD_RUN_S:
            self._run_ended.clear()
            self._ahead = self._thread.submit(self._claim_ahead, expected_s - AHEAD_S)

    @property
    def is_ahead(self) -> bool:
        """Whether the next batch is claimed already, or about to be."""
        return self._ahead is not None

    def hand_back(self) -> None:
        """Give back a batch that was claimed ahead and has not begun."""
        self._run_ended.set()
        with self._thread:  # a claim that is on its way ends first
            pass
        try:
            batch = self._take_ahead()
            if batch:
                self._ledger.run(worker_commands.give_up(batch.service, batch.worker, batch.token, "handed_back"))
        except redis.RedisError as error:
            log.warning("could not hand back what had not begun: %s; its worker does as it leaves", error)

    def _claim_ahead(self, pause_s: float) -> Batch | None:
        """Claim after this pause; nothing where the run has ended by then, so that a claim without a pause is due."""
        if pause_s > 0 and self._run_ended.wait(pause_s):
            return None
        batch = self._claim(self._names[0])
        if batch:
            self._on_ahead(batch)
        return batch

    def _take_ahead(self) -> Batch | None:
        """The batch that was claimed ahead, if it is still this process's."""
        ahead, self._ahead = self._ahead, None
        self._run_ended.set()
        batch = ahead.result() if ahead else None
        if batch is None or not self._take(batch):
            return None
        return replace(batch, waited_s=time.monotonic() - batch.claimed)

    def _ask(self) -> Batch | None:
        """A batch, or None after a second (or so) without work."""
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
        """Claim, adopting other producers' messages and holding a batch back as its author asked."""
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
        self._number += 1  # only now: a claim whose answer was lost is asked again under its token
        return Batch(name, worker, token, claim.jobs, claim.more, number, time.monotonic())
