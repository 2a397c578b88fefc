"""Messages with a priority, which kombu's Redis transport keeps in lists of their own.

A pool process can wait for one list alone, the service's own (``Ledger.wait``); each of these threads waits for another
and moves its messages to that one. One command of Redis does it, so no message is ever in neither. A list without
messages costs nothing: the command blocks. Their order is the ledger's, by each message's own priority.
"""

from __future__ import annotations

import logging
import threading

import redis

from worker.net.redis_clients import make_client
from worker.settings import Settings

log = logging.getLogger("services.worker")

#: kombu's steps of priority but the first, whose list is the service's own, and the text before them in a key.
STEPS, SEPARATOR = (3, 6, 9), "\x06\x16"
#: Seconds that a command may block, after which it is given again.
BLOCK_S = 30.0
#: Seconds beyond that in which it must be answered.
GRACE_S = 5.0
#: Pause where Redis is away.
AWAY_S = 0.5


class PriorityMover(threading.Thread):
    """Moves the messages of one priority of one service until the worker ends."""

    def __init__(self, settings: Settings, service: str, step: int, stopping: threading.Event) -> None:
        super().__init__(name=f"priority-{step}-{service}", daemon=True)
        self._redis = make_client(settings.url, socket_timeout=BLOCK_S + GRACE_S, socket_connect_timeout=GRACE_S)
        self._from, self._to = f"{service}{SEPARATOR}{step}", service
        self._stopping = stopping

    def run(self) -> None:
        """The oldest message of that list becomes the youngest of the service's own."""
        while not self._stopping.is_set():
            try:
                self._redis.execute_command(  # type: ignore[no-untyped-call]
                    "BLMOVE", self._from, self._to, "RIGHT", "LEFT", BLOCK_S
                )
            except redis.RedisError as error:
                log.debug("no message moved: %s", error)  # the lease thread logs that Redis is away
                self._stopping.wait(AWAY_S)


def make_movers(settings: Settings, services: list[str], stopping: threading.Event) -> list[PriorityMover]:
    """Those that a worker needs; none where RabbitMQ is the broker, as beside a Redis Cluster."""
    if settings.broker_url or settings.cluster:
        return []
    return [PriorityMover(settings, name, step, stopping) for name in services for step in STEPS]
