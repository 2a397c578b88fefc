"""The peers beside ours and naive: their environments, made here once, and their servers.

A peer that cannot be installed, started or measured is listed by name and reason; the others go on.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from benchmarks.client import make_call
from benchmarks.models import MODELS
from benchmarks.stacks import BATCH, Stack, example_of
from tests.kit.system import ROOT, free_port
from worker.cli.load import connect

HERE = Path(__file__).parent / "peers"
#: Git ignores it.
ENVIRONMENTS = ROOT / ".venv-peers"
#: The models whose input every peer's protocol can carry in the same way.
PEER_MODELS = ("tiny", "batchable")
#: Seconds for a server to give its first output, and to stop by itself.
START_S, STOP_S = 120, 10
#: Seconds for one installation.
INSTALL_S = 1800


@dataclass(frozen=True, slots=True)
class Kind:
    """A peer in one configuration."""

    name: str
    module: str  #: of ``benchmarks.peers``; the environment's name too
    style: str  #: ``benchmarks.client.STYLES``
    about: str
    batch: int = BATCH
    with_redis: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind("bentoml", "bentoml", "bentoml", "tasks; the client polls every 5 ms", batch=1),
        Kind("mlserver", "mlserver", "tensor", f"adaptive batching, at most {BATCH} in 5 ms, no worker process"),
        Kind("mlserver-unbatched", "mlserver", "tensor", "the same without batching", batch=1),
        Kind("litserve", "litserve", "row", f"batches of at most {BATCH} in 5 ms"),
        Kind("ray", "ray", "row", f"Ray Serve, @serve.batch of at most {BATCH} in 5 ms"),
        Kind(
            "ray-asynchronous",
            "ray",
            "ray-asynchronous",
            "Ray Serve's asynchronous inference (Celery over Redis); the client polls every 5 ms",
            batch=1,
            with_redis=True,
        ),
        Kind("triton", "triton", "tensor", f"Triton by nvidia-pytriton, dynamic batching of at most {BATCH}, no delay"),
    )
}


@dataclass
class Peers:
    """The peers of one run."""

    kinds: list[Kind] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  #: by peer (and model): why it has no figures

    @classmethod
    def prepare(cls, names: list[str]) -> Self:
        """Make the environments that are missing."""
        peers = cls()
        reasons = {module: install(module) for module in dict.fromkeys(KINDS[name].module for name in names)}
        for name in names:
            if reason := reasons[KINDS[name].module]:
                peers.fail(name, reason)
            else:
                peers.kinds.append(KINDS[name])
        return peers

    def fail(self, name: str, reason: str) -> None:
        """Note a peer that has no figures; of several lines, as of a traceback, the last says why."""
        reason = _last_line(reason)
        print(f"{name} is left out: {reason}", flush=True)
        self.failed[name] = reason


class PeerFailed(Exception):
    """A peer's server failed."""


class Peer(Stack):
    """One peer's server."""

    def __init__(self, kind: Kind, folder: Path, model: str) -> None:
        super().__init__(folder, model)
        self.kind = kind
        self.name, self.style = kind.name, kind.style
        self._temp = Path(tempfile.mkdtemp(prefix="peer-"))  # short: Ray's sockets are below it
        ports = [self.port, free_port(), free_port()]
        self.env |= {
            "BENCH_MODEL": model,
            "BENCH_BATCH": str(kind.batch),
            "BENCH_PORTS": ",".join(map(str, ports)),
            "BENCH_TEMP": str(self._temp),
            "BENTOML_HOME": str(self._temp),
            "BENTOML_DO_NOT_TRACK": "True",
            "RAY_USAGE_STATS_ENABLED": "0",
            "LD_LIBRARY_PATH": _library_path(),
        }
        if not kind.with_redis:
            del self.env["REDIS_URL"]

    def __enter__(self) -> Self:
        try:
            if self.kind.with_redis:
                self.redis.start()
            python = ENVIRONMENTS / self.kind.module / "bin" / "python"
            self.spawn(f"benchmarks.peers.{self.kind.module}", python=str(python))
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            family = _descendants(process.pid)
            process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_S
            while process.exit_code is None and time.monotonic() < deadline:
                time.sleep(0.05)
            _kill({pid: began for pid, began in family.items() if _began(pid) == began})
            process.stop(signal.SIGKILL)
        self.redis.remove()
        shutil.rmtree(self._temp, ignore_errors=True)

    def _wait(self) -> None:
        """Until the first output, which must be the model's."""
        (process,) = self.processes
        deadline = time.monotonic() + START_S
        while True:
            try:
                found = asyncio.run(asyncio.wait_for(self._ask(), 30))
                break
            except (OSError, RuntimeError, ValueError) as error:  # TimeoutError is an OSError
                reason = f"{type(error).__name__}: {error}"
            if process.exit_code is not None:
                raise PeerFailed(f"the server ended with {process.exit_code}: {_last_line(process.output)}")
            if time.monotonic() > deadline:
                raise PeerFailed(f"no output within {START_S} s ({reason}): {_last_line(process.output)}")
            time.sleep(0.1)
        expected = _output_of(self.model)
        if not math.isclose(float(found["score"]), expected, abs_tol=1e-6):
            raise PeerFailed(f"another output than the model's: {found['score']}, expected {expected}")

    async def _ask(self) -> Any:
        connection = await connect("127.0.0.1", self.port)
        try:
            return await make_call(self.style, self.model, example_of(self.model))(connection)
        finally:
            connection.close()


def install(module: str) -> str:
    """Make a peer's environment, unless it is there; an empty text, or why it cannot be made."""
    pins, folder = HERE / f"{module}.txt", ENVIRONMENTS / module
    stamp, wanted = folder / "pins", hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return ""
    print(f"making the environment of {module} ...", flush=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
    shutil.rmtree(folder, ignore_errors=True)
    for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, "--requirement", str(pins)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
        except subprocess.TimeoutExpired:
            return f"not installed: no end within {INSTALL_S} s"
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            return f"not installed: {errors[-1] if errors else f'exit code {done.returncode}'}"
    stamp.write_text(wanted)
    return ""


def versions(module: str) -> str:
    """The peer's own version, as pinned."""
    package = "nvidia-pytriton" if module == "triton" else module
    lines = (HERE / f"{module}.txt").read_text().splitlines()
    return next((line.replace("==", " ") for line in lines if line.startswith(f"{package}==")), module)


@lru_cache
def _output_of(model: str) -> float:
    return float(MODELS[model]().predict_batch([example_of(model)])[0])


def _library_path() -> str:
    """Triton's stub loads libpython by name: that of this Python goes first."""
    paths = [str(Path(sys.base_prefix) / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    return os.pathsep.join(filter(None, paths))


def _last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "it said nothing"


def _began(pid: int) -> str | None:
    """When a process began, which distinguishes it from a later process of the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _descendants(pid: int) -> dict[int, str]:
    """The processes below one, and it itself, each with its beginning: Ray starts many, in sessions of their own."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
    found, before = {pid}, 0
    while len(found) > before:
        before = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return {one: began for one in found if (began := _began(one))}


def _kill(family: dict[int, str]) -> None:
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended in this moment
