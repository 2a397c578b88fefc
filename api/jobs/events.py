"""``GET /jobs/<id>/events``: the events and the states of a job, as server-sent events.

The ledger stores the events that a job sends, numbered. It stores no states: they are derived from the job's record.
The id of an event is a cursor: the number of the last stored event that was sent, and the last state. So any API
process can continue a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from api.auth.gate import caller_of
from api.jobs import answers
from api.jobs.waiter import Waiter
from api.operations import STRING, answer, describe, in_header, in_path
from api.requests import check_query, read_job_id, unless_head
from api.state import State, state_of
from worker.errors import InvalidInput, JobExpired, JobNotFound, StoreUnavailable
from worker.ledger import job_events
from worker.ledger.job_events import Event, EventUpdate
from worker.ledger.jobs import TERMINAL, Job, Status

log = logging.getLogger("services.api")
router = APIRouter()


LAST_EVENT_ID = in_header("Last-Event-ID", STRING, "the `id` of the last event that was received: go on after it")
STREAM = """Server-sent events up to the job's end; a comment after 15 s without one. The data of each is JSON.
`status`: the job, as `GET /jobs/{id}` shows it; the last one's is terminal. `progress`: `{"progress", "message"}`, from
0 to 1. `log`: `{"level", "message", "logger"?}`. `output`: `{"index", "output"}`, a partial output."""

#: Seconds without an event after which a comment is sent, so that proxies and clients see that the stream is alive.
HEARTBEAT_S = 15.0
#: Seconds between two calls to a Redis that is unavailable.
AGAIN_S = 0.5
#: Milliseconds after which a client should connect again when its connection is lost.
RETRY_MS = 1000
#: Most stored events that are read at once.
MOST = 500

#: Buffering proxies (nginx) must pass on each event at once.
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

LETTERS = {
    Status.QUEUED: "q",
    Status.RUNNING: "r",
    Status.SUCCEEDED: "s",
    Status.FAILED: "f",
    Status.CANCELLED: "c",
    Status.EXPIRED: "e",
}
_BY_LETTER = {letter: status for status, letter in LETTERS.items()}
_ID = re.compile(r"([0-9]{1,15})/([a-z])([0-9]{1,17})")


class HasStatus(Protocol):
    """A place in a stream of events."""

    @property
    def status(self) -> str | None: ...


T = TypeVar("T", bound=HasStatus)
#: Reads the events after a cursor; returns them, the cursor after them, and whether more can be read at once.
Look = Callable[[T], Awaitable[tuple[list[bytes], T, bool]]]


def bad_event_id(kind: str) -> InvalidInput:
    """The error for a ``Last-Event-ID`` that no stream of ours has sent."""
    must = f"expected the id of an event of this {kind}, or no such header to read from the beginning"
    error = {"loc": ["header", "last-event-id"], "msg": must, "type": "event_id"}
    return InvalidInput(f"header.last-event-id: {must}", errors=[error])


@dataclass(frozen=True, slots=True)
class Cursor:
    """A client's place in the stream of a job: the number of the last stored event, and the last state with its time.

    Two runs of a job have the same state ``running``, but begin at different times.
    """

    number: int = 0
    status: Status | None = None
    since: int = 0

    def __str__(self) -> str:
        return f"{self.number}/{LETTERS[self.status]}{self.since}" if self.status else ""

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read a ``Last-Event-ID``. Raises ``InvalidInput``."""
        match = _ID.fullmatch(text)
        if not text:
            return cls()
        if not match or match[2] not in _BY_LETTER:
            raise bad_event_id("job")
        return cls(int(match[1]), _BY_LETTER[match[2]], int(match[3]))

    def is_at(self, status: Status, since: int) -> bool:
        """Whether this is the last state that was sent."""
        return self.status == status and self.since == since


@dataclass(frozen=True, slots=True)
class StateEvent:
    """A state to send."""

    status: Status
    since: int
    attempt: int
    run: int  #: when the run began; 0: none


def states_between(cursor: Cursor, run: int, attempt: int) -> Iterator[StateEvent]:
    """The states from the cursor to this run: queued, if not yet sent, and running."""
    if cursor.is_at(Status.RUNNING, run):
        return
    if cursor.status != Status.QUEUED:
        yield StateEvent(Status.QUEUED, 0, max(attempt - 1, 0), 0)
    yield StateEvent(Status.RUNNING, run, attempt, run)


def states_up_to(cursor: Cursor, update: EventUpdate) -> Iterator[StateEvent]:
    """The states from the cursor to the present one. States in between, such as a lost run, may be missing."""
    now = update.finished if update.status in TERMINAL else update.run
    if cursor.is_at(update.status, now):
        return
    if update.run:
        yield from states_between(cursor, update.run, update.attempt)
    elif cursor.status is None or update.status == Status.QUEUED:
        yield StateEvent(Status.QUEUED, 0, update.attempt, 0)
    if update.status in TERMINAL:
        yield StateEvent(update.status, update.finished, update.attempt, update.run)


@router.get(
    "/jobs/{job_id}/events",
    openapi_extra=describe(
        "Follow a job",
        {
            200: answer(answers.Event, STREAM, media_types=["text/event-stream"]),
            204: {"description": "The job has ended, and `Last-Event-ID` is its last event"},
        },
        *(404, 410, 422, 503),
        parameters=[in_path("job_id"), LAST_EVENT_ID],
    ),
)
async def get_events(request: Request) -> Response:
    """The events of a job, from its beginning or from the event after ``Last-Event-ID``, up to its end."""
    check_query(request, set())
    cursor = Cursor.parse(request.headers.get("last-event-id", ""))
    state = state_of(request)
    job = await state.ledger.get(read_job_id(request), caller_of(request).sees)
    if job.ended and cursor.is_at(job.status, job.finished_us):
        return Response(status_code=204)  # a browser's EventSource does not connect again then
    events = follow(state.waiter, job.id, cursor, partial(_next, state, job))
    return EventSourceResponse(unless_head(request, events), headers=HEADERS)


async def follow(waiter: Waiter, id: str, cursor: T, look: Look[T], rest_s: float = 0) -> AsyncIterator[bytes]:
    """The bytes of the answer: the events from ``look``, now and after each signal for the id, up to a terminal status.

    The stream ends earlier where this process is about to stop: the client connects to another one.

    While Redis is unavailable, the stream waits: an answer that has begun can carry no error.

    Args:
        rest_s: least seconds between two calls of ``look``.
    """
    retry = b"retry: %d\n" % RETRY_MS  # sent with the first event: some clients read it alone as an event without data
    with waiter.signal(id) as news:
        sent_at = time.monotonic()
        while True:
            news.clear()
            try:
                texts, cursor, more = await look(cursor)
            except StoreUnavailable as error:
                log.warning("the events of %s wait: %s", id, error.message)
                texts, more = [], False
                await asyncio.sleep(AGAIN_S)
                news.set()
            except (JobExpired, JobNotFound):
                return
            for text in texts:
                yield retry + text
                retry = b""
            if waiter.is_stopping or (cursor.status in TERMINAL and not more):
                return
            sent_at = time.monotonic() if texts else sent_at
            if time.monotonic() - sent_at >= HEARTBEAT_S:
                sent_at = time.monotonic()
                yield KEEPALIVE_COMMENT
            if not more:
                await asyncio.sleep(rest_s)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), max(0.01, HEARTBEAT_S - (time.monotonic() - sent_at)))


async def _next(state: State, job: Job, cursor: Cursor) -> tuple[list[bytes], Cursor, bool]:
    """``Look`` for a job."""
    update = await state.ledger.run(job_events.follow(job, cursor.number, MOST))
    if update is None:
        raise JobExpired
    whole = not update.has_more
    steps = list(_steps(cursor, update, whole))
    texts: list[bytes] = []
    if any(isinstance(step, StateEvent) for step in steps):
        job = await state.ledger.get(job.id)
    for step in steps:
        if isinstance(step, Event):
            cursor = replace(cursor, number=step.number)
            texts.append(format_sse_event(data_str=step.data, event=step.name, id=str(cursor)))
            continue
        if step.status in TERMINAL and (job.status, job.finished_us) != (step.status, step.since):
            return texts, cursor, True  # it was retried between the two reads
        cursor = Cursor(cursor.number, step.status, step.since)
        texts.append(format_sse_event(data_str=_as_of(job, step), event="status", id=str(cursor)))
    return texts, cursor, not whole


def _steps(cursor: Cursor, update: EventUpdate, whole: bool) -> Iterator[Event | StateEvent]:
    """In order: the events of each run, each after the state in which the job sent it, and the present state."""
    for event in update.events:
        for state in states_between(cursor, event.run, event.attempt):
            cursor = Cursor(event.number, state.status, state.since)
            yield state
        yield event
    if whole:
        yield from states_up_to(cursor, update)


def _as_of(job: Job, step: StateEvent) -> str:
    is_now = job.status == step.status and (job.ended or job.started_us == step.run)
    shown = job if is_now else job.as_it_was(step.status, step.attempt, step.run)
    return shown.to_json().decode()
