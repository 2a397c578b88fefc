"""Renew the worker's lease, and recover the jobs of dead workers.

One thread in the worker's main process, so that a model that computes for hours, or holds the GIL of its own process,
cannot delay the renewal. Each tick renews the lease of every service of this worker, passes cancelled jobs to their
slots, and sweeps: jobs of workers whose lease has expired run again elsewhere.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import redis

from worker.discovery import list_plugins
from worker.errors import StoreRefused
from worker.ledger import commands, worker_commands
from worker.ledger.data_schema import SCHEMA, check_schema, own_version
from worker.ledger.sync_ledger import Ledger
from worker.ledger.worker_commands import CancelledRun
from worker.net.redis_clients import say_refusal
from worker.pool.shared_memory import SharedLease
from worker.settings import Settings

log = logging.getLogger("services.worker")

#: Seconds between two renewals; a cancelled job's process is ended within four of them.
TICK_S = 0.5
#: Safety margin: if the lease cannot be renewed, the worker kills its running batches this many seconds before the
#: lease expires.
SAFETY_S = 0.75


class LeaseRenewer(threading.Thread):
    """Renews the lease of one worker until it leaves.

    Args:
        names: the services that it runs.
        on_cancel: called with the runs that were cancelled.
        on_lost: called when the lease had expired: other workers run its jobs now, so its own runs must end.
        on_refused: called with the reason if a later release has written to Redis: this worker must not touch its data.
    """

    def __init__(
        self,
        settings: Settings,
        names: list[str],
        on_cancel: Callable[[list[CancelledRun]], None],
        on_lost: Callable[[], None],
        on_refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(name="renewer", daemon=True)
        self._settings = settings
        self._names = names
        self._on_cancel = on_cancel
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._ledger = Ledger(settings, timeout_s=settings.lease_s / 2, retries=0)
        self._about: dict[str, tuple[str, dict[str, Any]]] = {}
        self._state = "loading"
        self._stop_event = threading.Event()
        self._wake = threading.Event()  # set: the next tick is due now
        self._joined = False
        self._checked = False  # whether the data's schema was found to be known, since Redis was last away
        self._refused = False
        self._versions = {plugin.name: plugin.version for plugin in list_plugins().values()}
        self._published: object = None  # the part of ``_about`` that the ledger has
        self.count_processes: Callable[[], int] = lambda: 1  #: processes that can take a batch, once "ready"
        self.lease = SharedLease()  #: for the pool processes
        self.safe_until = math.inf  #: by ``time.monotonic``: from then on, other workers may run this worker's jobs
        self.worker = _new_worker_id()

    def run(self) -> None:
        """Tick until stopped; while Redis is away, try again at each tick."""
        away = False
        while not self._stop_event.is_set():
            try:
                self._tick()
                if away:
                    log.info("Redis is back")
                away = False
            except StoreRefused as error:
                self._refused = True
                self._on_refused(error.message)
                return
            except redis.RedisError as error:
                if not away:
                    log.warning("%s", say_refusal(error, self._settings.away_hint))
                away, self._checked = True, False
            self._wake.wait(TICK_S)
            self._wake.clear()

    def ready(self, about: dict[str, tuple[str, dict[str, Any]]]) -> None:
        """The first pool process has loaded its models; ``about`` has each service's version and knobs."""
        self._about = about
        self._state = "ready"
        self._wake.set()  # publishes its limits before its first job

    def fail(self, service: str, reason: str) -> None:
        """Store for ``GET /services`` why a plugin cannot be loaded."""
        failure = {"reason": reason, "worker": self.worker, "host": socket.gethostname()}
        self._try_once(lambda: self._ledger.fail(service, failure), "store why the service failed")

    def leave(self) -> None:
        """Stop, and give back this worker's jobs at once."""
        self._stop_event.set()
        self._wake.set()
        self.join(timeout=self._settings.lease_s)
        if self._refused:
            return
        for name in self._names:
            if self._about and self._about is not self._published:  # it stops before its first tick as "ready"
                command = worker_commands.tell(name, *self._about[name])
                self._try_once(partial(self._ledger.run, command), "publish its knobs")
            self._try_once(partial(self._ledger.run, worker_commands.leave(name, self.worker)), "leave")

    def _tick(self) -> None:
        about, safe_until = self._about, math.inf
        if not self._checked:
            check_schema(self._ledger.redis, self._settings)
            self._checked = True
        for name in self._names:
            if about and about is not self._published:
                self._ledger.run(worker_commands.tell(name, *about[name]))
            if not self._joined:
                self._ledger.join(name, self.worker, self._info(name))
            asked = time.monotonic()
            renewed, cancelled = self._ledger.run(
                worker_commands.renew(name, self.worker, self._settings.lease_s, self._info(name))
            )
            if not renewed:
                self._start_anew()
                return
            safe_until = min(safe_until, asked + self._settings.lease_s - SAFETY_S)
            if cancelled:
                self._on_cancel(cancelled)
            self._sweep(name)
        self._joined, self._published = True, about
        self.safe_until = self.lease.safe_until = safe_until

    def _start_anew(self) -> None:
        log.error("the lease of worker %s had expired: ending its batches, which other workers run now", self.worker)
        self.worker = _new_worker_id()
        self._joined = False
        self._on_lost()  # pillar: fencing, lease

    def _sweep(self, name: str) -> None:
        for job_id in self._ledger.run(commands.sweep(name, self._settings.lease_s)):
            log.warning("job recovered id=%s service=%s: its worker was lost", job_id, name)

    def _info(self, name: str) -> dict[str, Any]:
        about = {"worker": self.worker, "host": socket.gethostname(), "pid": os.getpid(), "state": self._state}
        versions = {"version": self._versions.get(name, ""), "libs_service": own_version(), "schema": SCHEMA}
        return about | versions | {"processes": self.count_processes()}

    def _try_once(self, call: Callable[[], Any], action: str) -> None:
        try:
            call()
        except redis.RedisError as error:
            log.error("could not %s: %s; the lease will expire by itself", action, error)


def _new_worker_id() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
