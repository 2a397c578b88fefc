"""Clients that submit jobs at a steady rate, and read back at random what has ended."""

from __future__ import annotations

import random
import threading
import time
import uuid
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError

from tests.chaos.stack import TERMINAL, Stack, ask

#: How often a POST that got no answer is sent again, with its ``Idempotency-Key``, and the pause before, in seconds.
AGAIN, AGAIN_AFTER_S = 5, 0.2

#: What could not be submitted while nobody answered is made up for, as far as so many seconds back.
CATCH_UP_S = 10

#: How long a run sleeps, with its weight: workers that run batches are half busy at the default rate, so that what is
#: measured is how soon a killed worker is noticed, and not how long the queue is.
SLEEPS = [(0.0, 57.0), (0.01, 40.0), (0.3, 2.5), (2.0, 0.5)]

#: This share of the jobs forks, starts a program or returns a large output.
HEAVY_SHARE, HEAVY = 0.01, ["", "fork", "program", "large", "too_large"]


@dataclass
class Accepted:
    """A job that got its 202, or its 200 where an earlier POST of the same had made it."""

    id: str
    n: int
    service: str
    do: str
    asked_again: bool = False  #: an earlier POST got no answer


@dataclass
class Load:
    """``clients`` threads that together submit ``rate`` jobs a second until stopped."""

    stack: Stack
    rate: float
    seed: int = 1
    clients: int = 8
    accepted: list[Accepted] = field(default_factory=list)
    refused: int = 0  #: answers other than 202 and 200
    unanswered: int = 0  #: no answer, also to the last try: the job may exist or not
    slowest_s: float = 0  #: longest wait for an answer, whatever it was
    ended: dict[str, Any] = field(default_factory=dict)  #: jobs as they were first read to have ended
    long_s: float = 0  #: how long the long jobs run, of which there is always one; 0: none
    sleeps: list[tuple[float, float]] = field(default_factory=lambda: SLEEPS)
    changed: list[tuple[Any, Any]] = field(default_factory=list)  #: terminal jobs that read otherwise later

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._next = 0
        self._celery = None
        if self.stack.rabbit:
            self._celery = Celery("load", broker=self.stack.rabbit.url, set_as_current=False)
            self._celery.conf.broker_transport_options = {"confirm_publish": True, "connect_timeout": 2}
        self._threads = [threading.Thread(target=self._submit_all, args=(i,)) for i in range(self.clients)]
        self._threads.append(threading.Thread(target=self._read_some))
        if self.long_s:
            self._threads.append(threading.Thread(target=self._keep_one_long))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def submit(self, connection: HTTPConnection, do: str = "", sleep_s: float = 0, service: str = "chaos") -> None:
        """One job."""
        with self._lock:
            self._next += 1
            n = self._next
        if self._celery and n % 2 and not do and service == "chaos":
            self._send_task(n, sleep_s)
        else:
            self._post(connection, n, service, do, sleep_s)

    def _post(self, connection: HTTPConnection, n: int, service: str, do: str, sleep_s: float) -> None:
        """By the API, once more with the same key when no answer came."""
        body = {"service": service, "input": {"n": n, "sleep_s": sleep_s, "do": do}}
        tries = 0
        while True:
            started = time.monotonic()
            status, job = ask(connection, "POST", "/jobs", body, {"Idempotency-Key": f"{self.seed}/{n}"})
            with self._lock:
                self.slowest_s = max(self.slowest_s, time.monotonic() - started)
            tries += 1
            most = AGAIN if self.stack.kind.is_ours else 0
            if status or tries > most or self._stop.wait(AGAIN_AFTER_S):
                break
        with self._lock:
            if status in (200, 202):
                self.accepted.append(Accepted(job["id"], n, service, do, tries > 1))
            elif status:
                self.refused += 1
            else:
                self.unanswered += 1

    def _send_task(self, n: int, sleep_s: float) -> None:
        """The same by the broker, which confirms what it has stored."""
        assert self._celery
        options: dict[str, Any] = {"queue": "chaos", "task_id": str(uuid.uuid4()), "retry": False}
        try:
            self._celery.send_task("chaos.predict", args=[{"n": n, "sleep_s": sleep_s, "do": ""}], **options)
        except (OSError, KombuError):
            with self._lock:
                self.unanswered += 1
            self._stop.wait(AGAIN_AFTER_S)
        else:
            with self._lock:
                self.accepted.append(Accepted(options["task_id"], n, "chaos", ""))

    def read_back(self) -> None:
        """Note all that ended of the last few hundred jobs."""
        connection = HTTPConnection("127.0.0.1", self.stack.port, timeout=10)
        for one in self.accepted[-1500:]:
            status, job = ask(connection, "GET", f"/jobs/{one.id}")
            if status == 200:
                self.note(job)
        connection.close()

    def note(self, job: Any) -> None:
        """Remember how a job ended, and whether it had ended otherwise before."""
        if job["status"] not in TERMINAL:
            return
        seen = {name: job.get(name) for name in ("status", "output", "error", "attempt", "finished_at")}
        with self._lock:
            before = self.ended.setdefault(job["id"], seen)
            if before != seen:
                self.changed.append((before, seen))

    def _submit_all(self, index: int) -> None:
        choice = random.Random(f"{self.seed}/{index}")
        connection = HTTPConnection("127.0.0.1", self.stack.port, timeout=10)
        sleeps, weights = zip(*self.sleeps, strict=True)
        due = time.monotonic()
        while not self._stop.is_set():
            (sleep_s,) = choice.choices(sleeps, weights)
            if choice.random() < 0.0005 and self.stack.kind.is_ours:
                self.submit(connection, "exit", service="poison")
            elif choice.random() < HEAVY_SHARE and self.stack.has_heavy:
                self.submit(connection, choice.choice(HEAVY), min(sleep_s, 0.3), service="heavy")
            else:
                self.submit(connection, "raise" if choice.random() < 0.002 else "", sleep_s)
            due = max(due + self.clients / self.rate, time.monotonic() - CATCH_UP_S)
            self._stop.wait(max(0, due - time.monotonic()))
        connection.close()

    def _keep_one_long(self) -> None:
        connection = HTTPConnection("127.0.0.1", self.stack.port, timeout=10)
        while not self._stop.is_set():
            self.submit(connection, service="long", sleep_s=self.long_s)
            ids = [one.id for one in self.accepted if one.service == "long"]
            while ids and ids[-1] not in self.ended and not self._stop.wait(0.5):
                status, job = ask(connection, "GET", f"/jobs/{ids[-1]}")
                if status == 200:
                    self.note(job)
        connection.close()

    def _read_some(self) -> None:
        choice = random.Random(self.seed)
        connection = HTTPConnection("127.0.0.1", self.stack.port, timeout=10)
        while not self._stop.wait(0.02):
            if self.accepted:
                status, job = ask(connection, "GET", f"/jobs/{choice.choice(self.accepted).id}")
                if status == 200:
                    self.note(job)
        connection.close()
