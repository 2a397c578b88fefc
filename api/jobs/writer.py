"""Group commit: jobs that arrive together are stored together, in one round trip.

While one call of the ledger is under way, further jobs gather; the next call stores all of them. A single client waits
for no other, and many clients share one round trip.
"""

from __future__ import annotations

import asyncio
from collections import deque

from worker.errors import ServicesError, StoreUnavailable
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.commands import Repeated
from worker.ledger.jobs import Job, NewJob

#: Most jobs, and about the most bytes of input, in one call: Redis serves no other client during it.
MAX_JOBS = 256
MAX_BYTES = 8 * 1024 * 1024

Pending = tuple[NewJob, asyncio.Future[Job | Repeated]]


class Writer:
    """Stores jobs. A client that leaves, or a call that fails, affects no other jobs."""

    def __init__(self, ledger: AsyncLedger) -> None:
        self._ledger = ledger
        self._pending: dict[str, deque[Pending]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def store(self, job: NewJob) -> Job | Repeated:
        """Store one job. Raises ``QueueFull``, ``IdempotencyConflict`` or ``StoreUnavailable``."""
        future: asyncio.Future[Job | Repeated] = asyncio.get_running_loop().create_future()
        waiting = self._pending.get(job.service)
        if waiting is None:
            self._pending[job.service] = deque([(job, future)])
            task = asyncio.create_task(self._flush(job.service))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            waiting.append((job, future))
        return await future

    async def _flush(self, service: str) -> None:
        """Store the pending jobs of one service until none is left."""
        waiting = self._pending[service]
        while waiting:
            group = _take(waiting)
            try:
                stored = await self._ledger.create([job for job, _ in group])
            except Exception as error:  # each client of the group gets it
                if isinstance(error, StoreUnavailable):
                    # Later jobs have waited as long already: a call of their own would double their time.
                    group += waiting
                    waiting.clear()
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), result in zip(group, stored, strict=True):
                    _settle(future, result)
        del self._pending[service]


def _take(waiting: deque[Pending]) -> list[Pending]:
    group: list[Pending] = []
    size = 0
    while waiting and len(group) < MAX_JOBS and (not group or size + len(waiting[0][0].input) <= MAX_BYTES):
        group.append(waiting.popleft())
        size += len(group[-1][0].input)
    return group


def _settle(future: asyncio.Future[Job | Repeated], result: Job | Repeated | ServicesError) -> None:
    if future.done():
        return  # its client has left
    if isinstance(result, ServicesError):
        future.set_exception(result)
    else:
        future.set_result(result)
