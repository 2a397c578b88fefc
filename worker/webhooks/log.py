"""The log of a job's webhooks, for the API: deliveries with their attempts and results, and sending again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from worker.errors import DeliveryNotFound, QueueFull
from worker.ledger import commands
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.jobs import Job, NewJob, Status, rfc3339
from worker.ledger.keys import record_key
from worker.names import WEBHOOKS
from worker.webhooks.events import Kind, index_key

#: Deliveries of a job that are listed, newest first.
MOST = 100

STATUSES = {
    Status.QUEUED: "pending",
    Status.RUNNING: "pending",
    Status.SUCCEEDED: "delivered",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
    Status.EXPIRED: "cancelled",
}


@dataclass(frozen=True, slots=True)
class LoggedDelivery:
    """One event and the attempts to deliver it."""

    job: Job  #: its record in the service ``webhooks``
    next_us: int  #: time of the next attempt; 0: now, or never

    def describe(self) -> dict[str, Any]:
        """As ``docs/webhooks.md`` shows it."""
        about = json.loads(self.job.metadata)
        return {
            "id": self.job.id,
            "webhook_id": about["webhook_id"],
            "type": about["type"],
            "url": about["url"],
            "status": STATUSES[self.job.status],
            "created_at": rfc3339(self.job.created_us),
            "next_attempt_at": rfc3339(self.next_us),
            "finished_at": rfc3339(self.job.finished_us),
            "attempts": self._attempts(),
        }

    def _attempts(self) -> list[dict[str, Any]]:
        """The attempts, oldest first. If the worker died during an attempt, it has no status and no duration."""
        history = [json.loads(line) for line in self.job.history]
        attempts = [_attempt(line["ended_us"], line["error"] or {"message": line["outcome"]}) for line in history]
        if self.job.status is Status.SUCCEEDED:
            attempts.append(_attempt(self.job.finished_us, json.loads(self.job.output or b"{}")))
        return attempts


def _attempt(ended_us: int, result: dict[str, Any]) -> dict[str, Any]:
    measured = {name: result.get(name) for name in ("status_code", "duration_ms")}
    return {"ended_at": rfc3339(ended_us), **measured, "error": result.get("message")}


async def read_deliveries(ledger: AsyncLedger, kind: Kind, id: str) -> list[LoggedDelivery]:
    """The deliveries of a job or batch, newest first."""
    async with ledger.pipeline() as pipe:
        pipe.zrange(index_key(kind, id), 0, MOST - 1, desc=True)
        (ids,) = await pipe.execute()
    async with ledger.pipeline() as pipe:
        for delivery_id in ids:
            pipe.hgetall(record_key(WEBHOOKS, delivery_id.decode()))
            pipe.zscore(f"{{{WEBHOOKS}}}:delayed", delivery_id)
        replies = await pipe.execute() if ids else []
    rows = zip(ids, replies[0::2], replies[1::2], strict=True)
    return [LoggedDelivery(Job.from_record(i.decode(), record), int(due or 0)) for i, record, due in rows if record]


async def deliver_again(ledger: AsyncLedger, kind: Kind, id: str, delivery_id: str) -> LoggedDelivery:
    """Send an event again, at once and with the full number of attempts. Returns the new delivery.

    The new delivery has the same webhook-id. It replaces the earlier delivery, which is cancelled if it has not ended.
    Raises ``DeliveryNotFound``.
    """
    jobs = {delivery.job.id: delivery.job for delivery in await read_deliveries(ledger, kind, id)}
    earlier = jobs.get(delivery_id)
    if earlier is None:
        raise DeliveryNotFound(f"{kind} {id} has no delivery {delivery_id[:100]!r}")
    newest = max(job.created_us for job in jobs.values())
    async with ledger.pipeline() as pipe:
        pipe.hget(record_key(WEBHOOKS, delivery_id), "keep")
        (keep,) = await pipe.execute()
    new = NewJob(WEBHOOKS, earlier.input, metadata=earlier.metadata, keep_for_s=int(keep or 0) / 1e6)
    async with ledger.pipeline() as pipe:
        pipe.zadd(index_key(kind, id), {new.id: newest + 1})
        await pipe.execute()
    (stored,) = await ledger.create([new])
    if isinstance(stored, QueueFull):
        raise stored
    assert isinstance(stored, Job)  # it has no idempotency key
    if not earlier.ended:
        await ledger.run(commands.cancel(WEBHOOKS, earlier.id))
    return LoggedDelivery(stored, 0)
