"""Keys and channels of the ledger in Redis. A service's keys have one hash tag, so a Cluster has them on one node."""

from __future__ import annotations

import hashlib

#: Channel on which ended jobs are published: a JSON array of ids, and of arrays that ``End`` reads.
ENDED_CHANNEL = "jobs:ended"
#: Channel with the ids of jobs and batches that have new events and that an API process follows.
TOLD_CHANNEL = "jobs:told"
#: Set of the services that ever had a job or a worker.
SERVICES_KEY = "services"


def record_key(service: str, job_id: str) -> str:
    """The hash that holds a job."""
    return f"{{{service}}}:job:{job_id}"


def batch_key(service: str, batch_id: str) -> str:
    """The hash that holds a batch."""
    return f"{{{service}}}:batch:{batch_id}"


def seen_key(service: str, job_id: str) -> str:
    """The string that shows that the service had such a job, from its end on; such a batch, from its beginning on."""
    return f"{{{service}}}:seen:{job_id}"


def promise_key(service: str, hashed: str) -> str:
    """The string that names the job of an ``Idempotency-Key``."""
    return f"{{{service}}}:idempotency:{hashed}"


def hash_promise(key: str, owner: str = "") -> str:
    """An ``Idempotency-Key`` as it is stored; "" for none. Those of two API keys are never the same."""
    return hashlib.sha256((f"{owner} {key}" if owner else key).encode()).hexdigest() if key else ""
