"""The API's side of files: uploads, downloads, the holds of jobs on files, and the sweep of expired files."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from worker.errors import (
    AddressRefused,
    FileInUse,
    FileMissing,
    InvalidInput,
    JobNotRetryable,
    ServicesError,
    StorageUnavailable,
    StoreUnavailable,
    UploadTooLate,
)
from worker.files import ID, File, Where, named_ids
from worker.filestore.fetch import check_url, too_many_urls
from worker.filestore.storage import (
    AT_ONCE,
    BLOBS_KEY,
    EXPIRES_KEY,
    GRACE_US,
    LEASE_US,
    LUA,
    PIECE_BYTES,
    RENEW_S,
    SECRET_KEY,
    FileRecord,
    Storage,
    Writing,
    file_name,
    holds_key,
    new_blob,
)
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.jobs import TERMINAL, Job, NewJob, Status
from worker.ledger.keys import record_key
from worker.ledger.record import HOLDER_FIELDS
from worker.settings import Settings

log = logging.getLogger("services.api")

#: Calls of the storage at a time in an API process.
THREADS = 8
#: Longest wait of a refused client for the removal of its upload (seconds); the removal continues without the client.
DISCARD_S = 2.0
#: Seconds between two sweeps, and the most files and blobs of a sweep.
SWEEP_S = 1.0
SWEEP_FILES = 20
SWEEP_BLOBS = 50
#: A sweep extends the life of an expired file by a minute if a job still holds the file.
POSTPONE_US = 60 * 1_000_000
#: Holders that are checked in a step, and the most steps.
HOLDERS = 100
STEPS = 100
#: If a file has more holders than this, each hundredth new holder triggers the removal of those that have ended.
MANY = 1000
#: Attempts to record a complete upload in Redis.
BIND_TRIES = 3

T = TypeVar("T")


class AsyncFiles:
    """The files, for an API process. Raises ``StoreUnavailable`` (Redis) and ``StorageUnavailable`` (the bytes)."""

    def __init__(self, ledger: AsyncLedger, settings: Settings) -> None:
        self._ledger = ledger
        self._settings = settings
        self._storage = Storage(settings)
        self._script = ledger.redis.register_script(LUA)
        # A separate pool: a storage that hangs must not block the lookup of host names in the default threads.
        self._threads = ThreadPoolExecutor(THREADS, "files")
        self._secret = settings.link_secret.encode()
        self._discards: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Release the threads without waiting for a storage that hangs."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def get(self, file_id: str, owner: str, sees: str) -> FileRecord:
        """The file of this content that belongs to ``owner``, else another visible one. Raises ``FileMissing``.

        ``sees`` (here and below): the API key to whose files the caller is limited; "": the caller sees all files.
        """
        files = await self._find(file_id, sees)
        return next((record for record in files if record.owner == owner), files[0])

    async def get_of(self, owner: str, file_id: str) -> FileRecord:
        """The file that belongs to this API key ("": to none). Raises ``FileMissing``."""
        for record in await self._find(file_id, owner):
            if record.owner == owner:
                return record
        raise _missing(file_id)

    async def store(
        self, pieces: AsyncIterator[bytes], describe: Callable[[], tuple[str, str]], keep_for_s: float, owner: str
    ) -> tuple[FileRecord, bool]:
        """Store an upload as its pieces arrive; returns its record, and whether its content is new to its owner.

        An upload that fails leaves nothing behind. The owner is an API key ("": none). ``describe`` is called after the
        last piece and returns the file's type, and its name or "".
        """
        blob = new_blob()
        await self._call("open", blob, LEASE_US, "new")
        writing: Writing | None = None
        try:
            writing = await self._in_thread(lambda: self._storage.create(blob))
            await self._write(writing, blob, pieces)
            file_id = await self._in_thread(writing.finish)
        except BaseException:
            discard = asyncio.create_task(self._discard(blob, writing))
            self._discards.add(discard)
            discard.add_done_callback(self._discards.discard)
            await asyncio.wait([discard], timeout=DISCARD_S)
            raise
        kind, filename = describe()
        keep_us = round(keep_for_s * 1e6)
        record = await self._bind(blob, file_name(owner, file_id), filename, writing.size, kind, keep_us)
        if record is None or record.blob != blob:
            await self._discard(blob, None)
        if record is None:
            raise UploadTooLate
        return record, record.blob == blob

    async def read(self, record: FileRecord, first: int, length: int) -> AsyncIterator[bytes]:
        """A part of a file's content. It is opened at once, so that a missing file shows before the response begins."""
        try:
            source = await self._in_thread(lambda: self._storage.read(record.blob))
        except FileMissing as error:
            log.error("file %s has lost its bytes: blob %s is not in the storage", record.id, record.blob)
            raise FileMissing("the file's bytes are gone from the storage: upload it again") from error
        return self._pieces(source, first, length)

    async def hold(self, job: NewJob, files: Sequence[tuple[Where, File]]) -> None:
        """Before a job is accepted: check that its owner may use its files, check their rules, and hold the files.

        A held file is not removed before the job has ended. Raises ``InvalidInput`` that names each field.
        """
        records = await self._hold(job.service, job.id, job.owner, [file.id for _, file in files if file.id])
        problems = [(where, kind) for where, file in files if (kind := self._problem(file, records.get(file.id)))]
        urls = [where for where, file in files if file.url]
        if len(urls) > (most := self._settings.max_urls):
            problems.append((urls[most], (too_many_urls(most), "too_many_urls")))
        if problems:
            errors = [{"loc": ["body", "input", *where], "msg": m, "type": k} for where, (m, k) in problems]
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            first = ".".join(map(str, errors[0]["loc"]))
            raise InvalidInput(f"{first}: {errors[0]['msg']}{more}", errors=errors)

    async def hold_again(self, job: Job, files: Sequence[tuple[Where, File]]) -> None:
        """Hold the files of an ended job that runs again. Raises ``JobNotRetryable`` if a file is gone."""
        records = await self._hold(job.service, job.id, job.owner, [file.id for _, file in files if file.id])
        for where, file in files:
            if file.id and file.id not in records:
                name = ".".join(map(str, ("input", *where)))
                must = f"its file {file.id} ({name}) is gone: upload it again, then retry"
                raise JobNotRetryable(f"job {job.id} cannot run again: {must}")

    async def hold_named(self, service: str, job_id: str, owner: str, text: bytes) -> None:
        """Hold the files that an input's JSON names, for a job or chunk that is accepted without validation.

        The worker reports missing files.
        """
        if ids := named_ids(text):
            await self._hold(service, job_id, owner, ids)

    async def delete(self, file_id: str, sees: str) -> None:
        """Drop all visible files of this content. Raises ``FileMissing`` or ``FileInUse``."""
        names = [record.name for record in await self._find(file_id, sees)]
        in_use = FileInUse(f"the file {file_id} is named in the input of a job that has not ended")
        for name in names:
            if await self._is_in_use(name) is not False:
                raise in_use
        for name in names:
            if not await self._call("drop", name, "force"):
                raise in_use

    async def sign(self, owner: str, file_id: str, expires: int) -> str:
        """The signature of a download link that is good until ``expires`` (seconds since the epoch)."""
        text = f"{file_name(owner, file_id)}\n{expires}"
        return hmac.digest(await self._load_secret(), text.encode(), "sha256").hex()

    async def run(self) -> None:
        """Sweep for ever. Several processes may sweep at the same time, each a bounded part per second."""
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self.sweep()
            except (StoreUnavailable, StorageUnavailable) as error:
                log.debug("files not swept: %s", error)
            except Exception:
                log.exception("the sweep of files failed; the next one follows")

    async def sweep(self) -> None:
        """Drop expired files that no unfinished job names, and remove blobs that belong to no file."""
        for raw in await self._call("due", SWEEP_FILES):
            name = raw.decode()
            is_in_use = await self._is_in_use(name)
            if is_in_use:
                await self._call("keep", name, POSTPONE_US)
            elif is_in_use is False and await self._call("drop", name, ""):
                log.info("file dropped id=%s: its keep_for_s was over", name)
        for raw in await self._call("orphans", SWEEP_BLOBS):
            await self._discard(raw.decode(), None)

    async def _find(self, file_id: str, sees: str) -> list[FileRecord]:
        """The visible files with this content, at least one. Raises ``FileMissing``."""
        replies = (await self._call("find", sees, file_id))[0] if ID.fullmatch(file_id) else []
        records = [record for reply in replies if (record := FileRecord.read_found(reply))]
        if not records:
            raise _missing(file_id)
        return records

    async def _hold(self, service: str, job_id: str, owner: str, ids: Iterable[str]) -> dict[str, FileRecord]:
        """Hold files until a job has ended; returns the existing files by id."""
        wanted = list(dict.fromkeys(ids))
        records: dict[str, FileRecord] = {}
        for start in range(0, len(wanted), AT_ONCE):
            replies = await self._call("hold", f"{service}/{job_id}", GRACE_US, owner, *wanted[start : start + AT_ONCE])
            for reply in replies:
                if record := FileRecord.read_found(reply):
                    records[record.id] = record
                    if reply[7] > MANY and reply[7] % HOLDERS == 0:
                        await self._forget_ended(record.name)
        return records

    async def _bind(self, blob: str, name: str, filename: str, *about: Any) -> FileRecord | None:
        """Bind the blob of a complete upload to its file, unless the file has a blob already; None if it is too late.

        A complete upload is worth several attempts. If Redis answers none of them, the sweep removes the blob.
        """
        for left in reversed(range(BIND_TRIES)):
            try:
                became, values = await self._call("bind", blob, name, *about, "", filename)
                known = FileRecord.read(name, values)
                if known and became == b"known" and not await self._in_thread(partial(self._storage.has, known.blob)):
                    log.error("file %s had lost its bytes, and has them again", known.id)
                    _, values = await self._call("bind", blob, name, *about, known.blob, filename)
                return FileRecord.read(name, values)
            except StoreUnavailable:
                if not left:
                    with suppress(StoreUnavailable):
                        await self._call("release", blob)
                    raise
        raise AssertionError  # the last attempt returns or raises

    async def _write(self, writing: Writing, blob: str, pieces: AsyncIterator[bytes]) -> None:
        renewed = time.monotonic()
        async for piece in pieces:
            await self._in_thread(partial(writing.write, piece))
            if time.monotonic() - renewed > RENEW_S:
                renewed = time.monotonic()
                with suppress(StoreUnavailable):  # the time suffices for many further renewals
                    if not await self._call("open", blob, LEASE_US, ""):
                        raise UploadTooLate

    async def _pieces(self, source: Any, first: int, length: int) -> AsyncIterator[bytes]:
        try:
            await self._in_thread(partial(source.seek, first))
            while length > 0:
                piece = await self._in_thread(partial(source.read, min(length, PIECE_BYTES)))
                if not piece:
                    raise StorageUnavailable("a blob is shorter than its record says")
                length -= len(piece)
                yield piece
        finally:
            with suppress(RuntimeError, StorageUnavailable):  # the process ends, and its threads are gone
                await asyncio.shield(self._in_thread(source.close))

    async def _discard(self, blob: str, writing: Writing | None) -> None:
        """Remove a blob that belongs to no file. If this fails, the sweep removes it ten minutes later."""
        try:
            if writing:
                with suppress(ServicesError):
                    await self._in_thread(writing.close)
            await self._in_thread(lambda: self._storage.remove(blob))
            async with self._ledger.guard():
                await self._ledger.redis.zrem(BLOBS_KEY, blob)
        except (ServicesError, RuntimeError) as error:
            log.warning("blob %s is left for the sweep: %s", blob, error)

    async def _is_in_use(self, name: str) -> bool | None:
        """Whether an unfinished job names a file; None: undecided, since too many holders were to be checked.

        Holders that have ended are removed on the way, so that the next check continues from there.
        """
        for _ in range(STEPS):
            checked, ended = await self._forget_ended(name)
            if not checked or ended < checked:
                return bool(checked)
        return None

    async def _forget_ended(self, name: str) -> tuple[int, int]:
        """Remove those of a file's oldest holders that have ended; returns the numbers of checked and ended holders."""
        reply = await self._call("holders", name, GRACE_US, HOLDERS)
        holders = [(raw.decode(), int(since), bool(y)) for raw, since, y in zip(*[iter(reply)] * 3, strict=True)]
        ended = await self._ended(holders) if holders else []
        if ended:
            async with self._ledger.guard():
                await self._ledger.redis.zrem(holds_key(name), *ended)
        return len(holders), len(ended)

    async def _ended(self, holders: Sequence[tuple[str, int, bool]]) -> list[str]:
        """The holders that no longer need their files.

        A job whose end is older than its hold is about to run again. A chunk of an unfinished upload has no status yet.
        """
        async with self._ledger.guard(), self._ledger.redis.pipeline(transaction=False) as pipe:
            for holder, _, _ in holders:
                pipe.hmget(record_key(*holder.split("/", 1)), *HOLDER_FIELDS)
            records = await pipe.execute()
        ended = []
        for (holder, since, is_young), (status, finished, group) in zip(holders, records, strict=True):
            if status is None:
                needs = is_young or group is not None
            elif Status(status.decode()) in TERMINAL:
                needs = is_young and int(finished or 0) < since
            else:
                needs = True
            if not needs:
                ended.append(holder)
        return ended

    def _problem(self, file: File, record: FileRecord | None) -> tuple[str, str] | None:
        """The error of an input's file as text and type, as far as the API can know it."""
        if file.id:
            if record is None:
                return "no file has this id: upload it by POST /files, or again where its keep_for_s was over", "file"
            problem = file.rules.problem(record.size, record.content_type) if file.rules else None
            return (problem, "file_rules") if problem else None
        if file.url:
            try:
                check_url(file.url, self._settings.fetch_rules)
            except AddressRefused as error:
                return error.message, "file_url"
        return None

    async def _load_secret(self) -> bytes:
        if not self._secret:
            async with self._ledger.guard():
                await self._ledger.redis.set(SECRET_KEY, secrets.token_hex(32), nx=True)
                secret: Any = await self._ledger.redis.get(SECRET_KEY)
            self._secret = secret
        return self._secret

    async def _call(self, operation: str, *arguments: Any) -> Any:
        async with self._ledger.guard():
            return await self._script(keys=[EXPIRES_KEY], args=[operation, *arguments])

    async def _in_thread(self, call: Callable[[], T]) -> T:
        timeout_s = self._settings.storage_timeout_s
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self._threads, call), timeout_s)
        except TimeoutError as error:  # the thread itself cannot be ended
            away = f"the storage of the files: no answer within {timeout_s:g} s (SERVICES_STORAGE_TIMEOUT_S)"
            raise StorageUnavailable(away) from error


def _missing(file_id: str) -> FileMissing:
    """The error for an unknown id; also for a file of another API key, of which it reveals nothing."""
    return FileMissing(f"no file has the id {file_id[:100]!r}, or its keep_for_s was over")
