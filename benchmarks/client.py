"""The load: a light HTTP client in a process of its own, which says how much of a core it took.

``closed``: so many clients, each of which sends its next request when it has its answer. ``open``: requests at a fixed
rate, whatever the answers do; a latency counts from the moment at which the request was due.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

#: Of the naive stack, which can only be asked again.
POLL_S = 0.005
WARM_UP_S = 1.5
#: Connections of the open loop.
OPEN_CONNECTIONS = 256


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, kept alive; one request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        self._buffer.clear()
        if self._answer and not self._answer.done():
            self._answer.set_result((int(head[9:12]), body))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer


def build_request(method: str, path: str, body: bytes = b"") -> bytes:
    """An HTTP/1.1 request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return (head + "\r\n").encode() + body


Call = Callable[[Connection], Awaitable[None]]


def make_call(style: str, service: str, value: Any) -> Call:
    """One job from the first byte to its result: held by the server ("wait"), asked for again ("poll"), or a "get"."""
    if style == "get":
        plain = build_request("GET", service)
    elif style == "wait":
        plain = build_request("POST", "/jobs?wait=60", json.dumps({"service": service, "input": value}).encode())
    else:
        plain = build_request("POST", "/predict", json.dumps({"model": service, "input": value}).encode())

    async def call(connection: Connection) -> None:
        status, body = await connection.ask(plain)
        if status not in (200, 202):
            raise RuntimeError(f"status {status}: {body[:300]!r}")
        if style == "get":
            return
        job = json.loads(body)
        while style == "poll" and job["status"] not in ("SUCCESS", "FAILURE"):
            await asyncio.sleep(POLL_S)
            _, body = await connection.ask(build_request("GET", f"/result/{job['id']}"))
            job = json.loads(body)
        if job["status"] not in ("SUCCESS", "succeeded"):
            raise RuntimeError(f"the job did not succeed: {body[:300]!r}")

    return call


async def connect(host: str, port: int) -> Connection:
    """A new connection."""
    _, protocol = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return protocol


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
    begun, cpu = time.perf_counter(), _cpu_s()
    if given.rate:
        run = open_loop(given.host, given.port, call, given.rate, given.seconds)
    else:
        run = closed_loop(given.host, given.port, call, given.clients, given.seconds)
    done = uvloop.run(run)
    wall, cpu = time.perf_counter() - begun, _cpu_s() - cpu
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


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Print one measurement as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--style", choices=["wait", "poll", "get"], default="wait")
    parser.add_argument("--service", required=True, help="its name; with --style get, a path")
    parser.add_argument("--input", help="file of the input as JSON")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0, help="jobs a second: an open loop")
    parser.add_argument("--seconds", type=float, default=6)
    print(json.dumps(measure(parser.parse_args())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
