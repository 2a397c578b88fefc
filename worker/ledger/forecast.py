"""The time at which a queued job will start: an estimate from the measured runs of its service.

The ledger measures how long runs take and since when each pool process is busy (``lua/lib/measure.lua``). ``Forecast``
is that state at one moment. It assumes that all processes keep their speed and that no job overtakes. docs/http.md has
measurements of its accuracy.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from worker.errors import StoreUnavailable

#: Seconds for which a forecast is used for further jobs, so that its cost does not grow with the number of jobs.
FRESH_S = 0.2
#: Longest wait for one. The job's answer is known already and must not wait longer for an estimate.
PATIENCE_S = 0.25
#: A measure that is older is not used: machines and models may have changed since.
MEASURE_LIVES_US = 24 * 3600 * 1_000_000


@dataclass(frozen=True, slots=True)
class Run:
    """The current run of a pool process."""

    since_us: int
    rows: int  #: of a chunk; 0: a batch of jobs
    batches: int  #: that it will have run before it claims again: one, or two where it has claimed ahead


@dataclass(frozen=True, slots=True)
class Forecast:
    """How a service's queue stands and is worked off. Times are microseconds by Redis's clock."""

    now_us: int
    batch: int  #: jobs of one claim while many wait
    batch_us: float | None  #: time of a run with this number of rows; None where it was not measured
    row_us: float | None  #: time of a row of a chunk, likewise
    runs: list[Run]  #: of each process that is busy
    idle: int  #: processes that run nothing
    chunk_rows: float  #: in the mean, of the chunks that wait
    chunks: list[tuple[int, int]]  #: places in the queue, in its order, and how many chunks stand before each
    read_at: float = field(default_factory=time.monotonic)

    @classmethod
    def from_reply(cls, reply: Any) -> Forecast:
        """Read the reply of ``lua/forecast.lua``."""
        now_us, knobs, batch_time, row_time, infos, runs, placed = reply
        workers = [json.loads(info) for info in infos]
        processes = sum(worker.get("processes", 1) for worker in workers if worker.get("state") == "ready")
        numbers, places, rows = placed[0::3], placed[1::3], placed[2::3]
        busy = [
            Run(int(since), int(rows), 1 + (int(ahead) > 0)) for since, rows, ahead in (run.split() for run in runs)
        ]
        return cls(
            now_us=int(now_us),
            batch=_jobs_of_a_claim(json.loads(knobs)) if knobs else 1,
            batch_us=_fresh_mean(batch_time, int(now_us)),
            row_us=_fresh_mean(row_time, int(now_us)),
            runs=busy if processes else [],
            idle=max(0, processes - len(busy)),
            chunk_rows=sum(rows) / len(rows) if rows else 0,
            chunks=[(place + i, n + i) for n, place in zip(numbers, places, strict=True) for i in (0, 1)],
        )

    @property
    def is_fresh(self) -> bool:
        """Whether it may still be used."""
        return time.monotonic() - self.read_at < FRESH_S

    def start_us(self, position: int) -> int:
        """About when the job before which ``position`` others stand will start, never before now; 0: unknown."""
        now = self.now_us + (time.monotonic() - self.read_at) * 1e6
        free: list[float] = [now] * self.idle
        for run in self.runs:
            took = self._time_of(run.rows)
            free.append(math.inf if took is None else max(now, run.since_us + took * run.batches))
        claims, took = self._work_before(position)
        if not free or took is None:
            return 0
        rounds, turn = divmod(int(claims), len(free))
        # Each process makes one claim in a round, and all begin the next one a mean run later.
        start = sorted(free)[turn] + (took / claims * rounds if claims else 0)
        return 0 if math.isinf(start) else round(start)

    def _time_of(self, rows: int) -> float | None:
        """The time of a run of a chunk with this number of rows, or (0) of a batch of jobs."""
        if not rows:
            return self.batch_us
        return None if self.row_us is None else self.row_us * rows

    def _work_before(self, position: int) -> tuple[float, float | None]:
        """The number of claims for the jobs before a place in the queue, and the time of their runs (None: unknown)."""
        chunks = self._chunks_before(position)
        batches = (position - chunks) / self.batch
        if (batches >= 1 and self.batch_us is None) or (chunks and self.row_us is None):
            return chunks + batches, None
        return chunks + batches, batches * (self.batch_us or 0) + chunks * self.chunk_rows * (self.row_us or 0)

    def _chunks_before(self, position: int) -> float:
        """How many chunks stand before a place; between two that were looked up, they are taken to be spread evenly."""
        place, number = 0, 0
        for next_place, next_number in self.chunks:
            if position <= next_place:
                share = (position - place) / (next_place - place) if next_place > place else 0
                return number + share * (next_number - number)
            place, number = next_place, next_number
        return number


class Forecasts:
    """The forecasts of one API process, each shared by all jobs of its service for a moment.

    Args:
        ask: reads a service's from the ledger. Where Redis is away or late, there is none.
    """

    def __init__(self, ask: Callable[[str], Awaitable[Forecast]]) -> None:
        self._ask = ask
        self._known: dict[str, Forecast] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    async def of(self, service: str) -> Forecast | None:
        """How this service's queue stands now, or did a moment ago."""
        known = self._known.get(service)
        if known and known.is_fresh:
            return known
        if service not in self._asking:
            self._asking[service] = asyncio.create_task(self._read(service))
        await asyncio.wait([self._asking[service]], timeout=PATIENCE_S)
        known = self._known.get(service)
        return known if known and known.is_fresh else None

    async def _read(self, service: str) -> None:
        try:
            self._known[service] = await self._ask(service)
        except StoreUnavailable:
            self._known.pop(service, None)
        finally:
            del self._asking[service]


def _jobs_of_a_claim(knobs: dict[str, Any]) -> int:
    """The size of one claim while more jobs wait: as in ``lua/claim.lua``."""
    most = int(knobs["max_batch_size"])
    return max((size for size in knobs["preferred_batch_sizes"] if size <= most), default=most)


def _fresh_mean(text: bytes, now_us: int) -> float | None:
    if not text:
        return None
    mean, _, measured_us = map(float, text.split())
    return mean if now_us - measured_us < MEASURE_LIVES_US else None
