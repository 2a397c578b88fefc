"""The routes of jobs: each reads its request, calls the state, and answers."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Mapping
from functools import partial
from itertools import combinations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic_core import to_json

from api.auth.gate import caller_of
from api.jobs import answers
from api.jobs.fast_path import fast
from api.jobs.retention import retain_files_again
from api.jobs.submit import submit
from api.large_bodies import aside
from api.operations import (
    STRING,
    answer,
    describe,
    header,
    in_header,
    in_path,
    in_query,
    json_body,
    one_of,
)
from api.requests import (
    JobRequest,
    check_query,
    invalid_query,
    parse_job,
    read_body,
    read_idempotency_key,
    read_int,
    read_job_id,
    read_nothing,
    read_own_id,
    read_wait,
    refuse_encoded,
)
from api.state import state_of
from worker.ledger.jobs import Job, Status

log = logging.getLogger("services.api")
router = APIRouter()

MAX_PAGE = 100
DEFAULT_PAGE = 20

PAGE_SIZE = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE}

#: Parts of a job that ``?include=`` may ask for; a single job has its output anyway.
INCLUDES = ("attempts", "input", "output")

APPLIED = header("Preference-Applied", "`wait=<s>`, where the answer was held")
LOCATION = header("Location", "the job's address")
CREATED = {
    200: answer(answers.Job, "The job: ended within the wait, or made by an earlier request", LOCATION, APPLIED),
    202: answer(answers.Job, "The job, stored and enqueued", LOCATION, APPLIED),
}
REFUSED = (404, 409, 410, 413, 422, 429, 503)
WAIT = [
    in_query(
        "wait",
        {"type": "number", "minimum": 0},
        "seconds to hold the answer until the job ends; more than the server's limit is its limit",
    ),
    {
        **in_header(
            "Prefer",
            STRING,
            "`wait=<s>`: the same (RFC 7240); `?wait=` goes first. Other preferences are ignored.",
        ),
        "example": "wait=10",
    },
]
IDEMPOTENCY_KEY = in_header(
    "Idempotency-Key",
    {"type": "string", "pattern": "^[\\x21-\\x7e]([\\x20-\\x7e]{0,253}[\\x21-\\x7e])?$"},
    "the client's own; the same key and body give the same job again, as long as that job is kept",
)
SUBMITTING = [*WAIT, IDEMPOTENCY_KEY]
OWN_ID = in_path(
    "job_id",
    {"type": "string", "format": "uuid", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
    "your own: the same id and body give the same job again; another body is a conflict",
)
INCLUDE = in_query(
    "include",
    one_of(",".join(names) for size in (1, 2, 3) for names in combinations(INCLUDES, size)),
    "further members of each job; a page with inputs or outputs ends early once it has 16 MB of them",
)
BODY = json_body(JobRequest)


@router.post("/jobs", openapi_extra=describe("Submit a job", CREATED, *REFUSED, parameters=SUBMITTING, body=BODY))
@fast
async def create_job(request: Request) -> Response:
    """Validate, store and enqueue one job; with a wait, answer when it has ended."""
    return await _submit(request, key=read_idempotency_key(request))


@router.put(
    "/jobs/{job_id}",
    openapi_extra=describe("Submit a job under your own id", CREATED, *REFUSED, parameters=[OWN_ID, *WAIT], body=BODY),
)
async def put_job(request: Request) -> Response:
    """The same with an id of the client's own, which makes the request repeatable as an idempotency key does."""
    return await _submit(request, own_id=read_own_id(request, read_job_id(request)))


async def _submit(request: Request, key: str = "", own_id: str = "") -> Response:
    state = state_of(request)
    wait_s = read_wait(request, check_query(request, {"wait"}), state.settings.max_wait_s)
    refuse_encoded(request)
    body = await read_body(request, state.settings.max_body_bytes)
    asked = await aside(len(body), partial(parse_job, body, state.settings))
    job, is_new = await submit(state, caller_of(request), asked, key=key, own_id=own_id, wait_s=wait_s, size=len(body))
    status = 202 if is_new and not (wait_s and job.ended) else 200
    return _job(job, status, wait_s, {"Location": f"/jobs/{job.id}"})


@router.get(
    "/jobs/{job_id}",
    openapi_extra=describe(
        "Read a job",
        {200: answer(answers.Job, "The job as it stands", APPLIED)},
        *(404, 410, 422, 503),
        parameters=[in_path("job_id"), *WAIT, INCLUDE],
    ),
)
@fast
async def get_job(request: Request) -> Response:
    """One job, as it ends within the wait or as it then stands."""
    job_id = read_job_id(request)
    state = state_of(request)
    query = check_query(request, {"wait", "include"})
    wait_s, include = read_wait(request, query, state.settings.max_wait_s), _read_include(query)
    job = await state.waiter.read(job_id, wait_s, caller_of(request).sees)
    return _job(job, 200, wait_s, include=include)


@router.delete(
    "/jobs/{job_id}",
    openapi_extra=describe(
        "Cancel a job",
        {202: answer(answers.Job, "The cancelled job")},
        *(404, 409, 410, 422, 503),
        parameters=[in_path("job_id")],
    ),
)
async def cancel_job(request: Request) -> Response:
    """Cancel a job that has not ended."""
    check_query(request, set())
    job = await state_of(request).ledger.cancel(read_job_id(request), caller_of(request).sees)
    log.info("job cancelled id=%s service=%s attempt=%d", job.id, job.service, job.attempt)
    return _job(job, 202)


@router.post(
    "/jobs/{job_id}/retry",
    openapi_extra=describe(
        "Run a failed, cancelled or expired job again",
        {202: answer(answers.Job, "The job, queued again", LOCATION)},
        *REFUSED,
        parameters=[in_path("job_id")],
    ),
)
async def retry_job(request: Request) -> Response:
    """Run a failed, cancelled or expired job again."""
    check_query(request, set())
    await read_nothing(request)
    caller, state = caller_of(request), state_of(request)
    retain = partial(retain_files_again, state)
    job = await state.ledger.retry(read_job_id(request), caller.sees, caller.most_open, retain)
    log.info("job queued id=%s service=%s priority=%s attempt=%d", job.id, job.service, job.priority, job.attempt + 1)
    return _job(job, 202, headers={"Location": f"/jobs/{job.id}"})


@router.get(
    "/jobs",
    openapi_extra=describe(
        "List jobs, newest first",
        {200: answer(answers.JobPage, "A page of jobs")},
        *(404, 422, 503),
        parameters=[
            in_query("service", STRING, "only this service's"),
            in_query("status", one_of(Status), "only in this state"),
            in_query("limit", PAGE_SIZE, "most jobs"),
            in_query("cursor", STRING, "`next_cursor` of the page before; a page may be short although more follow"),
            INCLUDE,
        ],
    ),
)
async def list_jobs(request: Request) -> Response:
    """Jobs, newest first, a page at a time."""
    state = state_of(request)
    query = check_query(request, {"service", "status", "limit", "cursor", "include"})
    include = _read_include(query)
    names = [state.catalog.get(query["service"]).plugin.name] if "service" in query else list(state.catalog.entries)
    limit = read_int(query, "limit", DEFAULT_PAGE, MAX_PAGE)
    status, before, sees = _read_status(query), _read_cursor(query), caller_of(request).sees
    page = await state.ledger.page(names, status, limit, before, sees, include)
    cursor = base64.urlsafe_b64encode("/".join(page.next).encode()) if page.next else None
    jobs = b",".join(job.to_json(include, is_row=True) for job in page.jobs)
    return Response(b'{"jobs":[%b],"next_cursor":%b}' % (jobs, to_json(cursor)), media_type="application/json")


def _read_status(query: Mapping[str, str]) -> Status | None:
    if "status" not in query:
        return None
    if query["status"] not in set(Status):
        raise invalid_query("status", f"expected one of {', '.join(Status)}", "enum")
    return Status(query["status"])


def _read_include(query: Mapping[str, str]) -> frozenset[str]:
    names = frozenset(query["include"].split(",")) if "include" in query else frozenset()
    if not names <= set(INCLUDES):
        must = f"expected one or more of {', '.join(INCLUDES)}, comma-separated"
        raise invalid_query("include", must, "enum")
    return names


def _read_cursor(query: Mapping[str, str]) -> tuple[str, str] | None:
    if "cursor" not in query:
        return None
    try:
        us, _, job_id = base64.b64decode(query["cursor"], altchars=b"-_", validate=True).decode().partition("/")
    except (binascii.Error, ValueError):
        us, job_id = "", ""
    if not (us.isascii() and us.isdigit() and len(us) < 20 and job_id):
        raise invalid_query("cursor", "expected a next_cursor of an earlier answer", "cursor")
    return us, job_id


def _job(
    job: Job,
    status: int,
    wait_s: float = 0,
    headers: dict[str, str] | None = None,
    include: frozenset[str] = frozenset(),
) -> Response:
    applied = {"Preference-Applied": f"wait={wait_s:g}"} if wait_s else {}
    return Response(job.to_json(include), status, {**applied, **(headers or {})}, "application/json")
