"""The common part of both kinds of a worker's pool: its lease, and the events that show its jobs."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

from celery.concurrency.base import BasePool
from celery.worker import state

from worker.broker.events import Reporter
from worker.ledger.sync_ledger import Ledger
from worker.ledger.worker_commands import CancelledRun
from worker.pool.lease import LeaseRenewer
from worker.settings import EX_USAGE, Settings, get_settings

log = logging.getLogger("services.worker")


class LeasedPool(BasePool):  # type: ignore[misc]  # celery ships no types
    """The pool of ``celery worker``; its own threads start in ``on_start``, after ``prepare``."""

    def prepare(self, cancel: Callable[[str], object] | None = None) -> None:
        """Create the common parts; start no thread and block on nothing.

        Args:
            cancel: called with the job's id for "terminate" in Flower; by default, the ledger's own cancel.
        """
        self.app.services_pool = self  # for the signal handlers of consumer.py
        self.settings: Settings = get_settings()
        self.names = _take_queues(self.app)
        self.stopping = threading.Event()
        self.ledger = Ledger(self.settings)
        self.renewer = LeaseRenewer(self.settings, self.names, self.on_cancel, self.on_lease_lost, self.refuse)
        hostname = getattr(self.app, "services_hostname", socket.gethostname())
        self.reporter = Reporter(self._dispatcher, hostname, cancel or self.ledger.cancel)

    def stop_claiming(self) -> None:
        """Claim no further batch; safe in a signal handler, which may run before ``on_start``."""
        raise NotImplementedError

    def refuse(self, reason: str) -> None:
        """Stop this worker with exit code 2: it must not touch the data in Redis."""
        log.critical("not started: %s", reason)
        self.stop_claiming()
        state.should_stop = EX_USAGE

    def on_cancel(self, runs: list[CancelledRun]) -> None:
        """Jobs of this worker were cancelled while they ran."""
        raise NotImplementedError

    def on_lease_lost(self) -> None:
        """The lease had expired: other workers run its jobs now, so its own runs must end."""
        raise NotImplementedError

    def _dispatcher(self) -> Any:
        consumer = getattr(self.app, "services_consumer", None)
        return getattr(consumer, "event_dispatcher", None)


def _take_queues(app: Any) -> list[str]:
    """The queue names of ``-Q``. Celery's own consumer gets no queue, since the feeders take the messages."""
    names = list(app.amqp.queues.consume_from)
    app.amqp.queues._consume_from = {}
    return names
