"""A folder of another team, in which the wheels are installed."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx

from tests.kit.commands import clean_environment, run
from tests.kit.system import Process, RedisServer, free_port, make_http, poll, status_of


class Elsewhere:
    """Processes of the installed wheels, in a folder of their own."""

    def __init__(self, bin_folder: Path, folder: Path, redis_server: RedisServer) -> None:
        self.bin, self.folder, self.port = bin_folder, folder, free_port()
        self.env = {**clean_environment(), "REDIS_URL": redis_server.url}
        self.processes: list[Process] = []

    def start(self, command: str, *arguments: str) -> Process:
        log = self.folder / f"{command}-{len(self.processes)}.log"
        self.processes.append(Process([str(self.bin / command), *arguments], self.env, log, self.folder))
        return self.processes[-1]

    def start_api(self) -> httpx.Client:
        options = ("--log-level", "warning", "--timeout-keep-alive", "75")
        self.start("uvicorn", "api:app", "--port", str(self.port), *options)
        url = f"http://127.0.0.1:{self.port}"
        poll(lambda: status_of(f"{url}/readyz") == 200, 60, "the API is ready")
        return make_http(url, 90)

    def start_worker(self) -> Process:
        worker = self.start("celery", "-A", "worker", "worker", "-Q", "antifraud")
        poll(lambda: "service ready" in worker.output or worker.exit_code is not None, 60, "antifraud is ready")
        assert worker.exit_code is None, worker.output
        return worker

    def python(self, code: str) -> str:
        return run(self.bin / "python", "-c", code, cwd=self.folder, REDIS_URL=self.env["REDIS_URL"])

    def stop(self) -> None:
        codes = [process.stop() for process in reversed(self.processes)]
        assert set(codes) <= {0, -signal.SIGTERM}, codes  # uvicorn ends by the signal that it was sent
