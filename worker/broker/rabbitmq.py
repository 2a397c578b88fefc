"""Another broker's messages become jobs of the ledger (``BROKER_URL``, RabbitMQ).

Where Redis is the broker, a claim finds other producers' messages itself, in the same call (``lua/claim.lua``). Another
broker is read here, by a thread of the worker: a message is acknowledged once its job is in the ledger, so one that is
delivered twice is the same job, and the ledger's guarantees begin with the acknowledgement. The API's jobs never pass
through the broker.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
from typing import Any

import redis
from kombu.entity import Exchange, Queue
from kombu.mixins import ConsumerMixin
from kombu.transport.pyamqp import Message

from worker.broker.adopt import adopt
from worker.ledger.sync_ledger import Ledger
from worker.settings import Settings

log = logging.getLogger("services.worker")

#: Messages in a worker's hands at once.
PREFETCH = 100
#: Pause before messages are taken again after Redis could not store some.
PAUSE_S = 1.0


class PackedMessage(Message):
    """A message whose body stays as it came: kombu would decompress it to any size, and drop a broken one."""

    def __init__(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        headers = msg.properties.get("application_headers") or {}
        compression = headers.pop("compression", None)
        super().__init__(msg, *args, **kwargs)  # type: ignore[no-untyped-call]
        if compression:
            self.headers["compression"] = compression


class Adopter(ConsumerMixin, threading.Thread):
    """Reads the services' queues at the broker until stopped."""

    def __init__(self, app: Any, settings: Settings, names: list[str]) -> None:
        threading.Thread.__init__(self, name="adopter", daemon=True)
        self.connection = app.connection_for_read()
        self._settings = settings
        self._ledger = Ledger(settings)
        self._names = names

    def stop(self) -> None:
        """Take nothing more; unacknowledged messages go back to the queue."""
        self.should_stop = True

    def run(self, *_: Any, **__: Any) -> None:
        """Read messages until stopped; no message ends the loop."""
        while not self.should_stop:
            try:
                super().run()  # type: ignore[no-untyped-call]
            except Exception:
                log.exception("reading the broker's queues failed; trying again in %g s", PAUSE_S)
                threading.Event().wait(PAUSE_S)

    def get_consumers(self, Consumer: Any, channel: Any) -> list[Any]:  # kombu's own signature
        """One queue a service."""
        channel.basic_qos(0, PREFETCH, False)
        channel.Message = PackedMessage
        queues = [_declare(channel.connection, name) for name in self._names]
        return [Consumer(queues, on_message=self._on_message, accept=[], auto_declare=False)]

    def on_connection_error(self, exc: Exception, interval: float) -> None:
        """Kombu tries again after the interval (seconds), for ever."""
        log.warning("the broker is away (%s: %s), trying again in %g s", type(exc).__name__, exc, interval)

    def _on_message(self, message: Any) -> None:
        name = message.delivery_info["routing_key"]
        try:
            adopt(self._ledger, self._settings, name, [as_in_redis(message)], "rabbitmq")
            self._ledger.ring(name)
        except redis.RedisError as error:
            log.warning("could not store a message of queue %s: %s; it goes back to the queue", name, error)
            message.requeue()
            threading.Event().wait(PAUSE_S)
        except Exception as problem:  # no message may end this thread
            log.exception("dropped a message in queue %s: %s: %.200r", name, type(problem).__name__, message.body)
            message.ack()
        else:
            message.ack()


def _declare(connection: Any, name: str) -> Any:
    """A service's queue: as it is, where it is there already (with x-max-priority, say), else as Celery declares it."""
    exchange = Exchange(name, type="direct")  # type: ignore[no-untyped-call]
    queue = Queue(name, exchange, routing_key=name)  # type: ignore[no-untyped-call]
    with connection.channel() as channel:
        try:
            queue.bind(channel).queue_declare(passive=True)  # type: ignore[no-untyped-call]
            return queue
        except connection.channel_errors as error:
            log.debug("queue %s is declared, since there is none: %s", name, error)
    with connection.channel() as channel:  # the broker has closed the other one
        queue.bind(channel).declare()  # type: ignore[no-untyped-call]
    return queue


def as_in_redis(message: Any) -> bytes:
    """A kombu message as Redis's transport keeps it, in JSON."""
    body = message.body.encode() if isinstance(message.body, str) else bytes(message.body)
    properties = message.properties or {}
    kept = {
        "body": base64.b64encode(body).decode(),
        "content-type": message.content_type,
        "headers": message.headers,
        "properties": {
            "body_encoding": "base64",
            "priority": properties.get("priority"),
            "correlation_id": properties.get("correlation_id"),
        },
    }
    return json.dumps(kept, default=str).encode()
