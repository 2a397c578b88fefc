"""A job retains the files that its input names: none of them is deleted before the job has ended.

The only place of the API that asks the file store for it, for new jobs, retried jobs and the chunks of batches.
"""

from __future__ import annotations

from collections.abc import Sequence

from api.catalog import Entry
from api.state import State
from worker.files import File, Where
from worker.ledger import batch_commands
from worker.ledger.batches import Chunk, StoredBatch
from worker.ledger.jobs import Job, NewJob

#: Files of an input, each with its place in it.
NamedFiles = Sequence[tuple[Where, File]]


async def retain_files(state: State, entry: Entry, job: NewJob, files: NamedFiles) -> None:
    """Before a job is stored: check and retain its files. Raises ``InvalidInput`` that names each bad field.

    A service without a schema may name files that nobody has found yet; the worker reports those that do not exist.
    """
    if files:
        await state.files.hold(job, files)
    elif entry.input is None:
        await state.files.hold_named(job.service, job.id, job.owner, job.input)


async def retain_files_again(state: State, job: Job) -> None:
    """Before an ended job runs again: retain its files. Raises ``JobNotRetryable`` where one is gone."""
    entry = state.catalog.entries.get(job.service)
    if entry is None or entry.input is None:
        await state.files.hold_named(job.service, job.id, job.owner, job.input)
    elif files := entry.find_stored(job.input):
        await state.files.hold_again(job, files)


async def retain_files_of_chunk(state: State, entry: Entry, chunk: Chunk, owner: str) -> None:
    """Before a chunk of a batch is stored: retain the files of its rows."""
    if entry.takes_files:
        await state.files.hold_named(entry.plugin.name, chunk.id, owner, b"\n".join(chunk.rows))


async def retain_files_of_batch_again(state: State, batch: StoredBatch) -> None:
    """Before rows of a batch run again: retain their files. A row fails again by itself where its file is gone."""
    entry = state.catalog.entries.get(batch.service)
    if entry and not entry.takes_files:
        return
    for number in range(batch.chunks):
        rows = await state.ledger.fetch(batch_commands.fetch_chunk_field(batch, number, "input"))
        await state.files.hold_named(batch.service, f"{batch.id}.{number}", batch.owner, rows)
