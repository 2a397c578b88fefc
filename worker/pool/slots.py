"""The worker's pool: slots, each a thread of the main process with a pool process of its own.

Celery's prefork pool shares its hub with the broker connection, so results wait while the broker is away; its threaded
one shares a lock between processes, which a kill -9 can leave locked for ever. Here a slot does one thing after the
other: it starts its process, waits until that has loaded its model, and then watches it run batch after batch.
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

#: Seconds between two looks at a running batch for a cancel or the time limit.
LOOK_S = 0.25
#: A batch that its process claimed ahead goes back where it has not begun after this many seconds.
AHEAD_GRACE_S = 0.08
#: A batch with a cancelled job may still end by itself for this long.
CANCEL_GRACE_S = 0.5
#: Cancelled jobs that a slot remembers: other slots' are among them.
MAX_CANCELLED = 10_000
#: A process that dies this often while it loads its model is given up.
MAX_LOAD_DEATHS = 3

#: When a worker stops: seconds in which computed results must be stored, in which a process without a batch must
#: end, and after all that, in which the worker itself must.
STORE_S, IDLE_END_S, WORKER_END_S = 20.0, 5.0, 15.0
#: Seconds in which a guardian must have started, and must tell of an end.
GUARDIAN_START_S, GUARDIAN_S = 30.0, 6.0


class ServicePool(LeasedPool):
    """The pool of services: ``limit`` slots, the keeper and the reporter."""

    def on_start(self) -> None:
        """Start all threads. Nothing here waits for Redis or for a model."""
        become_reaper()  # of processes that a killed guardian leaves
        self.prepare()
        self.impatient = Ledger(self.settings, timeout_s=0.5, retries=0)  # for slots, which watch a run meanwhile
        self.is_ending = self.has_failed = False
        self.slots = [Slot(self, index) for index in range(self.limit)]
        self.keeper.count_processes = lambda: sum(slot.is_loaded for slot in self.slots)
        self.adopter = Adopter(self.app, self.settings, self.names) if self.settings.broker_url else None
        movers = make_movers(self.settings, self.names, self.stopping)
        for thread in (self.keeper, self.reporter, *self.slots, *movers, *([self.adopter] if self.adopter else [])):
            thread.start()
        threading.Thread(target=self._bound_stop, name="bound-stop", daemon=True).start()

    def stop_claiming(self) -> None:
        """Take no further batch; safe in a signal handler."""
        if hasattr(self, "stopping"):
            self.stopping.set()
            if self.adopter:
                self.adopter.stop()

    def on_stop(self) -> None:
        """A warm shutdown: let running batches end, then give back the rest.

        Celery calls it from the signal handler of a second Ctrl-C too, in the midst of the first call: that is to end
        all at once.
        """
        self.stop_claiming()
        if state.should_terminate:
            self._kill_all()
        if self.is_ending:
            return
        self.is_ending = True
        for slot in self.slots:
            slot.join()
        self.keeper.leave()

    def on_terminate(self) -> None:
        """A cold shutdown: end running batches, then give them back for others."""
        self.stop_claiming()
        self._kill_all()
        self.on_stop()

    def _kill_all(self) -> None:
        for slot in self.slots:
            slot.kill()

    def _bound_stop(self) -> None:
        """Once the worker is to stop: say how long that may take, and end it where it takes longer."""
        self.stopping.wait()
        limit_s = max((slot.may_last_s() for slot in self.slots), default=0)
        if not self.has_failed:
            log.info("stopping: what runs may end, at most %.0f s; Ctrl-C again ends all at once", limit_s)
        time.sleep(limit_s + WORKER_END_S)
        log.error("the worker has not ended within %.0f s: ending it", limit_s + WORKER_END_S)
        self._kill_all()
        os._exit(1)

    def fail(self, service: str, reason: str) -> None:
        """A plugin cannot be loaded: tell why and stop this worker with exit code 1."""
        if self.stopping.is_set():
            return
        self.has_failed = True
        self.stop_claiming()
        log.critical("service %s cannot be loaded, so its worker stops: %s", service, reason)
        self.keeper.fail(service, reason)
        state.should_stop = 1

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        return {**info, "processes": [slot.pid for slot in self.slots if slot.pid]}

    def on_cancel(self, runs: list[CancelledRun]) -> None:
        """Every slot is told: it knows its own."""
        for slot in self.slots:
            slot.cancel(runs)

    def on_lease_lost(self) -> None:
        """End all processes."""
        self._kill_all()


@dataclass(slots=True)
class Run:
    """The batch that a pool process computes, or whose results it is telling the ledger."""

    token: str
    service: str
    ids: frozenset[str]
    deadline: float  #: by ``time.monotonic``
    computed: bool = False
    kill_at: float = math.inf  #: one of its jobs was cancelled: it must end by then


@dataclass(frozen=True, slots=True)
class Ahead:
    """A batch that a pool process has claimed while another one runs."""

    token: str
    service: str
    number: int
    due: float  #: by ``time.monotonic``: it goes back where it has not begun by then
    is_ours: bool = False  #: whether the slot has it, and is to give it back


class Slot(threading.Thread):
    """One thread and its pool process."""

    def __init__(self, pool: ServicePool, index: int) -> None:
        super().__init__(name=f"slot-{index}", daemon=True)
        self._pool = pool
        self._child: Child | None = None
        self._cancelled: dict[str, set[str]] = {}  # token of a batch -> jobs of it
        self._begun: dict[str, str] = {}  # token of a batch whose end its process has not told -> service
        self._ahead: Ahead | None = None
        self._load_deaths = 0
        self._run: Run | None = None
        self.is_loaded = False  #: whether its process can take batches

    @property
    def pid(self) -> int | None:
        """The pool process's id."""
        return self._child.pid if self._child else None

    def run(self) -> None:
        """One process after the other, until the worker stops."""
        while not self._pool.stopping.is_set():
            try:
                self._child = Child(self._pool.names, self._pool.keeper.lease.fd)
                loaded = self._load(self._child)
                if loaded is not None:
                    self.is_loaded = True
                    self._watch(self._child, loaded)
                elif self._pool.stopping.is_set():
                    self._child.kill()  # it has nothing that anybody waits for
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
        """Seconds that the process may need to end, once it is to stop."""
        run = self._run
        if not run:
            return IDLE_END_S
        return STORE_S if run.computed else max(run.deadline - time.monotonic(), 0) + STORE_S

    def cancel(self, runs: Sequence[CancelledRun]) -> None:
        """Jobs of this worker, of any slot, that were cancelled while they ran.

        Kept by their batches: a job that is run again must not be ended for a cancel of an earlier run.
        """
        if len(self._cancelled) > MAX_CANCELLED:
            self._cancelled.clear()
        for run in runs:
            self._cancelled.setdefault(run.token, set()).add(run.job_id)

    def kill(self) -> None:
        """End the process now."""
        child = self._child
        if child:
            child.kill()

    def _watch(self, child: Child, knobs: dict[str, dict[str, Any]]) -> None:
        """Follow a process from batch to batch until it ends, or must be ended."""
        self._greet(child)
        self._cancelled.clear()
        self._ahead = None
        run: Run | None = None
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
        self._give_up(child, run, self._why_gone(child, run), knobs)

    def _greet(self, child: Child) -> None:
        child.worker = self._pool.keeper.worker
        child.send({"worker": child.worker, "event_rate": self._pool.settings.event_rate / self._pool.limit})

    def _follow(
        self, child: Child, message: dict[str, Any], run: Run | None, knobs: dict[str, dict[str, Any]]
    ) -> Run | None:
        """A message of the process updates the state of its batch."""
        if "fenced" in message:
            self._greet(child)
        elif "ahead" in message:
            due = time.monotonic() + AHEAD_GRACE_S
            self._ahead = Ahead(message["ahead"], message["service"], message["number"], due)
        elif "leaving" in message:
            child.leaving = message["leaving"]
        elif "begun" in message:
            now, service, token = time.monotonic(), message["service"], message["begun"]
            if self._ahead and self._ahead.token == token:
                self._ahead = None
            if not run or run.token != token:  # the parts of a chunk begin under one token, one after the other
                run = Run(token, service, frozenset(message["ids"]), now)
                self._begun[token] = service
                self._pool.reporter.started(token, service, message["shown"], child.pid)
            run.computed, run.deadline = False, now + knobs[service]["time_limit_s"]
        elif "computed" in message and run:
            # The ledger has yet to be told, and may be away for a while.
            run.computed, run.deadline = True, math.inf
        elif "ended" in message:
            token = message["batch"]
            self._begun.pop(token, None)
            self._pool.reporter.ended(token, message["service"], message["ended"], message["count"])
            self._cancelled.pop(token, None)
            return None if run and run.token == token else run  # the next may have begun before its ends were written
        return run

    def _until_next_look(self) -> float:
        """Seconds to wait for a message of the process."""
        if self._ahead is None:
            return LOOK_S
        return min(LOOK_S, max(0.0, self._ahead.due - time.monotonic()))

    def _give_back_ahead(self, child: Child) -> None:
        """Jobs that were claimed ahead of a run that takes longer than expected go back, for a process that is idle.

        The pool process cannot do it while its model holds the GIL, so it is done here.
        """
        ahead, now = self._ahead, time.monotonic()
        if ahead is None or now < ahead.due:
            return
        self._ahead = None
        if not ahead.is_ours and not child.handover.take(ahead.number, wait=False):
            return  # its process has taken it and is about to say that it has begun
        try:
            command = worker_commands.give_up(ahead.service, child.worker, ahead.token, "handed_back")
            self._pool.impatient.run(command)
        except redis.RedisError as error:
            log.debug("could not give back batch %s, which has not begun: %s", ahead.token, error)
            self._ahead = replace(ahead, is_ours=True, due=now + LOOK_S)

    def _must_end(self, child: Child, run: Run, knobs: dict[str, Any]) -> str:
        """Why a batch must be ended now; "" where it may go on."""
        now = time.monotonic()
        cancelled = self._cancelled.get(run.token)
        if cancelled and run.kill_at == math.inf:
            child.send({"cancelled": sorted(cancelled), "batch": run.token})
            run.kill_at = now + CANCEL_GRACE_S
        if now > run.deadline:
            return "timed_out"
        if now > run.kill_at:
            return "handed_back"
        if not run.computed and now > self._pool.keeper.safe_until:  # pillar: fencing
            log.warning("the lease could not be renewed in time: ending batch %s, to be run again", run.token)
            return "handed_back"
        if knobs["memory_limit_mb"] and child.rss_mb > knobs["memory_limit_mb"]:
            return "memory"
        return ""

    def _why_gone(self, child: Child, run: Run | None) -> str:
        """Why a process that is gone has left its batch: one that died before it began has no culprit in it."""
        return (child.leaving or "lost") if run and not child.killed else "handed_back"

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

    def _loaded(self, child: Child, about: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
        """The models are loaded: each service's knobs; None where they leave no room for a batch."""
        knobs = {name: told[1] for name, told in about.items()}
        for name in knobs:
            limit = knobs[name]["memory_limit_mb"]
            if limit and child.rss_mb > limit * RECYCLE_SHARE:
                used = f"its process uses {child.rss_mb:.0f} MB once it is loaded"
                self._pool.fail(name, f"{used}, over {RECYCLE_SHARE:.0%} of its memory_limit_mb ({limit:g})")
                return None
        log.info("service ready name=%s pid=%d", ",".join(self._pool.names), child.pid)
        self._pool.keeper.ready({name: (told[0], told[1]) for name, told in about.items()})
        return knobs

    def _load_died(self, child: Child) -> None:
        self._load_deaths += 1
        how = child.end()
        log.error("the pool process of %s died while it loaded: %s", ",".join(self._pool.names), how)
        if self._load_deaths >= MAX_LOAD_DEATHS:
            reason = f"its process died {self._load_deaths} times while it loaded: {how}"
            self._pool.fail(",".join(self._pool.names), reason)

    def _give_up(self, child: Child, run: Run | None, reason: str, knobs: dict[str, dict[str, Any]]) -> None:
        """The process is gone: report to the ledger the end of its batch and of its other claims."""
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
                    break  # the lease lapses by itself
        self._tell_given_up(given, reason)

    def _tell_given_up(self, given: dict[str, str], reason: str) -> None:
        """Let Celery's events say how the jobs of batches ended whose process is gone."""
        results = [
            {"id": job_id, "error": why or reason, "retried": not why, "result": None, "seconds": 0}
            for job_id, why in given.items()
        ]
        for token, service in self._begun.items():
            self._pool.reporter.ended(token, service, results, 0)
        self._begun.clear()


class Child:
    """A pool process (``child.py``), the guardian above it (``guardian.py``), and the sockets to both."""

    #: Guardians of this worker, and the turn to add one: any other process below it was left by a killed guardian.
    _guardians: ClassVar[set[int]] = set()
    _turn: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, names: list[str], lease_fd: int) -> None:
        self.name = uuid.uuid4().hex[:16]  #: with which the tokens of all its batches begin
        self.worker = ""  #: the id under which it claims
        self.leaving = ""  #: why it ended itself, where it has told so
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
            # A session of its own: a terminal's Ctrl-C is the worker's, and not for programs that a job has started.
            self._guardian = subprocess.Popen(guardian, pass_fds=fds, stdin=subprocess.DEVNULL, start_new_session=True)
            self._guardians.add(self._guardian.pid)
        self._link = Connection(ours.detach())
        self._waiting = select.poll()
        for socket_ in (self._link, self._leash):
            self._waiting.register(socket_.fileno(), select.POLLIN)
        self.pid = self._read_leash(GUARDIAN_START_S) or 0  #: the pool process's
        if not self.pid:
            self.end()
            raise OSError(f"the guardian of a pool process told no process's id within {GUARDIAN_START_S:g} s")

    @property
    def alive(self) -> bool:
        """Whether the process can still answer: one that has exited may have answers on the way."""
        return not self._closed

    @property
    def rss_mb(self) -> float:
        """Its memory in units of 2**20 bytes."""
        return resident_mb(self.pid)

    def exit_code(self) -> int:
        """How it ended (a signal is negative); one that has closed its socket and lives on is killed."""
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
        """Send an order; a process that is gone shows at the next ``receive``."""
        self._guarded(lambda: self._link.send_bytes(json.dumps(message).encode()))

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; None where none comes in time or the process is gone.

        Its end is told by the guardian: the end of the socket may not come, since forks of the process hold it too.
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
        """End the process now, and all below it. Its earlier messages can still be received."""
        self.killed = True
        try:
            self._leash.send(b"kill")
        except OSError as error:
            log.debug("the guardian of process %d is gone: %s", self.pid, error)

    def end(self) -> str:
        """Close the socket, upon which an idle process ends by itself; says how it ended."""
        self._closed = True
        self._link.close()
        self.handover.close()
        code = self.exit_code()
        self._leash.close()
        return f"ended by signal {-code}" if code < 0 else f"exit code {code}"

    def _read_leash(self, most_s: float) -> int | None:
        """The next number that the guardian tells; None where it tells none in time."""
        self._leash.settimeout(most_s)
        told = b""
        try:
            while not told.endswith(b"\n"):
                piece = self._leash.recv(1)
                if not piece:
                    return None
                told += piece
        except OSError:
            return None
        return int(told)

    def _forget_guardian(self) -> None:
        """It is gone; a killed guardian has left the processes below it to this one."""
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
