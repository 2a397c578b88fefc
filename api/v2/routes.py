"""``/v2``: the Open Inference Protocol (KServe v2) over the same queue; ``docs/open-inference.md`` has its rules.

Each row of a request's tensors becomes a job. All are stored together and awaited, and the answer joins their outputs.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic_core import from_json, to_json
from starlette.requests import ClientDisconnect

from api.auth.gate import caller_of
from api.catalog import Entry
from api.jobs.retention import retain_files
from api.jobs.submit import store_all
from api.large_bodies import aside
from api.operations import JSON, OCTETS, answer, header, in_header, json_body
from api.problems import InferFailed
from api.state import State, state_of
from api.v2 import answers
from api.v2.columns import list_columns, to_tensor
from api.v2.model_info import PLATFORM
from api.v2.operations import describe_v2, model_route
from api.v2.requests import JSON_LENGTH, Plan, find_entry, name_row, read_encoded, read_index, read_length
from api.v2.tensors import InferRequest, to_binary, to_values
from worker.errors import InvalidInput, JobNotFound, ServiceFailed, ServicesError, TimedOut
from worker.ledger import commands
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.data_schema import own_version
from worker.ledger.jobs import Job, NewJob, Status

log = logging.getLogger("services.api")
router = APIRouter()

EXTENSIONS = ["binary_tensor_data", "schedule_policy", "parameters", "model_configuration", "statistics"]

#: An answer below this size is not worth compressing.
MIN_COMPRESSED = 1024

#: The status of a request one of whose jobs failed, by the job's error code; else 500.
FAILED = {InvalidInput.code: 400, TimedOut.code: 504, ServiceFailed.code: 503}

INDEX = {"type": "array", "items": answers.IndexRow}
ONLY_READY = {
    "required": False,
    "content": {
        JSON: {
            "schema": {
                "type": "object",
                "properties": {"ready": {"type": "boolean", "description": "only models that are ready"}},
            }
        }
    },
}
INFERRED = answer(answers.InferResponse, "The answer", header(JSON_LENGTH))
INFERRED["content"][OCTETS] = {"schema": {"type": "string", "contentMediaType": OCTETS}}
JSON_LENGTH_HEADER = in_header(
    JSON_LENGTH,
    {"type": "string", "pattern": "^[0-9]{1,11}$"},
    "bytes of JSON before the binary tensors; left out where all is JSON",
)


@router.get("/v2", openapi_extra=describe_v2("v2_server", "The server's metadata", answers.ServerMetadata))
async def get_server() -> answers.ServerMetadata:
    """The server's metadata."""
    return answers.ServerMetadata(name="libs-service", version=own_version(), extensions=EXTENSIONS)


@router.get("/v2/health/live", openapi_extra=describe_v2("v2_live", "Liveness", answers.Live))
async def live() -> answers.Live:
    """The process is alive."""
    return answers.Live(live=True)


@router.get("/v2/health/ready", openapi_extra=describe_v2("v2_ready", "Readiness: Redis answers", answers.Ready, 503))
async def ready(request: Request) -> answers.Ready:
    """The server can accept requests: Redis answers. ``/v2/models/<name>/ready`` is about a model's workers."""
    await state_of(request).ledger.ping()
    return answers.Ready(ready=True, live=True)


@model_route(router, "GET", "", "v2_model", "A model's inputs and outputs", answers.ModelMetadata, 404)
async def get_model(request: Request, name: str, version: str = "") -> answers.ModelMetadata:
    """A model's metadata: its columns."""
    entry = find_entry(request, name, version)
    inputs, outputs = list_columns(entry.input, "validation"), list_columns(entry.output, "serialization")
    return answers.ModelMetadata(
        name=name,
        versions=[entry.plugin.version],
        platform=PLATFORM,
        inputs=[column.to_metadata() for column in inputs],
        outputs=[column.to_metadata() for column in outputs],
    )


@model_route(router, "GET", "/ready", "v2_model_ready", "A model's readiness", answers.ModelReady, 404, 503)
async def model_ready(request: Request, name: str, version: str = "") -> answers.ModelReady:
    """Whether a worker of the model is ready."""
    entry = find_entry(request, name, version)
    state, reason = entry.state(await state_of(request).ledger.run(commands.overview(name)))
    if state != "ready":
        raise InferFailed(f"model {name!r} is not ready: {state}{f': {reason}' if reason else ''}", 503)
    return answers.ModelReady(name=name, ready=True)


@router.post(
    "/v2/repository/index",
    openapi_extra=describe_v2("v2_index", "The models' states", INDEX, *(400, 413, 503), body=ONLY_READY),
)
async def index(request: Request) -> list[answers.IndexRow]:
    """Every model and its state, as Triton's model repository extension lists them."""
    state = state_of(request)
    only_ready = await read_index(request)
    entries = state.catalog.usable_by(caller_of(request))
    overviews = await asyncio.gather(*(state.ledger.run(commands.overview(entry.plugin.name)) for entry in entries))
    listed = [_index_row(entry, *entry.state(overview)) for entry, overview in zip(entries, overviews, strict=True)]
    return [row for row in listed if row.state == "READY" or not only_ready]


@model_route(
    router,
    "POST",
    "/infer",
    "v2_infer",
    "Run a model: each row of the tensors is a job",
    INFERRED,
    *(400, 404, 413, 415, 429, 500, 503, 504),
    parameters=(JSON_LENGTH_HEADER,),
    body=json_body(InferRequest),  # where no type is given, as by tritonclient, it makes no difference
)
async def infer(request: Request, name: str, version: str = "") -> Response:
    """Run the model on the rows of the request's tensors."""
    state = state_of(request)
    entry = find_entry(request, name, version)
    body = await read_encoded(request, state.settings.max_body_bytes)
    length = read_length(request)
    caller = caller_of(request)
    plan = await aside(len(body), lambda: Plan(state, entry, caller, body, length))
    jobs = await _run(request, plan)
    size = sum(len(job.output or b"") for job in jobs)
    return await aside(size, lambda: _answer(request, plan, jobs))


# -- the jobs ---------------------------------------------------------------------------------------------------------


async def _run(request: Request, plan: Plan) -> list[Job]:
    """Store the jobs and wait until all have succeeded. Raises ``InferFailed`` for the first that has not."""
    state = state_of(request)
    await _retain_files(state, plan)
    with ExitStack() as stack:
        ends = [stack.enter_context(state.waiter.expect(new.id)) for new in plan.jobs]
        stored = await store_all(state, plan.jobs)
        request.scope["stored"] = stored[0].id  # for the audit log
        for end, job in zip(ends, stored, strict=True):
            if job.ended and not end.done():  # it has the output of an equal job
                end.set_result(job)
        leaving = asyncio.create_task(_give_up_at_leave(request, ends))
        try:
            done, _ = await asyncio.wait(ends, timeout=plan.wait_s)
        finally:
            leaving.cancel()
        ended = {job.id: job for job in (end.result() for end in done) if job}
    if len(ended) < len(done) and not state.waiter.is_stopping:
        await _withdraw(state.ledger, [new for new in plan.jobs if new.id not in ended])
        raise ClientDisconnect()
    missing = [new.id for new in plan.jobs if new.id not in ended]
    ended |= {job.id: job for job in await state.ledger.get_many(missing) if job is not None} if missing else {}
    jobs = [ended[new.id] for new in plan.jobs if new.id in ended]
    if len(jobs) < len(plan.jobs):
        raise JobNotFound("a job of this request was dropped before it could be read: its keep_for_s is short")
    for row, job in enumerate(jobs):
        if job.ended and job.status != Status.SUCCEEDED:
            raise _failed(job, row, len(jobs))
    if waiting := [job for job in jobs if not job.ended]:
        raise _late(waiting, len(jobs), plan)
    return jobs


async def _give_up_at_leave(request: Request, ends: Sequence[asyncio.Future[Job | None]]) -> None:
    """When the client closes its connection, end the waiting: the open futures become None."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    for end in ends:
        if not end.done():
            end.set_result(None)


async def _withdraw(ledger: AsyncLedger, jobs: Sequence[NewJob]) -> None:
    """Cancel the jobs that have not begun, since nobody will read them: a client that gave up sends its rows again.

    Running jobs go on: to stop one ends its process, and with that the model and the other jobs of its batch.
    """
    left = [ledger.run(commands.cancel(job.service, job.id, but_running=True)) for job in jobs]
    with suppress(ServicesError):  # Redis is unavailable: nobody reads their results
        await asyncio.gather(*left)
    log.info("client left, its jobs that had not begun are cancelled service=%s jobs=%d", jobs[0].service, len(jobs))


async def _retain_files(state: State, plan: Plan) -> None:
    for row, (job, files) in enumerate(zip(plan.jobs, plan.files, strict=True)):
        try:
            await retain_files(state, plan.entry, job, files)
        except InvalidInput as error:
            raise name_row(error, row, len(plan.jobs)) from error


def _failed(job: Job, row: int, rows: int) -> InferFailed:
    """The error for a job that did not succeed."""
    error = from_json(job.error) if job.error else {"code": job.status, "message": f"the job is {job.status}"}
    where = f"row {row}: " if rows > 1 else ""
    status = 504 if job.status == Status.EXPIRED else FAILED.get(error["code"], 500)
    return InferFailed(
        f"{where}{error['code']}: {error['message']} (job {job.id})", status, {"Location": f"/jobs/{job.id}"}
    )


def _late(waiting: Sequence[Job], rows: int, plan: Plan) -> InferFailed:
    """The error for a wait that is over before the jobs have ended."""
    first = waiting[0]
    of = f"{len(waiting)} of {rows} rows have" if rows > 1 else "the job has"
    then = "it ends at the request's timeout" if plan.timeout_s else "it goes on"
    text = f"{of} not ended within {plan.wait_s:g} s: job {first.id} is {first.status}, {then}; GET /jobs/{first.id}"
    return InferFailed(text, 504, {"Location": f"/jobs/{first.id}"})


# -- the answer -------------------------------------------------------------------------------------------------------


def _answer(request: Request, plan: Plan, jobs: Sequence[Job]) -> Response:
    """The jobs' outputs, joined; the binary ones follow the JSON."""
    rows = [from_json(job.output or b"null") for job in jobs]
    outputs: list[dict[str, Any]] = []
    pieces: list[bytes] = []
    for column, binary in plan.outputs:
        tensor = to_tensor(rows, column, binary)
        output = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if binary:
            pieces.append(to_binary(tensor))
            outputs.append({**output, "parameters": {"binary_data_size": len(pieces[-1])}})
        else:
            outputs.append({**output, "data": to_values(tensor)})
    head: dict[str, Any] = {"model_name": plan.entry.plugin.name, "model_version": jobs[0].version}
    if plan.asked.id is not None:
        head["id"] = plan.asked.id
    if len(jobs) == 1:
        head["parameters"] = {"job_id": jobs[0].id}
    text = to_json({**head, "outputs": outputs})
    headers = {JSON_LENGTH: str(len(text))} if pieces else {}
    media_type = "application/octet-stream" if pieces else "application/json"
    return _compressed(request, b"".join([text, *pieces]), headers, media_type)


def _compressed(request: Request, body: bytes, headers: dict[str, str], media_type: str) -> Response:
    """The answer, compressed where the request accepts one coding alone, as tritonclient does when its user asks so.

    Most clients list all codings that they can read, and numbers cost more to compress than to send.
    """
    coding = request.headers.get("accept-encoding", "").strip().lower()
    if coding in ("gzip", "deflate") and len(body) >= MIN_COMPRESSED:
        packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | (16 if coding == "gzip" else 0))
        body = packer.compress(body) + packer.flush()
        headers = {**headers, "Content-Encoding": coding}
    return Response(body, 200, {**headers, "Vary": "Accept-Encoding"}, media_type)


def _index_row(entry: Entry, state: str, reason: str | None) -> answers.IndexRow:
    states = {"ready": "READY", "loading": "LOADING"}
    return answers.IndexRow(
        name=entry.plugin.name,
        version=entry.plugin.version,
        state=states.get(state, "UNAVAILABLE"),
        reason=reason or ("" if state == "ready" else state),
    )
