"""What most teams have: FastAPI + Celery + Redis as the tutorials write it, for comparison under the same faults."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from fastapi import FastAPI, HTTPException

from tests.chaos.service import run

#: The safest that Celery offers on Redis.
BEST: dict[str, Any] = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "worker_prefetch_multiplier": 1,
    # After the first, what a dead worker held is delivered again; it must be longer than any job (here 2 s), which else
    # runs twice. The next two let kombu look for such messages every second, not every 100 s.
    "broker_transport_options": {
        "visibility_timeout": 5,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "health_check_interval": 5,
        "socket_keepalive": True,
    },
    "result_backend_always_retry": True,
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
        error = {"code": error_code(result.result)} if status == "failed" else None
    except Exception as problem:
        raise HTTPException(503) from problem
    return {"id": job_id, "status": status, "output": output, "error": error, "attempt": 1}


def error_code(raised: Any) -> str:
    """``predict_failed`` for what the task itself raised, else the name of Celery's own, such as WorkerLostError."""
    return "predict_failed" if isinstance(raised, ValueError) else type(raised).__name__


@api.get("/healthz")
def health() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}
