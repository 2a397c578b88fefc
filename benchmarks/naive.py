"""FastAPI + Celery + Redis as the tutorials write it: one task a request, batches of one, the client polls."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from celery import Celery
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.models import MODELS, Model

app = Celery("naive", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.update(broker_connection_retry_on_startup=True)
api = FastAPI()


class Request(BaseModel):
    """The body of a prediction's request."""

    model: str
    input: dict[str, Any]


@lru_cache
def load(name: str) -> Model:
    """Loaded once a process."""
    model: Model = MODELS[name]()
    return model


@app.task  # type: ignore[untyped-decorator]
def predict(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """One row."""
    return {"score": load(name).predict_batch([row])[0]}


@api.post("/predict", status_code=202)
def create(request: Request) -> dict[str, Any]:
    """Send the task."""
    return {"id": predict.delay(request.model, request.input).id, "status": "PENDING"}


@api.get("/result/{job_id}")
def read(job_id: str) -> dict[str, Any]:
    """The task's state and result."""
    result = app.AsyncResult(job_id)
    return {"id": job_id, "status": result.state, "output": result.result if result.successful() else None}


@api.get("/empty")
async def empty() -> dict[str, Any]:
    """The cost of an empty route."""
    return {}
