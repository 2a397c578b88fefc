"""Progress, log lines, printed lines and partial outputs of the jobs whose batch runs, until they are sent.

``Service.progress`` and ``Service.log`` write into ``current()``, the speech of the batch that runs in the calling
thread or task. A pool process sends it to the ledger (``worker.inference.reporting``); elsewhere, as in a notebook, it
is dropped.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from pydantic_core import to_json

from worker.errors import InvalidOutput
from worker.strict_json import dump

#: Events of one job in one group.
GROUP = 500
#: Characters of a message or a line.
MAX_TEXT = 2000
#: Approximate bytes of one group of events: Redis stores it in one step.
GROUP_BYTES = 2**20
#: Lines of ``predict_batch`` belong to all jobs of the call. Copies of such lines of one batch; further lines belong to
#: the first job of their call alone, since Redis stores each copy.
MAX_COPIES = 50_000
#: Bytes of all the partial outputs of one run, and their number: each takes Redis some 60 bytes more.
MAX_PARTIAL_BYTES, MAX_PARTIALS = 8 * 2**20, 100_000


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One thing that a job said in a run."""

    number: int  #: within the run, from 1
    name: Literal["progress", "log", "output"]
    data: bytes  #: JSON
    progress: float | None = None  #: of a "progress": how far the job is


class JobLog:
    """The events of the jobs of one batch, until they are sent.

    Args:
        most: progress and log events of a job that are kept until they are sent; the oldest go first.
        wake: called when there is something to send.
    """

    def __init__(
        self, service: str = "", token: str = "", most: int = 0, wake: Callable[[], None] | None = None
    ) -> None:
        self.jobs: Sequence[str] = ()  #: whose verb runs
        self.service, self.token = service, token
        self._most = most
        self._wake = wake
        self._turn = threading.RLock()  # a destructor may log in the midst of it
        self._lines: dict[str, deque[JobEvent]] = {}
        self._outputs: dict[str, deque[JobEvent]] = {}
        self._number = 0
        self._copies = 0  # of lines that many jobs share
        self._printing = threading.RLock()
        self._unfinished: tuple[Sequence[str], str] = ((), "")

    def progress(self, value: float, message: str | None) -> None:
        """How far the jobs are. Raises ``ValueError`` unless it is a number from 0 to 1."""
        done = float(value)
        if not 0 <= done <= 1:
            raise ValueError(f"progress({value!r}): expected a number from 0 to 1")
        text = None if message is None else _cut(str(message))
        self.end_line()
        self._say(self.jobs, "progress", to_json({"progress": done, "message": text}), done)

    def line(self, level: str, message: str, logger: str | None = None) -> None:
        """A line of the log."""
        self.end_line()
        self._log(self.jobs, level, message, logger)

    def printed(self, text: str) -> None:
        """A piece of printed text; a line is reported when it ends, or before the next event."""
        with self._printing:
            jobs, rest = self._unfinished
            if jobs is not self.jobs:
                self.end_line()
                jobs, rest = self.jobs, ""
            *lines, rest = (rest + text).split("\n")
            if len(rest) > MAX_TEXT:
                lines, rest = [*lines, rest], ""
            self._unfinished = (jobs, rest)
            for line in lines:
                self._log(jobs, "INFO", line, None)

    def end_line(self) -> None:
        """Report printed text without an end of line as a line."""
        with self._printing:
            (jobs, rest), self._unfinished = self._unfinished, ((), "")
            if rest:
                self._log(jobs, "INFO", rest, None)

    def output(self, job_id: str, index: int, value: Any, room: int = MAX_PARTIAL_BYTES) -> int:
        """A job's partial output of that number; its bytes.

        Raises ``InvalidOutput`` where it is not JSON, or has more bytes than there is room for.
        """
        text = dump(value, f"partial output {index} of predict")
        if len(text) > room:
            size, most = MAX_PARTIAL_BYTES - room + len(text), MAX_PARTIAL_BYTES
            message = f"partial output {index} of predict has {len(text)} bytes as JSON, which makes {size} of this run"
            raise InvalidOutput(
                f"{message}; the limit is {most} bytes in all: yield less, or return a File (worker.files)"
            )
        self.end_line()
        self._say([job_id], "output", b'{"index":%d,"output":%b}' % (index, text))
        return len(text)

    def next_group(self) -> dict[str, list[JobEvent]]:
        """The next events to send, by job and in order."""
        with self._turn:
            group: dict[str, list[JobEvent]] = {}
            left = GROUP_BYTES
            for job_id in {**self._lines, **self._outputs}:
                lines = islice(self._lines.get(job_id, ()), GROUP)
                outputs = islice(self._outputs.get(job_id, ()), GROUP)
                for one in sorted([*lines, *outputs], key=lambda one: one.number)[:GROUP]:
                    if group and left < len(one.data):
                        return group
                    left -= len(one.data)
                    group.setdefault(job_id, []).append(one)
            return group

    def sent(self, group: dict[str, list[JobEvent]]) -> None:
        """Forget events that have been sent."""
        with self._turn:
            for job_id, event in group.items():
                for kept in (self._lines.get(job_id), self._outputs.get(job_id)):
                    while kept and kept[0].number <= event[-1].number:
                        kept.popleft()

    def _log(self, jobs: Sequence[str], level: str, message: str, logger: str | None) -> None:
        if len(jobs) > 1:
            self._copies += len(jobs)
            if self._copies > MAX_COPIES:
                jobs = jobs[:1]
        about = {"logger": _cut(logger)} if logger else {}
        self._say(jobs, "log", to_json({"level": level, "message": _cut(message), **about}))

    def _say(self, jobs: Sequence[str], name: Any, data: bytes, progress: float | None = None) -> None:
        if not (self._wake and jobs) or (name == "log" and not self._most):
            return
        with self._turn:
            self._number += 1
            event = JobEvent(self._number, name, data, progress)
            for job_id in jobs:
                if name == "output":
                    self._outputs.setdefault(job_id, deque()).append(event)
                else:
                    self._lines.setdefault(job_id, deque(maxlen=max(1, self._most))).append(event)
        self._wake()


#: Nobody listens: outside a worker, and between batches.
SILENT = JobLog()

#: The speech of the batch that runs in a thread or task.
active: ContextVar[JobLog] = ContextVar("speech", default=SILENT)


def current() -> JobLog:
    """The speech of the batch that runs in this thread or task."""
    return active.get()


def _cut(text: str) -> str:
    """The beginning of a text, in characters that JSON can have."""
    return text[:MAX_TEXT].encode(errors="replace").decode()
