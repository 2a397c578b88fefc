"""Another broker's messages become jobs of the ledger (``BROKER_URL``, RabbitMQ).

Where Redis is the broker, a claim finds other producers' messages itself, in the same call (``runs.lua``). Another
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

from worker.broker.adopt import adopt
from worker.ledger import Ledger
from worker.settings import Settings

log = logging.getLogger("services.worker")

#: Messages in a worker's hands at once.
PREFETCH = 100
#: Pause before messages are taken again after Redis could not store some.
PAUSE_S = 1.0


class Adopter(ConsumerMixin, threading.Thread):
    """Reads the services' queues at the broker until stopped."""

    def __init__(self, app: Any, settings: Settings, names: list[str]) -> None:
        threading.Thread.__init__(self, name="adopter", daemon=True)
        self.connection = app.connection_for_read()
        self._settings = settings
        self._ledger = Ledger(settings)
        self._names = names

    def stop(self) -> None:
        """Take nothing more; what is not acknowledged goes back to the queue."""
        self.should_stop = True

    def get_consumers(self, Consumer: Any, channel: Any) -> list[Any]:  # kombu's own signature
        """One queue a service, declared as Celery's producers declare it."""
        channel.basic_qos(0, PREFETCH, False)
        exchanges = [Exchange(name, type="direct") for name in self._names]  # type: ignore[no-untyped-call]
        queues = [Queue(e.name, e, routing_key=e.name) for e in exchanges]  # type: ignore[no-untyped-call]
        return [Consumer(queues, on_message=self._on_message, accept=[])]

    def on_connection_error(self, exc: Exception, interval: float) -> None:
        """Kombu tries again after the interval (seconds), for ever."""
        log.warning("the broker is away (%s: %s), trying again in %g s", type(exc).__name__, exc, interval)

    def _on_message(self, message: Any) -> None:
        name = message.delivery_info["routing_key"]
        try:
            adopt(self._ledger, self._settings, name, [as_in_redis(message)])
            self._ledger.ring(name)
        except redis.RedisError as error:
            log.warning("could not store a message of queue %s: %s; it goes back to the queue", name, error)
            message.requeue()
            threading.Event().wait(PAUSE_S)
        else:
            message.ack()


def as_in_redis(message: Any) -> bytes:
    """A kombu message as Redis's transport keeps it, in JSON."""
    body = message.body.encode() if isinstance(message.body, str) else bytes(message.body)
    kept = {
        "body": base64.b64encode(body).decode(),
        "content-type": message.content_type,
        "headers": message.headers,
        "properties": {"body_encoding": "base64"},
    }
    return json.dumps(kept, default=str).encode()
