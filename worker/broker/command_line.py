"""Options of ``celery worker`` that would do nothing here: each is refused before anything starts."""

from __future__ import annotations

import re
from typing import Any

import click
from click.core import ParameterSource

LIMIT = "a run is limited by time_limit_s in the service's class"
REPLACED = "a pool process is replaced when it dies, or grows towards memory_limit_mb in the service's class"
BEAT = "run `celery -A worker beat` as a process of its own"
#: By click's names of the options: the advice for each.
REFUSED = {
    "autoscale": "give --concurrency N, or start further workers",
    "max_tasks_per_child": REPLACED,
    "max_memory_per_child": REPLACED,
    "time_limit": LIMIT,
    "soft_time_limit": f"{LIMIT}, and no exception is raised in it",
    "prefetch_multiplier": "a pool process takes what it can run, up to max_batch_size in the service's class",
    "pool_start_method": "pool processes are always started fresh",
    "purge": "it would leave the jobs: cancel those that wait, by DELETE /jobs/<id>",
    "beat": BEAT,
    "schedule_filename": BEAT,
    "scheduler": BEAT,
}
#: Those that Celery's settings may hold too, such as `celery worker … -- worker.max_tasks_per_child=9`.
SET_OTHERWISE = ("autoscale", "max_tasks_per_child", "max_memory_per_child", "time_limit", "soft_time_limit")
#: Read as it stands, since Celery takes 0 for "not given".
NO_PROCESSES = re.compile(r"(^|\s)(-c|--concurrency)[= ]?0+(\s|$)")


def refused_option(argv: list[str], worker: Any) -> str:
    """The error in the options of this ``celery worker``; "" for none.

    Args:
        argv: the command line.
        worker: Celery's worker, which a program may also start with options, without a command line.
    """
    context = click.get_current_context(silent=True)
    given = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    for parameter in context.command.params if context else ():
        name = parameter.name or ""
        if name in REFUSED and context and context.get_parameter_source(name) in given:
            return f"{max(parameter.opts, key=len)} does nothing here: {REFUSED[name]}"
    for name in SET_OTHERWISE:
        if getattr(worker, name, None):
            return f"{name} does nothing here: {REFUSED[name]}"
    if NO_PROCESSES.search(" ".join(argv)):
        return "--concurrency must be at least 1 pool process; leave it out for SERVICES_CONCURRENCY"
    return ""
