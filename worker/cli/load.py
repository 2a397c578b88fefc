"""Load for measurements: a light HTTP client, and a closed loop of many.

``services bench`` and the project's own benchmarks send with it; a full HTTP client would take a core for itself.
"""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worker.errors import BenchFailed

#: Seconds of each closed loop that are not measured.
WARM_UP_S = 1.0
#: Triton's perf_analyzer: so many windows in a row, of which the highest is at most so far over the lowest.
STABLE_WINDOWS, STABLE_WITHIN = 3, 0.10
#: Windows of a loop that does not become stable.
MOST_WINDOWS = 10
#: A window of fewer jobs goes on: its figures would be chance.
LEAST_JOBS = 20
#: The end of an answer in chunks (without trailers), which servers send that begin before they know its length.
LAST_CHUNK = b"0\r\n\r\n"
#: Seconds that a job may take: the API's own limit for an answer that it holds.
WAIT_S = 60


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, kept alive; one request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        """Called by asyncio."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._fail(exc or ConnectionResetError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        body = bytes(self._buffer[end + 4 :])
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0].strip()
        if length.isdigit():
            if len(body) < int(length):
                return
        elif b"transfer-encoding: chunked" in head:
            if not body.endswith(LAST_CHUNK):
                return
            body = _join_chunks(body)
        else:
            self._fail(ValueError(f"an answer of unknown length: {head[:300]!r}"))
            return
        self._buffer.clear()
        if self._answer and not self._answer.done():
            self._answer.set_result((int(head[9:12]), body))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        if self._transport.is_closing():
            raise ConnectionResetError("the server closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """End it."""
        self._transport.close()

    def _fail(self, error: Exception) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(error)


def _join_chunks(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        parts.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    return b"".join(parts)


async def connect(host: str, port: int) -> Connection:
    """A new connection."""
    _, protocol = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return protocol


def build_request(method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
    """An HTTP/1.1 request; ``headers``: further lines, each with its CRLF."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return (head + "\r\n").encode() + body


@dataclass(frozen=True, slots=True)
class Window:
    """The jobs that ended within a stretch of time: how long each job took (ms), and in a batch of how many."""

    seconds: float
    latencies: list[float]
    batch_sizes: list[int]

    @property
    def jobs_s(self) -> float:
        """Jobs a second."""
        return len(self.latencies) / self.seconds

    @property
    def mean_ms(self) -> float:
        """Mean latency."""
        return sum(self.latencies) / len(self.latencies)


def is_stable(windows: Sequence[Window]) -> bool:
    """Triton's rule: of the last three windows, the highest is within 10 % of the lowest, in throughput and latency."""
    last = windows[-STABLE_WINDOWS:]
    if len(last) < STABLE_WINDOWS:
        return False
    figures = ([window.jobs_s for window in last], [window.mean_ms for window in last])
    return all(max(values) <= min(values) * (1 + STABLE_WITHIN) for values in figures)


class ClosedLoop:
    """Clients of our own API, each of which sends its next job when it has its answer."""

    def __init__(self, port: int, service: str, input: bytes) -> None:
        self._port = port
        body = b'{"service":' + json.dumps(service).encode() + b',"input":' + input + b"}"
        self._request = build_request("POST", f"/jobs?wait={WAIT_S}", body)
        self._latencies: list[float] = []
        self._batch_sizes: list[int] = []
        self._stopped = False

    async def run(self, clients: int, window_s: float) -> tuple[list[Window], float]:
        """The windows until the last are stable, and this process's share of a core in them."""
        tasks = [asyncio.create_task(self._client()) for _ in range(clients)]
        try:
            await self._window(tasks, WARM_UP_S)
            begun, cpu = time.perf_counter(), cpu_s()
            windows: list[Window] = []
            while len(windows) < MOST_WINDOWS and not is_stable(windows):
                windows.append(await self._window(tasks, window_s))
            share = (cpu_s() - cpu) / (time.perf_counter() - begun)
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
        finally:
            self._stopped = True
            await asyncio.gather(*tasks, return_exceptions=True)
        return windows, share

    async def _window(self, tasks: list[asyncio.Task[None]], seconds: float) -> Window:
        """Collect the jobs that end from now on, for this time and until there are enough for a figure."""
        self._latencies, self._batch_sizes = [], []
        begun, least = time.perf_counter(), max(LEAST_JOBS, len(tasks))
        while (passed := time.perf_counter() - begun) < seconds or len(self._latencies) < least:
            left = max(seconds - passed, 0.01)
            ended, _ = await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()  # raises: a client ends by an error only
        return Window(passed, self._latencies, self._batch_sizes)

    async def _client(self) -> None:
        connection = await connect("127.0.0.1", self._port)
        try:
            while not self._stopped:
                begun = time.perf_counter()
                status, body = await connection.ask(self._request)
                self._latencies.append((time.perf_counter() - begun) * 1000)
                self._batch_sizes.append(read_job(status, body))
        except OSError as error:
            raise BenchFailed(f"the API ended a connection: {error}") from error
        finally:
            connection.close()


def read_job(status: int, body: bytes) -> int:
    """The size of the batch in which a job ran. Raises ``BenchFailed`` for one that did not succeed."""
    job = json.loads(body)
    if status == 422:
        fields = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in job.get("errors", ())]
        raise BenchFailed(f"the input is refused: {'; '.join(fields) or job['detail']}")
    if status not in (200, 202):
        raise BenchFailed(f"a job was refused ({status}): {job.get('detail', job)}")
    if job["status"] in ("queued", "running"):
        raise BenchFailed(f"a job did not end within {WAIT_S} s, the longest that the API holds an answer")
    if job["status"] != "succeeded":
        raise BenchFailed(f"a job did not succeed: {job['error']['code']}: {job['error']['message']}")
    return int(job["batch_size"])


def cpu_s() -> float:
    """Processor seconds of this process until now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
