"""Celery's result backend over the ledger, so that ``AsyncResult(id)`` and ``GET /jobs/<id>`` always agree.

It only reads: results are written by ``ledger.lua``, which also stores and publishes each as stock Celery does. That
is what ``AsyncResult.get`` waits for, here and in programs that have no more than Celery and a ``redis://`` backend.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

from celery import states
from celery.backends.redis import RedisBackend, SentinelBackend

from worker.jobs import Job, Status
from worker.ledger import Ledger
from worker.settings import get_settings

#: How a job's status reads in Celery's words.
CELERY_STATES = {
    Status.QUEUED: states.PENDING,
    Status.RUNNING: states.STARTED,
    Status.SUCCEEDED: states.SUCCESS,
    Status.FAILED: states.FAILURE,
    Status.CANCELLED: states.REVOKED,
    Status.EXPIRED: states.REVOKED,
}


class LedgerBackend(RedisBackend):  # type: ignore[misc]  # celery ships no types
    """``AsyncResult`` for jobs of either origin: the API's and any Celery producer's."""

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger that the results are read from."""
        return Ledger(get_settings())

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        job = self.ledger.get(task_id)
        if job is None or job.ended:
            meta: dict[str, Any] = super()._get_task_meta_for(task_id)
            return meta
        return {"status": CELERY_STATES[job.status], "result": _running_result(job)}

    def store_result(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        """Celery stores nothing here but a revoke, which cancels the job."""
        if state == states.REVOKED:
            self.ledger.cancel(task_id)
        return result


def _running_result(job: Job) -> dict[str, Any] | None:
    return json.loads(job.to_json())["timings"] if job.status is Status.RUNNING else None


class SentinelLedgerBackend(LedgerBackend, SentinelBackend):  # type: ignore[misc]
    """The same where Sentinel names the master."""
