"""A batch's files in a pool process: made local before ``preprocess``, copied as verbs return them, then stored."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import redis

from worker.errors import FileMissing, InvalidInput, InvalidOutput, ServicesError, StorageUnavailable
from worker.files import UNKNOWN_TYPE, File, Where, find_files, name_in_url, suffix_of
from worker.filestore.copying import copy_content
from worker.filestore.fetch import fetch, too_many_urls
from worker.filestore.output_files import OutputFiles, field_error, output_error, storage_error
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
    find_type,
    new_blob,
)
from worker.inference.results import Persist
from worker.inference.runner import Tell
from worker.inference.stages import Item
from worker.ledger.keys import record_key
from worker.ledger.record import ATTACHED_JOB_FIELDS, OWNER_FIELDS
from worker.ledger.sync_ledger import Ledger
from worker.settings import Settings

log = logging.getLogger("services.worker")

#: Files of a batch that are fetched at the same time.
THREADS = 8
#: Extra life of an output's file in microseconds: it must cover the time between its storing and the job's end.
MARGIN_US = 300 * 1_000_000

#: The owner of a job whose record vanished while it runs: it may use no file at all.
NO_OWNER = "-"

#: Modification time of an input's file (nanoseconds since the epoch: 2001, since a zip has no time before 1980). Any
#: later write of the plugin changes it, however soon it comes.
INPUT_TIME_NS = 978_307_200 * 1_000_000_000


class FileStore:
    """The file store of a pool process. It opens neither disk nor storage before the first file."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.settings = settings
        self.ledger = ledger
        self.storage = Storage(settings)
        self.scratch = Scratch(settings.scratch_dir)
        self._script = ledger.redis.register_script(LUA)

    def of_batch(self, service: str, tell: Tell, persist: Persist, job_id: str = "") -> BatchFiles:
        """The files of a run of the stages. ``job_id``: the chunk's id, if the items are its rows."""
        return BatchFiles(self, service, tell, persist, job_id)

    def call(self, operation: str, *arguments: Any) -> Any:
        """Call an operation of ``files.lua``."""
        return self._script(keys=[EXPIRES_KEY], args=[operation, *arguments])

    def records(self, owner: str, ids: Sequence[str]) -> dict[str, FileRecord]:
        """The files of these ids that a job of this API key may use; a job without a key ("") may use all files."""
        records: dict[str, FileRecord] = {}
        for start in range(0, len(ids), AT_ONCE):
            for matches in self.call("find", owner, *ids[start : start + AT_ONCE]):
                if record := FileRecord.read_found(matches[0] if matches else ()):
                    records[record.id] = record
        return records

    def store(self, file: File, owner: str, keep_us: int) -> FileRecord:
        """Store a file of an output. Raises ``StorageUnavailable`` or ``InvalidOutput``."""
        blob = new_blob()
        self.call("open", blob, LEASE_US, "output")
        try:
            with open_source(file) as source:
                head = source.read(HEAD_BYTES)
                file.content_type = find_type(file.content_type, head)
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
        """Raise ``InvalidOutput`` if an output's file breaks the field's rules; without a type, check only its size."""
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
        """Remove a blob now; the sweep would do so later."""
        try:
            self.storage.remove(blob)
            self.ledger.redis.zrem(BLOBS_KEY, blob)
        except (ServicesError, redis.RedisError) as error:
            log.warning("blob %s is left for the sweep: %s: %s", blob, type(error).__name__, error)


class BatchFiles:
    """The files of a run of the stages."""

    def __init__(self, store: FileStore, service: str, tell: Tell, persist: Persist, job_id: str) -> None:
        self._store = store
        self._persist = persist
        self._service = service
        self._tell = tell
        self._job_id = job_id
        self._folder: Path | None = None
        self._outputs = OutputFiles(self._make_folder, store.check)
        self._local: dict[str, File | ServicesError] = {}  # reference -> the local file, or the error of fetching it
        self._used: set[str] = set()  # references whose local file is given to a job; further jobs get copies
        self._fetch_until = 0.0  # by time.monotonic
        self._owners: dict[str, str] = {}  # job -> the API key to which it belongs; "" for none

    def fetch_inputs(self, items: Sequence[Item]) -> None:
        """Stage 1b: make every file of the inputs local. A file that cannot be fetched fails its own job only.

        The model's time limit is suspended meanwhile: it does not count the waits for Redis and the storage.
        """
        files = [(item, where, file) for item in items for where, file in find_files(item.value)]
        self._refuse_many(files)
        files = [(item, where, file) for item, where, file in files if item.error is None]
        missing = [(item, where, file) for item, where, file in files if not file.is_here]
        if missing:
            self._tell("computed")
            self._persist(lambda: self._download_all([(item, file) for item, _, file in missing]))
            for item, where, file in missing:
                if item.error is None:
                    item.error = self._assign(item, file, where)
            self._tell("begun")

    def _refuse_many(self, files: Sequence[tuple[Item, Where, File]]) -> None:
        """Fail the jobs with too many URLs, which the API has refused: another Celery producer has sent them."""
        most = self._store.settings.max_urls
        counts: Counter[int] = Counter()
        for item, where, file in files:
            counts[id(item)] += bool(file.url)
            if counts[id(item)] > most and item.error is None:
                item.error = field_error(InvalidInput, where, too_many_urls(most), "too_many_urls")

    def take_results(self, raw: Any) -> Any:
        """The result of ``predict``, with a copy of the present content of its files."""
        return self._outputs.take_results(raw)

    def take_outputs(self, output: Any) -> Any:
        """The result of ``postprocess``, with a copy of the present content of its files; raises if it has none."""
        output = self._outputs.take_outputs(output)
        for _, file in find_files(output):
            if file.is_here and not file.is_made and _is_changed(file.path):
                file.id = ""  # the plugin has written to its input file: its content is new
        return output

    def store_outputs(self, items: Sequence[Item]) -> None:
        """Stage 4b: store every file of the outputs, for as long as its job's result."""
        files = [(item, where, file) for item in items for where, file in find_files(item.value)]
        if files:
            self._tell("computed")
            for item, where, file in files:
                if item.error is None:
                    self._persist(partial(self._store_output, item, where, file))
            self._tell("begun")

    def clear(self) -> None:
        """Remove the local copies of the batch's files."""
        self._outputs.give_back()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        self._local.clear()
        self._used.clear()

    def _make_folder(self) -> Path:
        self._folder = self._folder or self._store.scratch.make()
        return self._folder

    def _download_all(self, missing: Sequence[tuple[Item, File]]) -> None:
        self._read_owners([item for item, file in missing if file.id])
        wanted = {self._reference(item, file): (self._owner(item), file) for item, file in missing}
        ids: dict[str, list[str]] = {}
        for owner, file in wanted.values():
            if file.id:
                ids.setdefault(owner, []).append(file.id)
        records = {owner: self._store.records(owner, of_owner) for owner, of_owner in ids.items()}
        self._make_folder()
        self._fetch_until = time.monotonic() + self._store.settings.fetch_total_timeout_s

        def download(number: int, owner: str, file: File) -> File | ServicesError:
            try:
                return self._download(file, records[owner].get(file.id) if file.id else None, f"{number}")
            except ServicesError as error:
                return error
            except OSError as error:  # this machine's disk
                return _disk_error(error)

        start = len(self._local)
        with ThreadPoolExecutor(min(THREADS, len(wanted)), "files") as threads:
            local_files = threads.map(download, range(start, start + len(wanted)), *zip(*wanted.values(), strict=True))
            self._local.update(zip(wanted, local_files, strict=True))

    def _download(self, file: File, record: FileRecord | None, name: str) -> File:
        assert self._folder
        if file.id:
            if record is None:
                raise FileMissing("no file has this id any more")
            path = self._path(name, record.content_type)
            here = File(id=file.id, content_type=record.content_type, path=path, name=record.filename or "")
            here.size = record.size
            self._store.storage.download(record.blob, here.path)
            return here
        if file.data is not None:
            here = File(data=file.data, content_type=file.content_type, path=self._path(name, file.content_type))
            here.path.write_bytes(file.data)
            return here
        settings, partial = self._store.settings, self._folder / f"{name}.part"
        with partial.open("wb") as target:
            most = min(settings.max_file_bytes, (file.rules and file.rules.max_bytes) or settings.max_file_bytes)
            left_s = self._fetch_until - time.monotonic()
            if left_s <= 0:
                total = f"{settings.fetch_total_timeout_s:g} s (SERVICES_FETCH_TOTAL_TIMEOUT_S)"
                raise InvalidInput(f"the URL was not fetched: the URLs of the jobs that run together took {total}")
            declared = fetch(file.url, target, most, min(settings.fetch_timeout_s, left_s), settings.fetch_rules)
        with partial.open("rb") as source:
            kind = find_type("" if declared == UNKNOWN_TYPE else declared, source.read(HEAD_BYTES))
        here = File(url=file.url, content_type=kind, path=self._path(name, kind), name=name_in_url(file.url))
        here.size = partial.rename(here.path).stat().st_size
        return here

    def _path(self, name: str, content_type: str) -> Path:
        assert self._folder
        return self._folder / f"{name}{suffix_of(content_type)}"

    def _assign(self, item: Item, file: File, where: Where) -> ServicesError | None:
        here = self._local.get(self._reference(item, file))
        if isinstance(here, StorageUnavailable):
            return storage_error(where, here)
        if isinstance(here, File):
            file.size, file.content_type, file.name = here.size, here.content_type, here.name
            if file.rules and (problem := file.rules.problem(here.size or 0, here.content_type)):
                return field_error(InvalidInput, where, problem, "file_rules")
            try:
                file.put(self._own_copy(self._reference(item, file), here.path))
            except OSError as error:
                return storage_error(where, _disk_error(error))
            return None
        return field_error(InvalidInput, where, here.message, "file") if here else None

    def _own_copy(self, reference: str, path: Path) -> Path:
        """The local file itself for the first job that names it, and a copy for each further job of the batch.

        No verb has run yet, so the content is unchanged.
        """
        if reference in self._used:
            own = path.with_name(f"{len(self._used)}-{uuid.uuid4().hex[:8]}{path.suffix}")
            with path.open("rb") as source, own.open("xb") as target:
                copy_content(source, target)
            path = own
        self._used.add(reference)
        os.utime(path, ns=(INPUT_TIME_NS, INPUT_TIME_NS))
        return path

    def _store_output(self, item: Item, where: Where, file: File) -> None:
        owner, keep_us = self._owner_and_lifetime(item)
        name = file_name(owner, file.id)
        try:
            record = FileRecord.read(name, self._store.call("keep", name, keep_us)) if file.id else None
            if file.id and record is None and file.data is None and not file.is_here:
                raise InvalidOutput(f"no file that the job may use has the id {file.id}")
            record = record or self._store.store(file, owner, keep_us)
            file.id, file.size, file.content_type = record.id, record.size, record.content_type
        except InvalidOutput as error:
            item.error = output_error(where, error)
        except StorageUnavailable as error:
            item.error = storage_error(where, error)
        except (OSError, RuntimeError) as error:  # the local copy was removed, or the file has no path
            item.error = field_error(InvalidOutput, where, f"the file cannot be read: {error}", "file")

    def _owner_and_lifetime(self, item: Item) -> tuple[str, int]:
        """The owner of an output's files, and their life (microseconds)."""
        fields: Any = self._store.ledger.redis.hmget(record_key(self._service, self._id_of(item)), *ATTACHED_JOB_FIELDS)
        owner, keep = fields
        return (owner or b"").decode(), int(float(keep or 0)) + MARGIN_US

    def _read_owners(self, items: Sequence[Item]) -> None:
        """Read the owners of the jobs of these items."""
        ids = {self._id_of(item) for item in items} - self._owners.keys()
        if ids:
            pipe = self._store.ledger.redis.pipeline(transaction=False)
            for job_id in ids:
                pipe.hmget(record_key(self._service, job_id), *OWNER_FIELDS)
            for job_id, (status, owner) in zip(ids, pipe.execute(), strict=True):
                self._owners[job_id] = (owner or b"").decode() if status else NO_OWNER

    def _owner(self, item: Item) -> str:
        return self._owners.get(self._id_of(item), "")

    def _id_of(self, item: Item) -> str:
        """The id of the item's job; for a row, of its chunk."""
        return self._job_id or item.job_id

    def _reference(self, item: Item, file: File) -> str:
        """The identity of a file within a batch; files of two API keys are always different."""
        return file_name(self._owner(item), file.id) if file.id else file.url or f"data:{id(file)}"


class Scratch:
    """This process's folder for the files of its batches; it also removes the folders of processes that have died.

    A living process has locked the file beside its folder, which containers that share a disk see too.
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
            if not os.fstat(self._lock).st_nlink:  # another process removed it as a dead process's before it was locked
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
            except OSError:  # its process lives, or another process has removed it
                continue


def open_source(file: File) -> Any:
    """Open the content of an output's file."""
    return io.BytesIO(file.data) if file.data is not None and not file.is_here else file.path.open("rb")


def _disk_error(error: OSError) -> StorageUnavailable:
    failure = StorageUnavailable(f"the file cannot be put on this disk: {error}")
    failure.__cause__ = error
    return failure


def _is_changed(path: Path) -> bool:
    """Whether a plugin has written to the file of an input; a removed one counts as unchanged."""
    try:
        return path.stat().st_mtime_ns != INPUT_TIME_NS
    except OSError:
        return False
