"""The OpenAPI 3.1 document, with each installed service's own Input, Output and examples in it.

It is written out rather than derived from the handlers: they answer with JSON texts that are stored already, and the
bodies depend on the installed plugins.
"""

from __future__ import annotations

from typing import Any

from api.catalog import Catalog, Entry
from api.openapi.guarded import EITHER_OR_NONE, SECURITY, guarded
from api.openapi.open_inference import SCHEMAS as OPEN_INFERENCE
from api.openapi.parts import make_keep_for
from api.openapi.paths import batch_request, build_paths
from api.openapi.schemas import (
    ATTEMPT,
    BATCH,
    DELIVERY,
    DELIVERY_LIST,
    EVENT,
    FILE,
    HEALTH,
    JOB_ERROR,
    JOB_PAGE,
    PROBLEM,
    SERVICE,
    SERVICE_LIST,
    TIME,
    Schema,
    describe_models,
    make_enum,
    make_object,
    make_ref,
    make_webhook,
    name_for_clients,
)
from api.plain_schema import mend_refs
from api.requests import MAX_CACHE_FOR_S, MAX_DEADLINE_S
from worker.ledger.data_schema import own_version
from worker.ledger.jobs import Priority, Status
from worker.webhooks.events import JOB_EVENTS

DESCRIPTION = """Jobs for the installed services. `POST /jobs` stores and enqueues one, `GET /jobs/{id}` reads it; with
`Prefer: wait=10` either holds its answer until the job has ended. Errors are problem documents (RFC 9457). Where API
keys are configured, each request bears one. What takes GET takes HEAD too."""

#: Paths that have another heading in ``/docs`` than their own first word.
HEADINGS = {"healthz": "health", "readyz": "health", "metrics": "health", "": "console"}

MS: Schema = {"type": ["number", "null"], "description": "milliseconds"}


def build_document(catalog: Catalog) -> dict[str, Any]:
    """The document for these services."""
    entries = list(catalog.entries.values())
    schemas: dict[str, Schema] = {}
    for entry in entries:
        schemas |= _service_schemas(entry)
    schemas |= {"Job": _job_schema(entries), "JobRow": _row_schema(entries), "JobError": JOB_ERROR, "Problem": PROBLEM}
    schemas |= {"Service": SERVICE, "Batch": BATCH, "File": FILE, "Event": EVENT, "Delivery": DELIVERY}
    schemas |= {"Attempt": ATTEMPT, "Health": HEALTH, "JobPage": JOB_PAGE, "ServiceList": SERVICE_LIST}
    schemas |= {"DeliveryList": DELIVERY_LIST, "BatchRequest": batch_request(entries), **OPEN_INFERENCE}
    return {
        "openapi": "3.1.0",
        "info": {"title": "libs-service", "version": own_version(), "description": DESCRIPTION},
        "paths": {path: _tagged(path, operations) for path, operations in guarded(build_paths(entries)).items()},
        "security": EITHER_OR_NONE,
        "components": {"schemas": schemas, "securitySchemes": SECURITY},
    }


def _tagged(path: str, operations: Schema) -> Schema:
    """The operations under the heading, in ``/docs``, of their path's first word."""
    word = path.split("/")[1]
    return {method: {"tags": [HEADINGS.get(word, word)], **operation} for method, operation in operations.items()}


def _service_schemas(entry: Entry) -> dict[str, Schema]:
    """A service's Input, Output and request."""
    found = mend_refs(describe_models(entry.plugin.name, entry.input, entry.output), "#/components/schemas/")
    found[f"{entry.plugin.name}.JobRequest"] = _request_schema(entry)
    return {component: name_for_clients(component, schema) for component, schema in found.items()}


def _request_schema(entry: Entry) -> Schema:
    name = entry.plugin.name
    deadline = {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": MAX_DEADLINE_S}
    schema: Schema = {
        "type": "object",
        "description": entry.plugin.description,
        "additionalProperties": False,
        "required": ["service", "input"],
        "properties": {
            "service": {"type": "string", "const": name},
            "input": make_ref(f"{name}.Input"),
            "priority": make_enum(Priority, description="default: normal"),
            "start_within_s": {**deadline, "description": "seconds until it must have started, else `expired`"},
            "finish_within_s": {**deadline, "description": "seconds until it must have ended, else `timed_out`"},
            "keep_for_s": make_keep_for("seconds after its end"),
            "metadata": {"type": "object", "description": "the caller's own; given back as it is (16 kB)"},
            "webhook": make_webhook(JOB_EVENTS),
            "cache_for_s": {
                "type": ["number", "null"],
                "minimum": 0,
                "maximum": MAX_CACHE_FOR_S,
                "description": "seconds for which equal jobs share one result; 0: not this one; default: the service's",
            },
            "not_before": {
                **TIME,
                "description": "it is not run earlier: a time with its offset, at most 30 days ahead; past: now",
            },
        },
    }
    if entry.example is not None:
        schema["examples"] = [{"service": name, "input": entry.example}]
    return schema


def _row_schema(entries: list[Entry]) -> Schema:
    """A job in a list."""
    schema = _job_schema(entries)
    output = {**schema["properties"]["output"], "description": "with `?include=output`"}
    required = [name for name in schema["required"] if name != "output"]
    return make_object({**schema["properties"], "output": output}, required)


def _job_schema(entries: list[Entry]) -> Schema:
    outputs = [make_ref(f"{entry.plugin.name}.Output") for entry in entries]
    properties: Schema = {
        "id": {"type": "string"},
        "service": {"type": "string"},
        "version": {"type": "string"},
        "status": make_enum(Status),
        "output": {"anyOf": [*outputs, {"type": "null"}]},
        "error": {"anyOf": [make_ref("JobError"), {"type": "null"}]},
        "attempt": {"type": "integer", "minimum": 0},
        "progress": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "position": {"type": ["integer", "null"], "minimum": 0, "description": "jobs of the service before it"},
        "estimated_start_at": {**TIME, "description": "about when it will start; null where that is not known"},
        "not_before": {**TIME, "description": "it is not run earlier; null where nothing was asked for"},
        "created_at": {"type": "string", "format": "date-time"},
        "started_at": TIME,
        "finished_at": TIME,
        "expires_at": TIME,
        "timings": make_object(
            {f"{stage}_ms": MS for stage in ("queued", "preprocess", "predict", "postprocess", "total")}
        ),
        "batch_size": {"type": ["integer", "null"], "minimum": 0},
        "priority": make_enum(Priority),
        "metadata": {"type": "object"},
        "links": make_object(
            {name: {"type": "string"} for name in ("self", "events", "deliveries")}, required=["self", "events"]
        ),
    }
    attempts: Schema = {"type": "array", "items": make_ref("Attempt")}
    cached = {"type": "string", "description": "the job whose output this is; only where it is another's"}
    included = {
        "cached_from": cached,
        "input": {"description": "as it was sent; with `?include=input`"},
        "attempts": {**attempts, "description": "oldest first; with `?include=attempts`"},
    }
    return make_object(properties | included, required=list(properties))
