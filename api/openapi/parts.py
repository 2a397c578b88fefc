"""Parts of the operations of the OpenAPI document: parameters, headers, answers, problems."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from api.jobs.routes import DEFAULT_PAGE, MAX_PAGE
from api.openapi.schemas import Schema, make_enum, make_ref
from api.problems import TITLES
from worker.ledger.jobs import Status
from worker.settings import get_settings

#: The error codes of each status.
CODES = {
    401: ["unauthorized"],
    403: ["forbidden", "link_invalid"],
    404: ["job_not_found", "unknown_service", "file_not_found", "delivery_not_found", "not_found"],
    408: ["request_timeout", "upload_too_late"],
    409: ["job_finished", "job_not_retryable", "idempotency_conflict", "file_in_use"],
    410: ["job_expired"],
    413: ["payload_too_large"],
    415: ["unsupported_file_type"],
    416: ["range_not_satisfiable"],
    422: ["invalid_input"],
    429: ["rate_limited", "queue_full"],
    503: ["store_unavailable", "service_failed", "storage_unavailable"],
}

NDJSON = "application/x-ndjson"


def make_keep_for(description: str = "", null: bool = True) -> Schema:
    """Seconds for which something is kept, up to this API's own limit."""
    kind: Any = ["number", "null"] if null else "number"
    schema = {"type": kind, "exclusiveMinimum": 0, "maximum": get_settings().max_keep_for_s}
    return {**schema, "description": description} if description else schema


def make_header(kind: str, description: str) -> Schema:
    """A header of an answer."""
    return {"schema": {"type": kind}, "description": description}


APPLIED = {"Preference-Applied": make_header("string", "`wait=<s>`, where the answer was held")}
LOCATION = {"Location": make_header("string", "the job's address")}

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

OWN_ID: Schema = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "description": "your own: the same id and body give the same job again; another body is a conflict",
    "schema": {"type": "string", "format": "uuid", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
}

CREATING = [*WAIT, IDEMPOTENCY_KEY]


def in_path(name: str) -> Schema:
    """A parameter that is a part of the path."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def in_query(name: str, schema: Schema, description: str) -> Schema:
    """A parameter after the question mark."""
    return {"name": name, "in": "query", "schema": schema, "description": description}


INCLUDED = ("attempts", "input", "output")
INCLUDE = in_query(
    "include",
    make_enum(",".join(names) for size in (1, 2, 3) for names in combinations(INCLUDED, size)),
    "further members of each job; a page with inputs or outputs ends early once it has 16 MB of them",
)

PAGING = [
    in_query("service", {"type": "string"}, "only this service's"),
    in_query("status", make_enum(Status), "only in this state"),
    in_query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE}, "most jobs"),
    in_query(
        "cursor", {"type": "string"}, "`next_cursor` of the page before; a page may be short although more follow"
    ),
]


def make_answer(schema: Schema, description: str, headers: Schema | None = None) -> Schema:
    """An answer in JSON."""
    answer: Schema = {"description": description, "content": {"application/json": {"schema": schema}}}
    return {**answer, "headers": headers} if headers else answer


def make_problems(*statuses: int) -> Schema:
    """The answers of these statuses: problem documents with one of their ``CODES``."""
    found: Schema = {}
    for status in statuses:
        codes = ", ".join(f"`{code}`" for code in CODES[status])
        answer: Schema = {"description": f"{TITLES[status]}: {codes}"}
        answer["content"] = {"application/problem+json": {"schema": make_ref("Problem")}}
        if status in (429, 503):
            answer["headers"] = {"Retry-After": make_header("string", "seconds")}
        elif status == 401:
            answer["headers"] = {"WWW-Authenticate": make_header("string", "`Bearer`")}
        found[str(status)] = answer
    return found


def make_operation(
    name: str, summary: str, answers: Schema, parameters: list[Schema] | None = None, **more: Any
) -> Schema:
    """One method of a path; ``more``: further members, such as ``requestBody``."""
    return {"operationId": name, "summary": summary, "parameters": parameters or [], **more, "responses": answers}
