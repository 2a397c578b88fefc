"""The answers about batches as models. They describe what ``worker.ledger.batches.StoredBatch.to_json`` writes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from api.operations import Answer, Count, Time, choice
from worker.ledger.jobs import Priority


class Counts(Answer):
    """Inputs of a batch by state."""

    queued: Count
    running: Count
    succeeded: Count
    failed: Count
    cancelled: Count


class BatchLinks(Answer):
    """Further addresses about a batch."""

    self: str
    events: str
    results: str
    retry: str
    deliveries: Annotated[str, Field(description="of a batch with a webhook")] = ""


class Batch(Answer):
    """A batch: its counts and its progress. Its results are at ``links.results``."""

    id: str
    service: str
    version: str
    status: Annotated[str, choice(("queued", "running", "succeeded", "failed", "cancelled"))]
    total: Annotated[int, Field(ge=1)]
    counts: Counts
    progress: Annotated[float, Field(ge=0, le=1)]
    created_at: Time
    finished_at: Time | None
    expires_at: Time | None
    priority: Annotated[str, choice(Priority)]
    metadata: dict[str, Any]
    links: BatchLinks
