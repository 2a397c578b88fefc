"""The renewer of a worker's lease beside a real Redis."""

from __future__ import annotations

import redis

from tests.kit.system import RedisServer, poll
from worker.pool.lease import LeaseRenewer
from worker.settings import Settings

KNOBS = {"max_queue_size": 2, "max_queue_bytes": 0, "cache_for_s": 0.0}


def test_a_worker_that_ends_just_after_it_was_ready_has_published_its_limits(redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url)
    renewer = LeaseRenewer(Settings(redis_url=redis_server.url), ["echo"], lambda _: None, lambda: None)
    renewer.start()
    poll(lambda: client.zcard("{echo}:workers"), what="the worker has joined")
    renewer.ready({"echo": ("1.0", KNOBS)})
    renewer.leave()
    assert client.hmget("{echo}:about", "version", "max_queue_size") == [b"1.0", b"2"]
    assert not client.zcard("{echo}:workers")
    client.close()
    renewer._ledger.redis.close()
