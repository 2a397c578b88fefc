"""The holds of jobs on files, on the worker's side: a held file is not removed before the job has ended.

The API holds files when it accepts a job (``async_store``). This module does so for the jobs of other Celery producers,
and for those that ``services retry`` runs again.
"""

from __future__ import annotations

from worker.files import named_ids
from worker.filestore.storage import AT_ONCE, EXPIRES_KEY, GRACE_US, LUA
from worker.ledger.commands import not_found
from worker.ledger.jobs import RETRYABLE
from worker.ledger.sync_ledger import Ledger


def hold_named(ledger: Ledger, service: str, job_id: str, owner: str, input: bytes) -> None:
    """Hold the files that a job's input (JSON) names. A missing file is reported when the job runs.

    Args:
        owner: the API key to which the job belongs; "": none, so the job may use the files of all keys.
    """
    ids = named_ids(input)
    if not ids:
        return
    hold = ledger.redis.register_script(LUA)
    for start in range(0, len(ids), AT_ONCE):
        some = ids[start : start + AT_ONCE]
        hold(keys=[EXPIRES_KEY], args=["hold", f"{service}/{job_id}", GRACE_US, owner, *some])


def run_again(ledger: Ledger, job_id: str) -> None:
    """Run a failed, cancelled or expired job again, with its files. Raises as ``Ledger.retry`` does."""
    job = ledger.get(job_id)
    if job and job.group:  # a chunk of a batch is no job
        raise not_found(job_id)
    if job and job.status in RETRYABLE:
        hold_named(ledger, job.service, job_id, job.owner, ledger.get_input(job))
    ledger.retry(job_id)
