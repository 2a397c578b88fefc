"""The OpenAPI 3.1 document, with each installed service's own Input, Output and examples in it.

It is written out rather than derived from the handlers: they answer with JSON texts that are stored already, and the
bodies depend on what is installed.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic.json_schema import JsonSchemaMode

from api.catalog import Catalog, Entry
from api.problems import TITLES
from api.requests import MAX_DEADLINE_S
from api.routes import DEFAULT_PAGE, MAX_PAGE
from worker.jobs import Priority, Status

Schema = dict[str, Any]

DESCRIPTION = """Jobs for the installed services. `POST /jobs` stores and enqueues one, `GET /jobs/{id}` reads it; with
`Prefer: wait=10` either holds its answer until the job has ended. Errors are problem documents (RFC 9457)."""

#: The error codes of each status.
CODES = {
    404: ["job_not_found", "unknown_service", "not_found"],
    409: ["job_finished", "job_not_retryable", "idempotency_conflict"],
    410: ["job_expired"],
    413: ["payload_too_large"],
    422: ["invalid_input"],
    429: ["queue_full"],
    503: ["store_unavailable", "service_failed"],
}

TIME: Schema = {"type": ["string", "null"], "format": "date-time"}
MS: Schema = {"type": ["number", "null"], "description": "milliseconds"}


def build_document(catalog: Catalog) -> dict[str, Any]:
    """The document for these services."""
    entries = list(catalog.entries.values())
    schemas: dict[str, Schema] = {}
    for entry in entries:
        schemas |= _service_schemas(entry)
    schemas |= {"Job": _job_schema(entries), "JobError": JOB_ERROR, "Problem": PROBLEM, "Service": SERVICE}
    return {
        "openapi": "3.1.0",
        "info": {"title": "libs-service", "version": _own_version(), "description": DESCRIPTION},
        "paths": _paths(entries),
        "components": {"schemas": schemas},
    }


def _own_version() -> str:
    try:
        return version("libs-service")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"


# -- what depends on the installed services ---------------------------------------------------------------------------


def _service_schemas(entry: Entry) -> dict[str, Schema]:
    """A service's Input, Output and request; their own definitions carry its name, so that none clash."""
    name = entry.plugin.name
    found: dict[str, Schema] = {}
    modes: dict[str, JsonSchemaMode] = {"Input": "validation", "Output": "serialization"}
    for role, model in (("Input", entry.input), ("Output", entry.output)):
        template = f"#/components/schemas/{name}.{role}.{{model}}"
        schema = model.model_json_schema(mode=modes[role], ref_template=template) if model else {}
        for definition, body in schema.pop("$defs", {}).items():
            found[f"{name}.{role}.{definition}"] = body
        found[f"{name}.{role}"] = schema
    found[f"{name}.JobRequest"] = _request_schema(entry)
    return found


def _request_schema(entry: Entry) -> Schema:
    name = entry.plugin.name
    deadline = {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": MAX_DEADLINE_S}
    schema: Schema = {
        "type": "object",
        "title": f"A job for {name}",
        "description": entry.plugin.description,
        "additionalProperties": False,
        "required": ["service", "input"],
        "properties": {
            "service": {"const": name},
            "input": _ref(f"{name}.Input"),
            "priority": {"enum": list(Priority), "default": "normal"},
            "start_within_s": {**deadline, "description": "seconds until it must have started, else `expired`"},
            "finish_within_s": {**deadline, "description": "seconds until it must have ended, else `timed_out`"},
            "keep_for_s": {"type": ["number", "null"], "exclusiveMinimum": 0, "description": "seconds after its end"},
            "metadata": {"type": "object", "description": "the caller's own; given back as it is (16 kB)"},
        },
    }
    if entry.example is not None:
        schema["examples"] = [{"service": name, "input": entry.example}]
    return schema


def _body(entries: list[Entry]) -> Schema:
    names = [entry.plugin.name for entry in entries]
    schema: Schema = {"oneOf": [_ref(f"{name}.JobRequest") for name in names]}
    schema["discriminator"] = {
        "propertyName": "service",
        "mapping": {name: f"#/components/schemas/{name}.JobRequest" for name in names},
    }
    examples = {
        entry.plugin.name: {"value": {"service": entry.plugin.name, "input": entry.example}}
        for entry in entries
        if entry.example is not None
    }
    media: Schema = {"schema": schema if names else {"type": "object"}}
    return {
        "required": True,
        "content": {"application/json": {**media, **({"examples": examples} if examples else {})}},
    }


def _job_schema(entries: list[Entry]) -> Schema:
    outputs = [_ref(f"{entry.plugin.name}.Output") for entry in entries]
    properties: Schema = {
        "id": {"type": "string"},
        "service": {"type": "string"},
        "version": {"type": "string"},
        "status": {"enum": list(Status)},
        "output": {"anyOf": [*outputs, {"type": "null"}]},
        "error": {"anyOf": [_ref("JobError"), {"type": "null"}]},
        "attempt": {"type": "integer", "minimum": 0},
        "progress": {"type": "null"},
        "position": {"type": ["integer", "null"], "minimum": 0, "description": "jobs of the service before it"},
        "created_at": {"type": "string", "format": "date-time"},
        "started_at": TIME,
        "finished_at": TIME,
        "expires_at": TIME,
        "timings": _object(
            {f"{stage}_ms": MS for stage in ("queued", "preprocess", "predict", "postprocess", "total")}
        ),
        "batch_size": {"type": ["integer", "null"], "minimum": 0},
        "priority": {"enum": list(Priority)},
        "metadata": {"type": "object"},
        "links": _object({"self": {"type": "string"}}),
    }
    included = {
        "input": {"description": "as it was sent; with `?include=input`"},
        "attempts": {"type": "array", "items": ATTEMPT, "description": "oldest first; with `?include=attempts`"},
    }
    return _object(properties | included, required=list(properties))


# -- what does not ----------------------------------------------------------------------------------------------------


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Schema, required: list[str] | None = None) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties) if required is None else required}


FIELD_ERRORS: Schema = {
    "type": "array",
    "items": _object(
        {
            "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
            "msg": {"type": "string"},
            "type": {"type": "string"},
        }
    ),
}

JOB_ERROR = _object(
    {
        "code": {"enum": ["invalid_input", "predict_failed", "worker_lost", "timed_out", "invalid_output"]},
        "message": {"type": "string"},
        "retryable": {"type": "boolean"},
        "errors": FIELD_ERRORS,
    },
    ["code", "message", "retryable"],
)

ATTEMPT = _object(
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

PROBLEM = _object(
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

SERVICE = _object(
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


def _header(kind: str, description: str) -> Schema:
    return {"schema": {"type": kind}, "description": description}


APPLIED = {"Preference-Applied": _header("string", "`wait=<s>`, where the answer was held")}
LOCATION = {"Location": _header("string", "the job's address")}

WAIT: list[Schema] = [
    {
        "name": "wait",
        "in": "query",
        "description": "seconds to hold the answer until the job ends; more than the server's limit is its limit",
        "schema": {"type": "number", "minimum": 0},
    },
    {
        "name": "Prefer",
        "in": "header",
        "description": "`wait=<s>`: the same (RFC 7240); `?wait=` goes first. Other preferences are ignored.",
        "schema": {"type": "string"},
        "example": "wait=10",
    },
]


IDEMPOTENCY_KEY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "the client's own; the same key and body give the same job again, as long as that job is kept",
    "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]([\\x20-\\x7e]{0,253}[\\x21-\\x7e])?$"},
}


CREATING = [*WAIT, IDEMPOTENCY_KEY]


def _path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": description}


INCLUDE = _query(
    "include", {"type": "string", "enum": ["attempts", "input", "attempts,input"]}, "further members of the job"
)

PAGING = [
    _query("service", {"type": "string"}, "only this service's"),
    _query("status", {"enum": list(Status)}, "only in this state"),
    _query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE}, "most jobs"),
    _query("cursor", {"type": "string"}, "`next_cursor` of the page before; a page may be short although more follow"),
]


def _answer(schema: Schema, description: str, headers: Schema | None = None) -> Schema:
    answer: Schema = {"description": description, "content": {"application/json": {"schema": schema}}}
    return {**answer, "headers": headers} if headers else answer


def _problems(*statuses: int) -> Schema:
    found: Schema = {}
    for status in statuses:
        codes = ", ".join(f"`{code}`" for code in CODES[status])
        answer: Schema = {"description": f"{TITLES[status]}: {codes}"}
        answer["content"] = {"application/problem+json": {"schema": _ref("Problem")}}
        if status in (429, 503):
            answer["headers"] = {"Retry-After": _header("string", "seconds")}
        found[str(status)] = answer
    return found


def _operation(name: str, summary: str, answers: Schema, parameters: list[Schema] | None = None, **more: Any) -> Schema:
    return {"operationId": name, "summary": summary, "parameters": parameters or [], **more, "responses": answers}


def _paths(entries: list[Entry]) -> Schema:
    job = _ref("Job")
    page = _object({"jobs": {"type": "array", "items": job}, "next_cursor": {"type": ["string", "null"]}})
    status = _object({"status": {"type": "string"}})
    services = _object({"services": {"type": "array", "items": _ref("Service")}})
    created = {
        "200": _answer(job, "The job: ended within the wait, or made by an earlier request", {**LOCATION, **APPLIED}),
        "202": _answer(job, "The job, stored and enqueued", {**LOCATION, **APPLIED}),
        **_problems(404, 409, 410, 413, 422, 429, 503),
    }
    read = {"200": _answer(job, "The job as it stands", APPLIED), **_problems(404, 410, 422, 503)}
    cancelled = {"202": _answer(job, "The cancelled job"), **_problems(404, 409, 410, 422, 503)}
    again = {
        "202": _answer(job, "The job, queued again", LOCATION),
        **_problems(404, 409, 410, 413, 422, 429, 503),
    }
    one = {"200": _answer(_ref("Service"), "The service"), **_problems(404, 422, 503)}
    every = {"200": _answer(services, "Every installed service"), **_problems(422, 503)}
    listed = {"200": _answer(page, "A page of jobs"), **_problems(404, 422, 503)}
    alive = {"200": _answer(status, "The process lives")}
    ready = {"200": _answer(status, "Redis answers"), **_problems(503)}
    return {
        "/jobs": {
            "post": _operation("create_job", "Submit a job", created, CREATING, requestBody=_body(entries)),
            "get": _operation("list_jobs", "List jobs, newest first", listed, PAGING),
        },
        "/jobs/{job_id}": {
            "get": _operation("get_job", "Read a job", read, [_path("job_id"), *WAIT, INCLUDE]),
            "delete": _operation("cancel_job", "Cancel a job", cancelled, [_path("job_id")]),
        },
        "/jobs/{job_id}/retry": {
            "post": _operation("retry_job", "Run a failed, cancelled or expired job again", again, [_path("job_id")])
        },
        "/services": {"get": _operation("list_services", "List the services", every)},
        "/services/{name}": {"get": _operation("get_service", "Read a service", one, [_path("name")])},
        "/healthz": {"get": _operation("health", "Liveness", alive)},
        "/readyz": {"get": _operation("ready", "Readiness", ready)},
    }
