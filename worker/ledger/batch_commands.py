"""Commands of batches (``POST /batches``): chunks as they arrive, the batch, its end, its retry."""

from __future__ import annotations

import uuid
from typing import Any

from worker.errors import JobExpired, JobFinished, JobNotRetryable, ServicesError, StoreUnavailable
from worker.ledger.batches import FIELDS, STAGED_S, Chunk, NewBatch, StoredBatch, StoredChunk
from worker.ledger.commands import PRIORITY_STEPS, Command, Fetch, conflict, nothing, queue_full, too_many_open
from worker.ledger.jobs import Priority
from worker.ledger.keys import batch_key, hash_promise, record_key
from worker.ledger.messages import build_bell
from worker.settings import Settings


def stage(service: str, chunk: Chunk) -> Command[None]:
    """Store a chunk of a batch that is still arriving; it vanishes by itself unless the batch is sealed."""
    arguments: list[Any] = [chunk.id, chunk.group, chunk.first, len(chunk.rows)]
    arguments += [b"\n".join(chunk.rows), round(STAGED_S * 1e6)]
    return Command(service, "stage", arguments, nothing)


def discard(service: str, group: str, chunks: int) -> Command[None]:
    """Forget the chunks of a batch that will not be completed."""
    return Command(service, "discard", [group, chunks], nothing)


def seal(settings: Settings, batch: NewBatch, room: int | str) -> Command[str]:
    """Accept a batch whose chunks are all stored; the result is the id of the batch that answers the request.

    Args:
        room: jobs that the API key may still have open in this service; "": any number.

    Raises ``QueueFull``, ``RateLimited``, ``IdempotencyConflict``, or ``StoreUnavailable`` where chunks are gone.
    """

    def read(reply: Any) -> str:
        state, detail = reply
        match state:
            case b"queued":
                return batch.id
            case b"same":
                return str(detail.decode())
            case b"conflict":
                raise conflict(detail.decode())
        raise _no_room(batch.service, state, detail) or StoreUnavailable(
            f"the batch took longer than {STAGED_S:g} s to arrive; send it again"
        )

    arguments: list[Any] = [batch.id, batch.version, batch.priority.value]
    arguments += [_offset_us(settings, batch.priority), round(batch.keep_for_s * 1e6)]
    arguments += [batch.metadata, batch.rows, batch.chunks, batch.size, build_bell()]
    arguments += [hash_promise(batch.idempotency_key, batch.owner), batch.body_hash, batch.webhook, batch.owner, room]
    return Command(batch.service, "seal", arguments, read)


def advance(service: str, batch_id: str) -> Command[bool]:
    """The next page of chunks of a cancel or a retry; the result is whether further pages can follow at once."""
    return Command(service, "advance", [batch_id], lambda reply: reply == 1)


def cancel_batch(service: str, batch_id: str) -> Command[bool]:
    """Cancel the chunks that have not ended, a first page of them; the result is that of ``advance``.

    Raises ``JobFinished``.
    """

    def read(reply: Any) -> bool:
        if reply == -1:
            raise JobFinished(f"batch {batch_id} has already ended")
        return bool(reply == 1)

    return Command(service, "cancel_batch", [batch_id], read)


def retry_batch(settings: Settings, batch: StoredBatch, room: int | str) -> Command[bool]:
    """Queue those rows of a batch again that failed or were cancelled, a first page; the result is that of ``advance``.

    Raises ``JobExpired``, ``JobNotRetryable``, ``QueueFull`` or ``RateLimited``.
    """

    def read(reply: Any) -> bool:
        if reply is None:
            raise JobExpired(f"batch {batch.id} was dropped in this moment: its keep_for_s is over")
        state, detail = reply
        match state:
            case b"open":
                raise JobNotRetryable(f"batch {batch.id} has not ended; what failed can be run again once it has")
            case b"none":
                raise JobNotRetryable(f"every input of batch {batch.id} succeeded; there is nothing to run again")
        if error := _no_room(batch.service, state, detail):
            raise error
        return bool(detail == 1)

    arguments = [batch.id, uuid.uuid4().hex, _offset_us(settings, batch.priority), room]
    return Command(batch.service, "retry_batch", arguments, read)


def follow_batch(service: str, batch_id: str) -> Command[StoredBatch | None]:
    """The state of a batch; None where it has been dropped. From then on ``TOLD_CHANNEL`` carries its changes."""

    def read(reply: Any) -> StoredBatch | None:
        return StoredBatch.from_record(batch_id, dict(zip(reply[0::2], reply[1::2], strict=True))) if reply else None

    return Command(service, "hear_batch", [batch_id], read)


def fetch_batch(service: str, batch_id: str) -> Fetch[StoredBatch]:
    """One batch. Raises ``JobExpired`` where it was dropped."""

    def read(replies: list[Any]) -> StoredBatch:
        if not replies[0]:
            raise JobExpired(f"batch {batch_id[:100]} ended and was dropped when its keep_for_s was over")
        return StoredBatch.from_record(batch_id, replies[0])

    return Fetch(lambda pipe: pipe.hgetall(batch_key(service, batch_id)), read)


def fetch_chunk(batch: StoredBatch, number: int) -> Fetch[StoredChunk]:
    """One chunk. Raises ``JobExpired`` where the batch was dropped."""

    def read(replies: list[Any]) -> StoredChunk:
        chunk = StoredChunk.from_fields(replies[0])
        if chunk is None:
            raise JobExpired(f"batch {batch.id} was dropped when its keep_for_s was over")
        return chunk

    return Fetch(lambda pipe: pipe.hmget(_chunk_key(batch, number), *FIELDS), read)


def fetch_chunk_field(batch: StoredBatch, number: int, field: str) -> Fetch[bytes]:
    """Lines of a chunk, b"" for none: of a part of its results, or of its ``input``, the rows without a result."""
    return Fetch(lambda pipe: pipe.hget(_chunk_key(batch, number), field), lambda replies: replies[0] or b"")


def _chunk_key(batch: StoredBatch, number: int) -> str:
    return record_key(batch.service, f"{batch.id}.{number}")


def _no_room(service: str, state: bytes, detail: bytes) -> ServicesError | None:
    if state == b"full":
        return queue_full(service, int(detail))
    return too_many_open(int(detail)) if state == b"limited" else None


def _offset_us(settings: Settings, priority: Priority) -> int:
    return round(PRIORITY_STEPS[priority] * settings.priority_step_s * 1e6)
