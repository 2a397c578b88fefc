"""``GET /jobs/<id>/events``: what happens to a job, as server-sent events.

What a job said is stored, numbered, in the ledger; its states are not: they are told from its record. An event's id
holds what was told up to it, the number of the last stored event and the last state, so that any API process can go on
from it.
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
from typing import Any, Protocol, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from api.auth.gate import caller_of
from api.jobs.waiter import Waiter
from api.requests import check_query, read_job_id, unless_head
from worker.errors import InvalidInput, JobExpired, JobNotFound, StoreUnavailable
from worker.ledger import job_events
from worker.ledger.job_events import Event, Heard
from worker.ledger.jobs import TERMINAL, Job, Status

log = logging.getLogger("services.api")
router = APIRouter()

#: Seconds without an event after which a comment is sent, which tells proxies and clients that the stream lives.
HEARTBEAT_S = 15.0
#: Seconds until Redis is asked again where it is away.
AGAIN_S = 0.5
#: Milliseconds after which a client should come again where its connection is cut.
RETRY_MS = 1000
#: Stored events that are read at once.
MOST = 500

#: Buffering proxies (nginx) must pass each event on.
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
    """What a client has been told."""

    @property
    def status(self) -> str | None: ...


T = TypeVar("T", bound=HasStatus)
#: Gives events that have not been told, what has been told with them, and whether there are more at once.
Look = Callable[[T], Awaitable[tuple[list[bytes], T, bool]]]


def bad_event_id(what: str) -> InvalidInput:
    """The error for a ``Last-Event-ID`` that is none of ours."""
    must = f"expected the id of an event of this {what}, or no such header to hear it from the beginning"
    error = {"loc": ["header", "last-event-id"], "msg": must, "type": "event_id"}
    return InvalidInput(f"header.last-event-id: {must}", errors=[error])


@dataclass(frozen=True, slots=True)
class Told:
    """What a client has been told: events up to a number, and a state, which has a time of its own.

    Two runs of a job both read ``running``; the time tells them apart: when the run began, or when the job ended.
    """

    number: int = 0
    status: Status | None = None
    since: int = 0

    def __str__(self) -> str:
        return f"{self.number}/{LETTERS[self.status]}{self.since}" if self.status else ""

    @classmethod
    def parse(cls, text: str) -> Told:
        """What ``Last-Event-ID`` says. Raises ``InvalidInput``."""
        found = _ID.fullmatch(text)
        if not text:
            return cls()
        if not found or found[2] not in _BY_LETTER:
            raise bad_event_id("job")
        return cls(int(found[1]), _BY_LETTER[found[2]], int(found[3]))

    def knows(self, status: Status, since: int) -> bool:
        """Whether it is the state that was told last."""
        return self.status == status and self.since == since


@dataclass(frozen=True, slots=True)
class State:
    """A state that is to be told."""

    status: Status
    since: int
    attempt: int
    run: int  #: when the run began, if any


def states_between(told: Told, run: int, attempt: int) -> Iterator[State]:
    """Up to this run: that the job was queued, and that it runs."""
    if told.knows(Status.RUNNING, run):
        return
    if told.status != Status.QUEUED:
        yield State(Status.QUEUED, 0, max(attempt - 1, 0), 0)
    yield State(Status.RUNNING, run, attempt, run)


def states_up_to(told: Told, heard: Heard) -> Iterator[State]:
    """From what was told to where the job stands. What passed unheard, such as a run that was lost, may be left out."""
    now = heard.finished if heard.status in TERMINAL else heard.run
    if told.knows(heard.status, now):
        return
    if heard.run:
        yield from states_between(told, heard.run, heard.attempt)
    elif told.status is None or heard.status == Status.QUEUED:
        yield State(Status.QUEUED, 0, heard.attempt, 0)
    if heard.status in TERMINAL:
        yield State(heard.status, heard.finished, heard.attempt, heard.run)


@router.get("/jobs/{job_id}/events")
async def get_events(request: Request) -> Response:
    """What happens to a job, from its beginning or from the event after ``Last-Event-ID``, up to its end."""
    check_query(request, set())
    told = Told.parse(request.headers.get("last-event-id", ""))
    state = request.app.state
    job = await state.ledger.get(read_job_id(request), caller_of(request).sees)
    if job.ended and told.knows(job.status, job.finished_us):
        return Response(status_code=204)  # upon which a browser's EventSource does not come again
    events = follow(state.waiter, job.id, told, partial(_next, state, job))
    return EventSourceResponse(unless_head(request, events), headers=HEADERS)


async def follow(waiter: Waiter, id: str, told: T, look: Look[T], rest_s: float = 0) -> AsyncIterator[bytes]:
    """The bytes of the answer: what ``look`` gives, now and whenever there is news of the id, up to a terminal status.

    The answer has begun, so it can carry no error any more: while Redis is away, it waits.

    Args:
        rest_s: least time between two looks.
    """
    retry = b"retry: %d\n" % RETRY_MS  # with the first event: alone, some clients take it for an event without data
    with waiter.signal(id) as news:
        spoke = time.monotonic()
        while True:
            news.clear()
            try:
                texts, told, more = await look(told)
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
            if told.status in TERMINAL and not more:
                return
            spoke = time.monotonic() if texts else spoke
            if time.monotonic() - spoke >= HEARTBEAT_S:
                spoke = time.monotonic()
                yield KEEPALIVE_COMMENT
            if not more:
                await asyncio.sleep(rest_s)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), max(0.01, HEARTBEAT_S - (time.monotonic() - spoke)))


async def _next(state: Any, job: Job, told: Told) -> tuple[list[bytes], Told, bool]:
    """Events that have not been told, what has been told with them, and whether there are more at once."""
    heard = await state.ledger.run(job_events.follow(job, told.number, MOST))
    if heard is None:
        raise JobExpired
    whole = not heard.has_more
    steps = list(_steps(told, heard, whole))
    texts: list[bytes] = []
    if any(isinstance(step, State) for step in steps):
        job = await state.ledger.get(job.id)
    for step in steps:
        if isinstance(step, Event):
            told = replace(told, number=step.number)
            texts.append(format_sse_event(data_str=step.data, event=step.name, id=str(told)))
            continue
        if step.status in TERMINAL and (job.status, job.finished_us) != (step.status, step.since):
            return texts, told, True  # it was retried in this moment
        told = Told(told.number, step.status, step.since)
        texts.append(format_sse_event(data_str=_as_of(job, step), event="status", id=str(told)))
    return texts, told, not whole


def _steps(told: Told, heard: Heard, whole: bool) -> Iterator[Event | State]:
    """In order: what the job said in each run, after the state in which it did, and where it stands now."""
    for event in heard.events:
        for state in states_between(told, event.run, event.attempt):
            told = Told(event.number, state.status, state.since)
            yield state
        yield event
    if whole:
        yield from states_up_to(told, heard)


def _as_of(job: Job, step: State) -> str:
    is_now = job.status == step.status and (job.ended or job.started_us == step.run)
    shown = job if is_now else job.as_it_was(step.status, step.attempt, step.run)
    return shown.to_json().decode()
