"""Celery's options of a task that no worker of ours can honour: each is refused by name, none dropped silently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from worker.errors import InvalidInput

#: Parts of Celery's canvas in a message's body, by Celery's own names: the option, and the advice for it.
CANVAS = {
    "chain": (
        "chain",
        "no worker sends the next task when this one ends: read its result with get() and send the next task then, "
        "or send it from a webhook's receiver",
    ),
    "chord": (
        "chord",
        "no worker counts a group's ends: send a plain group, and run the chord's body when its get() has returned",
    ),
    "callbacks": ("link", "no worker sends a callback: read the result with get(), or give the job a webhook"),
    "errbacks": ("link_error", "no worker sends a callback: read the error with get(), or give the job a webhook"),
}
LIMITS = (
    ("time_limit", "a run is limited by the service's own time_limit_s; a job that may start too late has expires"),
    ("soft_time_limit", "a run is limited by the service's own time_limit_s, and no exception is raised in it"),
)


def check_options(canvas: Mapping[str, Any], limits: Sequence[Any]) -> None:
    """Raise ``InvalidInput`` that names the first option which cannot be honoured.

    Args:
        canvas: ``callbacks``, ``errbacks``, ``chain`` and ``chord``, as a message's body has them.
        limits: the message's ``timelimit``: the hard one, then the soft one.
    """
    for field, (option, instead) in CANVAS.items():
        if canvas.get(field):
            raise InvalidInput(f"the option {option} is not supported: {instead}")
    for (option, instead), seconds in zip(LIMITS, limits, strict=False):
        if seconds:
            raise InvalidInput(f"the option {option} is not supported: {instead}")
