"""The answers about jobs as models. They describe the JSON that ``worker.ledger.jobs.Job.to_json`` writes.

The JSON is not written by the models: it is made thousands of times a second, of parts that are JSON already.
``tests/http/test_answers.py`` compares both.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from api.operations import Answer, Count, FieldError, Time, choice
from worker.errors import JOB_ERRORS
from worker.ledger.jobs import Priority, Status

Milliseconds = Annotated[float | None, Field(description="milliseconds")]
OUTCOMES = ("running", "succeeded", "failed", "cancelled", "lost", "memory", "timed_out", "handed_back")


class JobError(Answer):
    """The reason why a job, or a run of it, failed."""

    code: Annotated[str, choice(error.code for error in JOB_ERRORS)]
    message: str
    retryable: Annotated[bool, Field(description="whether the same job may succeed if it is sent again")]
    errors: list[FieldError] = Field(default=[])


class Attempt(Answer):
    """One run of a job."""

    attempt: Annotated[int, Field(ge=1)]
    outcome: Annotated[str, choice(OUTCOMES)]
    charged: Annotated[bool, Field(description="whether it counts against max_attempts")]
    started_at: Time | None
    ended_at: Time | None
    worker: Annotated[str, Field(description="host:pid:id")]
    batch: Annotated[str, Field(description="finds its lines, and its traceback, in that worker's log")]
    batch_size: int | None
    version: Annotated[str, Field(description="the plugin's")]
    error: JobError | None


class Timings(Answer):
    """Durations of a job; null where it has not come so far."""

    queued_ms: Milliseconds
    preprocess_ms: Milliseconds
    predict_ms: Milliseconds
    postprocess_ms: Milliseconds
    total_ms: Milliseconds


class JobLinks(Answer):
    """Further addresses about a job."""

    self: str
    events: str
    deliveries: Annotated[str, Field(description="of a job with a webhook")] = ""


class _Job(Answer):
    id: str
    service: str
    version: str
    status: Annotated[str, choice(Status)]
    error: JobError | None
    attempt: Count
    progress: Annotated[float | None, Field(ge=0, le=1)]
    position: Annotated[int | None, Field(ge=0, description="jobs of the service before it")]
    estimated_start_at: Annotated[
        Time | None, Field(description="about when it will start; null where that is not known")
    ]
    not_before: Annotated[Time | None, Field(description="it is not run earlier; null where nothing was asked for")]
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    expires_at: Time | None
    timings: Timings
    batch_size: Annotated[int | None, Field(ge=0)]
    priority: Annotated[str, choice(Priority)]
    metadata: dict[str, Any]
    links: JobLinks
    cached_from: Annotated[str, Field(description="the job whose output this is; only where it is another's")] = ""
    input: Annotated[Any, Field(description="as it was sent; with `?include=input`")] = None
    attempts: Annotated[list[Attempt], Field(default=[], description="oldest first; with `?include=attempts`")]


class Job(_Job):
    """A job. Its output is one of its service's ``Output``."""

    output: Any


class JobRow(_Job):
    """A job in a list."""

    output: Annotated[Any, Field(description="with `?include=output`")] = None


class JobPage(Answer):
    """A page of jobs, newest first."""

    jobs: list[JobRow]
    next_cursor: str | None


class Event(Answer):
    """One server-sent event; OpenAPI 3.1 has no better way to say that a body is many of them."""

    event: Annotated[str, choice(("status", "progress", "log", "output"))] = ""
    id: Annotated[str, Field(description="for `Last-Event-ID`")] = ""
    data: Annotated[str, Field(json_schema_extra={"contentMediaType": "application/json"})] = ""
    retry: Annotated[int, Field(description="in the first event, which has no other member: milliseconds")] = 0
