"""One thin handler a route."""

from __future__ import annotations

import base64
import binascii
import logging
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic_core import to_json

from api.auth.gate import caller_of
from api.auth.keyring import Caller
from api.catalog import Entry
from api.jobs.fingerprint import ask_cache, check_cacheable
from api.jobs.waiter import ended_within
from api.requests import (
    JobRequest,
    check_query,
    dump_strictly,
    hash_body,
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
from worker.ledger import commands
from worker.ledger.commands import Repeated
from worker.ledger.jobs import End, Job, NewJob, Priority, Status
from worker.webhooks.events import dump_webhook

log = logging.getLogger("services.api")
router = APIRouter()

MAX_PAGE = 100
DEFAULT_PAGE = 20

#: What ``?include=`` may ask for beyond the job itself; a single job has its output anyway.
INCLUDES = frozenset({"attempts", "input", "output"})


async def create_job(request: Request) -> Response:
    """Validate, store and enqueue one job; with a wait, hold the answer until it ends."""
    return await _create(request, read_idempotency_key(request))


@router.put("/jobs/{job_id}")
async def put_job(request: Request) -> Response:
    """The same under an id of the client's own, which makes it repeatable as a key would."""
    return await _create(request, "", read_own_id(request, read_job_id(request)))


async def _create(request: Request, key: str, own_id: str = "") -> Response:
    state = request.app.state
    wait = read_wait(request, check_query(request, {"wait"}), state.settings.max_wait_s)
    refuse_encoded(request)
    body = parse_job(await read_body(request, state.settings.max_body_bytes), state.settings.max_keep_for_s)
    new, files = _new_job(body, key, own_id, bool(wait), state, caller_of(request))
    if body.webhook:
        await state.receivers.check(body.webhook.url)
    if files:
        await state.files.hold(new, files)
    elif state.catalog.get(new.service).input is None:
        await state.files.hold_named(new.service, new.id, new.owner, new.input)
    # An id of the client's own may come twice at once.
    expect = state.waiter.expect_new if new.awaited else state.waiter.expect
    with expect(new.id) as end:
        job = await state.writer.store(new)
        if isinstance(job, Repeated):
            return await _answer_again(state, job.job_id, wait, caller_of(request).sees)
        log_stored(job)
        if wait and not job.ended:
            ended = await ended_within(end, wait) or await state.ledger.get(job.id)
            job = job.as_it_ended(ended) if isinstance(ended, End) else ended
    return _job(job, 200 if wait and job.ended else 202, wait, {"Location": f"/jobs/{job.id}"})


async def get_job(request: Request) -> Response:
    """One job as it stands, or as it ends within the wait."""
    job_id = read_job_id(request)
    state = request.app.state
    query = check_query(request, {"wait", "include"})
    wait, include = read_wait(request, query, state.settings.max_wait_s), _read_include(query)
    return _job(await _read(state, job_id, wait, caller_of(request).sees), 200, wait, include=include)


@router.delete("/jobs/{job_id}")
async def cancel_job(request: Request) -> Response:
    """Cancel a job that has not ended."""
    check_query(request, set())
    job = await request.app.state.ledger.cancel(read_job_id(request), caller_of(request).sees)
    log.info("job cancelled id=%s service=%s attempt=%d", job.id, job.service, job.attempt)
    return _job(job, 202)


@router.post("/jobs/{job_id}/retry")
async def retry_job(request: Request) -> Response:
    """Run a job that has failed, was cancelled or expired again."""
    check_query(request, set())
    await read_nothing(request)
    caller, state = caller_of(request), request.app.state
    hold = partial(_hold_again, state)
    job = await state.ledger.retry(read_job_id(request), caller.sees, caller.most_open, hold)
    log.info("job queued id=%s service=%s priority=%s attempt=%d", job.id, job.service, job.priority, job.attempt + 1)
    return _job(job, 202, headers={"Location": f"/jobs/{job.id}"})


@router.get("/jobs")
async def list_jobs(request: Request) -> Response:
    """Jobs, newest first, a page at a time."""
    state = request.app.state
    query = check_query(request, {"service", "status", "limit", "cursor", "include"})
    include = _read_include(query)
    names = [state.catalog.get(query["service"]).plugin.name] if "service" in query else list(state.catalog.entries)
    limit = read_int(query, "limit", DEFAULT_PAGE, MAX_PAGE)
    status, before, sees = _read_status(query), _read_cursor(query), caller_of(request).sees
    page = await state.ledger.page(names, status, limit, before, sees, include)
    cursor = base64.urlsafe_b64encode("/".join(page.next).encode()) if page.next else None
    jobs = b",".join(job.to_json(include, is_row=True) for job in page.jobs)
    return Response(b'{"jobs":[%b],"next_cursor":%b}' % (jobs, to_json(cursor)), media_type="application/json")


@router.get("/services")
async def list_services(request: Request) -> Response:
    """Every installed service and its state."""
    check_query(request, set())
    state = request.app.state
    entries = [entry for name, entry in state.catalog.entries.items() if caller_of(request).may_use(name)]
    overviews = await state.ledger.overviews([entry.plugin.name for entry in entries])
    return _json({"services": [e.describe(o) for e, o in zip(entries, overviews, strict=True)]})


@router.get("/services/{name}")
async def get_service(request: Request, name: str) -> Response:
    """One service and its state."""
    check_query(request, set())
    caller_of(request).check_service(name)
    entry = request.app.state.catalog.get(name)
    return _json(entry.describe(await request.app.state.ledger.run(commands.overview(name))))


@router.get("/healthz")
async def health(request: Request) -> Response:
    """The process lives."""
    return _json({"status": "ok"})


@router.get("/readyz")
async def ready(request: Request) -> Response:
    """The process can take jobs: Redis answers."""
    await request.app.state.ledger.ping()
    return _json({"status": "ready"})


async def _read(state: Any, job_id: str, wait: float, sees: str) -> Job:
    """A job that exists, as it ends within the wait or as it then stands."""
    with state.waiter.expect(job_id) as end:
        job: Job = await state.ledger.get(job_id, sees)
        if wait and not job.ended:
            job = await ended_within(end, wait) or await state.ledger.get(job_id, sees)
    return job


async def _hold_again(state: Any, job: Job) -> None:
    """Before a job is run again: the files that it names are there, and stay."""
    entry: Entry | None = state.catalog.entries.get(job.service)
    if entry is None or entry.input is None:
        await state.files.hold_named(job.service, job.id, job.owner, job.input)
    elif files := entry.find_stored(job.input):
        await state.files.hold_again(job, files)


async def _answer_again(state: Any, job_id: str, wait: float, sees: str) -> Response:
    """A request that was sent before: the job that it made then."""
    job = await _read(state, job_id, wait, sees)
    return _job(job, 200, wait, {"Location": f"/jobs/{job.id}"})


def log_stored(job: Job) -> None:
    """One line for a job that is accepted."""
    if job.cached_from:
        log.info("job ended id=%s service=%s cached_from=%s", job.id, job.service, job.cached_from)
    else:
        log.info("job queued id=%s service=%s priority=%s", job.id, job.service, job.priority)


def _new_job(
    body: JobRequest, key: str, own_id: str, waits: bool, state: Any, caller: Caller
) -> tuple[NewJob, list[Any]]:
    """The job, and the files that its input names."""
    caller.check_service(body.service)
    entry: Entry = state.catalog.get(body.service)
    text = dump_strictly(body.input, "input")
    files = entry.validate(text)
    check_cacheable(entry, body.cache_for_s)
    may_cache = state.ledger.may_cache(body.service)
    new = NewJob(
        id=own_id or str(uuid.uuid4()),
        service=body.service,
        input=text,
        version=entry.plugin.version,
        priority=Priority(body.priority),
        start_within_s=body.start_within_s or 0,
        finish_within_s=body.finish_within_s or 0,
        keep_for_s=body.keep_for_s or state.settings.keep_for_s,
        metadata=dump_strictly(body.metadata, "metadata"),
        idempotency_key=key,
        # With an id of the client's own: nobody else's request is the same one.
        body_hash=hash_body(body) + (caller.owner if own_id else "") if key or own_id else "",
        webhook=dump_webhook(body.webhook.url, body.webhook.events or ()) if body.webhook else b"",
        owner=caller.owner,
        most_open=caller.most_open,
        awaited=waits and not own_id,
        cache=ask_cache(entry, text, caller.owner, body.cache_for_s, may_cache),
        not_before_us=body.not_before or 0,
    )
    return new, files


def _read_status(query: Mapping[str, str]) -> Status | None:
    if "status" not in query:
        return None
    if query["status"] not in set(Status):
        raise invalid_query("status", f"expected one of {', '.join(Status)}", "enum")
    return Status(query["status"])


def _read_include(query: Mapping[str, str]) -> frozenset[str]:
    names = frozenset(query["include"].split(",")) if "include" in query else frozenset()
    if not names <= INCLUDES:
        must = f"expected one or more of {', '.join(sorted(INCLUDES))}, comma-separated"
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
    wait: float = 0,
    headers: dict[str, str] | None = None,
    include: frozenset[str] = frozenset(),
) -> Response:
    applied = {"Preference-Applied": f"wait={wait:g}"} if wait else {}
    return Response(job.to_json(include), status, {**applied, **(headers or {})}, "application/json")


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")
