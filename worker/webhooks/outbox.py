"""Make deliveries of the events in the services' outboxes.

A thread of each worker of ``webhooks`` does this. It may stop at any point, and several may work at the same time: a
delivery's id follows from its event, so an event that is read twice becomes one delivery. Only then is it removed from
its outbox.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import redis

from worker.ledger.keys import SERVICES_KEY
from worker.ledger.sync_ledger import Ledger
from worker.names import WEBHOOKS
from worker.webhooks.events import EndEvent, index_key, outbox_key

log = logging.getLogger("services.worker")

#: Seconds between two reads of all outboxes, in one round trip: the longest delay of an event.
LOOK_S = 0.2
#: Events of one service that are moved together.
MOST = 100

Entry = tuple[bytes, dict[bytes, bytes]]


class OutboxMover(threading.Thread):
    """Empties every outbox until it is stopped."""

    def __init__(self, ledger: Ledger, stopping: threading.Event) -> None:
        super().__init__(name="outbox", daemon=True)
        self._ledger = ledger
        self._stopping = stopping

    def run(self) -> None:
        """Move events; pause while the outboxes are empty or Redis is away."""
        while not self._stopping.is_set():
            try:
                moved = move_all(self._ledger)
            except redis.RedisError as error:
                log.debug("outboxes not read: %s", error)  # the lease thread logs that Redis is away
                moved = 0
            except Exception:
                log.exception("the outboxes could not be emptied; trying again")
                moved = 0
            if not moved:
                self._stopping.wait(LOOK_S)


def move_all(ledger: Ledger) -> int:
    """Move up to ``MOST`` events of each service; returns the number of moved events."""
    names: Any = ledger.redis.smembers(SERVICES_KEY)
    services = sorted(name.decode() for name in names)
    pipe = ledger.redis.pipeline(transaction=False)
    for service in services:
        pipe.xrange(outbox_key(service), count=MOST)
    moved = 0
    for service, entries in zip(services, pipe.execute(), strict=True):
        if entries:
            _move(ledger, service, entries)
            moved += len(entries)
    return moved


def _move(ledger: Ledger, service: str, entries: list[Entry]) -> None:
    events = [event for entry in entries if (event := _read(service, entry))]
    pipe = ledger.redis.pipeline(transaction=False)
    for event in events:
        key = index_key(event.kind, event.id)
        pipe.zadd(key, {event.delivery_id: int(event.record[b"finished"])})
        # The index lives as long as the job's result, counted from each end of the job.
        pipe.pexpire(key, max(1, int(event.record[b"keep"]) // 1000))
    pipe.execute()
    ledger.adopt(WEBHOOKS, [event.to_delivery() for event in events], [b""] * len(events))
    ledger.ring(WEBHOOKS)
    ledger.redis.xdel(outbox_key(service), *[entry_id for entry_id, _ in entries])


def _read(service: str, entry: Entry) -> EndEvent | None:
    try:
        return EndEvent.from_entry(entry[1])
    except (KeyError, ValueError, TypeError, AttributeError) as problem:
        log.error("dropped an entry of the outbox of %s: %s: %s", service, type(problem).__name__, problem)
        return None
