"""The processes of one stack: Redis, an API, workers; ours, and the naive FastAPI + Celery stack of the tutorials."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from tests.chaos.proxy import Proxy
from tests.chaos.service import HEAVY, HEAVY_SCHEMA, SCHEMA, SOURCE
from tests.kit.rabbit import RabbitServer
from tests.kit.system import (
    ROOT,
    Process,
    RedisServer,
    environment_without_ours,
    free_port,
    poll,
    status_of,
    write_plugin,
)

TERMINAL = {"succeeded", "failed", "cancelled", "expired"}


#: Marks the statements that a guarantee rests on, in Python and in Lua: ``# pillar: fencing, lease``.
PILLAR = re.compile(r"(?:#|--) pillar: ([a-z, ]+)$")


@dataclass(frozen=True)
class Kind:
    """How one stack's processes are started."""

    name: str
    api: list[str]
    workers: list[list[str]]  #: the first three run ``chaos``, those that faults strike; the others long jobs
    ready: str  #: what a worker prints when it can take jobs
    settings: dict[str, str] = field(default_factory=dict)
    pillar: str = ""  #: the statements with this mark are taken out, to see the audit fail

    @property
    def is_ours(self) -> bool:
        """Whether it makes our promises, and has our services ``poison``, ``heavy`` and ``long``."""
        return self.name == "libs-service"


def ours(pillar: str = "") -> Kind:
    """The system under test; without a pillar it has neither workers of long jobs nor heavy ones."""
    queues = ["chaos", "chaos", "chaos,poison"]
    if not pillar:
        queues = ["chaos", "chaos,heavy", "chaos,poison,heavy", "long", "long"]
    workers = [["-A", "worker", "worker", "-Q", names] for names in queues]
    return Kind("libs-service", ["api:app"], workers, "service ready name=", pillar=pillar)


def naive(best: bool) -> Kind:
    """FastAPI + Celery as the tutorials write it; ``best``: with the safest settings that Celery offers."""
    worker = ["-A", "tests.chaos.naive", "worker", "--concurrency=1"]
    name = "naive, best settings" if best else "naive, defaults"
    return Kind(name, ["tests.chaos.naive:api"], [worker] * 3, " ready.", {"NAIVE_BEST": "1" if best else ""})


@dataclass
class Kill:
    """A fault that ended (or stopped) processes: when, and the pool processes that it took along."""

    fault: str
    at_ns: int
    pids: set[int]


class Stack:
    """One stack. Its first worker and its API speak to Redis through a proxy."""

    #: Workers that faults strike.
    STRUCK = 3

    def __init__(self, kind: Kind, folder: Path, appendfsync: str = "everysec", rabbit: bool = False) -> None:
        self.kind, self.folder = kind, folder
        self.rabbit = RabbitServer(folder / "rabbit") if rabbit else None  #: Celery's broker; None: Redis is
        self.appendfsync = appendfsync
        self.redis = RedisServer(free_port(), folder / "redis")
        self.redis.folder.mkdir()
        assert self.redis.fake_clock(), "a C compiler is needed: apt-get install gcc libc6-dev"
        self.proxy = Proxy(self.redis.port)
        self.port = free_port()
        self.kills: list[Kill] = []
        self.faults: list[tuple[str, int]] = []  #: each with its beginning
        self.exit_codes: list[int] = []  #: of workers that were asked to stop
        self.gave_up: list[int] = []  #: exit codes of workers that ended by themselves
        self.processes: list[Process] = []
        self.api: Process | None = None
        self.workers: list[Process | None] = [None] * len(kind.workers)
        self.read_back: Callable[[], None] = lambda: None  #: has the load read what has ended until now
        (folder / "trace" / "running").mkdir(parents=True)
        write_services(folder / "plugins")
        if kind.pillar:
            copy_without(kind.pillar, folder / "plugins")
        self._env = {
            **environment_without_ours(),
            "PYTHONPATH": os.pathsep.join([str(folder / "plugins"), str(ROOT)]),
            "CHAOS_FOLDER": str(folder / "trace"),
            **({"BROKER_URL": self.rabbit.url} if self.rabbit else {}),
            **kind.settings,
        }

    @property
    def has_heavy(self) -> bool:
        """Whether a worker runs the service ``heavy``."""
        return any("heavy" in arguments[-1] for arguments in self.kind.workers)

    def start(self) -> None:
        """Everything, one after the other."""
        self.redis.start(self.appendfsync)
        if self.rabbit:
            self.rabbit.start()
        self.start_api()
        for index in range(len(self.workers)):
            self.start_worker(index)
        for index in range(len(self.workers)):
            self.await_worker(index)

    def start_api(self) -> None:
        command = ["uvicorn", *self.kind.api, "--port", str(self.port), "--log-level", "critical"]
        self.api = self._start("api", [*command, "--timeout-keep-alive", "75"], self.proxy.port)
        poll(lambda: status_of(f"http://127.0.0.1:{self.port}/healthz") == 200, 30, "the API is up")

    def start_worker(self, index: int, *arguments: str) -> Process:
        """Start a worker without waiting until it is ready."""
        node = f"w{index}-{len(self.processes)}@%h"
        command = ["celery", *self.kind.workers[index], "-n", node, "--loglevel=INFO", *arguments]
        process = self._start("worker", command, self.proxy.port if index == 0 else self.redis.port)
        self.workers[index] = process
        return process

    def await_worker(self, index: int) -> None:
        process = self.workers[index]
        assert process
        poll(lambda: self.kind.ready in process.output or process.exit_code is not None, 60, "the worker is ready")

    def worker(self, index: int) -> Process:
        process = self.workers[index]
        assert process, f"worker {index} was started"
        return process

    def revive(self) -> None:
        """Start workers again that have given up, as whatever watches over them would do."""
        for index, process in enumerate(self.workers):
            if process and process.exit_code is not None:
                self.gave_up.append(process.exit_code)
                self.start_worker(index)

    def ask_to_stop(self, worker: Process, number: int) -> int:
        """The exit code of a worker after this signal; one that does not end in a minute is killed.

        One that has not come up yet, and so has nothing to hand back, may end by the signal itself.
        """
        worker.send_signal(number)
        try:
            code = worker.wait(60)
        except subprocess.TimeoutExpired:
            worker.send_signal(signal.SIGKILL)
            return worker.wait()
        return 0 if code == -number and self.kind.ready not in worker.output else code

    def kill(self, fault: str, *processes: Process) -> None:
        """SIGKILL, noted for the audit."""
        pids = {pid for process in processes for pid in (process.pid, *process.children)}
        at = time.monotonic_ns()
        for process in processes:
            process.send_signal(signal.SIGKILL)
        self.note_kill(fault, at, pids)
        for process in processes:
            process.wait()

    def runs_a_job(self, worker: Process) -> bool:
        """Whether a job runs in one of the worker's pool processes, by the trace."""
        pids = set()
        for marker in (self.folder / "trace" / "running").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
                pids.add(marker.read_text())
        return bool(pids & {str(pid) for pid in worker.children})

    def note_kill(self, fault: str, at_ns: int, pids: set[int]) -> None:
        """Processes that a fault killed at this moment."""
        self.kills.append(Kill(fault, at_ns, pids))

    def request(self, method: str, path: str, body: Any = None, timeout: float = 10) -> tuple[int, Any]:
        """Status and JSON of one request; 0 where there was no answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            return ask(connection, method, path, body)
        finally:
            connection.close()

    def find_left(self) -> list[str]:
        """What still runs of all that was started here, once the workers are gone, each with its command."""
        mark = f"CHAOS_FOLDER={self.folder / 'trace'}".encode()
        ours = {process.pid for process in self.processes}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if int(folder.name) not in ours and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return found

    def end_workers(self) -> None:
        """SIGKILL to all of them: what their pool processes have started must end too."""
        for process in self.workers:
            if process and process.exit_code is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGKILL)
                process.wait()

    def stop(self) -> None:
        self.redis.send_signal(signal.SIGCONT)
        self.proxy.heal()
        for process in self.processes:
            if process.exit_code is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGKILL)
                process.wait()
        self.proxy.__exit__()
        self.redis.remove()
        if self.rabbit:
            self.rabbit.remove()

    def _start(self, name: str, arguments: list[str], redis_port: int) -> Process:
        env = {**self._env, "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0"}
        log = self.folder / f"{name}-{len(self.processes)}.log"
        process = Process([sys.executable, "-m", *arguments], env, log, self.folder)
        self.processes.append(process)
        return process


def ask(
    connection: HTTPConnection, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """One request over a connection that is kept; status 0 where there was no answer."""
    headers = {"Content-Type": "application/json"} | (headers or {})
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None
    except (OSError, HTTPException, ValueError):
        connection.close()
        return 0, None


def copy_without(pillar: str, folder: Path) -> None:
    """Copy our packages without the statements of a pillar to a folder that goes before the real ones on the path."""
    removed = 0
    for package in ("worker", "api", "libs_service"):
        shutil.copytree(ROOT / package, folder / package)
        for path in [*(folder / package).rglob("*.py"), *(folder / package).rglob("*.lua")]:
            lines, count = take_out(pillar, path.read_text().splitlines(), is_lua=path.suffix == ".lua")
            if count:
                path.write_text("\n".join(lines) + "\n")
            removed += count
    assert removed, f"no statement has the mark of {pillar}"


def take_out(pillar: str, lines: list[str], is_lua: bool) -> tuple[list[str], int]:
    """The lines without the statements that have the pillar's mark, each with its block; and how many these are."""
    kept: list[str] = []
    removed, i = 0, 0
    while i < len(lines):
        line = lines[i]
        i += 1
        mark = PILLAR.search(line)
        if not mark or pillar not in mark[1].split(", "):
            kept.append(line)
            continue
        removed += 1
        indent, is_block = len(line) - len(line.lstrip()), False
        while i < len(lines) and len(lines[i]) - len(lines[i].lstrip()) > indent:
            i, is_block = i + 1, True
        if not is_lua:
            kept.append(" " * indent + "pass")
        elif is_block:
            assert lines[i].strip() == "end"
            i += 1
    return kept, removed


def write_services(folder: Path) -> None:
    """The chaos service, one whose jobs get few attempts, one for long jobs, and one that forks and starts programs."""
    knobs_of = {
        "chaos": "max_attempts = 50",
        "poison": "max_attempts = 3",
        "long": "max_batch_size = 1; max_attempts = 50",
    }
    for name, knobs in knobs_of.items():
        write_plugin(folder, name, SCHEMA, SOURCE.format(name=name, knobs=knobs))
    write_plugin(folder, "heavy", HEAVY_SCHEMA, HEAVY.format(name="heavy", knobs="max_attempts = 50"))
