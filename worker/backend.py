"""Celery's result backend over the ledger, so that ``AsyncResult(id)`` and ``GET /jobs/<id>`` always agree.

It only reads: results are written by ``ledger.lua``, which also stores and publishes each as stock Celery does. That
is what ``AsyncResult.get`` waits for, here and in programs that have no more than Celery and a ``redis://`` backend.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

from celery import states
from celery.backends.base import BaseBackend
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


class ClusterLedgerBackend(BaseBackend):  # type: ignore[misc]
    """The same where the ledger is in a Redis Cluster, in which Celery keeps nothing: a result is asked for again."""

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger that the results are read from."""
        return Ledger(get_settings())

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        job = self.ledger.get(task_id)
        if job is None:
            return {"status": states.PENDING, "result": None}
        return {"status": CELERY_STATES[job.status], "result": _result(job)}

    def store_result(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        """Celery stores nothing here but a revoke, which cancels the job."""
        if state == states.REVOKED:
            self.ledger.cancel(task_id)
        return result


def _result(job: Job) -> Any:
    """What ``tell_celery`` in ``ledger.lua`` writes elsewhere."""
    if job.status is Status.SUCCEEDED:
        return json.loads(job.output or b"null")
    if job.status is Status.FAILED:
        problem = json.loads(job.error or b"{}")
        name = "".join(word.capitalize() for word in problem["code"].split("_"))
        return {"exc_type": name, "exc_message": [problem["message"]], "exc_module": "worker.errors"}
    if job.ended:
        return {"exc_type": "TaskRevokedError", "exc_message": [job.status.value], "exc_module": "celery.exceptions"}
    return _running_result(job)


class SentinelLedgerBackend(LedgerBackend, SentinelBackend):  # type: ignore[misc]
    """The same where Sentinel names the master."""
