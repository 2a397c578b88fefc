"""The files of a batch, in a pool process: brought before ``preprocess``, taken as verbs return them, then stored."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import shutil
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import redis

from worker.errors import FileMissing, InvalidInput, InvalidOutput, ServicesError, StorageUnavailable
from worker.files import UNKNOWN_TYPE, File, Where, find_files, name_in_url, suffix_of
from worker.filestore.copying import copy_content
from worker.filestore.fetch import fetch
from worker.filestore.output_files import Taker, misfit, unavailable, unfit_output
from worker.filestore.storage import (
    AT_ONCE,
    BLOBS_KEY,
    EXPIRES_KEY,
    HEAD_BYTES,
    LEASE_US,
    LUA,
    PIECE_BYTES,
    FileRecord,
    Storage,
    file_name,
    new_blob,
    tell_type,
)
from worker.inference.results import Persist
from worker.inference.runner import Tell
from worker.inference.stages import Item
from worker.ledger.keys import record_key
from worker.ledger.record import ATTACHED_JOB_FIELDS, OWNER_FIELDS
from worker.ledger.sync_ledger import Ledger
from worker.settings import Settings

log = logging.getLogger("services.worker")

#: Files of a batch that are brought at a time.
THREADS = 8
#: An output's file lives so much longer than its job: from its storing to the job's end.
MARGIN_US = 300 * 1_000_000

#: The owner of a job whose record is gone while it runs: no API key, and none of the jobs that may use all files.
NOBODY = "-"

#: When an input's file was last written, as its job sees it (nanoseconds since the epoch; 2001, since a zip knows no
#: time before 1980): so a plugin's change of it shows, however soon it comes.
BROUGHT_NS = 978_307_200 * 1_000_000_000


class Attachments:
    """The file store of a pool process; it touches neither disk nor storage before the first of them."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.settings = settings
        self.ledger = ledger
        self.storage = Storage(settings)
        self.scratch = Scratch(settings.scratch_dir)
        self._script = ledger.redis.register_script(LUA)

    def of_batch(self, service: str, tell: Tell, persist: Persist, job_id: str = "") -> BatchFiles:
        """For one run of the stages. ``job_id``: the chunk, where the items are its rows."""
        return BatchFiles(self, service, tell, persist, job_id)

    def call(self, operation: str, *arguments: Any) -> Any:
        """An operation of ``files.lua``."""
        return self._script(keys=[EXPIRES_KEY], args=[operation, *arguments])

    def records(self, owner: str, ids: Sequence[str]) -> dict[str, FileRecord]:
        """Those of these files that a job of this API key may use; one of no key ("") may use everybody's."""
        records: dict[str, FileRecord] = {}
        for start in range(0, len(ids), AT_ONCE):
            for found in self.call("find", owner, *ids[start : start + AT_ONCE]):
                if record := FileRecord.read_found(found[0] if found else ()):
                    records[record.id] = record
        return records

    def store(self, file: File, owner: str, keep_us: int) -> FileRecord:
        """Store a file that an output holds. Raises ``StorageUnavailable`` or ``InvalidOutput``."""
        blob = new_blob()
        self.call("open", blob, LEASE_US, "output")
        try:
            with open_source(file) as source:
                head = source.read(HEAD_BYTES)
                file.content_type = tell_type(file.content_type, head)
                source.seek(0)
                writing = self.storage.create(blob)
                try:
                    while piece := source.read(PIECE_BYTES):
                        writing.write(piece)
                        self.check(file, writing.size, file.content_type)
                    self.check(file, writing.size, file.content_type)
                    file_id = writing.finish()
                finally:
                    writing.close()
        except BaseException:
            self._discard(blob)
            raise
        name = file_name(owner, file_id)
        kept = (blob, name, writing.size, file.content_type, keep_us)
        _, values = self.call("bind", *kept, "", file.name)
        record = FileRecord.read(name, values)
        if record and record.blob != blob and not self.storage.has(record.blob):
            _, values = self.call("bind", *kept, record.blob, file.name)
            record = FileRecord.read(name, values)
        if record is None or record.blob != blob:
            self._discard(blob)
        if record is None:
            raise StorageUnavailable("the output's file took too long to be stored")
        return record

    def check(self, file: File, size: int, content_type: str = "") -> None:
        """Raise ``InvalidOutput`` where an output's file may not be so; without a type, by its size alone."""
        most = self.settings.max_file_bytes
        problem = None
        if size > most:
            problem = f"the file has more than {most} bytes (SERVICES_MAX_FILE_BYTES)"
        elif file.rules and content_type:
            problem = file.rules.problem(size, content_type)
        elif file.rules:
            problem = file.rules.size_problem(size)
        if problem:
            raise InvalidOutput(problem, errors=[{"loc": [], "msg": problem, "type": "file_rules"}])

    def _discard(self, blob: str) -> None:
        """The sweep would find it too, but later."""
        try:
            self.storage.remove(blob)
            self.ledger.redis.zrem(BLOBS_KEY, blob)
        except (ServicesError, redis.RedisError) as error:
            log.warning("blob %s is left for the sweep: %s: %s", blob, type(error).__name__, error)


class BatchFiles:
    """The files of one run of the stages."""

    def __init__(self, attachments: Attachments, service: str, tell: Tell, persist: Persist, job_id: str) -> None:
        self._all = attachments
        self._persist = persist
        self._service = service
        self._tell = tell
        self._job_id = job_id
        self._folder: Path | None = None
        self._taker = Taker(self._make_folder, attachments.check)
        self._here: dict[str, File | ServicesError] = {}  # reference -> a file that is here, or why it is not
        self._given: set[str] = set()  # references whose file a job has as its own
        self._owners: dict[str, str] = {}  # job -> the API key that it belongs to; "" for none

    def bring(self, items: Sequence[Item]) -> None:
        """Stage 1b: every file of the inputs becomes a local one. One that cannot be fails its own job.

        It costs the model no time limit: waiting for Redis or the storage is not the model's.
        """
        found = [(item, where, file) for item in items for where, file in find_files(item.value)]
        missing = [(item, where, file) for item, where, file in found if not file.is_here]
        if missing:
            self._tell("computed")
            self._persist(lambda: self._bring_all([(item, file) for item, _, file in missing]))
            for item, where, file in missing:
                if item.error is None:
                    item.error = self._hand_over(item, file, where)
            self._tell("begun")

    def look(self, raw: Any) -> Any:
        """The result of ``predict``, its files taken as they are."""
        return self._taker.look(raw)

    def take(self, output: Any) -> Any:
        """The result of ``postprocess``, its files taken as they are; raises where one cannot be."""
        output = self._taker.take(output)
        for _, file in find_files(output):
            if file.is_here and not file.is_made and _is_changed(file.path):
                file.id = ""  # a plugin has written to its input: the returned file is another one
        return output

    def keep(self, items: Sequence[Item]) -> None:
        """Stage 4b: every file of the outputs is stored, as long as its job is kept."""
        found = [(item, where, file) for item in items for where, file in find_files(item.value)]
        if found:
            self._tell("computed")
            for item, where, file in found:
                if item.error is None:
                    self._persist(partial(self._keep, item, where, file))
            self._tell("begun")

    def clear(self) -> None:
        """Remove the local copies; the files of the batch have no path any more."""
        self._taker.give_back()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        self._here.clear()
        self._given.clear()

    def _make_folder(self) -> Path:
        self._folder = self._folder or self._all.scratch.make()
        return self._folder

    def _bring_all(self, missing: Sequence[tuple[Item, File]]) -> None:
        self._ask_owners([item for item, file in missing if file.id])
        wanted = {self._reference(item, file): (self._owner(item), file) for item, file in missing}
        ids: dict[str, list[str]] = {}
        for owner, file in wanted.values():
            if file.id:
                ids.setdefault(owner, []).append(file.id)
        records = {owner: self._all.records(owner, of_owner) for owner, of_owner in ids.items()}
        self._make_folder()

        def bring(number: int, owner: str, file: File) -> File | ServicesError:
            try:
                return self._bring(file, records[owner].get(file.id) if file.id else None, f"{number}")
            except ServicesError as error:
                return error
            except OSError as error:  # this machine's disk
                return _no_room(error)

        start = len(self._here)
        with ThreadPoolExecutor(min(THREADS, len(wanted)), "files") as threads:
            brought = threads.map(bring, range(start, start + len(wanted)), *zip(*wanted.values(), strict=True))
            self._here.update(zip(wanted, brought, strict=True))

    def _bring(self, file: File, record: FileRecord | None, name: str) -> File:
        assert self._folder
        if file.id:
            if record is None:
                raise FileMissing("no file has this id any more")
            path = self._path(name, record.content_type)
            here = File(id=file.id, content_type=record.content_type, path=path, name=record.filename or "")
            here.size = record.size
            self._all.storage.bring(record.blob, here.path)
            return here
        if file.data is not None:
            here = File(data=file.data, content_type=file.content_type, path=self._path(name, file.content_type))
            here.path.write_bytes(file.data)
            return here
        settings, partial = self._all.settings, self._folder / f"{name}.part"
        with partial.open("wb") as target:
            most = min(settings.max_file_bytes, (file.rules and file.rules.max_bytes) or settings.max_file_bytes)
            declared = fetch(file.url, target, most, settings.fetch_timeout_s, settings.fetch_rules)
        with partial.open("rb") as source:
            kind = tell_type("" if declared == UNKNOWN_TYPE else declared, source.read(HEAD_BYTES))
        here = File(url=file.url, content_type=kind, path=self._path(name, kind), name=name_in_url(file.url))
        here.size = partial.rename(here.path).stat().st_size
        return here

    def _path(self, name: str, content_type: str) -> Path:
        assert self._folder
        return self._folder / f"{name}{suffix_of(content_type)}"

    def _hand_over(self, item: Item, file: File, where: Where) -> ServicesError | None:
        here = self._here.get(self._reference(item, file))
        if isinstance(here, StorageUnavailable):
            return unavailable(where, here)
        if isinstance(here, File):
            file.size, file.content_type, file.name = here.size, here.content_type, here.name
            if file.rules and (problem := file.rules.problem(here.size or 0, here.content_type)):
                return misfit(InvalidInput, where, problem, "file_rules")
            try:
                file.put(self._own_copy(self._reference(item, file), here.path))
            except OSError as error:
                return unavailable(where, _no_room(error))
            return None
        return misfit(InvalidInput, where, here.message, "file") if here else None

    def _own_copy(self, reference: str, path: Path) -> Path:
        """The file as it was brought, for the first that names it; the others of the batch get copies.

        No verb has run yet, so it is as it came.
        """
        if reference in self._given:
            own = path.with_name(f"{len(self._given)}-{uuid.uuid4().hex[:8]}{path.suffix}")
            with path.open("rb") as source, own.open("xb") as target:
                copy_content(source, target)
            path = own
        self._given.add(reference)
        os.utime(path, ns=(BROUGHT_NS, BROUGHT_NS))
        return path

    def _keep(self, item: Item, where: Where, file: File) -> None:
        owner, keep_us = self._about_job(item)
        name = file_name(owner, file.id)
        try:
            record = FileRecord.read(name, self._all.call("keep", name, keep_us)) if file.id else None
            if file.id and record is None and file.data is None and not file.is_here:
                raise InvalidOutput(f"no file that the job may use has the id {file.id}")
            record = record or self._all.store(file, owner, keep_us)
            file.id, file.size, file.content_type = record.id, record.size, record.content_type
        except InvalidOutput as error:
            item.error = unfit_output(where, error)
        except StorageUnavailable as error:
            item.error = unavailable(where, error)
        except (OSError, RuntimeError) as error:  # taken, and gone all the same, or one without a path
            item.error = misfit(InvalidOutput, where, f"the file cannot be read: {error}", "file")

    def _about_job(self, item: Item) -> tuple[str, int]:
        """Whose an output's files are, and how long they are kept (microseconds)."""
        found: Any = self._all.ledger.redis.hmget(record_key(self._service, self._id_of(item)), *ATTACHED_JOB_FIELDS)
        owner, keep = found
        return (owner or b"").decode(), int(float(keep or 0)) + MARGIN_US

    def _ask_owners(self, items: Sequence[Item]) -> None:
        """Learn whom the jobs of these items belong to."""
        ids = {self._id_of(item) for item in items} - self._owners.keys()
        if ids:
            pipe = self._all.ledger.redis.pipeline(transaction=False)
            for job_id in ids:
                pipe.hmget(record_key(self._service, job_id), *OWNER_FIELDS)
            for job_id, (status, owner) in zip(ids, pipe.execute(), strict=True):
                self._owners[job_id] = (owner or b"").decode() if status else NOBODY

    def _owner(self, item: Item) -> str:
        return self._owners.get(self._id_of(item), "")

    def _id_of(self, item: Item) -> str:
        """The job that an item is, or whose row."""
        return self._job_id or item.job_id

    def _reference(self, item: Item, file: File) -> str:
        """The identity of a file within a batch; files of two API keys are never the same."""
        return file_name(self._owner(item), file.id) if file.id else file.url or f"data:{id(file)}"


class Scratch:
    """A folder of this process for the files of its batches; those of processes that have died are removed.

    A living process holds the lock of the file beside its folder, also for containers that share a disk.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._own: Path | None = None
        self._lock: int | None = None
        if root.is_dir():
            self._remove_others()

    def make(self) -> Path:
        """An empty folder for one batch."""
        while self._own is None:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            own = self._root / uuid.uuid4().hex
            self._lock = os.open(f"{own}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if not os.fstat(self._lock).st_nlink:  # another process took it for a dead one's before it was locked
                os.close(self._lock)
                continue
            own.mkdir(mode=0o700)
            self._own = own
        folder = self._own / uuid.uuid4().hex
        folder.mkdir()
        return folder

    def _remove_others(self) -> None:
        for lock in self._root.glob("*.lock"):
            try:
                with lock.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                    lock.unlink()
            except OSError:  # its process lives, or another one has removed it
                continue


def open_source(file: File) -> Any:
    """The content of an output's file, to be read from its beginning."""
    return io.BytesIO(file.data) if file.data is not None and not file.is_here else file.path.open("rb")


def _no_room(error: OSError) -> StorageUnavailable:
    failure = StorageUnavailable(f"the file cannot be put on this disk: {error}")
    failure.__cause__ = error
    return failure


def _is_changed(path: Path) -> bool:
    """Whether a plugin has written to the file of an input; a removed one counts as unchanged."""
    try:
        return path.stat().st_mtime_ns != BROUGHT_NS
    except OSError:
        return False
