"""The paths of the OpenAPI document, with all that each may answer; of ``/v2``, see ``open_inference_document``."""

from __future__ import annotations

from api.catalog import Entry
from api.openapi.open_inference import open_inference_paths
from api.openapi.parts import (
    APPLIED,
    CREATING,
    IDEMPOTENCY_KEY,
    INCLUDE,
    LOCATION,
    NDJSON,
    OWN_ID,
    PAGING,
    WAIT,
    in_path,
    in_query,
    make_answer,
    make_header,
    make_keep_for,
    make_operation,
    make_problems,
)
from api.openapi.schemas import (
    BATCH_STREAM,
    CONSOLE,
    LAST_EVENT,
    METRICS,
    STREAM,
    Schema,
    make_enum,
    make_object,
    make_ref,
    make_webhook,
)
from worker.ledger.jobs import Priority
from worker.webhooks.events import BATCH_EVENTS


def build_paths(entries: list[Entry]) -> Schema:
    """Every path, with its operations."""
    return {
        **_job_paths(entries),
        **_batch_paths(entries),
        **_file_paths(),
        **_delivery_paths(),
        **open_inference_paths(entries),
        **_service_paths(),
    }


def _job_paths(entries: list[Entry]) -> Schema:
    job, page, body = make_ref("Job"), make_ref("JobPage"), _body(entries)
    told = {**LOCATION, **APPLIED}
    created = {
        "200": make_answer(job, "The job: ended within the wait, or made by an earlier request", told),
        "202": make_answer(job, "The job, stored and enqueued", told),
        **make_problems(404, 409, 410, 413, 422, 429, 503),
    }
    read = {"200": make_answer(job, "The job as it stands", APPLIED), **make_problems(404, 410, 422, 503)}
    cancelled = {"202": make_answer(job, "The cancelled job"), **make_problems(404, 409, 410, 422, 503)}
    again = {
        "202": make_answer(job, "The job, queued again", LOCATION),
        **make_problems(404, 409, 410, 413, 422, 429, 503),
    }
    listed = {"200": make_answer(page, "A page of jobs"), **make_problems(404, 422, 503)}
    last = {"description": "The job has ended, and `Last-Event-ID` is its last event"}
    followed = {"200": STREAM, "204": last, **make_problems(404, 410, 422, 503)}
    path, putting = [in_path("job_id")], [OWN_ID, *WAIT]
    return {
        "/jobs": {
            "post": make_operation("create_job", "Submit a job", created, CREATING, requestBody=body),
            "get": make_operation("list_jobs", "List jobs, newest first", listed, [*PAGING, INCLUDE]),
        },
        "/jobs/{job_id}": {
            "get": make_operation("get_job", "Read a job", read, [*path, *WAIT, INCLUDE]),
            "put": make_operation("put_job", "Submit a job under your own id", created, putting, requestBody=body),
            "delete": make_operation("cancel_job", "Cancel a job", cancelled, path),
        },
        "/jobs/{job_id}/retry": {
            "post": make_operation("retry_job", "Run a failed, cancelled or expired job again", again, path)
        },
        "/jobs/{job_id}/events": {"get": make_operation("get_events", "Follow a job", followed, [*path, LAST_EVENT])},
    }


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


def batch_request(entries: list[Entry]) -> Schema:
    """The body of ``POST /batches`` as JSON."""
    inputs: Schema = {"type": "array", "items": {}, "minItems": 1}
    asked: Schema = {
        "service": _names(entries),
        "inputs": {**inputs, "description": "each is checked by the worker, and fails alone"},
        "priority": make_enum(Priority, description="default: low"),
        "keep_for_s": make_keep_for("seconds after its end"),
        "metadata": {"type": "object"},
        "webhook": make_webhook(BATCH_EVENTS),
    }
    return {**make_object(asked, ["service", "inputs"]), "additionalProperties": False}


def _names(entries: list[Entry]) -> Schema:
    return make_enum(entry.plugin.name for entry in entries) if entries else {"type": "string"}


def _batch_paths(entries: list[Entry]) -> Schema:
    batch, names = make_ref("Batch"), _names(entries)
    lines: Schema = {"schema": {"type": "string"}, "example": '{"n": 1}\n{"n": 2}\n'}
    created = {
        "200": make_answer(batch, "The batch that an earlier request made", LOCATION),
        "202": make_answer(batch, "The batch, stored and enqueued", LOCATION),
        **make_problems(404, 409, 410, 413, 422, 429, 503),
    }
    service = in_query("service", names, "with a body of JSON lines, which it is required for: the service")
    whole: Schema = {"schema": make_ref("BatchRequest")}
    content: Schema = {"required": True, "content": {"application/json": whole, NDJSON: lines}}
    summary = "Submit many inputs at once"
    webhook = in_query("webhook", {"type": "string", "format": "uri"}, "with a body of JSON lines: told of its end")
    priority = in_query("priority", make_enum(Priority), "with a body of JSON lines: their priority; default: low")
    keep = in_query("keep_for_s", make_keep_for(null=False), "with a body of JSON lines: seconds after its end")
    creating = [service, priority, keep, webhook, IDEMPOTENCY_KEY]
    submit = make_operation("create_batch", summary, created, creating, requestBody=content)
    return {"/batches": {"post": submit}, **_one_batch_paths()}


def _one_batch_paths() -> Schema:
    batch, path, of = make_ref("Batch"), [in_path("batch_id")], "/batches/{batch_id}"
    refused = make_problems(404, 410, 422, 503)
    described = "one line an input, in order: its `index` and its `output` or its `error`; ends with the batch"
    results: Schema = {"200": {"description": described, "content": {NDJSON: {"schema": {"type": "string"}}}}}
    read = {"200": make_answer(batch, "Counts and progress"), **refused}
    cancelled = {"202": make_answer(batch, "The cancelled batch"), **refused, **make_problems(409, 413)}
    again = {"202": make_answer(batch, "The batch, queued again", LOCATION), **refused, **make_problems(409, 413, 429)}
    last = {"description": "The batch has ended, and `Last-Event-ID` is its last event"}
    followed = {"200": BATCH_STREAM, "204": last, **refused}
    return {
        of: {
            "get": make_operation("get_batch", "Read a batch", read, path),
            "delete": make_operation("cancel_batch", "Cancel what has not run", cancelled, path),
        },
        f"{of}/results": {
            "get": make_operation("get_results", "Read the results as they come", {**results, **refused}, path)
        },
        f"{of}/events": {"get": make_operation("get_batch_events", "Follow a batch", followed, [*path, LAST_EVENT])},
        f"{of}/retry": {
            "post": make_operation("retry_batch", "Run the inputs again that failed or were cancelled", again, path)
        },
    }


BYTES: Schema = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}


def _file_paths() -> Schema:
    file, path = make_ref("File"), [in_path("file_id")]
    location = {"Location": make_header("string", "the file's address")}
    form = {"schema": make_object({"file": BYTES}), "encoding": {"file": {"contentType": "*/*"}}}
    body = {"required": True, "content": {"application/octet-stream": {"schema": BYTES}, "multipart/form-data": form}}
    keep = in_query("keep_for_s", make_keep_for(null=False), "seconds that it is kept")
    named = {"name": "Content-Disposition", "in": "header", "schema": {"type": "string"}}
    named["description"] = "its name, where the body is the file itself: `attachment; filename*=UTF-8''photo.jpg`"
    created = {
        "200": make_answer(file, "The file, which this API key had already, and which lives longer now", location),
        "201": make_answer(file, "The file, stored", location),
        **make_problems(408, 413, 415, 422, 503),
    }
    read = {"200": make_answer(file, "What is known of it"), **make_problems(404, 422, 503)}
    gone = {"204": {"description": "It is gone"}, **make_problems(404, 409, 413, 422, 503)}
    whole: Schema = {"content": {"*/*": {"schema": BYTES}}}
    content = {
        "200": {"description": "The content, with the type that the file has", **whole},
        "206": {"description": "The range that was asked for", **whole},
        **make_problems(403, 404, 416, 422, 503),
    }
    asked = [
        *path,
        in_query("expires", {"type": "string"}, "of `links.download`, with `signature`"),
        in_query("signature", {"type": "string"}, "of `links.download`, with `expires`"),
        in_query("owner", {"type": "string"}, "of `links.download`, where the file belongs to an API key"),
        {"name": "Range", "in": "header", "description": "one range of bytes", "schema": {"type": "string"}},
    ]
    return {
        "/files": {"post": make_operation("create_file", "Store a file", created, [keep, named], requestBody=body)},
        "/files/{file_id}": {
            "get": make_operation("get_file", "Read what is known of a file", read, path),
            "delete": make_operation("delete_file", "Drop a file", gone, path),
        },
        "/files/{file_id}/content": {"get": make_operation("get_content", "Read a file's content", content, asked)},
    }


def _delivery_paths() -> Schema:
    """The log of webhooks, of jobs and of batches alike."""
    delivery = make_ref("Delivery")
    every = make_ref("DeliveryList")
    read = {"200": make_answer(every, "What was sent, newest first"), **make_problems(404, 410, 422, 503)}
    again = {"202": make_answer(delivery, "The new delivery"), **make_problems(404, 410, 413, 422, 429, 503)}
    paths: Schema = {}
    for kind, of in (("job", "/jobs/{job_id}"), ("batch", "/batches/{batch_id}")):
        listing = make_operation(
            f"list_{kind}_deliveries", f"The log of a {kind}'s webhook", read, [in_path(f"{kind}_id")]
        )
        parameters = [in_path(f"{kind}_id"), in_path("delivery_id")]
        retrying = make_operation(f"retry_{kind}_delivery", "Send an event again", again, parameters)
        paths |= {f"{of}/deliveries": {"get": listing}, f"{of}/deliveries/{{delivery_id}}/retry": {"post": retrying}}
    return paths


def _service_paths() -> Schema:
    services, status = make_ref("ServiceList"), make_ref("Health")
    one = {"200": make_answer(make_ref("Service"), "The service"), **make_problems(404, 422, 503)}
    every = {"200": make_answer(services, "Every installed service"), **make_problems(422, 503)}
    alive = {"200": make_answer(status, "The process lives")}
    ready = {"200": make_answer(status, "Redis answers"), **make_problems(503)}
    metrics = {**METRICS, **make_problems(422)}
    return {
        "/services": {"get": make_operation("list_services", "List the services", every)},
        "/services/{name}": {"get": make_operation("get_service", "Read a service", one, [in_path("name")])},
        "/healthz": {"get": make_operation("health", "Liveness", alive)},
        "/readyz": {"get": make_operation("ready", "Readiness", ready)},
        "/metrics": {"get": make_operation("read_metrics", "Metrics for Prometheus", metrics)},
        "/": {"get": make_operation("console", "The console, a web page", CONSOLE)},
    }
