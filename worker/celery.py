"""The Celery app: ``celery -A worker worker -Q <service>``, ``celery -A worker flower``, ``app.send_task(…)``."""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

from celery import Celery

from worker.names import service_of
from worker.settings import get_settings

settings = get_settings()

# Celery's backends write redis+socket:// as socket://, since "+" ends the class's name.
BACKEND = f"LedgerBackend+{settings.celery_url.replace('redis+socket://', 'socket://')}"
if settings.sentinel:
    BACKEND = f"Sentinel{BACKEND}"
elif settings.cluster:
    BACKEND = "ClusterLedgerBackend"
MASTER = {"master_name": settings.sentinel.master} if settings.sentinel else {}


def route(name: str, *_: Any, **__: Any) -> dict[str, str] | None:
    """Where ``send_task`` is given no queue: the service's, in place of Celery's default, which no worker reads."""
    service = service_of(name)
    return {"queue": service} if service else None


app = Celery(
    "services",
    broker=settings.broker_url or settings.celery_url,
    backend=f"worker.broker.result_backend:{BACKEND}",
    amqp="worker.broker.amqp:ServicesAMQP",
    include=["worker.consumer"],  # imported by a worker alone, so that a producer stays light
)

# Without timeouts a frozen Redis hangs the caller for ever; RabbitMQ confirms each message that it has stored.
REDIS_OPTIONS = {"socket_timeout": 5, "socket_connect_timeout": 2, "health_check_interval": 5, **MASTER}
RABBIT_OPTIONS = {"confirm_publish": True, "connect_timeout": 4, "read_timeout": 30, "write_timeout": 30}

app.conf.update(
    task_routes=(route,),
    worker_pool="worker.pool.slots:ServicePool",
    worker_concurrency=settings.concurrency,
    # JSON only: a pickle in the queue is refused, not run.
    accept_content=["json"],
    result_accept_content=["json"],
    task_serializer="json",
    result_serializer="json",
    # Celery gives up after 100 tries by default, and a worker that has given up is down for good.
    broker_connection_max_retries=None,
    broker_connection_retry_on_startup=True,
    broker_transport_options=RABBIT_OPTIONS if settings.broker_url else REDIS_OPTIONS,
    result_backend_transport_options=MASTER,
    redis_socket_timeout=5,
    redis_socket_connect_timeout=2,
    # Our pool processes are not Celery's to cancel when the broker is away: their leases decide.
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_redirect_stdouts=False,
    worker_send_task_events=True,
)

# Flower binds every interface by default, and shows jobs to every visitor. An own setting or option still wins.
os.environ.setdefault("FLOWER_ADDRESS", "127.0.0.1")


def _is_command(argv: list[str]) -> bool:
    """Whether this process is a command of Celery's but its worker, which waits for Redis (``consumer.py``)."""
    if not argv[0].endswith(("/celery", "/celery/__main__.py")):
        return False
    return "worker" not in [word for before, word in itertools.pairwise(argv) if before not in ("-A", "--app")]


# `celery -A worker inspect` and the like print no more than that they cannot connect.
if settings.private_redis and _is_command(sys.argv):
    from worker.local.redis_server import answers  # a program that only sends tasks does without

    if not answers(settings):
        print(settings.away_hint, file=sys.stderr)
