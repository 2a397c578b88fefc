"""How a job is submitted, whichever protocol asks for it: no object of HTTP comes in or goes out here.

``submit`` does all of it for one job. ``/v2`` submits the rows of a request together, by the steps of ``submit``:
``make_job``, ``retain_files`` and ``store_all``.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from api.auth.keyring import Caller
from api.catalog import Entry
from api.jobs.fingerprint import ask_cache, check_cacheable
from api.jobs.retention import NamedFiles, retain_files
from api.jobs.waiter import ended_within
from api.large_bodies import aside
from api.requests import JobRequest, dump_strictly, hash_body
from api.state import State
from worker.errors import QueueFull, RateLimited, ServicesError
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.commands import Repeated
from worker.ledger.jobs import End, Job, NewJob, Priority
from worker.webhooks.events import dump_webhook

log = logging.getLogger("services.api")


async def submit(
    state: State,
    caller: Caller,
    asked: JobRequest,
    *,
    key: str = "",
    own_id: str = "",
    wait_s: float = 0,
    size: int = 0,
) -> tuple[Job, bool]:
    """Validate, store and enqueue one job; return it and whether it is new.

    Args:
        key: the idempotency key, by which a repeated request gets the job of the first one.
        own_id: an id that the client has chosen, which makes the request repeatable as a key does.
        wait_s: seconds to wait for the job's end; without it, the job is returned as it was stored.
        size: bytes of the request, about; a large one is validated in a thread.
    """
    entry = state.catalog.find(asked.service, caller)

    def make() -> tuple[NewJob, NamedFiles]:
        text = dump_strictly(asked.input, "input")
        return make_job(state, entry, caller, asked, text, key=key, own_id=own_id, is_awaited=bool(wait_s))

    new, files = await aside(size, make)
    if asked.webhook:
        await state.receivers.check(asked.webhook.url)
    await retain_files(state, entry, new, files)
    # Two requests with the same id of their own may arrive at once.
    expect = state.waiter.expect_new if new.awaited else state.waiter.expect
    with expect(new.id) as end:
        job = await state.writer.store(new)
        if isinstance(job, Repeated):
            return await state.waiter.read(job.job_id, wait_s, caller.sees), False
        log_stored(job)
        if wait_s and not job.ended:
            ended = await ended_within(end, wait_s) or await state.ledger.get(job.id)
            job = job.as_it_ended(ended) if isinstance(ended, End) else ended
    return job, True


def make_job(
    state: State,
    entry: Entry,
    caller: Caller,
    asked: JobRequest,
    text: bytes,
    *,
    metadata: Mapping[str, Any] | None = None,
    key: str = "",
    own_id: str = "",
    is_awaited: bool = False,
) -> tuple[NewJob, NamedFiles]:
    """Validate a job; return it, ready to be stored, and the files that its input names.

    Args:
        asked: the client's wishes. Its ``input`` is not read: ``text`` is the input, as JSON.
        metadata: instead of those of ``asked``.
    """
    files = entry.validate(text)
    check_cacheable(entry, asked.cache_for_s)
    may_cache = state.ledger.may_cache(entry.plugin.name)
    new = NewJob(
        id=own_id or str(uuid.uuid4()),
        service=entry.plugin.name,
        input=text,
        version=entry.plugin.version,
        priority=Priority(asked.priority),
        start_within_s=asked.start_within_s or 0,
        finish_within_s=asked.finish_within_s or 0,
        keep_for_s=asked.keep_for_s or state.settings.keep_for_s,
        metadata=dump_strictly(metadata or asked.metadata, "metadata"),
        idempotency_key=key,
        # The owner belongs to the hash of a client's own id, so that no other client repeats the request.
        body_hash=hash_body(asked) + (caller.owner if own_id else "") if key or own_id else "",
        webhook=dump_webhook(asked.webhook.url, asked.webhook.events or ()) if asked.webhook else b"",
        owner=caller.owner,
        most_open=caller.most_open,
        awaited=is_awaited and not own_id,
        cache=ask_cache(entry, text, caller.owner, asked.cache_for_s, may_cache),
        not_before_us=asked.not_before or 0,
    )
    return new, files


async def store_all(state: State, jobs: Sequence[NewJob]) -> list[Job]:
    """Store jobs without idempotency keys. Where the queue has no room for all of them, none of them runs."""
    results = await asyncio.gather(*(state.writer.store(job) for job in jobs), return_exceptions=True)
    stored = [result for result in results if isinstance(result, Job)]
    for job in stored:
        log_stored(job)
    errors = [result for result in results if isinstance(result, BaseException)]
    assert len(stored) + len(errors) == len(jobs)
    if any(isinstance(error, QueueFull | RateLimited) for error in errors):
        await asyncio.gather(*(_cancel(state.ledger, job.id) for job in stored))
    if errors:
        raise errors[0]
    return stored


async def _cancel(ledger: AsyncLedger, job_id: str) -> None:
    with suppress(ServicesError):  # it has ended, or Redis is unavailable: then nobody reads its result
        await ledger.cancel(job_id)


def log_stored(job: Job) -> None:
    """Log that a job was accepted."""
    if job.cached_from:
        log.info("job ended id=%s service=%s cached_from=%s", job.id, job.service, job.cached_from)
    else:
        log.info("job queued id=%s service=%s priority=%s", job.id, job.service, job.priority)
