"""Another producer's Celery message, by protocol 1 or 2, read as a job."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from worker.broker.decode import dump, read_body
from worker.broker.options import CANVAS, check_options
from worker.errors import InvalidInput, to_utf8
from worker.ledger.jobs import NewJob, Priority
from worker.names import task_name
from worker.settings import Settings

Broker = Literal["redis", "rabbitmq"]

MAX_ID = 1000
#: An ``eta`` that is further ahead is refused.
MAX_AHEAD_S = 30 * 86_400
#: An ``expires`` that is further ahead is as good as this one.
MAX_EXPIRES_S = 100 * 365 * 86_400
#: The least urgent priority of kombu's Redis transport, where 0 is the most urgent one and stands for none too.
REDIS_LAST = 9
#: The most urgent priority that Celery advises for RabbitMQ, where 0 is the least urgent one and stands for none too.
RABBITMQ_FIRST = 10
#: Most signatures of one message whose tasks get a result that says that they will not run.
MAX_FOLLOWERS = 1000


@dataclass(frozen=True, slots=True)
class AdoptedJob:
    """A message as a job."""

    job: NewJob
    error: InvalidInput | None = None  #: why it cannot run
    followers: tuple[str, ...] = ()  #: ids of tasks that were to be sent after it, which nobody will send


def read_message(service: str, raw: bytes, settings: Settings, broker: Broker = "redis") -> AdoptedJob:
    """A message, as kombu's Redis transport keeps it, as a job. Raises an exception for any other message."""
    message = json.loads(raw)
    headers = message.get("headers") or {}
    job_id, body, error = headers.get("id"), None, None
    try:
        body = read_body(message, settings.max_body_bytes)
        if "task" not in headers:  # protocol 1: all is in the body
            job_id, headers, body = body["id"], body, _embed(body)
    except Exception as problem:  # a bad body fails its own job alone
        error = _as_invalid(problem)
        job_id = job_id or (message.get("properties") or {}).get("correlation_id")
    job = NewJob(service=service, id=_check_id(job_id), input=b"null", keep_for_s=settings.keep_for_s)
    if error:
        return AdoptedJob(job, error)
    return _read_task(job, message, headers, body, broker)


def _read_task(job: NewJob, message: dict[str, Any], headers: dict[str, Any], body: Any, broker: Broker) -> AdoptedJob:
    followers: tuple[str, ...] = ()
    fields: dict[str, Any] = {"priority": job.priority}
    error = None
    try:
        if headers.get("task") != task_name(job.service):
            expected = f"queue {job.service} runs the task {task_name(job.service)!r}"
            raise InvalidInput(f"{expected}, not {headers.get('task')!r:.100}")
        args, kwargs, embed = body
        canvas = {field: (embed or {}).get(field) for field in CANVAS}
        followers = tuple(_find_ids(list(canvas.values())))
        fields["input"] = _input_of(args or [], kwargs or {})
        fields |= _read_priority((message.get("properties") or {}).get("priority"), broker)
        fields |= _read_times(headers)
        check_options(canvas, headers.get("timelimit") or ())
    except Exception as problem:  # the same
        error = _as_invalid(problem)
    made = NewJob(service=job.service, id=job.id, keep_for_s=job.keep_for_s, **{"input": job.input} | fields)
    return AdoptedJob(made, error, followers if error else ())


def _embed(body: dict[str, Any]) -> list[Any]:
    """A body of protocol 1 as one of protocol 2."""
    return [body.get("args"), body.get("kwargs"), {field: body.get(field) for field in CANVAS}]


def _check_id(job_id: Any) -> str:
    if not _is_id(job_id):
        raise TypeError(f"the task's id must be a text of 1 to {MAX_ID} characters, got {job_id!r:.100}")
    return str(job_id)


def _is_id(job_id: Any) -> bool:
    """Whether it can be an id; half a surrogate pair is no text."""
    return isinstance(job_id, str) and 0 < len(job_id) <= MAX_ID and to_utf8(job_id) == job_id


def _as_invalid(problem: Exception) -> InvalidInput:
    if isinstance(problem, InvalidInput):
        return problem
    return InvalidInput(to_utf8(f"the message cannot be read: {type(problem).__name__}: {problem}")[:1000])


def _find_ids(values: list[Any]) -> Iterator[str]:
    """The ids of all signatures in some; those of a chain lie in its steps, those of a chord in its header and body."""
    count = 0
    while values and count < MAX_FOLLOWERS:
        value = values.pop()
        if isinstance(value, list):
            values += value
        elif isinstance(value, dict) and isinstance(value.get("options"), dict):
            job_id = value["options"].get("task_id")
            if _is_id(job_id):
                count += 1
                yield job_id
            kwargs = value.get("kwargs")
            if str(value.get("task")).startswith("celery.") and isinstance(kwargs, dict):
                values += [kwargs.get(part) for part in ("tasks", "header", "body")]
            values += [value["options"].get(part) for part in ("link", "chord", "chain")]


def _input_of(args: list[Any], kwargs: dict[str, Any]) -> bytes:
    """The one argument of the task, as JSON."""
    if len(args) == 1 and not kwargs:
        return dump(args[0])
    if not args and set(kwargs) == {"input"}:
        return dump(kwargs["input"])
    given = f"{len(args)} args and kwargs {sorted(kwargs)}"
    raise InvalidInput(f"the task takes one argument, the input: args=[{{…}}]; got {given}")


def _read_priority(given: object, broker: Broker) -> dict[str, Any]:
    """Celery's number as one of our priorities, and its place between two of them.

    As Celery documents it: in Redis 0 is the most urgent one, in RabbitMQ the least urgent; none given is 0 in both.
    """
    number = int(given) if isinstance(given, int | float) and math.isfinite(given) else 0
    if broker == "redis":
        steps = min(max(number, 0), REDIS_LAST) / REDIS_LAST
    else:
        steps = -min(max(number, 0), RABBITMQ_FIRST) / RABBITMQ_FIRST
    nearest = Priority.NORMAL if abs(steps) < 0.5 else Priority.LOW if steps > 0 else Priority.HIGH
    return {"priority": nearest, "priority_steps": steps}


def _read_times(headers: dict[str, Any]) -> dict[str, Any]:
    """``eta`` (which ``countdown`` becomes at sending) and ``expires``."""
    now = time.time()
    eta, expires = _moment("eta", headers.get("eta"), now), _moment("expires", headers.get("expires"), now)
    times: dict[str, Any] = {}
    if eta and eta > now + MAX_AHEAD_S:
        days = MAX_AHEAD_S // 86_400
        raise InvalidInput(f"eta or countdown is more than {days} days ahead ({headers['eta']}): send the job later")
    begin = max(eta or now, now)
    if begin > now:
        times["not_before_us"] = math.ceil(begin * 1e6)
    if expires:  # 0 would be "never"
        times["start_within_s"] = min(max(expires - begin, 1e-6), MAX_EXPIRES_S)
    return times


def _moment(name: str, given: object, now: float) -> float | None:
    """Celery's time (ISO 8601, UTC where it names no zone), or a number of seconds from now, as seconds since 1970."""
    if given is None or given == "":
        return None
    if isinstance(given, str):
        try:
            moment = datetime.fromisoformat(given)
        except ValueError:
            raise InvalidInput(f"{name} must be an ISO 8601 time or seconds, got {given!r:.100}") from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise InvalidInput(f"{name} must be an ISO 8601 time or seconds, got {given!r:.100}")
    return now + given
