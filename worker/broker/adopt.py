"""Other producers' Celery messages become jobs of the ledger.

Every message is stored, failed or dropped alone, with a line in the log: a broken one affects no other.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import redis

from worker.broker.messages import AdoptedJob, Broker, read_message
from worker.errors import InvalidInput
from worker.filestore.holds import hold_named
from worker.ledger.sync_ledger import Ledger
from worker.settings import Settings

log = logging.getLogger("services.worker")

#: Errors of Redis about one command's arguments.
REFUSED = (redis.DataError, ValueError, TypeError, OverflowError, RecursionError)


def adopt(ledger: Ledger, settings: Settings, name: str, messages: Sequence[bytes], broker: Broker = "redis") -> None:
    """Store jobs for messages of a service's queue; a message that is no job is logged and dropped.

    Raises redis-py's errors where the ledger cannot be reached; then all may be given again.
    """
    adopted_jobs = []
    for raw in messages:
        try:
            adopted_jobs.append(read_message(name, raw, settings, broker))
        except Exception as problem:  # it may hold anything
            log.error("dropped a message in queue %s that is no Celery task: %s: %.200r", name, problem, raw)
    if adopted_jobs:
        _store(ledger, settings, name, adopted_jobs)


def _store(ledger: Ledger, settings: Settings, name: str, adopted_jobs: Sequence[AdoptedJob]) -> None:
    """All in one call; where one of them makes that impossible, one by one."""
    try:
        for adopted in adopted_jobs:
            hold_named(ledger, name, adopted.job.id, adopted.job.owner, adopted.job.input)
        states = ledger.adopt(
            name, [adopted.job for adopted in adopted_jobs], [_error_of(adopted.error) for adopted in adopted_jobs]
        )
    except REFUSED as problem:
        if len(adopted_jobs) == 1:
            job = adopted_jobs[0].job
            log.error("dropped a message in queue %s that cannot be stored: %s: %.200r", name, problem, job)
            return
        for adopted in adopted_jobs:
            _store(ledger, settings, name, [adopted])
        return
    for adopted, state in zip(adopted_jobs, states, strict=True):
        _log(name, adopted, state)
        if adopted.error and adopted.followers and not settings.cluster:
            _fail_followers(ledger, settings, adopted)


def _error_of(error: InvalidInput | None) -> bytes:
    return json.dumps(error.to_dict()).encode() if error else b""


def _log(name: str, adopted: AdoptedJob, state: str) -> None:
    if state == "other":
        line = "job %s of service %s was sent again with another input: its first input counts, this one is ignored; "
        log.warning(line + "give each job a task_id of its own", adopted.job.id, name)
    elif state == "revoked":
        log.info("job revoked id=%s service=%s before a worker had taken it", adopted.job.id, name)
    else:
        log.info("job adopted id=%s service=%s from another Celery producer", adopted.job.id, name)


def _fail_followers(ledger: Ledger, settings: Settings, adopted: AdoptedJob) -> None:
    """Fail the tasks that were to follow a refused one, as Celery does: producers may wait for them."""
    reason = adopted.error.message if adopted.error else ""
    for job_id in adopted.followers:
        message = f"it was to follow task {adopted.job.id}, which was refused: {reason}"
        meta: dict[str, Any] = {
            "status": "FAILURE",
            "result": {"exc_type": "InvalidInput", "exc_message": [message], "exc_module": "worker.errors"},
            "traceback": None,
            "children": [],
            "date_done": datetime.now(UTC).isoformat(),
            "task_id": job_id,
        }
        key, text = f"celery-task-meta-{job_id}", json.dumps(meta)
        if ledger.redis.set(key, text, px=round(settings.keep_for_s * 1000), nx=True):
            ledger.redis.publish(key, text)
