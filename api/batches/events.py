"""``GET /batches/<id>/events``: a batch's progress and its states, as server-sent events.

No event is stored: each shows the batch's record after a change, at most ten a second. The id of an event is a cursor,
the counts that it shows, so that any API process can continue a stream.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic_core import to_json

from api.auth.gate import caller_of
from api.jobs.answers import Event
from api.jobs.events import HEADERS, LAST_EVENT_ID, LETTERS, bad_event_id, follow
from api.operations import answer, describe, in_path
from api.requests import check_query, unless_head
from api.state import State, state_of
from worker.errors import JobExpired
from worker.ledger import batch_commands
from worker.ledger.batches import StoredBatch

router = APIRouter()

STREAM = """Server-sent events up to the batch's end; a comment after 15 s without one. The data of each is JSON.
`status`: the batch, as `GET /batches/{id}` shows it; the last one's is terminal. `progress`: `{"progress", "total",
"counts"}`, some ten times a second at most."""

#: Least seconds between two events: chunks may end faster than any client wants to read.
REST_S = 0.1

_BY_LETTER = {letter: str(status) for status, letter in LETTERS.items()}
_ID = re.compile(r"([qrsfc])([0-9]{1,17})/([0-9]{1,12})\.([0-9]{1,12})\.([0-9]{1,12})\.([0-9]{1,12})")


@dataclass(frozen=True, slots=True)
class Cursor:
    """A client's place in the stream of a batch: the state and the counts of the last event."""

    status: str | None = None
    since: int = 0  #: when its rows were queued, or when it ended: different in each run
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0

    def __str__(self) -> str:
        letter = next(letter for letter, status in _BY_LETTER.items() if status == self.status)
        return f"{letter}{self.since}/{self.running}.{self.succeeded}.{self.failed}.{self.cancelled}"

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Rows by state; all others are queued."""
        return self.running, self.succeeded, self.failed, self.cancelled

    @classmethod
    def of(cls, batch: StoredBatch) -> Cursor:
        """The cursor after an event that shows this record."""
        since = batch.finished_us or batch.begun_us
        return cls(batch.status, since, batch.running, batch.succeeded, batch.failed, batch.cancelled)

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read a ``Last-Event-ID``. Raises ``InvalidInput``."""
        if not text:
            return cls()
        match = _ID.fullmatch(text)
        if not match:
            raise bad_event_id("batch")
        return cls(_BY_LETTER[match[1]], *map(int, match.groups()[1:]))


@router.get(
    "/batches/{batch_id}/events",
    openapi_extra=describe(
        "Follow a batch",
        {
            200: answer(Event, STREAM, media_types=["text/event-stream"]),
            204: {"description": "The batch has ended, and `Last-Event-ID` is its last event"},
        },
        *(404, 410, 422, 503),
        parameters=[in_path("batch_id"), LAST_EVENT_ID],
    ),
)
async def get_batch_events(request: Request, batch_id: str) -> Response:
    """The progress and the states of a batch, from now or from the event after ``Last-Event-ID``, up to its end."""
    check_query(request, set())
    cursor = Cursor.parse(request.headers.get("last-event-id", ""))
    state = state_of(request)
    batch = await state.ledger.get_batch(batch_id, caller_of(request).sees)
    if batch.ended and cursor == Cursor.of(batch):
        return Response(status_code=204)  # a browser's EventSource does not connect again then
    events = follow(state.waiter, batch.id, cursor, partial(_next, state, batch), REST_S)
    return EventSourceResponse(unless_head(request, events), headers=HEADERS)


async def _next(state: State, batch: StoredBatch, cursor: Cursor) -> tuple[list[bytes], Cursor, bool]:
    update = await state.ledger.run(batch_commands.follow_batch(batch.service, batch.id))
    if update is None:
        raise JobExpired
    now = Cursor.of(update)
    texts = []
    is_same_state = (cursor.status, cursor.since) == (now.status, now.since)
    if cursor.status and cursor.counts != now.counts and (is_same_state or update.ended):
        data = to_json({"progress": update.progress, "total": update.rows, "counts": update.counts}).decode()
        before_end = replace(now, status="running", since=update.begun_us)
        texts.append(format_sse_event(data_str=data, event="progress", id=str(before_end if update.ended else now)))
    if not is_same_state:
        texts.append(format_sse_event(data_str=update.to_json().decode(), event="status", id=str(now)))
    return texts, now, False
