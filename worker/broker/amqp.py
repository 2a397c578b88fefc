"""The messages that ``worker.celery``'s app sends: an option that no worker could honour is refused at sending."""

from __future__ import annotations

import inspect
from typing import Any

from celery.app.amqp import AMQP

from worker.broker.options import CANVAS, check_options
from worker.names import service_of

_V1, _V2 = inspect.signature(AMQP.as_task_v1), inspect.signature(AMQP.as_task_v2)


class ServicesAMQP(AMQP):  # type: ignore[misc]  # celery ships no types
    """Celery's own, with a check of messages to a service. Raises ``InvalidInput`` that names the option."""

    def as_task_v1(self, *args: Any, **options: Any) -> Any:
        """A message by Celery's protocol 1."""
        _check(_V1.bind(self, *args, **options).arguments)
        return super().as_task_v1(*args, **options)

    def as_task_v2(self, *args: Any, **options: Any) -> Any:
        """A message by Celery's protocol 2."""
        _check(_V2.bind(self, *args, **options).arguments)
        return super().as_task_v2(*args, **options)


def _check(given: dict[str, Any]) -> None:
    if service_of(given["name"]):
        canvas = {field: given.get(field) for field in CANVAS}
        check_options(canvas, (given.get("time_limit"), given.get("soft_time_limit")))
