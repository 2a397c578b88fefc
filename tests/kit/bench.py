"""A ledger alone on a Redis of its own, driven as the API and as workers drive it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from worker.ledger import batch_commands, commands, worker_commands
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.batches import Chunk, NewBatch
from worker.ledger.equal_jobs import ask, digest_model
from worker.ledger.jobs import Job, NewJob, Priority, Status
from worker.ledger.sync_ledger import Ledger
from worker.ledger.worker_commands import Ending, Stored
from worker.settings import Settings

T = TypeVar("T")


KNOBS = {
    "max_batch_size": 10,
    "max_queue_delay_ms": 0,
    "preferred_batch_sizes": [],
    "max_queue_size": 0,
    "max_queue_bytes": 0,
    "max_attempts": 3,
    "cache_for_s": 0,
}


class Bench:
    """A ledger on a Redis of its own, driven as the API and as workers drive it."""

    def __init__(self, url: str) -> None:
        self.settings = Settings(redis_url=url, lease_s=2)
        self.ledger = Ledger(self.settings)
        self.redis: Any = self.ledger.redis

    def api(self, call: Callable[[AsyncLedger], Awaitable[T]]) -> T:
        async def run() -> T:
            ledger = AsyncLedger(self.settings)
            try:
                return await call(ledger)
            finally:
                await ledger.close()

        return asyncio.run(run())

    def create(self, count: int = 1, **fields: Any) -> list[str]:
        jobs = [NewJob(service=fields.pop("service", "echo"), input=b'{"n":1}', **fields) for _ in range(count)]
        made = self.api(lambda ledger: ledger.create(jobs))
        assert all(isinstance(job, Job) for job in made)
        return [job.id for job in jobs]

    def get(self, job_id: str) -> Job:
        return self.api(lambda ledger: ledger.get(job_id))

    def claim(self, token: str, worker: str = "w1", **knobs: Any) -> list[str]:
        claim = self.ledger.run(worker_commands.claim("echo", worker, token, KNOBS | knobs))
        assert claim.kind == "batch"
        return claim.ids

    def complete(self, token: str, *ids: str, status: Status = Status.SUCCEEDED) -> list[bool]:
        value = b'{"n":1}' if status is Status.SUCCEEDED else b'{"code":"predict_failed","message":"m"}'
        stored = self.ledger.run(
            worker_commands.complete("echo", token, [Ending(i, status, value, b"{}", len(ids)) for i in ids])
        )
        return [became is Stored.ENDED for became in stored]

    def lapse(self, worker: str) -> None:
        """The worker's lease is over."""
        self.redis.zadd("{echo}:workers", {worker: 1})
        self.sweep()

    def sweep(self, last_s_ago: float = 0.45) -> list[str]:
        """As if the sweep before had been so long ago."""
        self.redis.set("{echo}:swept", int((self.redis.time()[0] - last_s_ago) * 1e6 + self.redis.time()[1]))
        return self.ledger.run(commands.sweep("echo", 2))


async def send_chunk(ledger: AsyncLedger, owner: str = "") -> None:
    await ledger.run(batch_commands.stage("echo", Chunk("b", 0, 0, [b"0", b"1", b"2", b"3"])))
    await ledger.seal(NewBatch("echo", "1", 4, 1, 7, Priority.NORMAL, 60, b"{}", "b", owner=owner))


MODEL = digest_model("1", KNOBS)


DONE = b'{"n":1}'


class CacheBench(Bench):
    """A bench whose service keeps results for a minute."""

    def send(self, input: int = 1, cache_for_s: float | None = None, **fields: Any) -> str:
        """One job; equal inputs have equal numbers."""
        new = NewJob(service="echo", version="1", input=b'{"n":1}', cache=ask(f"f{input}", cache_for_s), **fields)
        (job,) = self.api(lambda ledger: ledger.create([new]))
        if isinstance(job, Exception):
            raise job
        assert isinstance(job, Job)
        return job.id

    def take(self, token: str, most: int = 10, model: str = MODEL, worker: str = "w1") -> list[str]:
        claim = self.ledger.run(
            worker_commands.claim("echo", worker, token, KNOBS | {"max_batch_size": most}, "1", model)
        )
        assert claim.kind == "batch"
        return claim.ids

    def end(self, token: str, job_id: str, output: bytes = DONE) -> Stored:
        (stored,) = self.ledger.run(
            worker_commands.complete("echo", token, [Ending(job_id, Status.SUCCEEDED, output, b"{}", 1)])
        )
        return stored

    def fail(self, token: str, job_id: str, pause_s: float = 0) -> None:
        error = b'{"code":"predict_failed","message":"m","retryable":false}'
        self.ledger.run(
            worker_commands.complete("echo", token, [Ending(job_id, Status.FAILED, error, b"{}", 1, pause_s=pause_s)])
        )

    def states(self, *ids: str) -> list[str]:
        return [self.get(job_id).status.value for job_id in ids]

    def waiting(self) -> list[str]:
        return [job_id.decode() for job_id in self.redis.zrange("{echo}:waiting", 0, -1)]

    def keys_of_cache(self) -> list[str]:
        found = [key.decode() for key in self.redis.keys("{echo}:*")]
        return sorted(key for key in found if key.split(":")[1] in ("cached", "equals", "leader"))

    def parked(self) -> int:
        return int(self.redis.hget("{echo}:about", "parked") or 0)

    def check(self) -> None:
        """What always holds of the equals: one waits for all, or none while one runs."""
        parked = 0
        for raw in self.redis.keys("{echo}:equals:*"):
            ids = [job_id.decode() for job_id in self.redis.zrange(raw, 0, -1)]
            key = raw.decode().split(":", 2)[2]
            leads = bool(self.redis.exists(f"{{echo}}:leader:{key}"))
            in_queue = [job_id for job_id in ids if self.redis.zscore("{echo}:waiting", job_id) is not None]
            assert in_queue == ([] if leads else ids[:1]), (ids, in_queue, leads)
            parked += len(ids) - len(in_queue)
        assert self.parked() == parked
        for raw in self.redis.keys("{echo}:leader:*"):
            leader = self.redis.get(raw).decode()
            assert self.redis.hget(f"{{echo}}:job:{leader}", "status") == b"running"
        for raw in self.redis.keys("{echo}:cached:*"):
            assert self.redis.pttl(raw) != -1, "it has a time to live"
