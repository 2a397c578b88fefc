"""A pool process, which loads its services and then runs batch after batch.

``python -m worker.pool.child FD LEASE_FD HANDOVER_FD PROCESS NAME…``

Its parent is a guardian (``guardian.py``), which kills the processes that this one leaves behind. It is started fresh
rather than forked, so that the effects of a model's library (threads, CUDA, a segfault) stay in it.

This process and its slot (``slots.py``) exchange JSON messages over a socket. From the process: ``loaded`` or
``failed`` once; for each batch ``begun``, ``computed`` and ``ended`` (the next batch may have begun by then); ``ahead``
when it has claimed a batch before the running one has ended; ``fenced`` when the ledger does not know its worker;
``leaving`` when it ends itself in the middle of a batch. From the slot: ``worker`` (the worker's id, and how many jobs
a second are shown in Celery's events), ``cancelled`` with job ids of the running ``batch``, and ``stop``.

A second thread (``Listener``) reads the slot's messages while the model computes. If the slot's process is stopped
(SIGSTOP, a debugger, a swapping host), the listener renews the lease of the running batch, so that no other worker
runs it again. If the lease has expired all the same, it ends this process.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import redis

from worker.broker.sample import Sample
from worker.discovery import find_plugins, load_service
from worker.errors import PLUGIN_ERRORS, ServiceFailed, say
from worker.filestore.batch_files import FileStore
from worker.inference.reporting import EventSender, capture
from worker.inference.runner import run_batch
from worker.ledger import worker_commands
from worker.ledger.sync_ledger import Ledger
from worker.ledger.worker_commands import Batch
from worker.pool.feeder import Feeder
from worker.pool.shared_memory import Handover, SharedLease
from worker.processes.lifetime import end_at_once, guard_forks, hold_signals, resident_mb
from worker.processes.logs import keep_logging
from worker.service import Service
from worker.settings import Settings, get_settings

log = logging.getLogger("services.worker")

#: Seconds between two renewals of the lease by a pool process.
EXTEND_S = 0.5
#: A process ends itself this many seconds after ``time_limit_s`` if its slot, which should do so, is stopped.
LAST_GRACE_S = 2.0

#: Safety margin: a process that cannot renew the lease ends itself this many seconds before the lease expires. It is
#: larger than the worker's margin (``lease.SAFETY_S``), since the worker knows the time of the last renewal.
SAFETY_S = 1.25
#: Seconds between two checks of these limits.
GUARD_S = 0.2

#: Objects that each input of a full batch keeps alive, roughly. They raise the garbage collector's threshold, since its
#: searches took 5 % of the time of batches of 4,096 rows (measured).
OBJECTS_OF_AN_INPUT = 8

#: Exit codes of a process that ended itself: its batch had gone to another worker, or took too long. They are for the
#: log only: a plugin's library may exit with any code (70 is ``os.EX_SOFTWARE``), so the slot relies on ``leaving``.
EX_GONE, EX_TIMED_OUT = 70, 71
#: Longest wait for sending that message, in seconds.
LEAVE_S = 0.2

#: A process over this share of its service's ``memory_limit_mb`` is replaced after its batch.
RECYCLE_SHARE = 0.8

#: Each service's version and its author's knobs.
About = dict[str, tuple[str, dict[str, Any]]]

_sending = threading.Lock()
_is_fork = False


def main(fd: int, lease_fd: int, handover_fd: int, process: str, names: list[str]) -> None:
    """Load the services, then run batches until the slot sends ``stop`` or closes the socket."""
    hold_signals()
    settings = get_settings()
    handler = keep_logging(settings.log_level)
    link, lease, handover = Connection(fd), SharedLease(lease_fd), Handover(handover_fd)
    for inherited in (fd, lease_fd, handover_fd):
        os.set_inheritable(inherited, False)
    guard_forks(lambda: _become_a_fork(link, lease, handover))
    try:
        services, about = _load(names, link)
    except BrokenPipeError:
        return  # the worker has stopped meanwhile
    if not services:
        return
    impatient = Ledger(settings, timeout_s=0.5, retries=0)
    listener = Listener(link, impatient, settings.lease_s, lease)
    feeder = Feeder(
        settings,
        process,
        listener.worker,
        about,
        on_fenced=lambda: _send(link, {"fenced": True}),
        on_ahead=lambda batch: _send(link, {"ahead": batch.token, "service": batch.service, "number": batch.number}),
        take=lambda batch: handover.take(batch.number),
    )
    listener.on_stop = feeder.stop
    listener.start()
    threading.Thread(target=listener.guard, name="guard", daemon=True).start()
    capture(settings.log_level, handler)
    BatchLoop(settings, services, about, link, listener).run(feeder)


class BatchLoop:
    """Runs batches in turn and reports each step to the slot."""

    def __init__(
        self,
        settings: Settings,
        services: dict[str, Service[Any, Any]],
        about: About,
        link: Connection,
        listener: Listener,
    ) -> None:
        self._services = services
        self._about = about
        self._link = link
        self._listener = listener
        self._ledger = Ledger(settings)
        self._sample = Sample(listener.event_rate())
        self._file_store = FileStore(settings, self._ledger)
        self._teller = EventSender(Ledger(settings, retries=0), settings.job_events)
        self._most_bytes = settings.max_output_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="completer")
        self._completing: Future[None] | None = None

    def run(self, feeder: Feeder) -> None:
        """Run batches until the feeder stops, or this process has grown too large."""
        while batch := feeder.next_batch():
            self._listener.begin(batch)
            feeder.look_ahead(batch)
            begun = time.monotonic()
            complete = self._compute(batch)
            feeder.times.add(batch, time.monotonic() - begun)
            self._wait()
            if feeder.is_ahead:
                # Measured: a queue of jobs without a model is worked off 1.2 times as fast.
                self._completing = self._thread.submit(complete)
            else:
                complete()
            if _is_too_large(self._about):
                break
        self._wait()
        feeder.hand_back()

    def _compute(self, batch: Batch) -> Callable[[], None]:
        """Run the model; the returned function writes the results to the ledger and reports the end to the slot."""
        shown = {job.id for job in batch.jobs if self._sample.take()}
        time_limit_s = self._about[batch.service][1]["time_limit_s"]

        def report(step: str) -> None:
            self._listener.set_limit(time_limit_s if step == "begun" else None)
            details = {"service": batch.service, "ids": batch.ids, "shown": sorted(shown)} if step == "begun" else {}
            _send(self._link, {step: batch.token} | details)

        service, cancelled = self._services[batch.service], self._listener.cancelled
        file_store, teller, most_bytes = self._file_store, self._teller, self._most_bytes
        complete = run_batch(service, self._ledger, batch, cancelled, report, file_store, teller, most_bytes)

        def end() -> None:
            ended = complete()
            results = [job.describe() for job in ended if job.job_id in shown]
            _send(self._link, {"ended": results, "batch": batch.token, "service": batch.service, "count": len(ended)})
            self._listener.end(batch)

        return end

    def _wait(self) -> None:
        """Wait until the previous batch's results are written: one batch at a time, even while Redis is away."""
        completing, self._completing = self._completing, None
        if completing:
            completing.result()


def _is_too_large(about: About) -> bool:
    """Whether this process should be replaced now, before it exceeds its limit in the middle of a batch."""
    limits = [knobs["memory_limit_mb"] * RECYCLE_SHARE for _, knobs in about.values() if knobs["memory_limit_mb"]]
    used = resident_mb(os.getpid()) if limits else 0
    if not limits or used <= min(limits):
        return False
    log.info("pool process %d uses %.0f MB: ending it for a new one (memory_limit_mb)", os.getpid(), used)
    return True


class Listener(threading.Thread):
    """Reads the slot's messages, and watches the lease and the time limit of the running batch."""

    def __init__(self, link: Connection, ledger: Ledger, lease_s: float, lease: SharedLease) -> None:
        super().__init__(name="listener", daemon=True)
        self.cancelled: set[str] = set()
        self.on_stop: Callable[[], None] = lambda: None
        self._running: Batch | None = None
        self._turn = threading.Lock()  # one at a time: a batch begins, a batch ends, a cancel, a stop
        self._about: dict[str, Any] = {"worker": "", "event_rate": 0}
        self._greeted = threading.Event()
        self._link = link
        self._ledger = ledger
        self._lease_s = lease_s
        self._lease = lease
        self._safe_until = math.inf
        self._deadline = math.inf

    def worker(self) -> str:
        """The worker's id, under which this process claims."""
        return str(self._about["worker"])

    def event_rate(self) -> float:
        """Jobs a second that this process shows in Celery's events; blocks until the slot has sent the number."""
        self._greeted.wait()
        return float(self._about["event_rate"])

    def begin(self, batch: Batch) -> None:
        """Watch this batch, which is about to run."""
        with self._turn:
            self._running = batch
            self.cancelled.clear()

    def end(self, batch: Batch) -> None:
        """The batch's results are written: stop watching it, unless the next batch runs already."""
        with self._turn:
            if self._running is batch:
                self._running = None

    def run(self) -> None:
        """Read messages until the slot closes the socket; the slot itself ends a batch that still runs then."""
        while True:
            try:
                if self._link.poll(EXTEND_S):
                    self._take(json.loads(self._link.recv_bytes()))
                elif self._running:
                    self._watch(self._running)
            except (EOFError, OSError):
                self._stop()
                return

    def set_limit(self, seconds: float | None) -> None:
        """Start the batch's time limit now, of this many seconds; None: no limit."""
        now = time.monotonic()
        self._deadline = math.inf if seconds is None else now + seconds + LAST_GRACE_S
        self._safe_until = math.inf if seconds is None else now + self._lease_s - SAFETY_S

    def _take(self, message: dict[str, Any]) -> None:
        if "cancelled" in message:
            with self._turn:
                if self._running and self._running.token == message["batch"]:  # it may have ended since
                    self.cancelled.update(message["cancelled"])
        elif "worker" in message:
            self._about = message
            self._greeted.set()
        elif "stop" in message:
            self._stop()

    def _stop(self) -> None:
        """Begin no further batch. An idle process exits at once: its worker gives back the claimed jobs."""
        self.on_stop()
        with self._turn:
            if not self._running:
                os._exit(0)

    def _watch(self, batch: Batch) -> None:
        """Renew the lease of a running batch; end this process if the lease is lost."""
        asked = time.monotonic()
        try:
            renewed = self._ledger.run(worker_commands.extend(batch.service, batch.worker, self._lease_s))
            if self._safe_until < math.inf:
                self._safe_until = asked + self._lease_s - SAFETY_S
        except redis.RedisError as error:
            log.debug("could not extend the lease: %s", error)
            return
        if not renewed and self._running is batch:  # pillar: fencing, lease
            log.error("the lease of batch %s has expired and another worker runs it: ending it", batch.token)
            self._leave("handed_back", EX_GONE)

    def guard(self) -> None:
        """End a batch whose time limit or lease is over; in a thread of its own, which never waits for Redis.

        A model that holds the GIL delays this thread all the same, and the renewal from this process as well.
        """
        while True:
            time.sleep(GUARD_S)
            now = time.monotonic()
            if now > self._deadline:
                log.error("the batch exceeds its time_limit_s and its worker does not end it: ending it")
                self._leave("timed_out", EX_TIMED_OUT)
            if now > self._safe_until and now > self._lease.safe_until:  # pillar: fencing
                log.error("the lease could not be renewed in time: ending the batch, which runs again elsewhere")
                self._leave("handed_back", EX_GONE)

    def _leave(self, reason: str, code: int) -> NoReturn:
        """End this process in the middle of its batch, after sending the reason to the slot: any other end is a crash.

        If the slot's process is stopped for longer than the reason can wait, the process ends without it: other
        workers have the batch by then.
        """
        writable = select.poll()
        writable.register(self._link.fileno(), select.POLLOUT)
        if _sending.acquire(timeout=LEAVE_S) and writable.poll(LEAVE_S * 1000):
            self._link.send_bytes(json.dumps({"leaving": reason}).encode())
        os._exit(code)


def _load(names: list[str], link: Connection) -> tuple[dict[str, Service[Any, Any]], About]:
    """Each service's instance, version and knobs; both empty if a service fails to load, which the slot is sent."""
    log.info("service loading name=%s pid=%d", ",".join(names), os.getpid())
    services: dict[str, Service[Any, Any]] = {}
    about: About = {}
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
            return {}, {}
        services[plugin.name] = service
        about[plugin.name] = (plugin.version, cls.knobs())
    _send(link, {"loaded": about})
    gc.collect()
    if threshold := gc.get_threshold()[0]:  # 0: a plugin has turned the collector off
        most = max(service.max_batch_size for service in services.values())
        gc.set_threshold(threshold + OBJECTS_OF_AN_INPUT * most)
    gc.freeze()  # exempts the objects of the model's libraries from each collection (10 % of a batch's time, measured)
    return services, about


def _override_knobs(cls: type[Service[Any, Any]]) -> None:
    settings = get_settings()
    if settings.max_batch_size is not None:
        cls.max_batch_size = settings.max_batch_size
    if settings.max_queue_delay_ms is not None:
        cls.max_queue_delay_ms = settings.max_queue_delay_ms


def _reason(error: BaseException) -> str:
    return error.message if isinstance(error, ServiceFailed) else say(error).replace("\n", " ")


def _become_a_fork(link: Connection, lease: SharedLease, handover: Handover) -> None:
    """In a process that a plugin forks from this process: close all that belongs to the worker."""
    global _is_fork
    _is_fork = True
    link.close()
    lease.close()
    handover.close()


def _send(link: Connection, message: dict[str, Any]) -> None:
    if _is_fork:  # the batch belongs to the process that it was forked from
        log.error("process %d is a fork of a pool process and came back from its plugin's code: ending it", os.getpid())
        os._exit(1)
    with _sending:  # the feeder's thread sends too
        link.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
    except BaseException:
        log.exception("a pool process failed")
        end_at_once(1)
    end_at_once(0)  # without waiting for threads and pools that a plugin has left: they must not delay a worker's stop
