"""Other producers' Celery messages become jobs of the ledger."""

from __future__ import annotations

import base64
import json
import logging
from datetime import UTC, datetime
from typing import Any

from worker.dispatch import task_name
from worker.errors import InvalidInput
from worker.holding import hold_named
from worker.jobs import NewJob
from worker.ledger import Ledger
from worker.settings import Settings

log = logging.getLogger("services.worker")


def adopt(ledger: Ledger, settings: Settings, name: str, messages: list[bytes]) -> None:
    """Other producers' messages become jobs of the ledger; what is no job at all is logged and dropped."""
    jobs, errors = [], []
    for raw in messages:
        try:
            job, error = read_message(name, raw, settings.keep_for_s)
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            log.error("dropped a message in queue %s that is no Celery task: %s: %.200r", name, problem, raw)
            continue
        log.info("job adopted id=%s service=%s from another Celery producer", job.id, name)
        jobs.append(job)
        errors.append(json.dumps(error.to_dict()).encode() if error else b"")
    for job in jobs:
        hold_named(ledger, name, job.id, job.owner, job.input)
    if jobs:
        ledger.adopt(name, jobs, errors)


def read_message(service: str, raw: bytes, keep_for_s: float) -> tuple[NewJob, InvalidInput | None]:
    """Another producer's Celery message (protocol 2, JSON) as a job, and why it cannot run, if so.

    Raises ValueError, KeyError, TypeError or AttributeError for what is no such message.
    """
    message = json.loads(raw)
    headers = message["headers"]
    job_id = headers["id"]
    if not isinstance(job_id, str):
        raise TypeError(f"the task's id must be a string, got {job_id!r}")
    error, text = None, b"null"
    start_within_s = 0.0
    try:
        _check_headers(service, message)
        start_within_s = _seconds_until(headers.get("expires"))
        text = _input_of(message)
    except (InvalidInput, ValueError, TypeError) as problem:
        error = problem if isinstance(problem, InvalidInput) else InvalidInput(f"the message's body: {problem}")
    job = NewJob(service=service, id=job_id, input=text, keep_for_s=keep_for_s, start_within_s=start_within_s)
    return job, error


def _check_headers(service: str, message: dict[str, Any]) -> None:
    headers, kind = message["headers"], message.get("content-type")
    if kind != "application/json":
        raise InvalidInput(f"messages must be application/json; {kind} is refused")
    if headers.get("task") != task_name(service):
        raise InvalidInput(f"queue {service} runs the task {task_name(service)!r}, not {headers.get('task')!r}")
    if headers.get("eta"):
        raise InvalidInput("eta and countdown are not supported: send the job when it is due")


def _input_of(message: dict[str, Any]) -> bytes:
    """The one argument of the task, as JSON."""
    body = message["body"]
    if message.get("properties", {}).get("body_encoding") == "base64":
        body = base64.b64decode(body, validate=True)
    args, kwargs, _ = json.loads(body, parse_constant=_refuse_constant)
    if len(args) == 1 and not kwargs:
        value = args[0]
    elif not args and set(kwargs) == {"input"}:
        value = kwargs["input"]
    else:
        given = f"{len(args)} args and kwargs {sorted(kwargs)}"
        raise InvalidInput(f"the task takes one argument, the input: args=[{{…}}]; got {given}")
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _refuse_constant(name: str) -> None:
    raise InvalidInput(f"{name} is not JSON")


def _seconds_until(expires: str | None) -> float:
    """Celery's ``expires`` header as seconds from now: at least a microsecond, since 0 means "never"."""
    if not expires:
        return 0
    moment = datetime.fromisoformat(expires)
    return max((moment.astimezone(UTC) - datetime.now(UTC)).total_seconds(), 1e-6)
