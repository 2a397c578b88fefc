"""Names that several rooms share: of a service's Celery task, and of the service that delivers webhooks."""

from __future__ import annotations

#: The end of a task's name, after the name of its service.
TASK_ENDING = ".predict"
#: The name of the service that delivers webhooks, which is its queue too. No plugin can have it.
WEBHOOKS = "webhooks"


def task_name(service: str) -> str:
    """The Celery task of a service."""
    return f"{service}.deliver" if service == WEBHOOKS else f"{service}{TASK_ENDING}"


def service_of(task: str) -> str | None:
    """The service that a Celery task's name belongs to; None for another kind of task."""
    return task.removesuffix(TASK_ENDING) if task.endswith(TASK_ENDING) else None
