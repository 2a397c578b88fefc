"""What a plugin says while it runs: progress, log lines, what it prints, and partial outputs.

It belongs to the job whose verb runs (in ``predict_batch``: to each job of the call), is gathered in the pool process
and sent to the ledger in groups by a thread of its own, which never holds up the model. The ledger takes it only from
the batch that holds the job, and the last of it is sent before the end of the batch is told, so none comes after it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any, TextIO, cast

import redis
from pydantic_core import to_json

from worker.errors import PLUGIN_ERRORS, InvalidOutput, say
from worker.ledger import Ledger, Said
from worker.strict_json import dump

log = logging.getLogger("services.worker")

#: Seconds between two groups, and after one that could not be sent.
EVERY_S, AGAIN_S = 0.05, 0.5
#: Events of one job in one group.
GROUP = 500
#: Characters of a message or a line.
MAX_TEXT = 2000
#: Bytes of what one group says, about: Redis takes it in one step.
GROUP_BYTES = 2**20
#: Bytes of all the partial outputs of one run, and their number: each takes Redis some 60 bytes more.
MAX_PARTIAL_BYTES, MAX_PARTIALS = 8 * 2**20, 100_000


class Speech:
    """What the jobs of one batch say.

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
        self._lines: dict[str, deque[Said]] = {}
        self._outputs: dict[str, deque[Said]] = {}
        self._number = 0
        self._printing = threading.RLock()
        self._unfinished: tuple[Sequence[str], str] = ((), "")

    def progress(self, value: float, message: str | None) -> None:
        """How far the jobs are. Raises ``ValueError`` for what is no number from 0 to 1."""
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
        """A piece of what was printed; a line is told when it ends, or before whatever is told next."""
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
        """What was printed without an end of line is a line too."""
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
            told = f"partial output {index} of predict has {len(text)} bytes as JSON, which makes {size} of this run"
            raise InvalidOutput(
                f"{told}; the limit is {most} bytes in all: yield less, or return a File (worker.files)"
            )
        self.end_line()
        self._say([job_id], "output", b'{"index":%d,"output":%b}' % (index, text))
        return len(text)

    def next_group(self) -> dict[str, list[Said]]:
        """What is to be sent next, by job and in order."""
        with self._turn:
            found: dict[str, list[Said]] = {}
            left = GROUP_BYTES
            for job_id in {**self._lines, **self._outputs}:
                lines = islice(self._lines.get(job_id, ()), GROUP)
                outputs = islice(self._outputs.get(job_id, ()), GROUP)
                for one in sorted([*lines, *outputs], key=lambda one: one.number)[:GROUP]:
                    if found and left < len(one.data):
                        return found
                    left -= len(one.data)
                    found.setdefault(job_id, []).append(one)
            return found

    def sent(self, group: dict[str, list[Said]]) -> None:
        """Forget what has been sent."""
        with self._turn:
            for job_id, said in group.items():
                for kept in (self._lines.get(job_id), self._outputs.get(job_id)):
                    while kept and kept[0].number <= said[-1].number:
                        kept.popleft()

    def _log(self, jobs: Sequence[str], level: str, message: str, logger: str | None) -> None:
        about = {"logger": _cut(logger)} if logger else {}
        self._say(jobs, "log", to_json({"level": level, "message": _cut(message), **about}))

    def _say(self, jobs: Sequence[str], name: Any, data: bytes, progress: float | None = None) -> None:
        if not (self._wake and jobs) or (name == "log" and not self._most):
            return
        with self._turn:
            self._number += 1
            said = Said(self._number, name, data, progress)
            for job_id in jobs:
                if name == "output":
                    self._outputs.setdefault(job_id, deque()).append(said)
                else:
                    self._lines.setdefault(job_id, deque(maxlen=max(1, self._most))).append(said)
        self._wake()


#: Nobody listens: outside a worker, and between batches.
SILENT = Speech()

_speech: ContextVar[Speech] = ContextVar("speech", default=SILENT)


def current() -> Speech:
    """The speech of the batch that runs in this thread or task."""
    return _speech.get()


class Teller:
    """Sends what the batches of one pool process say, one batch after the other.

    Args:
        most: progress and log events that the ledger keeps of a job.
    """

    def __init__(self, ledger: Ledger, most: int) -> None:
        self._ledger = ledger
        self._most = most
        self._speech = SILENT
        self._sending = threading.Lock()
        self._something = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def listening(self, service: str, token: str) -> Iterator[None]:
        """While a batch runs."""
        self._speech = Speech(service, token, self._most, self._wake)
        before = _speech.set(self._speech)
        try:
            yield
        finally:
            self._speech.jobs = ()
            _speech.reset(before)

    def flush(self) -> None:
        """Send what has not been sent, in the caller's own thread. Raises redis-py's errors."""
        self._speech.end_line()
        while self._send():
            pass

    def _wake(self) -> None:
        if not self._thread:  # a plugin that says nothing has no such thread
            self._thread = threading.Thread(target=self._run, name="teller", daemon=True)
            self._thread.start()
        self._something.set()

    def _run(self) -> None:
        pause = threading.Event()  # never set: a sleep
        while True:
            self._something.wait()
            self._something.clear()
            try:
                while self._send():
                    pass
                pause.wait(EVERY_S)
            except redis.RedisError as error:
                log.debug("what the plugin says waits: %s", error)
                self._something.set()
                pause.wait(AGAIN_S)

    def _send(self) -> bool:
        """One group; whether there was any."""
        with self._sending:
            speech = self._speech
            group = speech.next_group()
            if group:
                self._ledger.say(speech.service, speech.token, self._most, group)
                speech.sent(group)
            return bool(group)


class Printed:
    """Standard output, which jobs hear too."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Pass it on, and tell it to the jobs; what a handler of ``logging`` writes here was told already."""
        speech = _speech.get()
        if speech.jobs and sys._getframe(1).f_globals.get("__name__") != "logging":
            speech.printed(text)
        return self._stream.write(text)

    def writelines(self, lines: Sequence[str]) -> None:
        """As ``write``."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Logged(logging.Handler):
    """What is logged while a verb runs, at whatever level its loggers let through."""

    def emit(self, record: logging.LogRecord) -> None:
        """Tell it to the jobs."""
        speech = _speech.get()
        if not speech.jobs:
            return
        try:
            message = record.getMessage()
            if record.exc_info and record.exc_info[1]:
                message = f"{message}: {say(record.exc_info[1])}"
            speech.line(record.levelname, message, record.name)
        except PLUGIN_ERRORS:
            self.handleError(record)


def capture(level: str, shown: logging.Handler) -> None:
    """From now on, hear what is printed and logged. Called once the plugins are loaded, which may have set up logging.

    Where none has, what they log goes to ``shown`` too, from ``level`` on.
    """
    stdout = sys.stdout
    if stdout and not stdout.closed:
        if hasattr(stdout, "reconfigure"):
            stdout.reconfigure(line_buffering=True)  # or a killed process takes its last lines along
        sys.stdout = cast(TextIO, Printed(stdout))
    root = logging.getLogger()
    if not root.handlers:
        root.setLevel(level)
        root.addHandler(shown)
    hear_loggers(Logged())
    # A fork, as by a data loader, has no thread that would send anything, and may hold that thread's locks for ever.
    os.register_at_fork(after_in_child=_fall_silent)


def hear_loggers(logged: Logged) -> None:
    """Give this handler each line that any logger lets through.

    It is no handler of the root logger: ``dictConfig``, ``basicConfig(force=True)`` and whoever clears its handlers
    would take it away in the midst of a run.
    """
    call_handlers = logging.Logger.callHandlers

    def call_and_tell(self: logging.Logger, record: logging.LogRecord) -> None:
        logged.handle(record)
        call_handlers(self, record)

    logging.Logger.callHandlers = call_and_tell  # type: ignore[method-assign]


def _fall_silent() -> None:
    _speech.set(SILENT)


def _cut(text: str) -> str:
    """The beginning of a text, in characters that JSON can have."""
    return text[:MAX_TEXT].encode(errors="replace").decode()
