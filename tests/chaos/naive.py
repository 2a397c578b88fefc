"""What most teams have: FastAPI + Celery + Redis as the tutorials write it, for comparison under the same faults."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from fastapi import FastAPI, HTTPException

from tests.chaos.service import run

#: ``celery-facts.md`` names these as the safest that Celery offers on Redis.
BEST: dict[str, Any] = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "worker_prefetch_multiplier": 1,
    # Redelivery of what a dead worker held; shorter than a job, and it runs twice.
    "broker_transport_options": {"visibility_timeout": 30},
    "broker_connection_max_retries": None,
}

app = Celery("naive", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.update(broker_connection_retry_on_startup=True, **(BEST if os.environ.get("NAIVE_BEST") else {}))
api = FastAPI()

STATUSES = {"PENDING": "queued", "STARTED": "running", "RETRY": "queued", "SUCCESS": "succeeded", "FAILURE": "failed"}


@app.task(name="chaos.predict")  # type: ignore[untyped-decorator]
def predict(input: dict[str, Any]) -> dict[str, Any]:
    """One job; a batch of one."""
    (n,) = run([(input["n"], input.get("sleep_s", 0), input.get("do", ""))])
    return {"n": n}


@api.post("/jobs", status_code=202)
def create(job: dict[str, Any]) -> dict[str, Any]:
    """Send the task."""
    try:
        return {"id": predict.apply_async(args=[job["input"]], retry=False).id, "status": "queued"}
    except Exception as error:  # the broker is away
        raise HTTPException(503) from error


@api.get("/jobs/{job_id}")
def read(job_id: str) -> dict[str, Any]:
    """The task's state: PENDING also for an id that never was."""
    try:
        result = app.AsyncResult(job_id)
        status = STATUSES[result.state]
        output = result.result if status == "succeeded" else None
    except Exception as error:
        raise HTTPException(503) from error
    return {"id": job_id, "status": status, "output": output, "error": None, "attempt": 1}


@api.get("/healthz")
def health() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}
