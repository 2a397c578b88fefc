"""A pool process: ``python -m worker.child FD NAME…`` loads its services and runs one batch at a time.

It talks with its slot (``pool.py``) in JSON messages over a socket. Child to slot: ``loaded`` or ``failed`` once, then
for each batch ``begun``, ``computed`` and ``ended``. Slot to child: a batch, or ``cancelled`` with ids of the running
one. It is a process of its own, started fresh rather than forked, so that whatever a model's library does to it
(threads, CUDA, a segfault) stays in it.

A second thread (``Listener``) reads what the slot says while the model computes. Should the slot's process be stopped
(SIGSTOP, a debugger, a swapping host), the listener keeps the lease of what runs here, so that nobody runs it a second
time; and where the lease has lapsed all the same, it ends this process.
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import queue
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import redis

from worker.discovery import find_plugins, load_service
from worker.errors import ServiceFailed
from worker.ledger import Ledger
from worker.logs import setup_logging
from worker.runner import PLUGIN_ERRORS, run_batch
from worker.service import Service
from worker.settings import get_settings

log = logging.getLogger("services.worker")

#: Seconds between two renewals of the lease by a pool process.
EXTEND_S = 0.5
#: Seconds after ``time_limit_s`` at which a process ends itself, should its slot be stopped.
LAST_GRACE_S = 2.0

#: So long before its lease lapses, a process that could not renew it ends itself. More than its worker allows itself
#: (``keeper.SAFETY_S``), which knows when the last renewal was.
SAFETY_S = 1.25
#: Seconds between two looks at these limits.
GUARD_S = 0.2

#: Exit codes of a process that ended itself: its batch was no longer its own, or took too long.
EX_GONE, EX_TIMED_OUT = 70, 71

#: ``prctl``'s option that has the kernel send a signal when the parent dies (``man 2 prctl``); Linux only.
PR_SET_PDEATHSIG = 1


def main(fd: int, names: list[str]) -> None:
    """Load the services, then run batches until the slot closes the socket."""
    die_with_parent()
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # a group's signal: the worker decides when its pool ends
    settings = get_settings()
    setup_logging(settings.log_level)
    link = Connection(fd)
    try:
        services = _load(names, link)
    except BrokenPipeError:
        return  # the worker has stopped meanwhile
    if not services:
        return
    ledger, listener = Ledger(settings), Listener(link, Ledger(settings, timeout_s=0.5, retries=0), settings.lease_s)
    listener.start()
    threading.Thread(target=listener.guard, name="guard", daemon=True).start()
    while (order := listener.orders.get()) is not None:
        name, token = order["service"], order["token"]

        def tell(what: str, order: dict[str, Any] = order) -> None:
            listener.set_limit(order["time_limit_s"] if what == "begun" else None)
            _send(link, {what: order["token"]})

        ended = run_batch(services[name], name, ledger, token, order["ids"], listener.cancelled, tell)
        listener.running = None
        _send(link, {"ended": ended})


class Listener(threading.Thread):
    """Reads the slot's messages and watches over the batch that runs."""

    def __init__(self, link: Connection, ledger: Ledger, lease_s: float) -> None:
        super().__init__(name="listener", daemon=True)
        self.orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.cancelled: set[str] = set()
        self.running: dict[str, Any] | None = None  # the order whose batch runs
        self._link = link
        self._ledger = ledger
        self._lease_s = lease_s
        self._safe_until = math.inf
        self._deadline = math.inf

    def run(self) -> None:
        """Until the slot closes the socket; a batch that runs then is ended by the slot itself."""
        while True:
            try:
                if self._link.poll(EXTEND_S):
                    self._take(json.loads(self._link.recv_bytes()))
                elif self.running:
                    self._watch(self.running)
            except (EOFError, OSError):
                self.orders.put(None)
                return

    def set_limit(self, seconds: float | None) -> None:
        """From now on, the batch may take so long; None: as long as it likes."""
        now = time.monotonic()
        self._deadline = math.inf if seconds is None else now + seconds + LAST_GRACE_S
        self._safe_until = math.inf if seconds is None else now + self._lease_s - SAFETY_S

    def _take(self, message: dict[str, Any]) -> None:
        if "cancelled" in message:
            self.cancelled.update(message["cancelled"])
            return
        self.cancelled.clear()
        self.running = message
        self.orders.put(message)

    def _watch(self, order: dict[str, Any]) -> None:
        """While a batch runs: keep its lease, or end it where that is gone."""
        asked = time.monotonic()
        try:
            held = self._ledger.extend(order["service"], order["worker"])
            if self._safe_until < math.inf:
                self._safe_until = asked + self._lease_s - SAFETY_S
        except redis.RedisError as error:
            log.debug("could not extend the lease: %s", error)
            return
        if not held and self.running is order:
            log.error("the lease of batch %s has lapsed, others run it now: ending it", order["token"])
            os._exit(EX_GONE)

    def guard(self) -> None:
        """In a thread of its own, which no call of Redis holds up: end a batch whose time or lease is over."""
        while True:
            time.sleep(GUARD_S)
            now = time.monotonic()
            if now > self._deadline:
                log.error("a batch is over its time_limit_s and its worker does not end it: ending it")
                os._exit(EX_TIMED_OUT)
            if now > self._safe_until:
                log.error("the lease could not be renewed in time: ending the batch, to be run again")
                os._exit(EX_GONE)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel end this process when its worker is killed, so that no job runs on beside its next attempt."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), number)


def _load(names: list[str], link: Connection) -> dict[str, Service[Any, Any]]:
    """Each service's instance, loaded; none where one failed, after telling the slot why."""
    log.info("service loading name=%s pid=%d", ",".join(names), os.getpid())
    services: dict[str, Service[Any, Any]] = {}
    told = {}
    for plugin in find_plugins(names):
        try:
            cls = load_service(plugin)
            _override_knobs(cls)
            service = cls()
            service.load()
            service.warmup()
        except PLUGIN_ERRORS as error:
            reason = _reason(error)
            log.error("service %s cannot be loaded: %s", plugin.name, reason, exc_info=error)
            _send(link, {"failed": {"service": plugin.name, "reason": reason}})
            return {}
        services[plugin.name] = service
        told[plugin.name] = {"version": plugin.version, "knobs": cls.knobs()}
    _send(link, {"loaded": told})
    return services


def _override_knobs(cls: type[Service[Any, Any]]) -> None:
    settings = get_settings()
    if settings.max_batch_size is not None:
        cls.max_batch_size = settings.max_batch_size
    if settings.max_queue_delay_ms is not None:
        cls.max_queue_delay_ms = settings.max_queue_delay_ms


def _reason(error: BaseException) -> str:
    if isinstance(error, ServiceFailed):
        return error.message
    return f"{type(error).__name__}: {error}".replace("\n", " ")


def _send(link: Connection, message: dict[str, Any]) -> None:
    link.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
