"""Webhooks: the events of a job's end, their deliveries, and the secrets that sign them.

One step of the ledger writes both the end of a job and its *event*, the latter into the service's outbox. The worker of
the queue ``webhooks`` turns each event into a *delivery*: a job of the service ``webhooks`` with the event as its
input. All rules of jobs (leases, recovery, pauses before a retry, the history of attempts) thus apply to deliveries.

Keys of this module, beside those of the ledger (W is "{webhooks}"):
  S:outbox             stream events that are no deliveries yet, from ``lua/lib/webhooks.lua`` to ``outbox.py``
  W:of:<kind>:<id>     zset   the deliveries of one job or batch by the time of their making
  W:secret             list   secrets that were made here, newest first: two at most
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import redis
from pydantic_core import to_json

from worker.ledger.batches import StoredBatch
from worker.ledger.jobs import TERMINAL, Job, NewJob, rfc3339
from worker.names import WEBHOOKS
from worker.net.signing import make_secret
from worker.settings import Settings

SECRET_KEY = f"{{{WEBHOOKS}}}:secret"
#: Secrets that sign at the same time, after a rotation: the new one and the one before.
LIVE_SECRETS = 2

JOB_EVENTS = tuple(sorted(f"job.{status}" for status in TERMINAL))
BATCH_EVENTS = ("batch.finished",)

Kind = Literal["job", "batch"]

#: Namespace of deliveries' ids: an event that is read twice becomes the same delivery.
NAMESPACE = uuid.UUID("5c0a3b0e-51e5-4d2c-9f0e-1f1c1f7f6f0e")


@dataclass(frozen=True, slots=True)
class EndEvent:
    """The end of a job or batch, as the outbox stores it."""

    kind: Kind
    id: str  #: of the job or batch
    type: str  #: "job.succeeded", ...
    record: dict[bytes, bytes]  #: as it ended; an output or error of more than 256 KiB is left out

    @classmethod
    def from_entry(cls, fields: dict[bytes, bytes]) -> EndEvent:
        """Read an entry of the outbox."""
        flat = [text.encode() for text in json.loads(fields[b"record"])]
        kind: Kind = "batch" if fields[b"kind"] == b"batch" else "job"
        record = dict(zip(flat[0::2], flat[1::2], strict=True))
        return cls(kind, fields[b"id"].decode(), fields[b"type"].decode(), record)

    @property
    def delivery_id(self) -> str:
        """The id of the event's delivery: equal for equal ends."""
        return str(uuid.uuid5(NAMESPACE, f"{self.id} {self.record[b'finished'].decode()}"))

    def payload(self) -> bytes:
        """The body of the webhook: ``{"type", "timestamp", "data"}``, the data as ``GET`` shows it."""
        head = to_json({"type": self.type, "timestamp": rfc3339(int(self.record[b"finished"]))})
        return head[:-1] + b',"data":' + self._data() + b"}"

    def to_delivery(self) -> NewJob:
        """The delivery, as a job of ``webhooks``."""
        url = json.loads(self.record[b"webhook"])["url"]
        message = {"webhook_id": self.delivery_id, "url": url, "type": self.type, "of": f"{self.kind}:{self.id}"}
        keep_for_s = int(self.record[b"keep"]) / 1e6
        return NewJob(WEBHOOKS, self.payload(), self.delivery_id, metadata=to_json(message), keep_for_s=keep_for_s)

    def _data(self) -> bytes:
        if self.kind == "batch":
            return StoredBatch.from_record(self.id, self.record).to_json()
        job = Job.from_record(self.id, self.record)
        text = job.to_json()
        left_out = {"succeeded": job.output, "failed": job.error}.get(job.status, b"") is None
        return text[:-1] + b',"left_out":true}' if left_out else text


def index_key(kind: Kind, id: str) -> str:
    """The zset of the deliveries of one job or batch."""
    return f"{{{WEBHOOKS}}}:of:{kind}:{id}"


def outbox_key(service: str) -> str:
    """The stream of a service's events."""
    return f"{{{service}}}:outbox"


def dump_webhook(url: str, events: Sequence[str]) -> bytes:
    """The webhook as the ledger stores it; an empty list of events means all events."""
    return to_json({"url": url, "events": list(events)} if events else {"url": url})


def read_secrets(client: redis.Redis, settings: Settings) -> list[str]:
    """The secrets to sign with, newest first; makes the first secret if there is none."""
    if settings.webhook_secrets:
        return list(settings.webhook_secrets)
    if not client.exists(SECRET_KEY):
        _add_secret(client, only_first=True)
    secrets: Any = client.lrange(SECRET_KEY, 0, -1)
    return [secret.decode() for secret in secrets]


def rotate_secrets(client: redis.Redis, settings: Settings) -> list[str]:
    """Add a new secret; the previous one signs as well until the next rotation."""
    read_secrets(client, settings)
    _add_secret(client, only_first=False)
    return read_secrets(client, settings)


#: A script, since two processes that make the first secret at the same time must get the same one.
_ADD = """
if ARGV[2] == '1' and redis.call('EXISTS', KEYS[1]) == 1 then return end
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], 0, ARGV[3] - 1)
"""


def _add_secret(client: redis.Redis, only_first: bool) -> None:
    client.eval(_ADD, 1, SECRET_KEY, make_secret(), int(only_first), LIVE_SECRETS)
