"""The load: a light HTTP client in a process of its own, which says how much of a core it took.

``closed``: a fixed number of clients, each of which sends its next request when it has its answer. ``open``: requests
at a fixed rate, independent of the answers; a latency counts from the moment at which the request was due.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from worker.cli.load import Connection, build_request, connect, cpu_s

#: Of the naive stack, which can only be asked again.
POLL_S = 0.005
WARM_UP_S = 1.5
#: Connections of the open loop.
OPEN_CONNECTIONS = 256


@dataclass(frozen=True, slots=True)
class Again:
    """The job has not ended, or its result is elsewhere: the next request, after a pause."""

    request: bytes
    pause_s: float = POLL_S


#: The result of an answer's body: the next request, or the output.
Read = Callable[[Any], Any]
Call = Callable[[Connection], Awaitable[Any]]


def make_call(style: str, service: str, value: Any) -> Call:
    """One job from the first byte to its output, in the words of a stack (``STYLES``)."""
    if style == "get":
        first, read = build_request("GET", service), GET
    else:
        path, build, read = STYLES[style]
        first = build_request("POST", path, json.dumps(build(service, value)).encode())

    async def call(connection: Connection) -> Any:
        found: Any = Again(first, 0)
        while isinstance(found, Again):
            if found.pause_s:
                await asyncio.sleep(found.pause_s)
            status, body = await connection.ask(found.request)
            try:
                found = read(json.loads(body)) if status in (200, 202) else None
            except (KeyError, TypeError, ValueError):
                found = None
            if found is None:
                raise RuntimeError(f"the job did not succeed: status {status}: {body[:300]!r}")
        return found

    return call


def _read_held(job: Any) -> Any:
    """Ours: the answer is held until the job has ended."""
    return job["output"] if job["status"] == "succeeded" else None


def _read_polled(path: str) -> Read:
    """Celery's words: naive and Ray's asynchronous inference."""

    def read(job: Any) -> Any:
        if job["status"] in ("SUCCESS", "FAILURE"):
            return job["output"] if job["status"] == "SUCCESS" else None
        return Again(build_request("GET", f"{path}/{job['id']}"))

    return read


def _read_bentoml(task: Any) -> Any:
    """``submit`` and ``status`` say how far it is; ``get`` gives the output."""
    if "score" in task:
        return task
    query = f"?task_id={task['task_id']}"
    if task["status"] == "completed":
        return Again(build_request("GET", f"/score/get{query}"), 0)
    return Again(build_request("GET", f"/score/status{query}")) if task["status"] == "in_progress" else None


def _tensor(_: str, value: Any) -> Any:
    """The Open Inference Protocol; JSON, as each of its servers has it."""
    return {"inputs": [{"name": "x", "shape": [1, len(value["x"])], "datatype": "FP64", "data": value["x"]}]}


def _read_tensor(answer: Any) -> Any:
    return {"score": answer["outputs"][0]["data"][0]}


#: Of a plain GET nothing but its status counts.
GET: Read = lambda _: ()  # noqa: E731

#: By name: the path of the first request, its body for a service and an input, and how to read the answers.
STYLES: dict[str, tuple[str, Callable[[str, Any], Any], Read]] = {
    "wait": ("/jobs?wait=60", lambda service, value: {"service": service, "input": value}, _read_held),
    "poll": ("/predict", lambda service, value: {"model": service, "input": value}, _read_polled("/result")),
    "row": ("/predict", lambda _, value: value, lambda answer: answer),
    "tensor": ("/v2/models/model/infer", _tensor, _read_tensor),
    "bentoml": ("/score/submit", lambda _, value: {"row": value}, _read_bentoml),
    "ray-asynchronous": ("/jobs", lambda _, value: value, _read_polled("/jobs")),
}


async def closed_loop(host: str, port: int, call: Call, clients: int, seconds: float) -> list[tuple[float, float]]:
    """End (``time.perf_counter``) and latency of each job, in seconds."""
    done: list[tuple[float, float]] = []
    until = time.perf_counter() + WARM_UP_S + seconds

    async def client() -> None:
        connection = await connect(host, port)
        while (begun := time.perf_counter()) < until:
            await call(connection)
            ended = time.perf_counter()
            done.append((ended, ended - begun))

    await asyncio.gather(*(client() for _ in range(clients)))
    return done


async def open_loop(host: str, port: int, call: Call, rate: float, seconds: float) -> list[tuple[float, float]]:
    """The same at a fixed rate."""
    done: list[tuple[float, float]] = []
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(OPEN_CONNECTIONS):
        free.put_nowait(await connect(host, port))

    async def one(due: float) -> None:
        connection = await free.get()
        await call(connection)
        ended = time.perf_counter()
        done.append((ended, ended - due))
        free.put_nowait(connection)

    begun, tasks = time.perf_counter(), []
    for i in range(int(rate * (WARM_UP_S + seconds))):
        due = begun + i / rate
        if (pause := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    return done


def measure(given: argparse.Namespace) -> dict[str, float]:
    """Jobs a second, latencies (ms) and this process's share of a core, after the warm-up."""
    call = make_call(given.style, given.service, json.loads(Path(given.input).read_text()) if given.input else None)
    begun, cpu = time.perf_counter(), cpu_s()
    if given.rate:
        run = open_loop(given.host, given.port, call, given.rate, given.seconds)
    else:
        run = closed_loop(given.host, given.port, call, given.clients, given.seconds)
    done = uvloop.run(run)
    wall, cpu = time.perf_counter() - begun, cpu_s() - cpu
    kept = [(end, latency) for end, latency in done if begun + WARM_UP_S < end <= begun + WARM_UP_S + given.seconds]
    latencies = sorted(latency * 1000 for _, latency in kept)
    if len(latencies) < 2:
        raise RuntimeError("no two jobs ended within the measured time")
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return {
        "jobs_s": len(kept) / given.seconds,
        "p50_ms": cuts[49],
        "p99_ms": cuts[98],
        "client_cpu": cpu / wall,
    }


def main() -> int:
    """Print one measurement as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--style", choices=[*STYLES, "get"], default="wait")
    parser.add_argument("--service", required=True, help="its name; with --style get, a path")
    parser.add_argument("--input", help="file of the input as JSON")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0, help="jobs a second: an open loop")
    parser.add_argument("--seconds", type=float, default=6)
    print(json.dumps(measure(parser.parse_args())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
