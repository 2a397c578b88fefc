"""The work that the chaos runs do, the same for every stack: it leaves a trace of each start and end in a folder.

``log``: a line ``<n> start|end <pid> <monotonic ns>`` each. ``running/<n>``: the pid of the run that has started and
not ended; a start that finds one whose process is alive and not stopped writes ``overlaps``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

SCHEMA = """
from pydantic import BaseModel

class Input(BaseModel):
    n: int
    sleep_s: float = 0
    do: str = ""

class Output(BaseModel):
    n: int
"""

#: Forks, starts programs and returns large outputs, by ``do``: "fork", "program", "large" or "too_large".
HEAVY_SCHEMA = (
    SCHEMA
    + """
    text: str = ""
"""
)

HEAVY = """
import subprocess
from concurrent.futures import ProcessPoolExecutor
from tests.chaos.service import run
from worker.service import Service
from {name}.schema import Input, Output

class Plugin(Service[Input, Output]):
    time_limit_s = 600
    max_batch_size = 4
    {knobs}

    def load(self):
        self.pool = ProcessPoolExecutor(1)
        self.pool.submit(abs, 1).result()

    def predict_batch(self, batch):
        pool = self.pool if all(item.do != "fork" for item in batch) else ProcessPoolExecutor(1)  # its processes stay
        programs = [subprocess.Popen(["sleep", str(item.sleep_s)]) for item in batch if item.do == "program"]
        for program in programs:
            program.wait()
        assert pool.submit(abs, -1).result() == 1
        run([(item.n, item.sleep_s, "") for item in batch])
        size = {{"large": 2**20, "too_large": 17 * 2**20}}
        return [{{"n": item.n, "text": "x" * size.get(item.do, 0)}} for item in batch]
"""

SOURCE = """
from tests.chaos.service import run
from worker.service import Service
from {name}.schema import Input, Output

class Plugin(Service[Input, Output]):
    time_limit_s = 600
    {knobs}

    def predict_batch(self, batch):
        return [{{"n": n}} for n in run([(item.n, item.sleep_s, item.do) for item in batch])]
"""


def run(items: list[tuple[int, float, str]]) -> list[int]:
    """One batch: its items start together, and end together after the longest sleep of any."""
    folder = Path(os.environ["CHAOS_FOLDER"])
    for n, _, do in items:
        begin(folder, n)
        if do == "exit":
            os._exit(3)
    time.sleep(max(sleep_s for _, sleep_s, _ in items))
    bad = [n for n, _, do in items if do == "raise"]
    for n in bad or [n for n, _, _ in items]:
        end(folder, n)
    if bad:
        raise ValueError("as told")  # the others have not ended: they are run again in smaller batches
    return [n for n, _, _ in items]


def begin(folder: Path, n: int) -> None:
    """Note that job ``n`` starts here, and whether it still runs elsewhere."""
    marker = folder / "running" / str(n)
    try:
        before = int(marker.read_text() or 0)
    except FileNotFoundError:
        before = 0
    if before and before != os.getpid() and is_running(before):
        append(folder / "overlaps", f"{n} {before} {os.getpid()} {time.monotonic_ns()}\n")
    marker.write_text(str(os.getpid()))
    append(folder / "log", f"{n} start {os.getpid()} {time.monotonic_ns()}\n")


def end(folder: Path, n: int) -> None:
    """Note that job ``n`` has ended here."""
    append(folder / "log", f"{n} end {os.getpid()} {time.monotonic_ns()}\n")
    (folder / "running" / str(n)).unlink(missing_ok=True)


def append(path: Path, line: str) -> None:
    """One write at the end of a file that many processes write."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def is_running(pid: int) -> bool:
    """Whether the process computes: one that is gone, dead or stopped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZXTt"
    except FileNotFoundError:
        return False
