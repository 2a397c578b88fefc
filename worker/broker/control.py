"""Celery's control commands, as far as they mean something here; the others answer with words and do nothing.

Importing this module puts them in the place of Celery's own. Each worker gets every command of ``celery control``,
Flower and ``app.control``, whichever services it runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import redis
from celery.platforms import signals
from celery.utils.functional import maybe_list
from celery.worker import state as worker_state
from celery.worker.control import control_command, inspect_command, nok, ok

from worker.ledger import commands
from worker.names import WEBHOOKS

log = logging.getLogger("services.worker")

RESTART = "and start its workers anew (by SIGTERM nothing is lost)"
SERVES = "a worker serves the services of its -Q alone: start one with `celery -A worker worker -Q NAME`"
PROCESSES = "a worker has --concurrency pool processes: start it again with another number, or start further workers"
#: Commands that would do nothing, or harm, and the advice for each.
REFUSED = {
    "rate_limit": "no worker counts jobs a second: limit who sends them (`services keys create --rate`)",
    "time_limit": f"a run is limited by the service's own time_limit_s: set that in its class {RESTART}",
    "pool_grow": PROCESSES,
    "pool_shrink": PROCESSES,
    "autoscale": PROCESSES,
    "pool_restart": "to load a plugin anew, stop the worker (by SIGTERM nothing is lost) and start it again",
    "add_consumer": SERVES,
    "cancel_consumer": f"{SERVES}, and stop this one to have it serve nothing",
    "revoke_by_stamped_headers": "no worker keeps the stamps of a job: revoke it by its id",
}


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]
def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **_: Any) -> dict[str, str]:
    """Cancel jobs by their ids: those that wait, and with terminate those that run too."""
    ids = [text for text in dict.fromkeys(maybe_list(task_id) or []) if isinstance(text, str) and text]
    if signal is not None:
        signals.signum(signal)  # raises for an unknown name; the job's process ends in its own way, by any signal
    worker_state.revoked.update(ids)
    pool = state.consumer.pool
    try:
        ended = _revoke_deliveries(ids, terminate) if WEBHOOKS in pool.names else _revoke_jobs(pool, ids, terminate)
    except redis.RedisError as error:
        return nok(f"the jobs could not be revoked, since Redis does not answer ({error}): send revoke again")  # type: ignore[no-any-return]
    log.info("revoked%s: %s", " and terminated" if terminate else "", ", ".join(ids))
    if not terminate:
        return ok(f"tasks {set(ids)} flagged as revoked")  # type: ignore[no-any-return]
    return ok(f"terminate: {', '.join(ended) or 'tasks unknown'}")  # type: ignore[no-any-return]


@control_command(args=[("signal", str)], variadic="task_id", signature="<signal> [id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]
def terminate(state: Any, signal: Any, task_id: Any, **_: Any) -> dict[str, str]:
    """Cancel jobs by their ids, also those that run."""
    return revoke(state, task_id, terminate=True, signal=signal)  # type: ignore[no-any-return]


@inspect_command(alias="dump_active_queues")  # type: ignore[untyped-decorator]
def active_queues(state: Any) -> list[dict[str, Any]]:
    """The queues that this worker serves: Celery's own answer would be none, since the feeders take the messages."""
    return [{"name": name, "routing_key": name, "durable": True} for name in state.consumer.pool.names]


def _revoke_jobs(pool: Any, ids: list[str], running: bool) -> list[str]:
    """In each service of this worker, since an id does not name its service; then of others that may have no worker.

    Gives those that it ended.
    """
    known: dict[str, str] = {}
    for name in pool.names if ids else ():
        statuses = pool.ledger.run(commands.revoke(name, ids, running))
        known |= {i: status for i, status in zip(ids, statuses, strict=True) if status}
    for job_id in ids:
        if job_id not in known:
            known[job_id] = pool.ledger.revoke(job_id, running)
    return [i for i, status in known.items() if status == "queued" or (running and status == "running")]


def _revoke_deliveries(ids: list[str], running: bool) -> list[str]:
    """For webhooks, the deliveries that are being sent."""
    requests = [request for request in list(worker_state.active_requests) if request.id in ids and running]
    for request in requests:
        request.terminate(None)
    return [request.id for request in requests]


def _refusal(name: str, instead: str) -> Callable[..., dict[str, str]]:
    def refuse(state: Any, *_: Any, **__: Any) -> dict[str, str]:
        return nok(f"{name} is not supported: {instead}")  # type: ignore[no-any-return]

    refuse.__name__, refuse.__doc__ = name, f"Not supported: {instead}."
    return refuse


def _refuse_all() -> None:
    from celery.worker.control import Panel

    for name, instead in REFUSED.items():
        known = Panel.meta[name]
        same = {"args": known.args, "variadic": known.variadic, "signature": known.signature, "type": known.type}
        Panel.register(name=name, **same)(_refusal(name, instead))


_refuse_all()
