"""The worker's pool: slots, each a thread of the main process with a pool process of its own.

Celery's prefork pool shares its hub with the broker connection, so results wait while the broker is away; its threaded
one shares a lock between processes, which a kill -9 can leave locked for ever. Here a slot does one thing after the
other: it starts its process, waits until that has loaded its model, and then takes and runs batch after batch.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import redis
from celery.concurrency.base import BasePool
from celery.worker import state

from worker.adopter import Adopter
from worker.child import EX_GONE, EX_TIMED_OUT
from worker.events import Reporter
from worker.feeder import Batch, Feeder
from worker.keeper import Keeper
from worker.ledger import Ledger
from worker.runner import backoff_s
from worker.settings import Settings, get_settings

log = logging.getLogger("services.worker")

#: Seconds between two looks at a running batch for a cancel or the time limit.
LOOK_S = 0.25
#: A batch with a cancelled job may still end by itself for this long.
CANCEL_GRACE_S = 0.5
#: A process over this share of its service's ``memory_limit_mb`` is replaced after its batch.
RECYCLE_SHARE = 0.8
#: A process that dies this often while it loads its model is given up.
MAX_LOAD_DEATHS = 3


class ServicePool(BasePool):  # type: ignore[misc]  # celery ships no types
    """What ``celery worker`` takes for its pool: ``limit`` slots, the keeper and the reporter."""

    def on_start(self) -> None:
        """Start all threads. Nothing here waits for Redis or for a model."""
        self.app.services_pool = self  # for the signal handlers of consumer.py
        self.settings: Settings = get_settings()
        self.names = take_queues(self.app)
        self.stopping = threading.Event()
        self.ledger = Ledger(self.settings)
        self.keeper = Keeper(self.settings, self.names, self._on_cancel, self._on_lease_lost)
        hostname = getattr(self.app, "services_hostname", socket.gethostname())
        self.reporter = Reporter(self._dispatcher, self.settings.event_rate, hostname, self._cancel)
        self.slots = [Slot(self, index) for index in range(self.limit)]
        self.adopter = Adopter(self.app, self.settings, self.names) if self.settings.broker_url else None
        for thread in (self.keeper, self.reporter, *self.slots, *([self.adopter] if self.adopter else [])):
            thread.start()

    def stop_claiming(self) -> None:
        """Take no further batch; safe in a signal handler."""
        if hasattr(self, "stopping"):
            self.stopping.set()
            if self.adopter:
                self.adopter.stop()

    def on_stop(self) -> None:
        """A warm shutdown: let what runs end, then give back the rest."""
        self.stop_claiming()
        for slot in self.slots:
            slot.join()
        self.keeper.leave()

    def on_terminate(self) -> None:
        """A cold shutdown: end what runs, then give it back for others."""
        self.stop_claiming()
        for slot in self.slots:
            slot.kill()
        self.on_stop()

    def fail(self, service: str, reason: str) -> None:
        """A plugin cannot be loaded: tell why and stop this worker with exit code 1."""
        if self.stopping.is_set():
            return
        self.stop_claiming()
        log.critical("service %s cannot be loaded, so its worker stops: %s", service, reason)
        self.keeper.fail(service, reason)
        state.should_stop = 1

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        return {**info, "processes": [slot.pid for slot in self.slots if slot.pid]}

    def _on_cancel(self, ids: list[str]) -> None:
        for slot in self.slots:
            slot.cancel(set(ids))

    def _on_lease_lost(self) -> None:
        for slot in self.slots:
            slot.kill()

    def _cancel(self, job_id: str) -> None:
        self.ledger.cancel(job_id)

    def _dispatcher(self) -> Any:
        consumer = getattr(self.app, "services_consumer", None)
        return getattr(consumer, "event_dispatcher", None)


def take_queues(app: Any) -> list[str]:
    """The names of ``-Q``. Celery's consumer is left with no queue: the feeders take the messages."""
    names = list(app.amqp.queues.consume_from)
    app.amqp.queues._consume_from = {}
    return names


class Slot(threading.Thread):
    """One thread and its pool process."""

    def __init__(self, pool: ServicePool, index: int) -> None:
        super().__init__(name=f"slot-{index}", daemon=True)
        self._pool = pool
        self._child: Child | None = None
        self._cancelled: set[str] = set()
        self._running: frozenset[str] = frozenset()
        self._load_deaths = 0

    @property
    def pid(self) -> int | None:
        """The pool process's id."""
        return self._child.pid if self._child else None

    def run(self) -> None:
        """One process after the other, until the worker stops."""
        while not self._pool.stopping.is_set():
            self._child = Child(self._pool.names)
            try:
                self._serve(self._child)
            except Exception:
                log.exception("slot failed; starting its process again")
                time.sleep(1)
            finally:
                self._child.end()
                self._child = None

    def cancel(self, ids: set[str]) -> None:
        """Jobs of this worker that were cancelled while they ran."""
        self._cancelled |= ids & self._running

    def kill(self) -> None:
        """End the process now."""
        child = self._child
        if child:
            child.kill()

    def _serve(self, child: Child) -> None:
        loaded = self._load(child)
        if loaded is None:
            return
        about = {name: (told["version"], told["knobs"]) for name, told in loaded.items()}
        self._pool.keeper.ready(about)
        feeder = Feeder(self._pool.settings, lambda: self._pool.keeper.worker, about)
        while not self._pool.stopping.is_set() and not child.exited:
            batch = self._next(feeder)
            if batch and not self._run_batch(child, batch, about[batch.service][1]):
                return
            if batch and self._is_too_large(child, about[batch.service][1]):
                return

    def _load(self, child: Child) -> dict[str, Any] | None:
        """Wait until the models are loaded; None where they are not to be."""
        deadline = time.monotonic() + self._pool.settings.load_timeout_s
        while not self._pool.stopping.is_set():
            message = child.receive(LOOK_S)
            if message and "loaded" in message:
                self._load_deaths = 0
                return self._loaded(child, message["loaded"])
            if message and "failed" in message:
                self._pool.fail(message["failed"]["service"], message["failed"]["reason"])
            elif not child.alive:
                self._load_died(child)
                return None
            elif time.monotonic() > deadline:
                limit = f"load() did not end within {self._pool.settings.load_timeout_s:g} s (SERVICES_LOAD_TIMEOUT_S)"
                self._pool.fail(",".join(self._pool.names), limit)
        return None

    def _loaded(self, child: Child, loaded: dict[str, Any]) -> dict[str, Any] | None:
        """The models are loaded; None where they leave no room for a batch."""
        for name, told in loaded.items():
            limit = told["knobs"]["memory_limit_mb"]
            if limit and child.rss_mb > limit * RECYCLE_SHARE:
                used = f"its process uses {child.rss_mb:.0f} MB once it is loaded"
                self._pool.fail(name, f"{used}, over {RECYCLE_SHARE:.0%} of its memory_limit_mb ({limit:g})")
                return None
        log.info("service ready name=%s pid=%d", ",".join(self._pool.names), child.pid)
        return loaded

    def _is_too_large(self, child: Child, knobs: dict[str, Any]) -> bool:
        """Whether to replace a process between two batches, before it grows over its limit in the midst of one."""
        limit = knobs["memory_limit_mb"] * RECYCLE_SHARE
        if not limit or child.rss_mb <= limit:
            return False
        log.info("pool process %d uses %.0f MB: starting a new one (memory_limit_mb)", child.pid, child.rss_mb)
        return True

    def _load_died(self, child: Child) -> None:
        self._load_deaths += 1
        how = child.end()
        log.error("the pool process of %s died while it loaded: %s", ",".join(self._pool.names), how)
        if self._load_deaths >= MAX_LOAD_DEATHS:
            reason = f"its process died {self._load_deaths} times while it loaded: {how}"
            self._pool.fail(",".join(self._pool.names), reason)

    def _next(self, feeder: Feeder) -> Batch | None:
        try:
            return feeder.next_batch()
        except redis.RedisError as error:
            log.debug("no batch: %s", error)  # the keeper says that Redis is away
            self._pool.stopping.wait(0.2)
            return None

    def _run_batch(self, child: Child, batch: Batch, knobs: dict[str, Any]) -> bool:
        """Run one batch; False where its process is gone, with what became of the batch told to the ledger."""
        self._cancelled = set()
        self._running = frozenset(batch.ids)
        self._pool.reporter.started(batch, child.pid)
        results: list[dict[str, Any]] = []
        try:
            ended, reason = self._await_end(child, batch, knobs)
            if ended is None:
                again = reason == "timed_out" and knobs["retry_timeouts"]
                self._give_up(child, batch, reason, backoff_s(knobs["retry_backoff_s"], 1) if again else 0)
                return False
            results = ended
            return True
        finally:
            self._running = frozenset()
            self._pool.reporter.ended(batch, results)

    def _await_end(self, child: Child, batch: Batch, knobs: dict[str, Any]) -> tuple[list[dict[str, Any]] | None, str]:
        """The results, or None and why there are none."""
        begun = computed = False
        limits = {"time_limit_s": knobs["time_limit_s"]}
        child.send({"service": batch.service, "worker": batch.worker, "token": batch.token, "ids": batch.ids} | limits)
        deadline = math.inf
        kill_at = None
        while True:
            message = child.receive(LOOK_S)
            if message and "ended" in message:
                return message["ended"], ""
            now = time.monotonic()
            if message and "begun" in message:
                begun, computed, deadline = True, False, now + knobs["time_limit_s"]
            if message and "computed" in message:
                # What is left is to tell the ledger, which may be away for a while.
                computed, deadline = True, math.inf
            if self._cancelled and kill_at is None:
                child.send({"cancelled": sorted(self._cancelled)})
                kill_at = now + CANCEL_GRACE_S
            if not child.alive:
                # A process that died before it began has no culprit in this batch.
                code = child.exit_code()
                own = {EX_GONE: "handed_back", EX_TIMED_OUT: "timed_out"}.get(code, "lost")
                return None, own if begun and not child.killed else "handed_back"
            if now > deadline:
                child.kill()
                return None, "timed_out"
            if kill_at is not None and now > kill_at:
                child.kill()
                return None, "handed_back"
            if begun and not computed and now > self._pool.keeper.safe_until:
                log.warning("the lease could not be renewed in time: ending batch %s, to be run again", batch.token)
                child.kill()
                return None, "handed_back"
            if knobs["memory_limit_mb"] and child.rss_mb > knobs["memory_limit_mb"]:
                child.kill()
                return None, "memory"

    def _give_up(self, child: Child, batch: Batch, reason: str, pause_s: float) -> None:
        how = child.end()
        line = "batch %s batch=%s service=%s batch_size=%d: %s"
        log.warning(line, reason, batch.token, batch.service, len(batch.ids), how)
        while True:
            try:
                self._pool.ledger.give_up(batch.service, batch.worker, batch.token, reason, pause_s)
                return
            except redis.RedisError as error:
                log.debug("could not give up batch %s: %s", batch.token, error)
                if self._pool.stopping.wait(0.5):
                    return  # the lease lapses by itself


class Child:
    """A pool process (``child.py``) and the socket to it."""

    def __init__(self, names: list[str]) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "worker.child", str(theirs.fileno()), *names]
        with theirs:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._link = Connection(ours.detach())
        self._closed = False
        self.killed = False
        self.pid = self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process can still answer: one that has exited may have answers on the way."""
        return not self._closed

    @property
    def exited(self) -> bool:
        """Whether the process is gone."""
        return self._closed or self._process.poll() is not None

    @property
    def rss_mb(self) -> float:
        """Resident memory in units of 2**20 bytes; 0 where it cannot be told (no Linux, or the process is gone)."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * resource.getpagesize() / 2**20

    def exit_code(self) -> int:
        """How it ended (a signal is negative), once its socket is closed; one that lives on all the same is killed."""
        try:
            return self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def send(self, message: dict[str, Any]) -> None:
        """Send an order; a process that is gone shows at the next ``receive``."""
        self._guarded(lambda: self._link.send_bytes(json.dumps(message).encode()))

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; None where none comes in time or the process is gone."""
        raw = self._guarded(lambda: self._link.recv_bytes() if self._link.poll(timeout_s) else None)
        return json.loads(raw) if raw else None

    def kill(self) -> None:
        """End the process now. What it has said already can still be received."""
        self.killed = True
        self._process.kill()

    def end(self) -> str:
        """Close the socket, upon which an idle process ends by itself; says how it ended."""
        self._closed = True
        self._link.close()
        code = self.exit_code()
        return f"ended by signal {-code}" if code < 0 else f"exit code {code}"

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (EOFError, OSError):
            self._closed = True
            return None
