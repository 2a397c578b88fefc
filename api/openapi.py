"""The OpenAPI 3.1 document, with each installed service's own Input, Output and examples in it.

It is written out rather than derived from the handlers: they answer with JSON texts that are stored already, and the
bodies depend on what is installed.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import JsonSchemaMode

from api.catalog import Catalog, Entry, own_version
from api.open_inference_document import SCHEMAS as OPEN_INFERENCE
from api.open_inference_document import open_inference_paths
from api.problems import TITLES
from api.requests import MAX_DEADLINE_S
from api.routes import DEFAULT_PAGE, MAX_PAGE
from api.schemas import (
    ATTEMPT,
    BATCH,
    DELIVERY,
    FILE,
    JOB_ERROR,
    PROBLEM,
    SERVICE,
    TIME,
    Schema,
    make_object,
    make_ref,
    make_webhook,
)
from worker.jobs import Priority, Status
from worker.webhooks import BATCH_EVENTS, JOB_EVENTS

DESCRIPTION = """Jobs for the installed services. `POST /jobs` stores and enqueues one, `GET /jobs/{id}` reads it; with
`Prefer: wait=10` either holds its answer until the job has ended. Errors are problem documents (RFC 9457)."""

#: The error codes of each status.
CODES = {
    403: ["link_invalid"],
    404: ["job_not_found", "unknown_service", "file_not_found", "delivery_not_found", "not_found"],
    408: ["upload_too_late"],
    409: ["job_finished", "job_not_retryable", "idempotency_conflict", "file_in_use"],
    410: ["job_expired"],
    413: ["payload_too_large"],
    415: ["unsupported_file_type"],
    416: ["range_not_satisfiable"],
    422: ["invalid_input"],
    429: ["queue_full"],
    503: ["store_unavailable", "service_failed", "storage_unavailable"],
}

#: Paths that have another heading in ``/docs`` than their own first word.
HEADINGS = {"healthz": "health", "readyz": "health"}

MS: Schema = {"type": ["number", "null"], "description": "milliseconds"}


def build_document(catalog: Catalog) -> dict[str, Any]:
    """The document for these services."""
    entries = list(catalog.entries.values())
    schemas: dict[str, Schema] = {}
    for entry in entries:
        schemas |= _service_schemas(entry)
    schemas |= {"Job": _job_schema(entries), "JobError": JOB_ERROR, "Problem": PROBLEM}
    schemas |= {"Service": SERVICE, "Batch": BATCH, "File": FILE, "Delivery": DELIVERY, **OPEN_INFERENCE}
    return {
        "openapi": "3.1.0",
        "info": {"title": "libs-service", "version": own_version(), "description": DESCRIPTION},
        "paths": {path: _tagged(path, operations) for path, operations in _paths(entries).items()},
        "components": {"schemas": schemas},
    }


def _tagged(path: str, operations: Schema) -> Schema:
    """The operations under the heading, in ``/docs``, of their path's first word."""
    word = path.split("/")[1]
    return {method: {"tags": [HEADINGS.get(word, word)], **operation} for method, operation in operations.items()}


# -- what depends on the installed services ---------------------------------------------------------------------------


def _service_schemas(entry: Entry) -> dict[str, Schema]:
    """A service's Input, Output and request; keys and titles bear its name: none clash, and ``/docs`` shows whose."""
    name = entry.plugin.name
    found: dict[str, Schema] = {}
    modes: dict[str, JsonSchemaMode] = {"Input": "validation", "Output": "serialization"}
    for role, model in (("Input", entry.input), ("Output", entry.output)):
        template = f"#/components/schemas/{name}.{role}.{{model}}"
        schema = model.model_json_schema(mode=modes[role], ref_template=template) if model else {}
        for definition, body in schema.pop("$defs", {}).items():
            found[f"{name}.{role}.{definition}"] = {**body, "title": f"{name} {body.get('title', definition)}"}
        found[f"{name}.{role}"] = {**schema, "title": f"{name} {role}"}
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
            "input": make_ref(f"{name}.Input"),
            "priority": {"enum": list(Priority), "default": "normal"},
            "start_within_s": {**deadline, "description": "seconds until it must have started, else `expired`"},
            "finish_within_s": {**deadline, "description": "seconds until it must have ended, else `timed_out`"},
            "keep_for_s": {"type": ["number", "null"], "exclusiveMinimum": 0, "description": "seconds after its end"},
            "metadata": {"type": "object", "description": "the caller's own; given back as it is (16 kB)"},
            "webhook": make_webhook(JOB_EVENTS),
        },
    }
    if entry.example is not None:
        schema["examples"] = [{"service": name, "input": entry.example}]
    return schema


def _body(entries: list[Entry]) -> Schema:
    names = [entry.plugin.name for entry in entries]
    schema: Schema = {"oneOf": [make_ref(f"{name}.JobRequest") for name in names]}
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
    outputs = [make_ref(f"{entry.plugin.name}.Output") for entry in entries]
    properties: Schema = {
        "id": {"type": "string"},
        "service": {"type": "string"},
        "version": {"type": "string"},
        "status": {"enum": list(Status)},
        "output": {"anyOf": [*outputs, {"type": "null"}]},
        "error": {"anyOf": [make_ref("JobError"), {"type": "null"}]},
        "attempt": {"type": "integer", "minimum": 0},
        "progress": {"type": "null"},
        "position": {"type": ["integer", "null"], "minimum": 0, "description": "jobs of the service before it"},
        "created_at": {"type": "string", "format": "date-time"},
        "started_at": TIME,
        "finished_at": TIME,
        "expires_at": TIME,
        "timings": make_object(
            {f"{stage}_ms": MS for stage in ("queued", "preprocess", "predict", "postprocess", "total")}
        ),
        "batch_size": {"type": ["integer", "null"], "minimum": 0},
        "priority": {"enum": list(Priority)},
        "metadata": {"type": "object"},
        "links": make_object({"self": {"type": "string"}, "deliveries": {"type": "string"}}, ["self"]),
    }
    included = {
        "input": {"description": "as it was sent; with `?include=input`"},
        "attempts": {"type": "array", "items": ATTEMPT, "description": "oldest first; with `?include=attempts`"},
    }
    return make_object(properties | included, required=list(properties))


# -- what does not ----------------------------------------------------------------------------------------------------


NDJSON = "application/x-ndjson"


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
    "include", {"type": "string", "enum": ["attempts", "input", "attempts,input"]}, "further members of each job"
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
        answer["content"] = {"application/problem+json": {"schema": make_ref("Problem")}}
        if status in (429, 503):
            answer["headers"] = {"Retry-After": _header("string", "seconds")}
        found[str(status)] = answer
    return found


def _operation(name: str, summary: str, answers: Schema, parameters: list[Schema] | None = None, **more: Any) -> Schema:
    return {"operationId": name, "summary": summary, "parameters": parameters or [], **more, "responses": answers}


def _batch_paths(entries: list[Entry]) -> Schema:
    batch, path = make_ref("Batch"), [_path("batch_id")]
    names: Schema = {"enum": [entry.plugin.name for entry in entries]} if entries else {"type": "string"}
    asked: Schema = {
        "service": names,
        "inputs": {"type": "array", "minItems": 1, "description": "each is checked by the worker, and fails alone"},
        "priority": {"enum": list(Priority), "default": "low"},
        "keep_for_s": {"type": ["number", "null"], "exclusiveMinimum": 0, "description": "seconds after its end"},
        "metadata": {"type": "object"},
        "webhook": make_webhook(BATCH_EVENTS),
    }
    body: Schema = {**make_object(asked, ["service", "inputs"]), "additionalProperties": False}
    lines: Schema = {"schema": {"type": "string"}, "example": '{"n": 1}\n{"n": 2}\n'}
    created = {
        "200": _answer(batch, "The batch that an earlier request made", LOCATION),
        "202": _answer(batch, "The batch, stored and enqueued", LOCATION),
        **_problems(404, 409, 410, 413, 422, 429, 503),
    }
    described = "one line an input, in order: its `index` and its `output` or its `error`; ends with the batch"
    results: Schema = {"200": {"description": described, "content": {NDJSON: {"schema": {"type": "string"}}}}}
    read, cancelled = {"200": _answer(batch, "Counts and progress")}, {"202": _answer(batch, "The cancelled batch")}
    service = _query("service", names, "with a body of JSON lines, which it is required for: the service")
    content: Schema = {"required": True, "content": {"application/json": {"schema": body}, NDJSON: lines}}
    summary = "Submit many inputs at once"
    webhook = _query("webhook", {"type": "string", "format": "uri"}, "with a body of JSON lines: told of its end")
    creating = [service, webhook, IDEMPOTENCY_KEY]
    refused = _problems(404, 410, 422, 503)
    return {
        "/batches": {"post": _operation("create_batch", summary, created, creating, requestBody=content)},
        "/batches/{batch_id}": {
            "get": _operation("get_batch", "Read a batch", {**read, **refused}, path),
            "delete": _operation(
                "cancel_batch", "Cancel what has not run", {**cancelled, **refused, **_problems(409, 413)}, path
            ),
        },
        "/batches/{batch_id}/results": {
            "get": _operation("get_results", "Read the results as they come", {**results, **refused}, path)
        },
    }


BYTES: Schema = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}


def _file_paths() -> Schema:
    file, path = make_ref("File"), [_path("file_id")]
    location = {"Location": _header("string", "the file's address")}
    form = {"schema": make_object({"file": BYTES}), "encoding": {"file": {"contentType": "*/*"}}}
    body = {"required": True, "content": {"application/octet-stream": {"schema": BYTES}, "multipart/form-data": form}}
    keep = _query("keep_for_s", {"type": "number", "exclusiveMinimum": 0}, "seconds that it is kept")
    created = {
        "200": _answer(file, "The file, which was there already, and lives longer now", location),
        "201": _answer(file, "The file, stored", location),
        **_problems(408, 413, 415, 422, 503),
    }
    read = {"200": _answer(file, "What is known of it"), **_problems(404, 422, 503)}
    gone = {"204": {"description": "It is gone"}, **_problems(404, 409, 413, 422, 503)}
    whole: Schema = {"content": {"*/*": {"schema": BYTES}}}
    content = {
        "200": {"description": "The content, with the type that the file has", **whole},
        "206": {"description": "The range that was asked for", **whole},
        **_problems(403, 404, 416, 422, 503),
    }
    asked = [
        *path,
        _query("expires", {"type": "string"}, "of `links.download`, with `signature`"),
        _query("signature", {"type": "string"}, "of `links.download`, with `expires`"),
        {"name": "Range", "in": "header", "description": "one range of bytes", "schema": {"type": "string"}},
    ]
    return {
        "/files": {"post": _operation("create_file", "Store a file", created, [keep], requestBody=body)},
        "/files/{file_id}": {
            "get": _operation("get_file", "Read what is known of a file", read, path),
            "delete": _operation("delete_file", "Drop a file", gone, path),
        },
        "/files/{file_id}/content": {"get": _operation("get_content", "Read a file's content", content, asked)},
    }


def _delivery_paths() -> Schema:
    """The log of webhooks, of jobs and of batches alike."""
    delivery = make_ref("Delivery")
    every = make_object({"deliveries": {"type": "array", "items": delivery}})
    read = {"200": _answer(every, "What was sent, newest first"), **_problems(404, 410, 422, 503)}
    again = {"202": _answer(delivery, "The new delivery"), **_problems(404, 410, 413, 422, 429, 503)}
    paths: Schema = {}
    for kind, of in (("job", "/jobs/{job_id}"), ("batch", "/batches/{batch_id}")):
        listing = _operation(f"list_{kind}_deliveries", f"The log of a {kind}'s webhook", read, [_path(f"{kind}_id")])
        parameters = [_path(f"{kind}_id"), _path("delivery_id")]
        retrying = _operation(f"retry_{kind}_delivery", "Send an event again", again, parameters)
        paths |= {f"{of}/deliveries": {"get": listing}, f"{of}/deliveries/{{delivery_id}}/retry": {"post": retrying}}
    return paths


def _paths(entries: list[Entry]) -> Schema:
    job = make_ref("Job")
    page = make_object({"jobs": {"type": "array", "items": job}, "next_cursor": {"type": ["string", "null"]}})
    status = make_object({"status": {"type": "string"}})
    services = make_object({"services": {"type": "array", "items": make_ref("Service")}})
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
    one = {"200": _answer(make_ref("Service"), "The service"), **_problems(404, 422, 503)}
    every = {"200": _answer(services, "Every installed service"), **_problems(422, 503)}
    listed = {"200": _answer(page, "A page of jobs"), **_problems(404, 422, 503)}
    alive = {"200": _answer(status, "The process lives")}
    ready = {"200": _answer(status, "Redis answers"), **_problems(503)}
    return {
        "/jobs": {
            "post": _operation("create_job", "Submit a job", created, CREATING, requestBody=_body(entries)),
            "get": _operation("list_jobs", "List jobs, newest first", listed, [*PAGING, INCLUDE]),
        },
        "/jobs/{job_id}": {
            "get": _operation("get_job", "Read a job", read, [_path("job_id"), *WAIT, INCLUDE]),
            "delete": _operation("cancel_job", "Cancel a job", cancelled, [_path("job_id")]),
        },
        "/jobs/{job_id}/retry": {
            "post": _operation("retry_job", "Run a failed, cancelled or expired job again", again, [_path("job_id")])
        },
        **_batch_paths(entries),
        **_file_paths(),
        **_delivery_paths(),
        **open_inference_paths(entries),
        "/services": {"get": _operation("list_services", "List the services", every)},
        "/services/{name}": {"get": _operation("get_service", "Read a service", one, [_path("name")])},
        "/healthz": {"get": _operation("health", "Liveness", alive)},
        "/readyz": {"get": _operation("ready", "Readiness", ready)},
    }
