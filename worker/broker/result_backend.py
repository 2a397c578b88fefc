"""Celery's result backend over the ledger, so that ``AsyncResult(id)`` and ``GET /jobs/<id>`` always agree.

It only reads the job's record, wherever the job came from. The ledger writes a result once more,
as stock Celery does (``tell_celery``) for programs that have no more than Celery and a ``redis://`` backend;
nothing here depends on that copy.
"""

from __future__ import annotations

import json
import time
from functools import cached_property
from typing import Any

from celery import states
from celery.backends.base import BaseBackend
from celery.backends.redis import RedisBackend, ResultConsumer, SentinelBackend

from worker.ledger.jobs import Job, Status, rfc3339
from worker.ledger.keys import ENDED_CHANNEL
from worker.ledger.sync_ledger import Ledger
from worker.settings import get_settings

#: How a job's status reads in Celery's words.
CELERY_STATES = {
    Status.QUEUED: states.PENDING,
    Status.RUNNING: states.STARTED,
    Status.SUCCEEDED: states.SUCCESS,
    Status.FAILED: states.FAILURE,
    Status.CANCELLED: states.REVOKED,
    Status.EXPIRED: states.REVOKED,
}

#: Seconds between two looks at results that are waited for, should the word of their end be lost; most of them a look.
LOOK_S, MOST_LOOKED_AT = 5.0, 100


class JobEnds(ResultConsumer):  # type: ignore[misc]  # celery ships no types
    """Hears on one channel of every job's end, where stock Celery subscribes to one for each result."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._get_key_for_task = lambda task_id: ENDED_CHANNEL
        self._looked = time.monotonic()

    def drain_events(self, timeout: float | None = None) -> None:
        """Wait for ends, and look by oneself now and then."""
        super().drain_events(timeout)
        if time.monotonic() > self._looked + LOOK_S:
            self._look(self._pending()[:MOST_LOOKED_AT])

    def cancel_for(self, task_id: str) -> None:
        """Nothing to cancel: the channel is all jobs'."""

    def _drain_one(self, pubsub: Any, timeout: float | None) -> bool:
        with self.reconnect_on_error():
            connection = pubsub.connection
            if not (pubsub.subscribed and connection is not None and connection.can_read(timeout=0)):
                return False
            message = pubsub.get_message(timeout=timeout)
            if message and message["type"] == "message":
                ended = [each if isinstance(each, str) else each[0] for each in json.loads(message["data"])]
                pending = set(self._pending())
                self._look([task_id for task_id in ended if task_id in pending])
        return True

    def _reconnect_pubsub(self) -> None:
        with self._locked():
            self._pubsub = None
            self.backend.client.connection_pool.reset()
            self._pubsub = self.backend.client.pubsub(ignore_subscribe_messages=True)
            self._pubsub.subscribe(ENDED_CHANNEL)
            self._look(self._pending())

    def _pending(self) -> list[str]:
        return [task_id for mapping in self._pending_results for task_id in list(mapping)]

    def _look(self, task_ids: list[str]) -> None:
        self._looked = time.monotonic()
        for task_id in task_ids:
            meta = self.backend.get_task_meta(task_id, cache=False)
            if meta["status"] in states.READY_STATES:
                self.on_state_change(meta, None)


class LedgerBackend(RedisBackend):  # type: ignore[misc]
    """``AsyncResult`` for jobs of either origin: the API's and any Celery producer's.

    Celery's other data (saved groups) is in Redis as ever.
    """

    ResultConsumer = JobEnds

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger that the results are read from."""
        return Ledger(get_settings())

    def get(self, key: str | bytes) -> Any:
        """The value of a key of Celery's: for a result, the job's record as Celery would have written it."""
        name, prefix = (text.decode() if isinstance(text, bytes) else text for text in (key, self.task_keyprefix))
        if not name.startswith(prefix):
            return super().get(key)
        job = self.ledger.get(name.removeprefix(prefix))
        return describe(job) if job else super().get(key)  # of no job: a task that was to follow a refused one

    def mget(self, keys: list[str | bytes]) -> list[Any]:
        """The same of several."""
        return [self.get(key) for key in keys]

    def store_result(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        """Celery stores nothing here but a revoke, which cancels the job."""
        if state == states.REVOKED:
            self.ledger.cancel(task_id)
        return result


class ClusterLedgerBackend(BaseBackend):  # type: ignore[misc]
    """The same where the ledger is in a Redis Cluster, in which Celery keeps nothing: a result is asked for again."""

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger that the results are read from."""
        return Ledger(get_settings())

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        job = self.ledger.get(task_id)
        if job is None:
            return {"status": states.PENDING, "result": None}
        meta: dict[str, Any] = self.decode_result(describe(job))
        return meta

    def store_result(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        """Celery stores nothing here but a revoke, which cancels the job."""
        if state == states.REVOKED:
            self.ledger.cancel(task_id)
        return result

    def _forget(self, task_id: str) -> None:
        """A job's record lives as long as its keep_for_s says."""


class SentinelLedgerBackend(LedgerBackend, SentinelBackend):  # type: ignore[misc]
    """The same where Sentinel names the master."""


def describe(job: Job) -> bytes:
    """A job as Celery's result, in JSON: as ``lua/base/celery.lua`` writes the end of one."""
    about = {"status": CELERY_STATES[job.status], "traceback": None, "children": [], "task_id": job.id}
    about["date_done"] = rfc3339(job.finished_us)
    return b'{"result":%b,%b' % (_result(job), json.dumps(about).encode()[1:])


def _result(job: Job) -> bytes:
    if job.status is Status.SUCCEEDED:
        return job.output or b"null"
    result: Any = None
    if job.status is Status.FAILED:
        problem = json.loads(job.error or b"{}")
        name = "".join(word.capitalize() for word in problem["code"].split("_"))
        result = {"exc_type": name, "exc_message": [problem["message"]], "exc_module": "worker.errors"}
    elif job.status is Status.RUNNING:
        result = json.loads(job.to_json())["timings"]
    elif job.ended:
        result = {"exc_type": "TaskRevokedError", "exc_message": [job.status.value], "exc_module": "celery.exceptions"}
    return json.dumps(result).encode()
