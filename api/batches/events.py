"""``GET /batches/<id>/events``: a batch's progress and its states, as server-sent events.

Nothing of it is stored: each event tells how the batch's record stands when it has changed, some times a
second at most. An event's id holds what was told with it, so that any API process can go on from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic_core import to_json

from api.auth.gate import caller_of
from api.jobs.events import HEADERS, LETTERS, bad_event_id, follow
from api.requests import check_query, unless_head
from worker.errors import JobExpired
from worker.ledger import batch_commands
from worker.ledger.batches import Bulk

router = APIRouter()

#: Seconds between two looks at a batch: its chunks may end faster than anybody wants to hear of.
REST_S = 0.1

_BY_LETTER = {letter: str(status) for status, letter in LETTERS.items()}
_ID = re.compile(r"([qrsfc])([0-9]{1,17})/([0-9]{1,12})\.([0-9]{1,12})\.([0-9]{1,12})\.([0-9]{1,12})")


@dataclass(frozen=True, slots=True)
class Told:
    """How a batch stood when the client was told last."""

    status: str | None = None
    since: int = 0  #: when its rows were queued, or when it ended: tells its runs apart
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0

    def __str__(self) -> str:
        letter = next(letter for letter, status in _BY_LETTER.items() if status == self.status)
        return f"{letter}{self.since}/{self.running}.{self.succeeded}.{self.failed}.{self.cancelled}"

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Rows by state; those that are queued are the rest."""
        return self.running, self.succeeded, self.failed, self.cancelled

    @classmethod
    def of(cls, batch: Bulk) -> Told:
        """How it stands."""
        since = batch.finished_us or batch.begun_us
        return cls(batch.status, since, batch.running, batch.succeeded, batch.failed, batch.cancelled)

    @classmethod
    def parse(cls, text: str) -> Told:
        """What ``Last-Event-ID`` says. Raises ``InvalidInput``."""
        if not text:
            return cls()
        found = _ID.fullmatch(text)
        if not found:
            raise bad_event_id("batch")
        return cls(_BY_LETTER[found[1]], *map(int, found.groups()[1:]))


@router.get("/batches/{batch_id}/events")
async def get_events(request: Request, batch_id: str) -> Response:
    """A batch's progress and states, from now or from the event after ``Last-Event-ID``, up to its end."""
    check_query(request, set())
    told = Told.parse(request.headers.get("last-event-id", ""))
    state = request.app.state
    batch = await state.ledger.get_batch(batch_id, caller_of(request).sees)
    if batch.ended and told == Told.of(batch):
        return Response(status_code=204)  # upon which a browser's EventSource does not come again
    events = follow(state.waiter, batch.id, told, partial(_next, state.ledger, batch), REST_S)
    return EventSourceResponse(unless_head(request, events), headers=HEADERS)


async def _next(ledger: Any, batch: Bulk, told: Told) -> tuple[list[bytes], Told, bool]:
    found: Bulk | None = await ledger.run(batch_commands.follow_batch(batch.service, batch.id))
    if found is None:
        raise JobExpired
    now = Told.of(found)
    texts = []
    is_same_state = (told.status, told.since) == (now.status, now.since)
    if told.status and told.counts != now.counts and (is_same_state or found.ended):
        data = to_json({"progress": found.progress, "total": found.rows, "counts": found.counts}).decode()
        heard = replace(now, status="running", since=found.begun_us)  # not yet of an end, where there is one
        texts.append(format_sse_event(data_str=data, event="progress", id=str(heard if found.ended else now)))
    if not is_same_state:
        texts.append(format_sse_event(data_str=found.to_json().decode(), event="status", id=str(now)))
    return texts, now, False
