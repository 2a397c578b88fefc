"""The parts of the OpenAPI document that know nothing of the routes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode

from api.plain_schema import describe_safely
from worker.ledger.jobs import Priority
from worker.net.addresses import MAX_URL
from worker.webhooks.events import BATCH_EVENTS, JOB_EVENTS

Schema = dict[str, Any]

TIME: Schema = {"type": ["string", "null"], "format": "date-time"}


def make_ref(name: str) -> Schema:
    """Points at a component."""
    return {"$ref": f"#/components/schemas/{name}"}


def make_object(properties: Schema, required: list[str] | None = None) -> Schema:
    """An object with these members; all are required unless ``required`` names some."""
    return {"type": "object", "properties": properties, "required": list(properties) if required is None else required}


def make_enum(values: Iterable[str], **more: Any) -> Schema:
    """One of these texts. Generators of clients need the type beside the values."""
    return {"type": "string", "enum": [str(value) for value in values], **more}


def describe_models(name: str, input: type[BaseModel] | None, output: type[BaseModel] | None) -> dict[str, Schema]:
    """A service's Input and Output; their own definitions bear its name, so that none clash."""
    found: dict[str, Schema] = {}
    modes: dict[str, JsonSchemaMode] = {"Input": "validation", "Output": "serialization"}
    for role, model in (("Input", input), ("Output", output)):
        template = f"#/components/schemas/{name}.{role}.{{model}}"
        schema = describe_safely(model, modes[role], ref_template=template)
        definitions = schema.pop("$defs", {})
        for definition, body in definitions.items() if isinstance(definitions, dict) else ():
            found[f"{name}.{role}.{definition}"] = body
        found[f"{name}.{role}"] = schema
    return found


def name_for_clients(component: str, schema: Schema) -> Schema:
    """A schema as generators of clients need it: with a title of its own, and its members' defaults told in words.

    They name their classes by titles. And openapi-typescript takes a member with a ``default`` for always there, so
    that its clients would have to send it.
    """
    titled = {**schema, "title": component.replace(".", " ")}
    if isinstance(schema.get("properties"), dict):
        titled["properties"] = {name: _default_told(member) for name, member in schema["properties"].items()}
    return titled


def _default_told(member: Any) -> Any:
    if not isinstance(member, dict):  # true or false is a schema too
        return member
    told = {**member}
    default = told.pop("default", None)
    if default is not None:
        words = [told.get("description", ""), f"default: {json.dumps(default)}"]
        told["description"] = "; ".join(word for word in words if word)
    return told


JOB_CODES = ("invalid_input", "predict_failed", "worker_lost", "timed_out", "invalid_output", "service_failed")
OUTCOMES = ("running", "succeeded", "failed", "cancelled", "lost", "memory", "timed_out", "handed_back")

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
        "code": make_enum(JOB_CODES),
        "message": {"type": "string"},
        "retryable": {"type": "boolean"},
        "errors": FIELD_ERRORS,
    },
    ["code", "message", "retryable"],
)

ATTEMPT = make_object(
    {
        "attempt": {"type": "integer", "minimum": 1},
        "outcome": make_enum(OUTCOMES),
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
        "error": {"anyOf": [make_ref("JobError"), {"type": "null"}]},
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

WORKER_VERSION: Schema = {
    "version": {"type": ["string", "null"], "description": "of the plugin"},
    "libs_service": {"type": ["string", "null"], "description": "null: a release before 0.2.0, which tells none"},
    "workers": {"type": "integer", "minimum": 1},
}

SERVICE = make_object(
    {
        "name": {"type": "string"},
        "version": {"type": "string"},
        "description": {"type": "string"},
        "input_schema": {"type": ["object", "null"]},
        "output_schema": {"type": ["object", "null"]},
        "example": {"description": "a valid input; null where the schema has none"},
        "knobs": {"type": ["object", "null"], "description": "null before a worker has run"},
        "state": make_enum(("ready", "loading", "failed", "no_workers")),
        "reason": {"type": ["string", "null"], "description": "why it is `failed`"},
        "workers": {"type": "integer", "minimum": 0},
        "queue_depth": {"type": "integer", "minimum": 0},
        "oldest_age_s": {"type": "number", "minimum": 0},
        "worker_versions": {"type": "array", "items": make_object(WORKER_VERSION), "description": "of live workers"},
        "scheduled": {"type": "integer", "minimum": 0, "description": "queued jobs whose `not_before` has not come"},
    }
)


ROWS: Schema = {"type": "integer", "minimum": 0}

BATCH = make_object(
    {
        "id": {"type": "string"},
        "service": {"type": "string"},
        "version": {"type": "string"},
        "status": make_enum(("queued", "running", "succeeded", "failed", "cancelled")),
        "total": {"type": "integer", "minimum": 1},
        "counts": make_object(dict.fromkeys(("queued", "running", "succeeded", "failed", "cancelled"), ROWS)),
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "created_at": {"type": "string", "format": "date-time"},
        "finished_at": TIME,
        "expires_at": TIME,
        "priority": make_enum(Priority),
        "metadata": {"type": "object"},
        "links": make_object(
            {name: {"type": "string"} for name in ("self", "events", "results", "retry", "deliveries")},
            ["self", "events", "results", "retry"],
        ),
    }
)


def make_webhook(events: Sequence[str]) -> Schema:
    """The webhook of a request."""
    url: Schema = {"type": "string", "format": "uri", "maxLength": MAX_URL}
    named: Schema = {"type": ["array", "null"], "items": make_enum(events), "minItems": 1}
    full = {**make_object({"url": url, "events": named}, ["url"]), "additionalProperties": False}
    return {"anyOf": [url, full, {"type": "null"}], "description": "told of the end; without `events`, of any"}


DELIVERY = make_object(
    {
        "id": {"type": "string"},
        "webhook_id": {"type": "string", "description": "the header `webhook-id`: the same each time it is sent"},
        "type": make_enum([*JOB_EVENTS, *BATCH_EVENTS]),
        "url": {"type": "string"},
        "status": make_enum(("pending", "delivered", "failed", "cancelled")),
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
        "event": make_enum(("status", "progress", "log", "output")),
        "id": {"type": "string", "description": "for `Last-Event-ID`"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer", "description": "in the first, which bears nothing else: milliseconds"},
    },
    [],
)

_STREAM = """Server-sent events up to the job's end; a comment after 15 s without one. The data of each is JSON.
`status`: the job, as `GET /jobs/{id}` shows it; the last one's is terminal. `progress`: `{"progress", "message"}`, from
0 to 1. `log`: `{"level", "message", "logger"?}`. `output`: `{"index", "output"}`, a partial output."""

#: The answer of ``GET /jobs/{id}/events``, and its header.
STREAM: Schema = {"description": _STREAM, "content": {"text/event-stream": {"schema": make_ref("Event")}}}

_BATCH_STREAM = """Server-sent events up to the batch's end; a comment after 15 s without one. The data of each is JSON.
`status`: the batch, as `GET /batches/{id}` shows it; the last one's is terminal. `progress`: `{"progress", "total",
"counts"}`, some ten times a second at most."""

#: The answer of ``GET /batches/{id}/events``.
BATCH_STREAM: Schema = {"description": _BATCH_STREAM, "content": {"text/event-stream": {"schema": make_ref("Event")}}}
LAST_EVENT: Schema = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "the `id` of the last event that was received: go on after it",
    "schema": {"type": "string"},
}

FILE = make_object(
    {
        "id": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "name": {"type": ["string", "null"], "description": "that it was sent with last; null where with none"},
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

JOB_PAGE = make_object(
    {"jobs": {"type": "array", "items": make_ref("JobRow")}, "next_cursor": {"type": ["string", "null"]}}
)
SERVICE_LIST = make_object({"services": {"type": "array", "items": make_ref("Service")}})
HEALTH = make_object({"status": {"type": "string"}})
DELIVERY_LIST = make_object({"deliveries": {"type": "array", "items": make_ref("Delivery")}})
