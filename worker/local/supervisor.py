"""``services run``: one Celery worker a service, started again when it dies."""

from __future__ import annotations

import signal
import subprocess
import time
import uuid
from dataclasses import dataclass, field

from worker.processes.launch import python_command
from worker.processes.lifetime import Stop, become_reaper, die_with_parent, kill_below, stop_on_signals
from worker.settings import EX_USAGE

#: A worker ends like this where its plugin cannot be loaded: soon again would be the same again.
EX_NOT_LOADED = 1

#: Seconds before a worker that died is started again: the first, doubled for each quick death, up to the last.
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0

#: A worker that lived this long did not die of its start.
SETTLED_S = 30.0


@dataclass
class Worker:
    """One service's worker process and when to start it (again)."""

    service: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0
    pause_s: float = field(default=FIRST_PAUSE_S)
    start_at: float | None = 0  #: None: not again

    def start(self) -> None:
        """Start the process, in a session of its own, so that a group's signals reach it through us alone."""
        node = f"{self.service}-{uuid.uuid4().hex[:6]}@%h"
        # Celery warns root at length because of pickle, which is refused here.
        quiet = ("-W", "ignore:You're running the worker with superuser privileges")
        arguments = ("--quiet", "-A", "libs_service", "worker", "-Q", self.service, "-n", node, "--loglevel=WARNING")
        self.process = subprocess.Popen(
            python_command("celery", *arguments, options=quiet),
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )
        self.started = time.monotonic()
        self.start_at = None

    def look(self) -> bool:
        """Start it when it is due; say so when it has died. Gives whether it has."""
        now = time.monotonic()
        if self.start_at is not None and now >= self.start_at:
            self.start()
        elif self.process and self.process.poll() is not None:
            self._died(self.process.returncode, now)
            return True
        return False

    def _died(self, code: int, now: float) -> None:
        self.process = None
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if code == EX_USAGE:
            print(f"worker {self.service} ended ({how}): it cannot be started", flush=True)
            return
        pause_s = self._pause(code, now - self.started)
        self.start_at = now + pause_s
        print(f"worker {self.service} ended ({how}); starting it again in {pause_s:g} s", flush=True)

    def _pause(self, code: int, lived_s: float) -> float:
        """Seconds before it is started again; the next quick death costs twice as many."""
        if code == EX_NOT_LOADED:
            return LAST_PAUSE_S
        pause_s = FIRST_PAUSE_S if lived_s > SETTLED_S else self.pause_s
        self.pause_s = min(pause_s * 2, LAST_PAUSE_S)
        return pause_s


def run_workers(services: list[str]) -> int:
    """Run a worker of each service until SIGTERM or SIGINT; gives the exit code.

    Only this thread starts processes: their parent-death signal is bound to the thread that started them.
    """
    become_reaper()  # of processes that remain after a worker and its guardians were killed together
    stop = stop_on_signals()
    workers = [Worker(service) for service in services]
    while not stop.is_set():
        died = [worker.look() for worker in workers]
        if any(died):
            kill_below(frozenset(worker.process.pid for worker in workers if worker.process))
        if all(worker.process is None and worker.start_at is None for worker in workers):
            return EX_USAGE
        stop.wait(0.2)
    return _stop(workers, stop)


def _stop(workers: list[Worker], stop: Stop) -> int:
    """One SIGTERM to each; then each finishes its batch and hands back the rest, and ends itself where that takes long.

    A second Ctrl-C kills them and all below them: their leases lapse, and others run their jobs.
    """
    running = [worker.process for worker in workers if worker.process]
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    print("stopping: what runs may end, at most its time_limit_s; Ctrl-C again ends all at once", flush=True)
    while any(process.poll() is None for process in running) and not stop.in_a_hurry:
        time.sleep(0.05)
    kill_below()
    return 0
