"""The routes of batches: bodies of JSON or of JSON lines come in, results go out in the order of their rows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from api.auth.gate import caller_of
from api.batches.answers import Batch
from api.batches.submit import submit_batch
from api.jobs.retention import retain_files_of_batch_again
from api.jobs.routes import IDEMPOTENCY_KEY
from api.large_bodies import aside
from api.operations import NDJSON, STRING, answer, describe, header, in_path, in_query, json_body, one_of
from api.problems import PayloadTooLarge
from api.requests import (
    BOM_REFUSED,
    BatchRequest,
    check_query,
    describe_keep_for,
    dump_strictly,
    parse_batch,
    read_batch_query,
    read_body,
    read_idempotency_key,
    read_nothing,
    refuse_encoded,
    unless_head,
)
from api.state import State, state_of
from worker.errors import InvalidInput, StoreUnavailable
from worker.ledger import batch_commands
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.batches import StoredBatch, StoredChunk, at_once
from worker.ledger.jobs import TERMINAL, Priority

T = TypeVar("T")

log = logging.getLogger("services.api")
router = APIRouter()

#: Media types of JSON lines.
LINES = (NDJSON, "application/jsonl", "application/ndjson")
#: Query parameters beside a body of JSON lines.
LINES_QUERY = {"service", "priority", "keep_for_s", "webhook"}
#: Seconds after which a chunk is read again although Redis has not announced its end.
LOOK_S = 5.0
#: Seconds between two calls to a Redis that is unavailable.
AGAIN_S = 0.5

PATH = [in_path("batch_id")]
REFUSED = (404, 410, 422, 503)
LOCATION = header("Location", "the batch's address")
BESIDE_LINES = "with a body of JSON lines"
RESULTS = "one line an input, in order: its `index` and its `output` or its `error`; ends with the batch"


@router.post(
    "/batches",
    openapi_extra=describe(
        "Submit many inputs at once",
        {
            200: answer(Batch, "The batch that an earlier request made", LOCATION),
            202: answer(Batch, "The batch, stored and enqueued", LOCATION),
        },
        *(404, 409, 410, 413, 422, 429, 503),
        parameters=[
            in_query("service", STRING, f"{BESIDE_LINES}, for which it is required: the service"),
            in_query("priority", one_of(Priority), f"{BESIDE_LINES}: their priority; default: low"),
            in_query("keep_for_s", describe_keep_for(null=False), f"{BESIDE_LINES}: seconds after its end"),
            in_query("webhook", {**STRING, "format": "uri"}, f"{BESIDE_LINES}: is told of its end"),
            IDEMPOTENCY_KEY,
        ],
        body=json_body(BatchRequest, **{NDJSON: {"schema": STRING, "example": '{"n": 1}\n{"n": 2}\n'}}),
    ),
)
async def create_batch(request: Request) -> Response:
    """Store all inputs and enqueue them in chunks."""
    refuse_encoded(request)
    is_lines = _is_ndjson(request)
    if "service" in request.query_params and not is_lines:
        given = request.headers.get("content-type", "no Content-Type")[:100]
        must = f"expected Content-Type: {NDJSON} beside ?service=, got {given}"
        raise InvalidInput(must, errors=[{"loc": ["header", "Content-Type"], "msg": must, "type": "content_type"}])
    check_query(request, LINES_QUERY if is_lines else set())
    key = read_idempotency_key(request)
    asked, rows = _from_lines(request) if is_lines else await _from_json(request)
    where = ["body"] if is_lines else ["body", "inputs"]
    batch, is_new = await submit_batch(state_of(request), caller_of(request), asked, rows, key=key, where=where)
    if is_new:
        log.info("batch queued id=%s service=%s rows=%d", batch.id, batch.service, batch.rows)
    return _answer(batch, 202 if is_new else 200, {"Location": f"/batches/{batch.id}"})


@router.get(
    "/batches/{batch_id}",
    openapi_extra=describe("Read a batch", {200: answer(Batch, "Counts and progress")}, *REFUSED, parameters=PATH),
)
async def get_batch(request: Request, batch_id: str) -> Response:
    """Counts by state, and progress."""
    check_query(request, set())
    return _answer(await state_of(request).ledger.get_batch(batch_id, caller_of(request).sees))


@router.get(
    "/batches/{batch_id}/results",
    openapi_extra=describe(
        "Read the results as they come",
        {200: answer(STRING, RESULTS, media_types=[NDJSON])},
        *REFUSED,
        parameters=PATH,
    ),
)
async def get_results(request: Request, batch_id: str) -> Response:
    """One line for each input, in their order, as soon as it is there; the answer ends with the batch."""
    check_query(request, set())
    batch = await state_of(request).ledger.get_batch(batch_id, caller_of(request).sees)
    return StreamingResponse(unless_head(request, _results(request, batch)), media_type=NDJSON)


@router.delete(
    "/batches/{batch_id}",
    openapi_extra=describe(
        "Cancel what has not run",
        {202: answer(Batch, "The cancelled batch")},
        *(*REFUSED, 409, 413),
        parameters=PATH,
    ),
)
async def cancel_batch(request: Request, batch_id: str) -> Response:
    """Cancel the rows that have not run."""
    check_query(request, set())
    await read_nothing(request)
    batch = await state_of(request).ledger.cancel_batch(batch_id, caller_of(request).sees)
    log.info("batch cancelled id=%s service=%s", batch.id, batch.service)
    return _answer(batch, 202)


@router.post(
    "/batches/{batch_id}/retry",
    openapi_extra=describe(
        "Run the inputs again that failed or were cancelled",
        {202: answer(Batch, "The batch, queued again", LOCATION)},
        *(*REFUSED, 409, 413, 429),
        parameters=PATH,
    ),
)
async def retry_batch(request: Request, batch_id: str) -> Response:
    """Run the failed and cancelled rows again."""
    check_query(request, set())
    await read_nothing(request)
    caller, state = caller_of(request), state_of(request)
    batch = await state.ledger.retry_batch(
        batch_id, caller.sees, caller.most_open, partial(retain_files_of_batch_again, state)
    )
    log.info("batch queued id=%s service=%s rows=%d again", batch.id, batch.service, batch.counts["queued"])
    return _answer(batch, 202, {"Location": f"/batches/{batch.id}"})


async def _from_json(request: Request) -> tuple[BatchRequest, AsyncIterator[list[bytes]]]:
    settings = state_of(request).settings

    def parse(text: bytes) -> tuple[BatchRequest, list[bytes]]:
        asked = parse_batch(text, settings)
        return asked, [dump_strictly(value, "inputs") for value in asked.inputs]

    try:
        text = await read_body(request, settings.max_body_bytes)
        asked, rows = await aside(len(text), partial(parse, text))
    except PayloadTooLarge as error:
        raise PayloadTooLarge(f"{error.message}; a batch of JSON lines ({NDJSON}) may be larger") from error
    return asked, at_once(rows)


def _from_lines(request: Request) -> tuple[BatchRequest, AsyncIterator[list[bytes]]]:
    if not request.query_params.get("service"):
        must = "expected ?service=<name> with a body of JSON lines"
        raise InvalidInput(must, errors=[{"loc": ["query", "service"], "msg": must, "type": "missing"}])
    asked = read_batch_query(dict(request.query_params), state_of(request).settings.max_keep_for_s)
    return asked, _lines(request)


async def _lines(request: Request) -> AsyncIterator[list[bytes]]:
    """The body's lines without blank ones. Raises ``PayloadTooLarge`` for a line that is longer than a body may be."""
    most = state_of(request).settings.max_body_bytes
    rest, begins = b"", True
    async for piece in request.stream():
        if begins and (rest + piece).startswith(BOM_UTF8):
            raise InvalidInput(BOM_REFUSED, errors=[{"loc": ["body"], "msg": BOM_REFUSED, "type": "json_invalid"}])
        begins = begins and len(rest + piece) < len(BOM_UTF8)
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > most:
            raise PayloadTooLarge(f"a line is over {most} bytes (SERVICES_MAX_BODY_BYTES)")
        if rows := [row for line in whole if (row := line.strip())]:
            yield rows
    if rest.strip():
        yield [rest.strip()]


async def _results(request: Request, batch: StoredBatch) -> AsyncIterator[bytes]:
    """The lines of the chunks, one chunk after the other, each when it has ended."""
    state = state_of(request)
    for number in range(batch.chunks):
        sent = 0  # rows of this chunk
        while True:
            chunk = await _ended_chunk(state, batch, number)
            try:
                async for lines in _pieces(state.ledger, batch, number, chunk, sent):
                    sent += lines.count(b"\n")
                    yield lines
                break
            except LookupError:  # its rows ran again meanwhile, and have just ended
                continue


async def _ended_chunk(state: State, batch: StoredBatch, number: int) -> StoredChunk:
    with state.waiter.signal(f"{batch.id}.{number}") as ended:
        while True:
            chunk = await _asked_again(batch, partial(state.ledger.fetch, batch_commands.fetch_chunk(batch, number)))
            if chunk.status in TERMINAL:
                return chunk
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), LOOK_S)
            ended.clear()


async def _pieces(
    ledger: AsyncLedger, batch: StoredBatch, number: int, chunk: StoredChunk, skip: int
) -> AsyncIterator[bytes]:
    """The lines of a chunk without the first ``skip``, one stored part after the other.

    Raises ``LookupError`` where a part is gone.
    """
    if not chunk.was_run:
        yield chunk.lines_not_run() + b"\n"
        return
    first = chunk.first
    for field in (*chunk.parts, ""):
        lines = chunk.output
        if field:
            part = batch_commands.fetch_chunk_field(batch, number, field)
            lines = await _asked_again(batch, partial(ledger.fetch, part))
            if not lines:
                raise LookupError(field)
        count = lines.count(b"\n") + 1
        mended = chunk.mend(lines, first) + b"\n"
        first += count
        if first - chunk.first <= skip:
            continue
        left_out = max(0, skip - (first - chunk.first - count))
        yield mended.split(b"\n", left_out)[-1] if left_out else mended


async def _asked_again(batch: StoredBatch, ask: Callable[[], Awaitable[T]]) -> T:
    """The answer of Redis; while it is unavailable, ask again, since a response that has begun can carry no error."""
    while True:
        try:
            return await ask()
        except StoreUnavailable as error:
            log.warning("the results of batch %s wait: %s", batch.id, error.message)
            await asyncio.sleep(AGAIN_S)


def _is_ndjson(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() in LINES


def _answer(batch: StoredBatch, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(batch.to_json(), status, headers, "application/json")
