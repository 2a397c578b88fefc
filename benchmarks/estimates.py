"""How good ``estimated_start_at`` is: asked for at random moments, and compared with when the jobs did start."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from benchmarks.measures import Figures, folder, say
from benchmarks.models import MODELS
from benchmarks.stacks import Ours, example_of

#: A run takes 100 ms (of one row) or 200 ms (of 16), always or in the mean.
MODEL_NAMES = ("steady", "steady16", "varying", "varying16")
#: Seconds between two questions.
ASK_S = 0.03
#: A relative error says nothing of a wait that is as short as this.
LEAST_WAIT_S = 0.02


@dataclass(frozen=True, slots=True)
class Asked:
    """The API's estimate of one job at one moment. Times are seconds since the epoch, of one clock."""

    job_id: str
    at: float
    estimate: float | None


def estimate(rounds: int, runs: int) -> Figures:
    """Each model with one and with two workers; a round is a queue of ``runs`` runs for each worker."""
    found: Figures = defaultdict(list)
    for model, workers, batched in (*itertools.product(MODEL_NAMES, (1, 2), (False,)), ("steady16", 2, True)):
        with Ours(folder(), model, with_worker=False) as stack:
            for _ in range(workers):
                stack.start_worker()
            jobs = runs * workers * MODELS[model].max_batch_size
            for number in range(rounds):
                about = f"{model}, {workers} worker(s){', a batch among them' if batched else ''}"
                _round(stack, jobs, jobs // 2 if batched else 0, f"{about}, {'later' if number else 'first'}:", found)
                say(found)
    return found


def _round(stack: Ours, jobs: int, rows: int, about: str, found: Figures) -> None:
    """Half of the jobs at once, the others while those are worked off; the figures of the estimates meanwhile.

    Args:
        rows: of a ``POST /batches`` in the midst of the first half; 0: none.
    """
    with httpx.Client(base_url=f"http://127.0.0.1:{stack.port}", trust_env=False, timeout=30) as client:
        ids = _send(client, stack.model, jobs // 4)
        if rows:
            batch = {"service": stack.model, "inputs": [example_of(stack.model)] * rows, "priority": "normal"}
            client.post("/batches", json=batch).raise_for_status()
        ids += _send(client, stack.model, jobs // 4)
        late, asked = jobs - len(ids), list[Asked]()
        while stack.waiting():
            if late:
                more = min(late, max(1, jobs // 100))
                ids += _send(client, stack.model, more)
                late -= more
            asked += _ask(client, random.choice(ids))
            time.sleep(ASK_S)
        started = {told.job_id: _started(client, told.job_id) for told in asked}
    waits = [(told, started[told.job_id] - told.at) for told in asked]
    known = [(told.estimate - told.at - wait, wait) for told, wait in waits if told.estimate is not None]
    errors = [abs(error) for error, _ in known]
    relative = [abs(error) / wait for error, wait in known if wait > LEAST_WAIT_S]
    found[f"{about} questions"].append(len(asked))
    found[f"{about} of these without an estimate"].append(len(asked) - len(known))
    found[f"{about} wait, median s"].append(statistics.median(wait for _, wait in waits))
    found[f"{about} error, median s"].append(statistics.median(errors))
    found[f"{about} error, p90 s"].append(_p90(errors))
    found[f"{about} relative error, median"].append(statistics.median(relative))
    found[f"{about} relative error, p90"].append(_p90(relative))
    found[f"{about} signed relative error, median"].append(
        statistics.median(e / w for e, w in known if w > LEAST_WAIT_S)
    )


def _send(client: httpx.Client, model: str, jobs: int) -> list[str]:
    body = json.dumps({"service": model, "input": example_of(model)}).encode()
    return [client.post("/jobs", content=body).raise_for_status().json()["id"] for _ in range(jobs)]


def _ask(client: httpx.Client, job_id: str) -> list[Asked]:
    """Nothing where the job has begun."""
    at, job = time.time(), client.get(f"/jobs/{job_id}").raise_for_status().json()
    return [Asked(job_id, at, _seconds(job["estimated_start_at"]))] if job["status"] == "queued" else []


def _started(client: httpx.Client, job_id: str) -> float:
    job: Any = client.get(f"/jobs/{job_id}?wait=30").raise_for_status().json()
    started = _seconds(job["started_at"])
    if started is None:
        raise RuntimeError(f"job {job_id} has not started: {job}")
    return started


def _seconds(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


def _p90(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=10)[-1]
