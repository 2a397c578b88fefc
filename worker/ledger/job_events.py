"""Events of a job as the API reads them from the ledger: progress, log lines and partial outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker.ledger.commands import Command
from worker.ledger.jobs import Job, Status


@dataclass(frozen=True, slots=True)
class Event:
    """One event that a plugin sent."""

    number: int  #: counted over all runs of the job, from 1
    name: str
    run: int  #: when the run began in which it was sent: the run's identity
    attempt: int
    data: str  #: JSON


@dataclass(frozen=True, slots=True)
class EventUpdate:
    """The state of a job, and its new events."""

    status: Status
    run: int  #: when it was started; 0: not yet
    finished: int  #: when it ended; 0: not yet
    attempt: int
    events: list[Event]
    has_more: bool  #: whether further events follow


def follow(job: Job, after: int, most: int) -> Command[EventUpdate | None]:
    """The state of a job and up to ``most`` of its events after that number; None where it has been dropped.

    From then on ``TOLD_CHANNEL`` carries its id when it has new events.
    """

    def read(reply: Any) -> EventUpdate | None:
        if reply is None:
            return None
        status, run, finished, attempt, flat, more = reply
        fives = zip(*(flat[i::5] for i in range(5)), strict=True)
        events = [Event(int(n), name.decode(), int(of), int(a), data.decode()) for n, name, of, a, data in fives]
        return EventUpdate(Status(status.decode()), int(run), int(finished), int(attempt), events, bool(more))

    return Command(job.service, "hear", [job.id, after, most], read)
