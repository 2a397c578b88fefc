"""The stacks that are measured: each starts its Redis, API and one worker, and says how its jobs are sent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import httpx

from benchmarks.models import MODELS, SCHEMA, SERVICE
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
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.jobs import NewJob
from worker.settings import Settings

#: Rows to one call of the model, in every stack that batches.
BATCH = 64
#: Jobs to one call of the ledger, where a queue is filled.
FILL = 500


class Stack:
    """Processes of one stack; use as a context."""

    name = ""
    style = ""

    def __init__(self, folder: Path, model: str, with_worker: bool = True, **settings: str) -> None:
        self.with_worker = with_worker
        self.folder = folder
        self.model = model
        self.port = free_port()
        self.redis = RedisServer(free_port())
        self.processes: list[Process] = []
        folder.mkdir(parents=True)
        self.input = folder / "input.json"
        self.input.write_text(json.dumps(example_of(model)))
        path = os.pathsep.join([str(folder / "plugins"), str(ROOT)])
        self.url = f"redis://127.0.0.1:{self.redis.port}/0"
        self.env = environment_without_ours() | {"PYTHONPATH": path, "REDIS_URL": self.url} | settings

    def __enter__(self) -> Self:
        self.redis.start()
        try:
            self.start_api()
            if self.with_worker:
                self.start_worker()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.stop(signal.SIGKILL)
        self.redis.remove()

    def start_api(self) -> None:
        """One API process."""
        quiet = ("--no-access-log", "--log-level", "warning")
        # The connections of an open loop may be idle for longer than uvicorn's 5 s.
        self.spawn("uvicorn", self.api, "--port", str(self.port), "--timeout-keep-alive", "75", *quiet)
        poll(lambda: status_of(f"http://127.0.0.1:{self.port}/docs") == 200, what="the API answers")

    api = ""

    def launch_worker(self) -> None:
        """Start one worker process and wait for nothing."""
        raise NotImplementedError

    def start_worker(self) -> None:
        """One worker process with its model loaded."""
        raise NotImplementedError

    def fill(self, jobs: int) -> None:
        """Put a number of jobs into the queue."""
        raise NotImplementedError

    def waiting(self) -> int:
        """Jobs in the queue."""
        raise NotImplementedError

    def spawn(self, *arguments: str, python: str = sys.executable) -> Process:
        """``python -m <arguments>``."""
        log = self.folder / f"{arguments[0]}-{len(self.processes)}.log"
        process = Process([python, "-m", *arguments], self.env, log, self.folder)
        self.processes.append(process)
        return process

    def measure(
        self, *, clients: int = 64, rate: float = 0, seconds: float = 6, style: str = "", path: str = ""
    ) -> dict[str, float]:
        """The client's output; it is a process of its own."""
        command = [sys.executable, "-m", "benchmarks.client", "--port", str(self.port), "--style", style or self.style]
        command += ["--service", path or self.model, "--clients", str(clients), "--rate", str(rate)]
        command += ["--seconds", str(seconds), "--input", str(self.input)]
        found = subprocess.run(command, env=self.env, cwd=ROOT, capture_output=True, text=True)
        if found.returncode:
            raise RuntimeError(f"{self.name}/{self.model}: {found.stderr[-2000:]}")
        told: dict[str, float] = json.loads(found.stdout)
        return told

    def cpu_s(self) -> float:
        """Processor seconds of all its processes and their children, until now."""
        return sum(map(cpu_s, self.pids()))

    def pids(self) -> list[int]:
        """All its processes and their children: the API, each worker, Redis, then the workers' pool processes."""
        pids = [process.pid for process in self.processes] + [self.redis.pid]
        for process in self.processes:
            pids += process.children
        return pids


class Ours(Stack):
    """This system."""

    name, style, api = "ours", "wait", "api:app"

    def __init__(self, folder: Path, model: str, with_worker: bool = True, **settings: str) -> None:
        super().__init__(folder, model, with_worker, **{"SERVICES_LOG_LEVEL": "WARNING", **settings})
        if model in MODELS:
            batch = getattr(MODELS[model], "max_batch_size", BATCH)
            write_plugin(folder / "plugins", model, SCHEMA, SERVICE.format(name=model, batch=batch))

    def start_worker(self) -> None:
        """Waits until it reads ready, beside those that are."""
        most = self._ready() + 1
        self.launch_worker()
        poll(lambda: self._ready() >= most, 120, "the worker is ready")

    def launch_worker(self) -> None:
        """Waits for nothing."""
        self.spawn("celery", "-A", "worker", "worker", "-Q", self.model, "--concurrency", "1")

    def fill(self, jobs: int, at_once: int = FILL) -> None:
        """Put a number of jobs into the queue, past the API."""
        asyncio.run(self._fill(jobs, at_once))

    def send_batch(self, inputs: list[Any]) -> float:
        """Seconds from the first byte of a ``POST /batches`` to the last of its results."""
        lines = [json.dumps(value).encode() + b"\n" for value in inputs]
        headers = {"Content-Type": "application/x-ndjson"}
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=600) as client:
            begun = time.perf_counter()
            pieces = (b"".join(lines[i : i + 1000]) for i in range(0, len(lines), 1000))
            answer = client.post("/batches", params={"service": self.model}, content=pieces, headers=headers)
            with client.stream("GET", answer.raise_for_status().json()["links"]["results"]) as results:
                got = sum(piece.count(b"\n") for piece in results.iter_bytes())
            if got != len(lines):
                raise RuntimeError(f"{got} results of {len(lines)} rows")
            return time.perf_counter() - begun

    def install(self, services: int) -> None:
        """Before it starts: a number of further plugins, each with a schema of its own."""
        for number in range(services):
            name = f"service{number:02}"
            write_plugin(self.folder / "plugins", name, SCHEMA, SERVICE.format(name=name, batch=BATCH))

    def time_get(self, path: str) -> tuple[float, int]:
        """Seconds (median of some) and bytes of an answer of the API."""
        times = []
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=60) as client:
            for _ in range(7):
                begun = time.perf_counter()
                answer = client.get(path).raise_for_status()
                times.append(time.perf_counter() - begun)
        return statistics.median(times), len(answer.content)

    def waiting(self) -> int:
        """Jobs in the queue."""
        return int(self.redis.client.zcard(f"{{{self.model}}}:waiting"))

    async def _fill(self, jobs: int, at_once: int) -> None:
        ledger = AsyncLedger(Settings(redis_url=self.url))
        text = json.dumps(example_of(self.model)).encode()
        for begin in range(0, jobs, at_once):
            await ledger.create([NewJob(service=self.model, input=text) for _ in range(min(at_once, jobs - begin))])
        await ledger.close()

    def _ready(self) -> int:
        answer = httpx.get(f"http://127.0.0.1:{self.port}/services/{self.model}", trust_env=False, timeout=30).json()
        return int(answer["workers"]) if answer["state"] == "ready" else 0


class Naive(Stack):
    """FastAPI + Celery + Redis as the tutorials write it."""

    name, style, api = "naive", "poll", "benchmarks.naive:api"

    def launch_worker(self) -> None:
        """Waits for nothing."""
        self.spawn("celery", "-A", "benchmarks.naive", "worker", "--concurrency", "1", "--loglevel", "WARNING")

    def start_worker(self) -> None:
        """Waits until a first job has loaded the model."""
        self.launch_worker()
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=30) as client:
            body = {"model": self.model, "input": example_of(self.model)}
            job = client.post("/predict", json=body).json()
            poll(lambda: client.get(f"/result/{job['id']}").json()["status"] == "SUCCESS", 120, "the model is loaded")

    def fill(self, jobs: int) -> None:
        """Put a number of tasks into the queue."""
        script = "import sys; from benchmarks.naive import predict; m, n = sys.argv[1:]; "
        script += f"[predict.delay(m, {example_of(self.model)!r}) for _ in range(int(n))]"
        subprocess.run([sys.executable, "-c", script, self.model, str(jobs)], env=self.env, cwd=ROOT, check=True)

    def waiting(self) -> int:
        """Tasks in the queue."""
        return int(self.redis.client.llen("celery"))


def example_of(model: str) -> Any:
    """The input that is sent."""
    if model in MODELS:
        return MODELS[model].example
    from worker.discovery import find_plugins, load_schema

    (plugin,) = find_plugins([model])
    return load_schema(plugin).Input.model_json_schema()["examples"][0]  # type: ignore[union-attr]


def cpu_s(pid: int) -> float:
    """Processor seconds of one process, until now; 0 where it has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def own_memory(pid: int) -> float:
    """MiB of memory of one process, its part of shared memory included (PSS); Linux only."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"the kernel tells no PSS of process {pid}")


def idle_cpu(stack: Stack, seconds: float) -> float:
    """Share of a core that a stack takes that has nothing to do."""
    time.sleep(2)
    begun = stack.cpu_s()
    time.sleep(seconds)
    return (stack.cpu_s() - begun) / seconds
