"""What became of jobs that were to be stored: the replies of ``create`` in ``jobs.lua``, read."""

from __future__ import annotations

from dataclasses import dataclass

from worker.errors import IdempotencyConflict, JobExpired, JobNotFound, QueueFull, RateLimited
from worker.ledger.forecast import Forecast
from worker.ledger.jobs import Job, NewJob, Status
from worker.ledger.sync_ledger import queue_full, too_many_open


@dataclass(frozen=True, slots=True)
class Repeated:
    """A request that was sent before: its idempotency key and body belong to this job."""

    job_id: str


#: What may become of a job that is to be stored.
Outcome = Job | Repeated | QueueFull | RateLimited | IdempotencyConflict | JobExpired


def not_found(id: str, what: str = "job") -> JobNotFound:
    """The error for an id that was never seen, or that is another API key's."""
    return JobNotFound(f"no {what} has the id {id[:100]!r}")


def as_stored(job: NewJob, state: bytes, created: bytes, position: int, forecast: Forecast | None) -> Outcome:
    """One job's part of what ``create`` in ``jobs.lua`` answers."""
    if state == b"full":
        return queue_full(job.service, int(created))
    if state == b"limited":
        return too_many_open(int(created))
    if state == b"same":
        return Repeated(created.decode())
    if state == b"conflict":
        return conflict(created.decode())
    if state == b"gone":
        return dropped(job.id)
    return _as_created(job, int(created), int(position), forecast)


def conflict(job_id: str) -> IdempotencyConflict:
    """The error for an idempotency key, or an id of a client's own, that is used with another body."""
    return IdempotencyConflict(
        f"this Idempotency-Key or id belongs to job {job_id}, which was sent with another body; "
        "send the same body to get that job again, or a new key or id to make another"
    )


def dropped(job_id: str) -> JobExpired:
    """The error for a job that was, and whose record is gone."""
    return JobExpired(f"job {job_id[:100]} ended and its record was dropped when its keep_for_s was over")


def _as_created(job: NewJob, created_us: int, position: int, forecast: Forecast | None) -> Job:
    return Job(
        id=job.id,
        service=job.service,
        status=Status.QUEUED,
        version=job.version,
        priority=job.priority,
        attempt=0,
        batch_size=None,
        created_us=created_us,
        started_us=0,
        finished_us=0,
        expires_us=0,
        output=None,
        error=None,
        timings=None,
        metadata=job.metadata,
        owner=job.owner,
        position=position if position >= 0 else None,
        estimated_start_us=forecast.start_us(position) if forecast and position >= 0 else 0,
        webhook=job.webhook,
        not_before_us=job.not_before_us,
    )
