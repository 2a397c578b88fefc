"""Celery's side of the worker: which services (``-Q``), its start and its end. Imported by a worker alone."""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import Any, NoReturn

import redis
from celery import bootsteps, signals
from celery.utils.nodenames import default_nodename, nodename

import worker.broker.control  # noqa: F401  # its commands take the place of Celery's
from worker.broker.command_line import refused_option
from worker.celery import app
from worker.discovery import find_plugins, list_plugins, say_known
from worker.errors import StoreRefused, UnknownService
from worker.ledger.data_schema import check_schema
from worker.local.redis_server import require_redis
from worker.names import WEBHOOKS, task_name
from worker.net.redis_clients import AWAY, make_client
from worker.pool.slots import ServicePool
from worker.processes.logs import setup_logging
from worker.settings import EX_USAGE, get_settings

log = logging.getLogger("services.worker")


#: The private Redis may be starting in the same moment (Procfile).
REDIS_WAIT_S = 10.0
#: How long a worker that starts waits to hear which release wrote the data.
SCHEMA_WAIT_S = 2.0


class FullRedisIsAway(bootsteps.StartStopStep):  # type: ignore[misc]
    """A Redis that is full, loads its file or has become a replica is as good as away: the consumer connects again.

    Celery knows only lost connections, and ends the worker on any other error of the broker.
    """

    def __init__(self, parent: Any, **_: Any) -> None:
        parent.connection_errors = (*parent.connection_errors, *AWAY)
        super().__init__(parent)


app.steps["consumer"].add(FullRedisIsAway)


@signals.celeryd_init.connect  # type: ignore[untyped-decorator]
def on_celeryd_init(sender: str, instance: Any, options: dict[str, Any], **_: Any) -> None:
    """Name a worker without ``-n``: Celery calls all of a host the same, and RabbitMQ refuses the second."""
    if sender == default_nodename(None):
        name = "-".join(options.get("queues") or ["celery"])
        instance.hostname = nodename(f"{name}-{os.getpid()}", socket.gethostname())


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def on_worker_init(sender: Any, **_: Any) -> None:
    """Check the command line before anything starts: ``-Q`` is known from here on."""
    setup_logging(get_settings().log_level)
    names = check_queues(app.amqp.queues._consume_from)
    if wrong := refused_option(sys.argv[1:], sender):
        _refuse(wrong)
    if sender.pool_cls not in (ServicePool, app.conf.worker_pool):
        _refuse("services run in pool processes of their own: leave --pool out")
    require_redis(get_settings(), REDIS_WAIT_S)
    check_data()
    # A worker publishes events alone, and py-amqp may wait for ever for the confirmation of one, holding Celery's lock.
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, "confirm_publish": False}
    # Neither is of use to this worker, and mingle waits a second for others at each start.
    sender.options.update(without_gossip=True, without_mingle=True)
    app.services_hostname = sender.hostname
    if names == [WEBHOOKS]:
        sender.pool_cls = "worker.webhooks.pool:WebhookPool"  # no other worker pays for its libraries
    for name in names:
        app.task(name=task_name(name))(_in_the_pool)


def check_queues(queues: dict[str, Any] | None) -> list[str]:
    """The services that ``-Q`` names; ends the process with exit code 2 where that makes no sense."""
    if not queues:
        _refuse(f"name the services to run: celery -A worker worker -Q NAME; {say_known(list_plugins())}")
    if list(queues) == [WEBHOOKS]:
        return [WEBHOOKS]
    if WEBHOOKS in queues:
        _refuse("webhooks are sent by a worker of their own: celery -A worker worker -Q webhooks")
    try:
        return [plugin.name for plugin in find_plugins(queues or ())]
    except UnknownService as error:
        _refuse(error.message)


def check_data() -> None:
    """End the process with exit code 2 if a later release has written to Redis; the lease thread checks again later."""
    settings, wait_s = get_settings(), SCHEMA_WAIT_S
    client = make_client(settings.url, socket_timeout=wait_s, socket_connect_timeout=wait_s)
    try:
        check_schema(client, settings)
    except StoreRefused as error:
        _refuse(error.message)
    except (redis.RedisError, OSError) as error:
        log.debug("the schema of the data in Redis is not known yet: %s", error)
    finally:
        client.close()


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def on_worker_ready(sender: Any, **_: Any) -> None:
    """``sender`` is Celery's consumer, whose event dispatcher the reporter uses."""
    app.services_consumer = sender


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def on_worker_shutting_down(**_: Any) -> None:
    """Sent by the signal handler itself: claim nothing more from this moment on."""
    pool = getattr(app, "services_pool", None)
    if pool is not None:
        pool.stop_claiming()


def _in_the_pool(*_: Any) -> None:
    """A service's task, as ``celery inspect registered`` lists it. Its jobs run in the pool, never as this function."""
    raise RuntimeError("this task runs in a worker of its service; send it to the service's queue")


def _refuse(message: str) -> NoReturn:
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(EX_USAGE)
