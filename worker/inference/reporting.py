"""Reports of a running plugin: progress, log lines, printed lines and partial outputs.

It belongs to the job whose verb runs (in ``predict_batch``: to each job of the call), is gathered in the pool process
and sent to the ledger in groups by a thread of its own, which never holds up the model. The ledger takes it only from
the batch that holds the job, and the last of it is sent before the end of the batch is reported, so none comes after
it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, cast

import redis

from worker.errors import PLUGIN_ERRORS, say
from worker.ledger import worker_commands
from worker.ledger.sync_ledger import Ledger
from worker.progress import SILENT, JobLog, active

log = logging.getLogger("services.worker")

#: Seconds between two groups, and after one that could not be sent.
EVERY_S, AGAIN_S = 0.05, 0.5


class EventSender:
    """Sends the reports of one pool process's batches, one batch after the other.

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
        self._speech = JobLog(service, token, self._most, self._wake)
        before = active.set(self._speech)
        try:
            yield
        finally:
            self._speech.jobs = ()
            active.reset(before)

    def flush(self) -> None:
        """Send the remaining reports, in the caller's own thread. Raises redis-py's errors."""
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
                self._ledger.run(worker_commands.store_events(speech.service, speech.token, self._most, group))
                speech.sent(group)
            return bool(group)


class StdoutCapture:
    """Standard output, which jobs hear too."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Pass the text on, and report it to the jobs; lines of handlers of ``logging`` have been reported already."""
        speech = active.get()
        if speech.jobs and sys._getframe(1).f_globals.get("__name__") != "logging":
            speech.printed(text)
        return self._stream.write(text)

    def writelines(self, lines: Sequence[str]) -> None:
        """As ``write``."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class LogCapture(logging.Handler):
    """Reports log records while a verb runs, at any level that their loggers let through."""

    def emit(self, record: logging.LogRecord) -> None:
        """Report it to the jobs."""
        speech = active.get()
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
    """Report printed and logged lines from now on. Called after the plugins are loaded, which may have set up logging.

    If none has, their log lines go to ``shown`` too, from ``level`` on.
    """
    stdout = sys.stdout
    if stdout and not stdout.closed:
        if hasattr(stdout, "reconfigure"):
            stdout.reconfigure(line_buffering=True)  # or a killed process takes its last lines along
        sys.stdout = cast(TextIO, StdoutCapture(stdout))
    root = logging.getLogger()
    if not root.handlers:
        root.setLevel(level)
        root.addHandler(shown)
    capture_loggers(LogCapture())
    # A fork, as by a data loader, has no thread that would send anything, and may hold that thread's locks for ever.
    os.register_at_fork(after_in_child=_fall_silent)


def capture_loggers(logged: LogCapture) -> None:
    """Give this handler each line that any logger lets through.

    It is no handler of the root logger: ``dictConfig``, ``basicConfig(force=True)`` and any code that clears the
    root's handlers would remove it in the midst of a run.
    """
    call_handlers = logging.Logger.callHandlers

    def call_and_tell(self: logging.Logger, record: logging.LogRecord) -> None:
        logged.handle(record)
        call_handlers(self, record)

    logging.Logger.callHandlers = call_and_tell  # type: ignore[method-assign]


def _fall_silent() -> None:
    active.set(SILENT)
