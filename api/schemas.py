"""The parts of the OpenAPI document that are the same whatever is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from worker.addresses import MAX_URL
from worker.jobs import Priority
from worker.webhooks import BATCH_EVENTS, JOB_EVENTS

Schema = dict[str, Any]

TIME: Schema = {"type": ["string", "null"], "format": "date-time"}


def make_ref(name: str) -> Schema:
    """Points at a component."""
    return {"$ref": f"#/components/schemas/{name}"}


def make_object(properties: Schema, required: list[str] | None = None) -> Schema:
    """An object with these members; all are required unless ``required`` names some."""
    return {"type": "object", "properties": properties, "required": list(properties) if required is None else required}


FIELD_ERRORS: Schema = {
    "type": "array",
    "items": make_object(
        {
            "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
            "msg": {"type": "string"},
            "type": {"type": "string"},
        }
    ),
}

JOB_ERROR = make_object(
    {
        "code": {
            "enum": ["invalid_input", "predict_failed", "worker_lost", "timed_out", "invalid_output", "service_failed"]
        },
        "message": {"type": "string"},
        "retryable": {"type": "boolean"},
        "errors": FIELD_ERRORS,
    },
    ["code", "message", "retryable"],
)

ATTEMPT = make_object(
    {
        "attempt": {"type": "integer", "minimum": 1},
        "outcome": {
            "enum": ["running", "succeeded", "failed", "cancelled", "lost", "memory", "timed_out", "handed_back"]
        },
        "charged": {"type": "boolean", "description": "whether it counts against max_attempts"},
        "started_at": TIME,
        "ended_at": TIME,
        "worker": {"type": "string", "description": "host:pid:id"},
        "batch": {
            "type": "string",
            "description": "finds its lines, and its traceback, in that worker's log",
        },
        "batch_size": {"type": ["integer", "null"]},
        "version": {"type": "string", "description": "the plugin's"},
        "error": {"anyOf": [{"$ref": "#/components/schemas/JobError"}, {"type": "null"}]},
    }
)

PROBLEM = make_object(
    {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "errors": FIELD_ERRORS,
        "services": {"type": "array", "items": {"type": "string"}},
    },
    ["type", "title", "status", "detail", "code"],
)

SERVICE = make_object(
    {
        "name": {"type": "string"},
        "version": {"type": "string"},
        "description": {"type": "string"},
        "input_schema": {"type": ["object", "null"]},
        "output_schema": {"type": ["object", "null"]},
        "example": {"description": "a valid input; null where the schema has none"},
        "knobs": {"type": ["object", "null"], "description": "null before a worker has run"},
        "state": {"enum": ["ready", "loading", "failed", "no_workers"]},
        "reason": {"type": ["string", "null"], "description": "why it is `failed`"},
        "workers": {"type": "integer", "minimum": 0},
        "queue_depth": {"type": "integer", "minimum": 0},
        "oldest_age_s": {"type": "number", "minimum": 0},
    }
)


ROWS: Schema = {"type": "integer", "minimum": 0}

BATCH = make_object(
    {
        "id": {"type": "string"},
        "service": {"type": "string"},
        "version": {"type": "string"},
        "status": {"enum": ["queued", "running", "succeeded", "failed", "cancelled"]},
        "total": {"type": "integer", "minimum": 1},
        "counts": make_object(dict.fromkeys(("queued", "running", "succeeded", "failed", "cancelled"), ROWS)),
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "created_at": {"type": "string", "format": "date-time"},
        "finished_at": TIME,
        "expires_at": TIME,
        "priority": {"enum": list(Priority)},
        "metadata": {"type": "object"},
        "links": make_object(
            {"self": {"type": "string"}, "results": {"type": "string"}, "deliveries": {"type": "string"}},
            ["self", "results"],
        ),
    }
)


def make_webhook(events: Sequence[str]) -> Schema:
    """What a request says of its webhook."""
    url: Schema = {"type": "string", "format": "uri", "maxLength": MAX_URL}
    named: Schema = {"type": ["array", "null"], "items": {"enum": list(events)}, "minItems": 1}
    full = {**make_object({"url": url, "events": named}, ["url"]), "additionalProperties": False}
    return {"anyOf": [url, full, {"type": "null"}], "description": "told of the end; without `events`, of any"}


DELIVERY = make_object(
    {
        "id": {"type": "string"},
        "webhook_id": {"type": "string", "description": "the header `webhook-id`: the same each time it is sent"},
        "type": {"enum": [*JOB_EVENTS, *BATCH_EVENTS]},
        "url": {"type": "string"},
        "status": {"enum": ["pending", "delivered", "failed", "cancelled"]},
        "created_at": TIME,
        "next_attempt_at": TIME,
        "finished_at": TIME,
        "attempts": {
            "type": "array",
            "items": make_object(
                {
                    "ended_at": TIME,
                    "status_code": {"type": ["integer", "null"]},
                    "duration_ms": {"type": ["number", "null"]},
                    "error": {"type": ["string", "null"]},
                }
            ),
        },
    }
)

#: One server-sent event; OpenAPI 3.1 has no better way to say that a body is many of them.
EVENT = make_object(
    {
        "event": {"enum": ["status", "progress", "log", "output"]},
        "id": {"type": "string", "description": "for `Last-Event-ID`"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer", "description": "in the first, which bears nothing else: milliseconds"},
    },
    [],
)

_STREAM = """Server-sent events up to the job's end; a comment after 15 s without one. The data of each is JSON.
`status`: the job, as `GET /jobs/{id}` shows it; the last one's is terminal. `progress`: `{"progress", "message"}`, from
0 to 1. `log`: `{"level", "message", "logger"?}`. `output`: `{"index", "output"}`, a partial output."""

#: What ``GET /jobs/{id}/events`` answers, and what it may be asked.
STREAM: Schema = {"description": _STREAM, "content": {"text/event-stream": {"schema": make_ref("Event")}}}
LAST_EVENT: Schema = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "the `id` of the last event that was received: go on after it",
    "schema": {"type": "string"},
}

FILE = make_object(
    {
        "id": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "size": {"type": "integer", "minimum": 1},
        "content_type": {"type": "string"},
        "sha256": {"type": "string", "description": "the same as its id"},
        "created_at": {"type": "string", "format": "date-time"},
        "expires_at": {"type": "string", "format": "date-time"},
        "links": make_object({name: {"type": "string"} for name in ("self", "content", "download")}),
    }
)


def _text(description: str, *types: str) -> Schema:
    return {"200": {"description": description, "content": {kind: {"schema": {"type": "string"}} for kind in types}}}


METRICS = _text("Also while Redis is away", "text/plain", "application/openmetrics-text")
CONSOLE = _text("The page", "text/html")
