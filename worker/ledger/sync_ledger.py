"""The ledger for a worker's processes, for commands and for Celery's result backend: blocking calls of redis-py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from worker.ledger import commands, worker_commands
from worker.ledger.commands import Command, Fetch
from worker.ledger.jobs import LARGE_FIELDS, Job, NewJob, Status
from worker.ledger.keys import SERVICES_KEY, record_key, seen_key
from worker.ledger.messages import build_bell
from worker.ledger.scripts import Scripts
from worker.names import WEBHOOKS
from worker.net.redis_clients import make_client
from worker.settings import Settings

T = TypeVar("T")


class Ledger:
    """Sends commands, and repeats a call whose answer was lost. Raises redis-py's own errors.

    Args:
        timeout_s: longest wait for an answer; the call is repeated ``retries`` times after that.
    """

    def __init__(self, settings: Settings, timeout_s: float = 5, retries: int = 3) -> None:
        self._settings = settings
        self.redis = make_client(
            settings.url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=1), retries),
            health_check_interval=15,
        )
        self._script = Scripts(self.redis)

    def run(self, command: Command[T]) -> T:
        """Run one operation."""
        return command.read(self._script(keys=[command.service], args=command.to_arguments(self._settings)))

    def fetch(self, fetch: Fetch[T]) -> T:
        """Read, in one round trip."""
        pipe = self.redis.pipeline(transaction=False)
        fetch.add(pipe)
        return fetch.read(pipe.execute())

    def join(self, service: str, worker: str, info: Mapping[str, Any]) -> None:
        """Enter a new worker of a service, with its lease."""
        self.redis.sadd(SERVICES_KEY, service)
        self.run(worker_commands.join(service, worker, self._settings.lease_s, info))

    def fail(self, service: str, failure: Mapping[str, Any]) -> None:
        """Report why a plugin cannot be loaded."""
        self.redis.sadd(SERVICES_KEY, service)
        self.run(worker_commands.fail(service, failure))

    def adopt(self, service: str, jobs: Sequence[NewJob], errors: Sequence[bytes]) -> list[str]:
        """Store the jobs that came as other producers' messages; those with an error end with it at once.

        Gives for each "queued", "other" (the id is that of a job with another input) or "revoked".
        """
        self.redis.sadd(SERVICES_KEY, service)
        return commands.read_texts(self.run(commands.create(self._settings, jobs, errors)).states)

    def ring(self, service: str) -> None:
        """Wake a worker that waits for a message."""
        self.redis.lpush(service, build_bell())

    def wait(self, service: str, timeout_s: float) -> None:
        """Block until a message is in the service's queue, for a limited time. Takes nothing out.

        Moving the last message of a list to its end changes nothing, and blocks where there is none.
        """
        self.redis.execute_command("BLMOVE", service, service, "RIGHT", "RIGHT", timeout_s)

    def answers(self) -> bool:
        """Whether Redis answers, over another connection than one that was just cut."""
        try:
            return bool(self.redis.ping())
        except redis.RedisError:
            return False

    def cancel(self, job_id: str) -> None:
        """Cancel a job that has not ended; nothing happens to one that has."""
        if service := self.find(job_id):
            self.run(commands.cancel(service, job_id))

    def revoke(self, job_id: str, running: bool) -> str:
        """Cancel a known job of whichever service; the status that it had, "" for an unknown one."""
        service = self.find(job_id)
        return self.run(commands.revoke(service, [job_id], running))[0] if service else ""

    def retry(self, job_id: str) -> None:
        """Run a failed, cancelled or expired job again. Raises ``JobNotFound`` and the errors of ``commands.retry``."""
        service = self.find(job_id)
        if not service:
            raise commands.not_found(job_id)
        self.run(commands.retry(service, job_id))

    def failed(self, service: str) -> Iterator[str]:
        """The ids of all failed jobs of a service, newest first."""
        before = None
        while True:
            before, ids = self.run(commands.list_jobs(service, Status.FAILED, commands.LOOK_AT, before))
            yield from ids
            if before is None:
                return

    def get(self, job_id: str) -> Job | None:
        """One job without its input; None for one that is unknown or dropped."""
        service = self.find(job_id)
        return self.fetch(commands.fetch_job(service, job_id)) if service else None

    def get_input(self, job: Job) -> bytes:
        """A job's input, as JSON."""
        stored: Any = self.redis.hget(record_key(job.service, job.id), LARGE_FIELDS["input"])
        return stored or b"null"

    def find(self, job_id: str) -> str:
        """The service of a client's job; "" for an unknown one. A worker's Redis user sees its services' keys alone.

        Deliveries of webhooks are no client's.
        """
        services = sorted({name.decode() for name in self.redis.smembers(SERVICES_KEY)} - {WEBHOOKS})
        pipe = self.redis.pipeline(transaction=False)
        for service in services:
            pipe.exists(record_key(service, job_id), seen_key(service, job_id))
        for service, reply in zip(services, pipe.execute(raise_on_error=False), strict=True):
            if isinstance(reply, redis.exceptions.NoPermissionError):
                continue
            if isinstance(reply, Exception):
                raise reply
            if reply:
                return service
        return ""
