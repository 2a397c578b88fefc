"""The storage of files' bytes: a local folder, or any file system of fsspec.

A file's bytes are a *blob* with a name that is used once. Redis stores which blob belongs to a file (``files.lua``).
All calls block; the API makes them in threads.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from worker.errors import FileMissing, StorageUnavailable
from worker.file_types import type_of
from worker.files import CONTENT_TYPE, UNKNOWN_TYPE, canonical
from worker.filestore.copying import copy_content
from worker.ledger.jobs import rfc3339
from worker.settings import Settings

LUA = files("worker.filestore").joinpath("files.lua").read_text()
#: ``KEYS[1]`` of that script.
EXPIRES_KEY = "{.files}:expires"
BLOBS_KEY = "{.files}:blobs"
SECRET_KEY = "{.files}:secret"  # the key's name, no secret
#: A blob without a file may be removed when its upload was not renewed for this time, in microseconds.
LEASE_US = 600 * 1_000_000
#: Seconds between two renewals during an upload.
RENEW_S = 20.0

#: A job that holds a file has a record within this time after the hold (microseconds), or never.
GRACE_US = 300 * 1_000_000
#: Files in a call of the script, at most: Lua takes some thousands of arguments.
AT_ONCE = 1000

#: Bytes of a blob that are in memory at a time, on the way to and from the storage.
BLOCK_BYTES = 8 * 1024 * 1024
PIECE_BYTES = 1024 * 1024
#: Leading bytes that decide a file's type.
HEAD_BYTES = 8192


def file_name(owner: str, file_id: str) -> str:
    """The name in ``files.lua`` of a file that belongs to this API key ("": to none)."""
    return f"{owner}/{file_id}" if owner else file_id


def holds_key(name: str) -> str:
    """The set of jobs whose input names a file."""
    return f"{{.files}}:holds:{name}"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A stored file. Times are microseconds since the epoch by Redis's clock."""

    id: str  #: the SHA-256 of its content
    owner: str  #: id of the API key to which it belongs; "" for none
    blob: str
    size: int
    content_type: str
    created_us: int
    expires_us: int
    filename: str | None = None  #: as the last upload named it; None if no upload did

    @classmethod
    def read(cls, name: str, values: Sequence[bytes | None]) -> FileRecord | None:
        """Read the reply of ``files.lua`` about the file of this name; None if there is no such file."""
        if not values or values[0] is None:
            return None
        blob, size, kind, created, expires, called = (value or b"" for value in values)
        owner, _, file_id = name.rpartition("/")
        about = (blob.decode(), int(size), kind.decode(), int(created), int(expires))
        return cls(file_id, owner, *about, called.decode() or None)

    @classmethod
    def read_found(cls, reply: Sequence[bytes]) -> FileRecord | None:
        """Read a reply of ``find`` or ``hold``, which begins with the file's name."""
        return cls.read(reply[0].decode(), reply[1:7]) if reply else None

    @property
    def name(self) -> str:
        """The file's name in ``files.lua``."""
        return file_name(self.owner, self.id)

    def describe(self, links: dict[str, str]) -> dict[str, Any]:
        """As ``docs/files.md`` shows it."""
        about = {"id": self.id, "name": self.filename, "size": self.size, "content_type": self.content_type}
        return {
            **about,
            "sha256": self.id,
            "created_at": rfc3339(self.created_us),
            "expires_at": rfc3339(self.expires_us),
            "links": links,
        }


class Writing:
    """A blob that is being written, and the hash of its bytes so far."""

    def __init__(self, file: Any, local: bool) -> None:
        self._file = file
        self._local = local
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Write further bytes."""
        with guarded():
            self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def finish(self) -> str:
        """Complete the blob in the storage (a local one: on its disk); returns its SHA-256."""
        with guarded():
            self._file.flush()
            if self._local:
                os.fsync(self._file.fileno())
                os.fchmod(self._file.fileno(), 0o444)  # it is never written again
            self._file.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close an incomplete blob, which the caller then removes."""
        with guarded():
            self._file.close()


class Storage:
    """The storage of ``SERVICES_FILES_URL``. Raises ``StorageUnavailable``; ``FileMissing`` for an unknown blob."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.files_url or str(settings.data_folder / "files")
        # botocore's defaults are a minute per attempt and five attempts, for each of the five attempts of s3fs.
        waits = dict.fromkeys(("connect_timeout", "read_timeout"), settings.storage_timeout_s)
        is_s3 = self._url.startswith(("s3://", "s3a://"))
        self._options = {"config_kwargs": {**waits, "retries": {"total_max_attempts": 1}}} if is_s3 else {}
        self._opened: tuple[Any, str] | None = None
        self._lock = threading.Lock()

    @property
    def is_local(self) -> bool:
        """Whether a blob is a file on this machine."""
        protocol = self._open()[0].protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def create(self, blob: str) -> Writing:
        """Begin a blob."""
        with guarded():
            filesystem, root = self._open()
            if self.is_local:
                Path(root).mkdir(mode=0o700, parents=True, exist_ok=True)
                return Writing(Path(f"{root}/{blob}").open("xb"), local=True)
            return Writing(filesystem.open(f"{root}/{blob}", "wb", block_size=BLOCK_BYTES), local=False)

    def read(self, blob: str) -> Any:
        """A file object; the caller closes it."""
        with guarded():
            filesystem, root = self._open()
            if self.is_local:
                return Path(f"{root}/{blob}").open("rb")
            return filesystem.open(f"{root}/{blob}", "rb", block_size=BLOCK_BYTES, cache_type="readahead")

    def download(self, blob: str, path: Path) -> None:
        """Copy a blob to a local file. A plugin's changes of the file do not affect the blob."""
        with self.read(blob) as source, guarded(), path.open("xb") as file:
            if self.is_local:
                copy_content(source, file)
            else:
                shutil.copyfileobj(source, file, PIECE_BYTES)

    def has(self, blob: str) -> bool:
        """Whether a blob exists."""
        with guarded():
            filesystem, root = self._open()
            return bool(filesystem.exists(f"{root}/{blob}"))

    def remove(self, blob: str) -> None:
        """Remove a blob if it exists."""
        try:
            with guarded():
                filesystem, root = self._open()
                filesystem.rm_file(f"{root}/{blob}")
        except FileMissing:
            pass

    def _open(self) -> tuple[Any, str]:
        """The file system and the folder in it. fsspec is imported here: a process without files does not need it."""
        with self._lock:
            if self._opened is None:
                import fsspec

                filesystem, root = fsspec.core.url_to_fs(self._url, **self._options)
                self._opened = filesystem, root.rstrip("/")
        return self._opened


def new_blob() -> str:
    """A new, unique name of a blob."""
    return uuid.uuid4().hex


def find_type(declared: str, head: bytes, name: str = "") -> str:
    """The type of a file: as declared, else by its first bytes, else by its name's ending.

    A declared type that is none, such as one with a line's end, counts as not declared: no answer could bear it.
    """
    if declared != UNKNOWN_TYPE and CONTENT_TYPE.fullmatch(declared):
        return declared
    return sniff(head) or type_of(name)


def sniff(head: bytes) -> str:
    """The type that a file's first bytes show; "" if they show none."""
    import filetype

    kind = filetype.guess(head)
    return canonical(str(kind.mime)) if kind else ""


@contextmanager
def guarded() -> Iterator[None]:
    """Turn the errors of any storage's library into ``FileMissing`` and ``StorageUnavailable``."""
    try:
        yield
    except (FileMissing, StorageUnavailable):
        raise
    except FileNotFoundError as error:
        raise FileMissing from error
    except Exception as error:
        hint = " (for s3://: pip install s3fs)" if isinstance(error, ImportError) else ""
        raise StorageUnavailable(f"the storage of the files: {type(error).__name__}: {error}{hint}") from error
