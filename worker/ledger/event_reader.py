"""What jobs said, and how batches come on, for the API: the other end of ``telling.py``."""

from __future__ import annotations

from dataclasses import dataclass

from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.batches import Bulk
from worker.ledger.jobs import Job, Status
from worker.ledger.scripts import Scripts
from worker.ledger.sync_ledger import head
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a job said."""

    number: int  #: counted over all runs of the job, from 1
    name: str
    run: int  #: when the run began in which it was said: of which there is one
    attempt: int
    data: str  #: JSON


@dataclass(frozen=True, slots=True)
class Heard:
    """Where a job stands, and what it said since."""

    status: Status
    run: int  #: when it was started; 0: not yet
    finished: int  #: when it ended; 0: not yet
    attempt: int
    events: list[Event]
    has_more: bool  #: whether further events follow


class Hearing:
    """Reads it from the ledger. Raises ``StoreUnavailable`` where Redis is away."""

    def __init__(self, ledger: AsyncLedger, settings: Settings) -> None:
        self._ledger = ledger
        self._settings = settings
        self._script = Scripts(ledger.redis)

    async def hear(self, job: Job, after: int, most: int) -> Heard | None:
        """Where a job stands, and up to ``most`` of its events after that number; None where it has been dropped.

        From then on ``TOLD_CHANNEL`` tells of it.
        """
        arguments = [*head("hear", self._settings), job.id, after, most]
        async with self._ledger.guard():
            reply = await self._script(keys=[job.service], args=arguments)
        if reply is None:
            return None
        status, run, finished, attempt, flat, more = reply
        fives = zip(*(flat[i::5] for i in range(5)), strict=True)
        events = [Event(int(n), name.decode(), int(of), int(a), data.decode()) for n, name, of, a, data in fives]
        return Heard(Status(status.decode()), int(run), int(finished), int(attempt), events, bool(more))

    async def hear_batch(self, service: str, batch_id: str) -> Bulk | None:
        """How a batch stands; None where it has been dropped. From then on ``TOLD_CHANNEL`` tells of it."""
        async with self._ledger.guard():
            reply = await self._script(keys=[service], args=[*head("hear_batch", self._settings), batch_id])
        return Bulk.from_record(batch_id, dict(zip(reply[0::2], reply[1::2], strict=True))) if reply else None
