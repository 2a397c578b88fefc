"""The API's side of files: uploads, downloads, what jobs hold, and the sweep."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from worker.errors import (
    AddressRefused,
    FileInUse,
    FileMissing,
    InvalidInput,
    ServicesError,
    StorageUnavailable,
    StoreUnavailable,
    UploadTooLate,
)
from worker.fetch import check_url
from worker.files import ID, File, Where
from worker.jobs import TERMINAL, Status
from worker.ledger import record_key
from worker.ledger_async import AsyncLedger
from worker.settings import Settings
from worker.storage import (
    BLOBS_KEY,
    EXPIRES_KEY,
    FIELDS,
    LEASE_US,
    LUA,
    PIECE_BYTES,
    RENEW_S,
    SECRET_KEY,
    FileRecord,
    Storage,
    Writing,
    file_key,
    holds_key,
    new_blob,
)

log = logging.getLogger("services.api")

#: Calls of the storage at a time, in one API process.
THREADS = 8
#: Seconds between two sweeps, and how much one does at most.
SWEEP_S = 1.0
SWEEP_FILES = 20
SWEEP_BLOBS = 50
#: A job's record is there so long after it was promised a file, or never.
GRACE_US = 300 * 1_000_000
#: A file that is held lives so much longer, again and again.
POSTPONE_US = 60 * 1_000_000
#: Holders that are looked at in one step, and in how many steps at most.
HOLDERS = 100
STEPS = 10
#: From so many holders on, each hundredth new one makes us look for those that have ended.
MANY = 1000
#: Times that a complete upload is told to Redis.
BIND_TRIES = 3
#: Files of one input that are held in one call: Lua takes some thousands of arguments.
HOLD_AT_ONCE = 1000

T = TypeVar("T")


class AsyncFiles:
    """The files, for one API process. Raises ``StoreUnavailable`` (Redis) and ``StorageUnavailable`` (the bytes)."""

    def __init__(self, ledger: AsyncLedger, settings: Settings) -> None:
        self._ledger = ledger
        self._settings = settings
        self._storage = Storage(settings)
        self._script = ledger.redis.register_script(LUA)
        # Threads of its own: a storage that hangs must not keep others from looking up a host's name.
        self._threads = ThreadPoolExecutor(THREADS, "files")
        self._secret = settings.link_secret.encode()

    def close(self) -> None:
        """Wait for no storage that hangs."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def get(self, file_id: str) -> FileRecord:
        """One file. Raises ``FileMissing``."""
        async with self._ledger.guard():
            values: Any = await self._ledger.redis.hmget(file_key(file_id), *FIELDS) if ID.fullmatch(file_id) else []
        record = FileRecord.read(file_id, values)
        if record is None:
            raise FileMissing(f"no file has the id {file_id[:100]!r}, or its keep_for_s was over")
        return record

    async def store(
        self, pieces: AsyncIterator[bytes], tell_type: Callable[[], str], keep_for_s: float
    ) -> tuple[FileRecord, bool]:
        """Store an upload as it comes in, and whether its content is new. Nothing is left of one that fails.

        ``tell_type`` is called when all pieces are there.
        """
        blob = new_blob()
        await self._call("open", blob, LEASE_US, "new")
        writing: Writing | None = None
        try:
            writing = await self._in_thread(lambda: self._storage.create(blob))
            await self._write(writing, blob, pieces)
            file_id = await self._in_thread(writing.finish)
        except BaseException:
            await asyncio.shield(self._discard(blob, writing))
            raise
        record = await self._bind(blob, file_id, writing.size, tell_type(), round(keep_for_s * 1e6))
        if record is None or record.blob != blob:
            await self._discard(blob, None)
        if record is None:
            raise UploadTooLate
        return record, record.blob == blob

    async def read(self, record: FileRecord, first: int, length: int) -> AsyncIterator[bytes]:
        """A part of a file's content, opened at once, so that what is not there is known before the answer begins."""
        try:
            source = await self._in_thread(lambda: self._storage.read(record.blob))
        except FileMissing as error:
            log.error("file %s has lost its bytes: blob %s is not in the storage", record.id, record.blob)
            raise FileMissing("the file's bytes are gone from the storage: upload it again") from error
        return self._pieces(source, first, length)

    async def hold(self, service: str, job_id: str, files: Sequence[tuple[Where, File]]) -> None:
        """Before a job is accepted: its files are there, are what they may be, and stay until it has ended.

        Raises ``InvalidInput`` that names each field.
        """
        stored = list(dict.fromkeys(file.id for _, file in files if file.id))
        found: list[Any] = []
        for start in range(0, len(stored), HOLD_AT_ONCE):
            some = stored[start : start + HOLD_AT_ONCE]
            found += await self._call("hold", f"{service}/{job_id}", GRACE_US, *some)
        records = {file_id: FileRecord.read(file_id, told[:5]) for file_id, told in zip(stored, found, strict=True)}
        for file_id, told in zip(stored, found, strict=True):
            if told and told[5] > MANY and told[5] % HOLDERS == 0:
                await self._forget_ended(file_id)
        problems = [(where, kind) for where, file in files if (kind := self._problem(file, records.get(file.id)))]
        if problems:
            errors = [{"loc": ["body", "input", *where], "msg": m, "type": k} for where, (m, k) in problems]
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            first = ".".join(map(str, errors[0]["loc"]))
            raise InvalidInput(f"{first}: {errors[0]['msg']}{more}", errors=errors)

    async def delete(self, file_id: str) -> None:
        """Drop a file. Raises ``FileMissing`` or ``FileInUse``."""
        await self.get(file_id)
        if await self._is_held(file_id) or not await self._call("drop", file_id, "force"):
            raise FileInUse(f"the file {file_id} is named in the input of a job that has not ended")

    async def sign(self, file_id: str, expires: int) -> str:
        """The signature of a download link that is good until ``expires`` (seconds since the epoch)."""
        return hmac.digest(await self._load_secret(), f"{file_id}\n{expires}".encode(), "sha256").hex()

    async def run(self) -> None:
        """Sweep for ever. Several processes at once do no harm, and each does a bounded part a second."""
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self.sweep()
            except (StoreUnavailable, StorageUnavailable) as error:
                log.debug("files not swept: %s", error)
            except Exception:
                log.exception("the sweep of files failed; it goes on")

    async def sweep(self) -> None:
        """Drop files whose time is over and that no unfinished job names; remove blobs that belong to none."""
        for raw in await self._call("due", SWEEP_FILES):
            file_id = raw.decode()
            if await self._is_held(file_id):
                await self._call("keep", file_id, POSTPONE_US)
            elif await self._call("drop", file_id, ""):
                log.info("file dropped id=%s: its keep_for_s was over", file_id)
        for raw in await self._call("orphans", SWEEP_BLOBS):
            await self._discard(raw.decode(), None)

    async def _bind(self, blob: str, *about: Any) -> FileRecord | None:
        """Make a complete upload a file's, or learn which blob the file has already; None where it came too late.

        What was sent in full is worth a few tries. Where none is answered, the sweep sees to the blob.
        """
        for left in reversed(range(BIND_TRIES)):
            try:
                became, values = await self._call("bind", blob, *about, "")
                known = FileRecord.read(about[0], values)
                if known and became == b"known" and not await self._in_thread(partial(self._storage.has, known.blob)):
                    log.error("file %s had lost its bytes, and has them again", known.id)
                    _, values = await self._call("bind", blob, *about, known.blob)
                return FileRecord.read(about[0], values)
            except StoreUnavailable:
                if not left:
                    with suppress(StoreUnavailable):
                        await self._call("release", blob)
                    raise
        raise AssertionError  # the last try gives or raises

    async def _write(self, writing: Writing, blob: str, pieces: AsyncIterator[bytes]) -> None:
        renewed = time.monotonic()
        async for piece in pieces:
            await self._in_thread(partial(writing.write, piece))
            if time.monotonic() - renewed > RENEW_S:
                renewed = time.monotonic()
                with suppress(StoreUnavailable):  # there is time for many more
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
            with suppress(RuntimeError):  # the process ends, and its threads are gone
                await asyncio.shield(self._in_thread(source.close))

    async def _discard(self, blob: str, writing: Writing | None) -> None:
        """Remove a blob that belongs to no file. What fails here is the sweep's, in ten minutes."""
        try:
            if writing:
                with suppress(ServicesError):
                    await self._in_thread(writing.close)
            await self._in_thread(lambda: self._storage.remove(blob))
            async with self._ledger.guard():
                await self._ledger.redis.zrem(BLOBS_KEY, blob)
        except (ServicesError, RuntimeError) as error:
            log.warning("blob %s is left for the sweep: %s", blob, error)

    async def _is_held(self, file_id: str) -> bool:
        """Whether an unfinished job names a file. Those that have ended are forgotten on the way."""
        for _ in range(STEPS):
            looked_at, ended = await self._forget_ended(file_id)
            if not looked_at or ended < looked_at:
                return bool(looked_at)
        return True  # as far as we know; the next look goes on

    async def _forget_ended(self, file_id: str) -> tuple[int, int]:
        """Forget those of a file's oldest holders that have ended: how many were looked at, and how many had."""
        found = await self._call("holders", file_id, GRACE_US, HOLDERS)
        holders = [(raw.decode(), bool(young)) for raw, young in zip(found[0::2], found[1::2], strict=True)]
        ended = await self._ended(holders) if holders else []
        if ended:
            async with self._ledger.guard():
                await self._ledger.redis.zrem(holds_key(file_id), *ended)
        return len(holders), len(ended)

    async def _ended(self, holders: Sequence[tuple[str, bool]]) -> list[str]:
        """Those of these jobs that need their files no more."""
        async with self._ledger.guard(), self._ledger.redis.pipeline(transaction=False) as pipe:
            for holder, _ in holders:
                pipe.hget(record_key(*holder.split("/", 1)), "status")
            statuses = await pipe.execute()
        told = zip(holders, statuses, strict=True)
        return [h for (h, young), s in told if (Status(s.decode()) in TERMINAL if s else not young)]

    def _problem(self, file: File, record: FileRecord | None) -> tuple[str, str] | None:
        """What is wrong with a file of an input, as text and type, as far as it is known here."""
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
                found: Any = await self._ledger.redis.get(SECRET_KEY)
            self._secret = found
        return self._secret

    async def _call(self, operation: str, *arguments: Any) -> Any:
        async with self._ledger.guard():
            return await self._script(keys=[EXPIRES_KEY], args=[operation, *arguments])

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
