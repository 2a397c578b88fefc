"""Show jobs as Celery tasks: to Flower and ``celery events`` as they go, to ``celery inspect`` as they run.

Flower follows at most some 1,300 tasks a second and pays 7 kB for each, so above ``event_rate`` jobs a second only a
sample of them is shown, which the pool processes draw (``sample.py``). Events leave by a thread of their own: a broker
that is away delays no job.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from celery.worker import state

from worker.names import task_name

log = logging.getLogger("services.worker")

#: Events that may wait for the broker; more are dropped, since they only inform.
MAX_WAITING = 10_000
#: Seconds in which events gather for one message, and how many it may hold.
GATHER_S = 0.05
MAX_GATHERED = 500


class JobRequest:
    """A running job as ``celery inspect active`` and ``celery control revoke --terminate`` expect a request."""

    def __init__(self, job_id: str, service: str, hostname: str, pid: int, cancel: Callable[[str], object]) -> None:
        self.id = job_id
        self.name = task_name(service)
        self.hostname = hostname
        self.worker_pid = pid
        self.time_start = time.time()
        self._service = service
        self._cancel = cancel

    def info(self, safe: bool = False) -> dict[str, Any]:
        """The keys of ``celery.worker.request.Request.info``."""
        return {
            "id": self.id,
            "name": self.name,
            "args": [],
            "kwargs": {},
            "type": self.name,
            "hostname": self.hostname,
            "time_start": self.time_start,
            "acknowledged": True,
            "delivery_info": {"exchange": "", "routing_key": self._service, "priority": 0, "redelivered": False},
            "worker_pid": self.worker_pid,
        }

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Flower's "terminate" button: the job is cancelled, and the lease thread ends its process."""
        self._cancel(self.id)


class Reporter(threading.Thread):
    """Sends Celery's events about batches.

    Args:
        dispatcher: gives the consumer's current event dispatcher; None while the broker is away.
    """

    def __init__(self, dispatcher: Callable[[], Any], hostname: str, cancel: Callable[[str], object]) -> None:
        super().__init__(name="events", daemon=True)
        self._dispatcher = dispatcher
        self._hostname = hostname
        self._cancel = cancel
        self._waiting: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue(MAX_WAITING)
        self._running: dict[str, list[JobRequest]] = {}

    def started(self, token: str, service: str, ids: list[str], pid: int) -> None:
        """A batch begins to run in the pool process ``pid``; ``ids``: those of its jobs that are shown."""
        requests = [JobRequest(i, service, self._hostname, pid, self._cancel) for i in ids]
        self._running[token] = requests
        is_enabled = self._enabled()
        for request in requests:
            state.task_reserved(request)
            state.task_accepted(request)
            if is_enabled:
                name = {"name": request.name, "args": "()", "kwargs": "{}", "root_id": request.id, "retries": 0}
                self._put("task-received", uuid=request.id, **name)
                self._put("task-started", uuid=request.id)

    def ended(self, token: str, service: str, results: list[dict[str, Any]], count: int) -> None:
        """A batch of ``count`` jobs has ended; shown ones without a result were cancelled or go elsewhere."""
        hidden = max(0, count - len(results))
        state.total_count.update({task_name(service): hidden})
        state.all_total_count[0] += hidden
        by_id = {result["id"]: result for result in results}
        for request in self._running.pop(token, []):
            result = by_id.get(request.id)
            state.task_ready(request, successful=bool(result and not result["error"]))
            self._tell_end(request.id, result)

    def run(self) -> None:
        """Send the waiting events, in one message for all that came within ``GATHER_S``.

        Measured: at 100 jobs a second, a message for each of their 300 events takes a tenth of a core.
        """
        while True:
            waiting = [self._waiting.get()]
            time.sleep(GATHER_S)
            with contextlib.suppress(queue.Empty):
                while len(waiting) < MAX_GATHERED:
                    waiting.append(self._waiting.get_nowait())
            try:
                self._send(waiting)
            except Exception as error:  # any error of the broker's client: an event is never worth a job
                log.warning("%d events not sent: %s: %s", len(waiting), type(error).__name__, error)

    def _send(self, events: list[tuple[str, dict[str, Any]]]) -> None:
        dispatcher = self._dispatcher()
        if dispatcher is None or not dispatcher.enabled:
            return
        dispatcher.buffer_group, dispatcher.buffer_limit = {"task"}, MAX_GATHERED + 1
        for kind, fields in events:
            dispatcher.send(kind, **fields)
        dispatcher.flush()

    def _tell_end(self, job_id: str, result: dict[str, Any] | None) -> None:
        if result is None:
            self._put("task-revoked", uuid=job_id, terminated=False, signum=None, expired=False)
        elif result["retried"]:
            self._put("task-retried", uuid=job_id, exception=result["error"], traceback="")
        elif result["error"]:
            self._put("task-failed", uuid=job_id, exception=result["error"], traceback="")
        else:
            self._put("task-succeeded", uuid=job_id, result=result["result"], runtime=result["seconds"])

    def _enabled(self) -> bool:
        dispatcher = self._dispatcher()
        return dispatcher is not None and bool(dispatcher.enabled)

    def _put(self, kind: str, **fields: Any) -> None:
        try:
            self._waiting.put_nowait((kind, {**fields, "timestamp": time.time()}))
        except queue.Full:
            log.debug("event %s dropped: %d wait already", kind, MAX_WAITING)
