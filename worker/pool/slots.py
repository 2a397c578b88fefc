"""The worker's pool: slots, each a thread of the main process with a pool process of its own.

Celery's prefork pool shares its hub with the broker connection, so results wait while the broker is away; its thread
pool shares a lock between processes, which a kill -9 can leave locked for ever. A slot here works in sequence: it
starts its process, waits until the process has loaded its models, and then watches it run batch after batch.
"""

from __future__ import annotations

import json
import logging
import math
import os
import select
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import redis
from celery.worker import state

from worker.broker.priorities import make_movers
from worker.broker.rabbitmq import Adopter
from worker.inference.runner import backoff_s
from worker.ledger import worker_commands
from worker.ledger.sync_ledger import Ledger
from worker.ledger.worker_commands import CancelledRun
from worker.pool.base import LeasedPool
from worker.pool.child import RECYCLE_SHARE
from worker.pool.shared_memory import Handover
from worker.processes.launch import python_command
from worker.processes.lifetime import GUARDIAN, become_reaper, kill_below, resident_mb

log = logging.getLogger("services.worker")

#: Seconds between two checks of a running batch for a cancel or the time limit.
LOOK_S = 0.25
#: A batch that its process claimed ahead is given back if it has not begun after this many seconds.
AHEAD_GRACE_S = 0.08
#: A batch with a cancelled job may still end by itself for this many seconds.
CANCEL_GRACE_S = 0.5
#: Upper bound of a slot's set of cancelled jobs. Every slot receives all cancels of the worker.
MAX_CANCELLED = 10_000
#: The worker stops after its process has died this many times while it loaded its models.
MAX_LOAD_DEATHS = 3

#: Time limits at a worker's stop, in seconds: to store computed results, for an idle process to end, and then for the
#: worker itself to end.
STORE_S, IDLE_END_S, WORKER_END_S = 20.0, 5.0, 15.0
#: Seconds in which a guardian must have started, and must report a process's end.
GUARDIAN_START_S, GUARDIAN_S = 30.0, 6.0


class ServicePool(LeasedPool):
    """The pool of services: ``limit`` slots, the thread that renews the lease, and the reporter of Celery's events."""

    def on_start(self) -> None:
        """Start all threads. Nothing here waits for Redis or for a model."""
        become_reaper()  # adopts the processes that a killed guardian leaves
        self.prepare()
        self.impatient = Ledger(self.settings, timeout_s=0.5, retries=0)  # for slots, which must not block for long
        self.is_ending = self.has_failed = False
        self.slots = [Slot(self, index) for index in range(self.limit)]
        self.renewer.count_processes = lambda: sum(slot.is_loaded for slot in self.slots)
        self.adopter = Adopter(self.app, self.settings, self.names) if self.settings.broker_url else None
        movers = make_movers(self.settings, self.names, self.stopping)
        for thread in (self.renewer, self.reporter, *self.slots, *movers, *([self.adopter] if self.adopter else [])):
            thread.start()
        threading.Thread(target=self._bound_stop, name="bound-stop", daemon=True).start()

    def stop_claiming(self) -> None:
        """Claim no further batch; safe in a signal handler."""
        if hasattr(self, "stopping"):
            self.stopping.set()
            if self.adopter:
                self.adopter.stop()

    def on_stop(self) -> None:
        """A warm shutdown: let running batches end, then give back the other jobs.

        Celery also calls it from the signal handler of a second Ctrl-C, during the first call: all processes are then
        killed.
        """
        self.stop_claiming()
        if state.should_terminate:
            self._kill_all()
        if self.is_ending:
            return
        self.is_ending = True
        for slot in self.slots:
            slot.join()
        self.renewer.leave()

    def on_terminate(self) -> None:
        """A cold shutdown: kill running batches, then give them back for other workers."""
        self.stop_claiming()
        self._kill_all()
        self.on_stop()

    def _kill_all(self) -> None:
        for slot in self.slots:
            slot.kill()

    def _bound_stop(self) -> None:
        """At the worker's stop: log how long it may take, and kill the worker if it takes longer."""
        self.stopping.wait()
        limit_s = max((slot.may_last_s() for slot in self.slots), default=0)
        if not self.has_failed:
            log.info("stopping: what runs may end, at most %.0f s; Ctrl-C again ends all at once", limit_s)
        time.sleep(limit_s + WORKER_END_S)
        log.error("the worker has not ended within %.0f s: ending it", limit_s + WORKER_END_S)
        self._kill_all()
        os._exit(1)

    def fail(self, service: str, reason: str) -> None:
        """A plugin cannot be loaded: store the reason and stop this worker with exit code 1."""
        if self.stopping.is_set():
            return
        self.has_failed = True
        self.stop_claiming()
        log.critical("service %s cannot be loaded, so its worker stops: %s", service, reason)
        self.renewer.fail(service, reason)
        state.should_stop = 1

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        return {**info, "processes": [slot.pid for slot in self.slots if slot.pid]}

    def on_cancel(self, runs: list[CancelledRun]) -> None:
        """Pass the cancels to every slot, which picks those of its own batches."""
        for slot in self.slots:
            slot.cancel(runs)

    def on_lease_lost(self) -> None:
        """End all processes."""
        self._kill_all()


@dataclass(slots=True)
class RunningBatch:
    """The batch that a pool process computes, or of which it is storing the results."""

    token: str
    service: str
    ids: frozenset[str]
    deadline: float  #: by ``time.monotonic``
    computed: bool = False
    kill_at: float = math.inf  #: by ``time.monotonic``; finite after a cancel of one of its jobs


@dataclass(frozen=True, slots=True)
class AheadBatch:
    """A batch that a pool process has claimed while another one runs."""

    token: str
    service: str
    number: int
    due: float  #: by ``time.monotonic``: it is given back if it has not begun by then
    is_ours: bool = False  #: whether the slot owns it and must give it back


class Slot(threading.Thread):
    """One thread and its pool process."""

    def __init__(self, pool: ServicePool, index: int) -> None:
        super().__init__(name=f"slot-{index}", daemon=True)
        self._pool = pool
        self._child: Child | None = None
        self._cancelled: dict[str, set[str]] = {}  # token of a batch -> jobs of it
        self._begun: dict[str, str] = {}  # token of a batch that has begun and not ended yet -> service
        self._ahead: AheadBatch | None = None
        self._load_deaths = 0
        self._run: RunningBatch | None = None
        self.is_loaded = False  #: whether its process can take batches

    @property
    def pid(self) -> int | None:
        """The pool process's id."""
        return self._child.pid if self._child else None

    def run(self) -> None:
        """Start and watch a process, and replace it at its end, until the worker stops."""
        while not self._pool.stopping.is_set():
            try:
                self._child = Child(self._pool.names, self._pool.renewer.lease.fd)
                loaded = self._load(self._child)
                if loaded is not None:
                    self.is_loaded = True
                    self._watch(self._child, loaded)
                elif self._pool.stopping.is_set():
                    self._child.kill()  # no client waits for it: it has no job yet
            except Exception:
                log.exception("slot failed; starting its process again")
                time.sleep(1)
            finally:
                self.is_loaded = False
                self._run = None
                if self._child:
                    self._child.end()
                self._child = None

    def may_last_s(self) -> float:
        """Seconds that the process may need to end, from the order to stop."""
        run = self._run
        if not run:
            return IDLE_END_S
        return STORE_S if run.computed else max(run.deadline - time.monotonic(), 0) + STORE_S

    def cancel(self, runs: Sequence[CancelledRun]) -> None:
        """Note the cancelled jobs of this worker, of all slots.

        They are noted by their batch: a job that runs again must not be killed for a cancel of an earlier run.
        """
        if len(self._cancelled) > MAX_CANCELLED:
            self._cancelled.clear()
        for run in runs:
            self._cancelled.setdefault(run.token, set()).add(run.job_id)

    def kill(self) -> None:
        """Kill the process."""
        child = self._child
        if child:
            child.kill()

    def _watch(self, child: Child, knobs: dict[str, dict[str, Any]]) -> None:
        """Watch a process from batch to batch until it ends, or must be killed."""
        self._greet(child)
        self._cancelled.clear()
        self._ahead = None
        run: RunningBatch | None = None
        stop_by = math.inf
        while child.alive:
            if self._pool.stopping.is_set() and stop_by == math.inf:
                stop_by = time.monotonic() + self.may_last_s()
                child.send({"stop": True})
            message = child.receive(self._until_next_look())
            if message:
                run = self._run = self._follow(child, message, run, knobs)
            self._give_back_ahead(child)
            reason = self._must_end(child, run, knobs[run.service]) if run else ""
            if not reason and time.monotonic() > stop_by:
                reason = "handed_back"
            if reason:
                child.kill()
                self._give_up(child, run, reason, knobs)
                return
        self._give_up(child, run, self._end_reason(child, run), knobs)

    def _greet(self, child: Child) -> None:
        child.worker = self._pool.renewer.worker
        child.send({"worker": child.worker, "event_rate": self._pool.settings.event_rate / self._pool.limit})

    def _follow(
        self, child: Child, message: dict[str, Any], run: RunningBatch | None, knobs: dict[str, dict[str, Any]]
    ) -> RunningBatch | None:
        """Update the state of the running batch by a message of the process."""
        if "fenced" in message:
            self._greet(child)
        elif "ahead" in message:
            due = time.monotonic() + AHEAD_GRACE_S
            self._ahead = AheadBatch(message["ahead"], message["service"], message["number"], due)
        elif "leaving" in message:
            child.leaving = message["leaving"]
        elif "begun" in message:
            now, service, token = time.monotonic(), message["service"], message["begun"]
            if self._ahead and self._ahead.token == token:
                self._ahead = None
            if not run or run.token != token:  # the parts of a chunk begin in sequence, under the same token
                run = RunningBatch(token, service, frozenset(message["ids"]), now)
                self._begun[token] = service
                self._pool.reporter.started(token, service, message["shown"], child.pid)
            run.computed, run.deadline = False, now + knobs[service]["time_limit_s"]
        elif "computed" in message and run:
            # No deadline any more: the results are yet to be stored, and Redis may be away for a while.
            run.computed, run.deadline = True, math.inf
        elif "ended" in message:
            token = message["batch"]
            self._begun.pop(token, None)
            self._pool.reporter.ended(token, message["service"], message["ended"], message["count"])
            self._cancelled.pop(token, None)
            return None if run and run.token == token else run  # the next may have begun before its ends were written
        return run

    def _until_next_look(self) -> float:
        """Seconds to wait for the next message of the process."""
        if self._ahead is None:
            return LOOK_S
        return min(LOOK_S, max(0.0, self._ahead.due - time.monotonic()))

    def _give_back_ahead(self, child: Child) -> None:
        """Give back the batch that was claimed ahead if the run takes longer than expected, for an idle process.

        The slot does so, since the pool process cannot while its model holds the GIL.
        """
        ahead, now = self._ahead, time.monotonic()
        if ahead is None or now < ahead.due:
            return
        self._ahead = None
        if not ahead.is_ours and not child.handover.take(ahead.number, wait=False):
            return  # its process has taken it and is about to send "begun"
        try:
            command = worker_commands.give_up(ahead.service, child.worker, ahead.token, "handed_back")
            self._pool.impatient.run(command)
        except redis.RedisError as error:
            log.debug("could not give back batch %s, which has not begun: %s", ahead.token, error)
            self._ahead = replace(ahead, is_ours=True, due=now + LOOK_S)

    def _must_end(self, child: Child, run: RunningBatch, knobs: dict[str, Any]) -> str:
        """The reason for which a batch must be killed now; "" if there is none."""
        now = time.monotonic()
        cancelled = self._cancelled.get(run.token)
        if cancelled and run.kill_at == math.inf:
            child.send({"cancelled": sorted(cancelled), "batch": run.token})
            run.kill_at = now + CANCEL_GRACE_S
        if now > run.deadline:
            return "timed_out"
        if now > run.kill_at:
            return "handed_back"
        if not run.computed and now > self._pool.renewer.safe_until:  # pillar: fencing
            log.warning("the lease could not be renewed in time: ending batch %s, to be run again", run.token)
            return "handed_back"
        if knobs["memory_limit_mb"] and child.rss_mb > knobs["memory_limit_mb"]:
            return "memory"
        return ""

    def _end_reason(self, child: Child, run: RunningBatch | None) -> str:
        """The reason for which a process has left its batch: a crash without a running batch is no job's fault."""
        return (child.leaving or "lost") if run and not child.killed else "handed_back"

    def _load(self, child: Child) -> dict[str, Any] | None:
        """Wait until the models are loaded and return their knobs; None if loading failed or the worker stops."""
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

    def _loaded(self, child: Child, about: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
        """Each service's knobs after loading; None if the loaded models leave too little memory for a batch."""
        knobs = {name: model_knobs for name, (_, model_knobs) in about.items()}
        for name in knobs:
            limit = knobs[name]["memory_limit_mb"]
            if limit and child.rss_mb > limit * RECYCLE_SHARE:
                used = f"its process uses {child.rss_mb:.0f} MB once it is loaded"
                self._pool.fail(name, f"{used}, over {RECYCLE_SHARE:.0%} of its memory_limit_mb ({limit:g})")
                return None
        log.info("service ready name=%s pid=%d", ",".join(self._pool.names), child.pid)
        self._pool.renewer.ready({name: (version, model_knobs) for name, (version, model_knobs) in about.items()})
        return knobs

    def _load_died(self, child: Child) -> None:
        self._load_deaths += 1
        how = child.end()
        log.error("the pool process of %s died while it loaded: %s", ",".join(self._pool.names), how)
        if self._load_deaths >= MAX_LOAD_DEATHS:
            reason = f"its process died {self._load_deaths} times while it loaded: {how}"
            self._pool.fail(",".join(self._pool.names), reason)

    def _give_up(self, child: Child, run: RunningBatch | None, reason: str, knobs: dict[str, dict[str, Any]]) -> None:
        """The process is gone: give back its batch and its other claims to the ledger."""
        how, pause_s = child.end(), 0.0
        if run:
            line = "batch %s batch=%s service=%s batch_size=%d: %s"
            log.warning(line, reason, run.token, run.service, len(run.ids), how)
            if reason == "timed_out" and knobs[run.service]["retry_timeouts"]:
                pause_s = backoff_s(knobs[run.service]["retry_backoff_s"], 1)
        given: dict[str, str] = {}
        while True:
            try:
                for name in knobs:
                    token = run.token if run and run.service == name else ""
                    command = worker_commands.give_up(name, child.worker, token, reason, pause_s, child.name)
                    given |= self._pool.ledger.run(command)
                break
            except redis.RedisError as error:
                log.debug("could not give up what process %s had claimed: %s", child.name, error)
                if self._pool.stopping.wait(0.5):
                    break  # the lease expires by itself
        self._report_given_up(given, reason)

    def _report_given_up(self, given: dict[str, str], reason: str) -> None:
        """Send Celery's events for the jobs of a process that is gone."""
        results = [
            {"id": job_id, "error": why or reason, "retried": not why, "result": None, "seconds": 0}
            for job_id, why in given.items()
        ]
        for token, service in self._begun.items():
            self._pool.reporter.ended(token, service, results, 0)
        self._begun.clear()


class Child:
    """A pool process (``child.py``), the guardian above it (``guardian.py``), and the sockets to both."""

    #: Guardians of this worker, and the lock to add one. Any other process below this one is left by a killed guardian.
    _guardians: ClassVar[set[int]] = set()
    _turn: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, names: list[str], lease_fd: int) -> None:
        self.name = uuid.uuid4().hex[:16]  #: with which the tokens of all its batches begin
        self.worker = ""  #: the id under which it claims
        self.leaving = ""  #: its reason for ending itself, if it has sent one
        self.killed = False
        self._closed = False
        self._code: int | None = None  # how the pool process ended
        ours, theirs = socket.socketpair()
        self._leash, held = socket.socketpair()
        self.handover = Handover()
        fds = [theirs.fileno(), lease_fd, self.handover.fd]
        command = python_command("worker.pool.child", *map(str, fds), self.name, *names)
        with theirs, held, self._turn:
            guardian = [*GUARDIAN, str(held.fileno()), *command]
            fds.append(held.fileno())
            # A session of its own: a terminal's Ctrl-C must reach only the worker, not programs that a job has started.
            self._guardian = subprocess.Popen(guardian, pass_fds=fds, stdin=subprocess.DEVNULL, start_new_session=True)
            self._guardians.add(self._guardian.pid)
        self._link = Connection(ours.detach())
        self._waiting = select.poll()
        for socket_ in (self._link, self._leash):
            self._waiting.register(socket_.fileno(), select.POLLIN)
        self.pid = self._read_leash(GUARDIAN_START_S) or 0  #: the pool process's
        if not self.pid:
            self.end()
            raise OSError(f"the guardian of a pool process sent no process id within {GUARDIAN_START_S:g} s")

    @property
    def alive(self) -> bool:
        """Whether messages of the process may still arrive, which can be after its exit."""
        return not self._closed

    @property
    def rss_mb(self) -> float:
        """The process's resident memory in MiB."""
        return resident_mb(self.pid)

    def exit_code(self) -> int:
        """The exit code (negative for a signal); a process that has closed its socket and lives on is killed."""
        if self._code is None:
            self._code = self._read_leash(GUARDIAN_S)
        if self._code is None:
            self.kill()
            self._code = self._read_leash(GUARDIAN_S)
        if self._code is None:  # its guardian was killed, or is stopped
            self._guardian.kill()
            self._code = -signal.SIGKILL
        self._guardian.wait()
        self._forget_guardian()
        return self._code

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; if the process is gone, the next ``receive`` notices it."""
        self._guarded(lambda: self._link.send_bytes(json.dumps(message).encode()))

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; None if none arrives in time or the process is gone.

        The guardian reports the process's end, since the socket stays open as long as a fork of the process has it.
        """
        if self._closed:
            return None
        ready = [fd for fd, _ in self._waiting.poll(timeout_s * 1000)]
        if self._link.fileno() in ready:  # its last messages first
            raw = self._guarded(self._link.recv_bytes)
            return json.loads(raw) if raw else None
        self._closed = bool(ready)
        return None

    def kill(self) -> None:
        """Kill the process and its descendants. Its earlier messages can still be received."""
        self.killed = True
        try:
            self._leash.send(b"kill")
        except OSError as error:
            log.debug("the guardian of process %d is gone: %s", self.pid, error)

    def end(self) -> str:
        """Close the socket, upon which an idle process ends by itself; returns how it ended, as text."""
        self._closed = True
        self._link.close()
        self.handover.close()
        code = self.exit_code()
        self._leash.close()
        return f"ended by signal {-code}" if code < 0 else f"exit code {code}"

    def _read_leash(self, most_s: float) -> int | None:
        """The next number that the guardian sends; None if it sends none in time."""
        self._leash.settimeout(most_s)
        line = b""
        try:
            while not line.endswith(b"\n"):
                piece = self._leash.recv(1)
                if not piece:
                    return None
                line += piece
        except OSError:
            return None
        return int(line)

    def _forget_guardian(self) -> None:
        """The guardian is gone: kill the processes that a killed guardian has left."""
        with self._turn:
            self._guardians.discard(self._guardian.pid)
            if self._guardian.returncode:
                kill_below(frozenset(self._guardians))

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (EOFError, OSError):
            self._closed = True
            return None
