"""The API's side of batches in the ledger: chunks as they arrive, the batch, its results."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from worker.errors import JobExpired, JobFinished, JobNotRetryable, StoreUnavailable
from worker.ledger.async_client import LedgerClient
from worker.ledger.batches import FIELDS, STAGED_S, Bulk, Chunk, NewBulk, StoredChunk
from worker.ledger.jobs import Priority
from worker.ledger.messages import build_bell
from worker.ledger.replies import conflict, not_found
from worker.ledger.sync_ledger import Priorities, bulk_key, hash_promise, head, queue_full, record_key, too_many_open


class BatchLedger(LedgerClient):
    """What may be asked of batches; part of ``AsyncLedger``."""

    async def stage(self, service: str, chunk: Chunk) -> None:
        """Store a chunk of a batch that is still on its way; it vanishes by itself unless the batch is sealed."""
        arguments: list[Any] = [chunk.id, chunk.group, chunk.first, len(chunk.rows)]
        arguments += [b"\n".join(chunk.rows), round(STAGED_S * 1e6)]
        await self._call(service, [*head("stage", self._settings), *arguments])

    async def discard(self, service: str, group: str, chunks: int) -> None:
        """Forget the chunks of a batch that will not come."""
        await self._call(service, [*head("discard", self._settings), group, chunks])

    async def seal(self, batch: NewBulk) -> str:
        """Accept a batch whose chunks are all there; the id of the batch that answers the request.

        Raises ``QueueFull``, ``IdempotencyConflict``, or ``StoreUnavailable`` where chunks are gone already.
        """
        await self._announce(batch.service)
        key = hash_promise(batch.idempotency_key, batch.owner)
        arguments: list[Any] = [batch.id, batch.version, batch.priority.value]
        arguments += [self._offset_us(batch.priority), round(batch.keep_for_s * 1e6)]
        arguments += [batch.metadata, batch.rows, batch.chunks, batch.size, build_bell(), key]
        arguments += [batch.body_hash, batch.webhook, batch.owner]
        arguments += [await self._room(batch.owner, batch.service, batch.most_open)]
        state, detail = await self._call(batch.service, [*head("seal", self._settings), *arguments])
        if state == b"queued":
            self._remember(f"batch:{batch.id}", batch.service)
            return batch.id
        if state == b"same":
            return str(detail.decode())
        if state == b"full":
            raise queue_full(batch.service, int(detail))
        if state == b"limited":
            raise too_many_open(int(detail))
        if state == b"conflict":
            raise conflict(detail.decode())
        raise StoreUnavailable(f"the batch took longer than {STAGED_S:g} s to arrive; send it again")

    async def get_batch(self, batch_id: str, sees: str = "") -> Bulk:
        """One batch. Raises ``JobNotFound``, or ``JobExpired`` where it was dropped."""
        (service,) = await self._find([f"batch:{batch_id}"])
        if not service or (sees and sees != await self._was_owned_by(service, f"batch:{batch_id}")):
            raise not_found(batch_id, "batch")
        async with self.guard():
            record: Any = await self.redis.hgetall(bulk_key(service, batch_id))
        if not record:
            raise JobExpired(f"batch {batch_id[:100]} ended and was dropped when its keep_for_s was over")
        return Bulk.from_record(batch_id, record)

    async def get_chunk(self, batch: Bulk, number: int) -> StoredChunk:
        """One chunk. Raises ``JobExpired`` where the batch was dropped."""
        async with self.guard():
            found: Any = await self.redis.hmget(record_key(batch.service, f"{batch.id}.{number}"), *FIELDS)
        chunk = StoredChunk.from_fields(found)
        if chunk is None:
            raise JobExpired(f"batch {batch.id} was dropped when its keep_for_s was over")
        return chunk

    async def get_part(self, batch: Bulk, number: int, field: str) -> bytes:
        """The lines of a part of a chunk's results; b"" where it is there no longer."""
        async with self.guard():
            lines: Any = await self.redis.hget(record_key(batch.service, f"{batch.id}.{number}"), field)
        return lines or b""

    async def get_rows(self, batch: Bulk, number: int) -> bytes:
        """The rows of a chunk that would run again, or are yet to run, as lines of JSON; b"" for none."""
        async with self.guard():
            rows: Any = await self.redis.hget(record_key(batch.service, f"{batch.id}.{number}"), "input")
        return rows or b""

    async def cancel_batch(self, batch_id: str, sees: str = "") -> Bulk:
        """Cancel what has not ended. Raises ``JobNotFound``, ``JobExpired`` or ``JobFinished``."""
        batch = await self.get_batch(batch_id, sees)
        if not await self._call(batch.service, [*head("cancel_batch", self._settings), batch_id]):
            raise JobFinished(f"batch {batch_id} has already ended")
        return await self.get_batch(batch_id)

    async def retry_batch(
        self,
        batch_id: str,
        sees: str = "",
        most_open: int | None = None,
        before: Callable[[Bulk], Awaitable[None]] | None = None,
    ) -> Bulk:
        """Run those rows of a batch again that failed or were cancelled, and give it as they are queued.

        Args:
            most_open: the jobs that the API key may have open, where the batch is its own.
            before: is called with a batch of which something may be run again.

        Raises ``JobNotFound``, ``JobExpired``, ``JobNotRetryable``, ``QueueFull`` or ``RateLimited``.
        """
        batch = await self.get_batch(batch_id, sees)
        if before and batch.ended and batch.failed + batch.cancelled:
            await before(batch)
        arguments = [*head("retry_batch", self._settings), batch_id, uuid.uuid4().hex]
        arguments += [self._offset_us(batch.priority), build_bell(), await self._room(sees, batch.service, most_open)]
        reply = await self._call(batch.service, arguments)
        if reply is None:
            raise JobExpired(f"batch {batch_id} was dropped in this moment: its keep_for_s is over")
        state, detail = reply
        if state == b"full":
            raise queue_full(batch.service, int(detail))
        if state == b"limited":
            raise too_many_open(int(detail))
        if state == b"open":
            raise JobNotRetryable(f"batch {batch_id} has not ended; what failed can be run again once it has")
        if state == b"none":
            raise JobNotRetryable(f"every input of batch {batch_id} succeeded; there is nothing to run again")
        return await self.get_batch(batch_id)

    def _offset_us(self, priority: Priority) -> int:
        return round(Priorities[priority] * self._settings.priority_step_s * 1e6)
