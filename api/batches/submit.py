"""How a batch is submitted, whichever protocol asks for it; no object of HTTP comes in or goes out here.

The rows are cut into chunks as they arrive, and each chunk is stored at once, so that a gigabyte passes through in
little memory. The batch is accepted, and begins to run, when all chunks are stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

from api.auth.keyring import Caller
from api.catalog import Entry
from api.jobs.retention import retain_files_of_chunk
from api.problems import PayloadTooLarge
from api.requests import BatchRequest, dump_strictly
from api.state import State
from worker.errors import InvalidInput, ServicesError
from worker.ledger import batch_commands, commands
from worker.ledger.batches import Chunk, NewBatch, StoredBatch, cut, rows_of_chunk
from worker.ledger.jobs import Priority
from worker.service import Service
from worker.settings import Settings
from worker.webhooks.events import dump_webhook


async def submit_batch(
    state: State,
    caller: Caller,
    asked: BatchRequest,
    inputs: AsyncIterator[list[bytes]],
    *,
    key: str = "",
    where: Sequence[str] = ("body",),
) -> tuple[StoredBatch, bool]:
    """Store all chunks, then the batch; return it and whether it is new.

    Nothing is left of a batch that fails, or of one that an earlier request with the same key has made.

    Args:
        inputs: the rows, each as JSON. The ``inputs`` of ``asked`` are not read.
        key: the idempotency key, by which a repeated request gets the batch of the first one.
        where: place of the rows in the request, for an error's ``loc``.
    """
    ledger, service = state.ledger, asked.service
    entry = state.catalog.find(service, caller)
    if asked.webhook:
        await state.receivers.check(asked.webhook.url)
    overview = await ledger.run(commands.overview(service))
    max_batch_size = (overview.knobs or {}).get("max_batch_size", Service.max_batch_size)
    most_rows = rows_of_chunk(max_batch_size, overview.pace_s)
    batch_id = str(uuid.uuid4())
    about = repr(asked.model_dump(exclude={"inputs"})).encode()
    rows = Rows(inputs, state.settings, caller.most_open, hashlib.sha256(about) if key else None)
    try:
        async with contextlib.aclosing(_one_ahead(cut(rows.read(), batch_id, most_rows))) as arriving:
            async for chunk in arriving:
                rows.chunks += 1
                await retain_files_of_chunk(state, entry, chunk, caller.owner)
                await ledger.run(batch_commands.stage(service, chunk))
        if not rows.chunks:
            must = "expected at least one input"
            raise InvalidInput(must, errors=[{"loc": [*where], "msg": must, "type": "too_short"}])
        keep_for_s = asked.keep_for_s or state.settings.keep_for_s
        stored_id = await ledger.seal(_make_batch(asked, rows, entry, caller, keep_for_s, id=batch_id, key=key))
    except BaseException:
        with contextlib.suppress(ServicesError):  # chunks without a batch expire by themselves
            await asyncio.shield(ledger.run(batch_commands.discard(service, batch_id, rows.chunks)))
        raise
    if stored_id != batch_id:
        await ledger.run(batch_commands.discard(service, batch_id, rows.chunks))
    return await ledger.get_batch(stored_id), stored_id == batch_id


def _make_batch(
    asked: BatchRequest, rows: Rows, entry: Entry, caller: Caller, keep_for_s: float, *, id: str, key: str
) -> NewBatch:
    return NewBatch(
        service=asked.service,
        version=entry.plugin.version,
        rows=rows.count,
        chunks=rows.chunks,
        size=rows.size,
        priority=Priority(asked.priority),
        keep_for_s=keep_for_s,
        metadata=dump_strictly(asked.metadata, "metadata"),
        idempotency_key=key,
        body_hash=rows.hash.hexdigest() if rows.hash else "",
        id=id,
        webhook=dump_webhook(asked.webhook.url, ()) if asked.webhook else b"",
        owner=caller.owner,
        most_open=caller.most_open,
    )


@dataclass(slots=True)
class Rows:
    """The rows of a batch while they arrive: counted, checked against the limits, and hashed for an idempotency key."""

    inputs: AsyncIterator[list[bytes]]
    settings: Settings
    most_open: int | None
    hash: hashlib._Hash | None  #: of the whole request; None without an idempotency key
    count: int = 0
    size: int = 0
    chunks: int = 0

    async def read(self) -> AsyncIterator[list[bytes]]:
        """The rows. Raises ``PayloadTooLarge``."""
        most, most_bytes = self.settings.max_batch_inputs, self.settings.max_batch_bytes
        async for rows in self.inputs:
            text = b"\n".join(rows)
            self.count += len(rows)
            self.size += len(text) - len(rows) + 1
            if self.hash:
                self.hash.update(text + b"\n")
            if self.count > most:
                raise PayloadTooLarge(f"more than {most} inputs (SERVICES_MAX_BATCH_INPUTS)")
            if self.most_open is not None and self.count > self.most_open:
                raise PayloadTooLarge(f"more than {self.most_open} inputs, which is the API key's concurrency")
            if self.size > most_bytes:
                raise PayloadTooLarge(f"the inputs are over {most_bytes} bytes (SERVICES_MAX_BATCH_BYTES)")
            yield rows


async def _one_ahead(chunks: AsyncIterator[Chunk]) -> AsyncGenerator[Chunk]:
    """Read each chunk while the one before it is stored: 100,000 rows are stored 1.2 times as fast (measured)."""
    arriving = asyncio.ensure_future(anext(chunks, None))
    try:
        while chunk := await arriving:
            arriving = asyncio.ensure_future(anext(chunks, None))
            yield chunk
    finally:
        arriving.cancel()
        await asyncio.gather(arriving, return_exceptions=True)
