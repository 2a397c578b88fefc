"""The files that a plugin's verbs return, copied at that moment: later writes to their paths change nothing."""

from __future__ import annotations

import copy
import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from worker.errors import InvalidOutput, ServiceFailed, ServicesError, StorageUnavailable
from worker.files import File, Where, find_files
from worker.filestore.copying import DISK_ERRORS, copy_content

#: Returns the run's own folder, empty at first.
MakeFolder = Callable[[], Path]
#: Raises ``InvalidOutput`` for a file that is too large; called before its content is copied.
Check = Callable[[File, int], None]


@dataclass(frozen=True, slots=True)
class TakenFile:
    """A plugin's file whose content was copied or moved, and its state before."""

    file: File  #: referenced, so that no other object gets its ``id()``
    path: Path
    content_type: str


class OutputFiles:
    """The output files of a run of the stages. After the run, the plugin's ``File`` objects are as they were before."""

    def __init__(self, make_folder: MakeFolder, check: Check) -> None:
        self._make_folder = make_folder
        self._check = check
        self._folder: Path | None = None
        self._taken: dict[int, TakenFile] = {}  # by id() of the file
        self._returned: dict[int, File] = {}  # files in an output, referenced for the same reason
        self._count = 0

    def take_results(self, raw: Any) -> Any:
        """After ``predict``: take existing files. A missing file may be written before ``postprocess`` returns it."""
        with suppress(Exception):  # a raw result may contain anything, such as cycles and objects that cannot be copied
            files = [file for _, file in find_files(raw) if file.is_made]
            if any(id(file) in self._taken for file in files):  # another result has the same object
                raw = self._copy(raw)
                files = [file for _, file in find_files(raw) if file.is_made]
            self._take_all(files, lambda _file, _error: None)
        return raw

    def take_outputs(self, output: Any) -> Any:
        """After ``postprocess``: take the remaining files. Returns the output, or a copy if another shares its files.

        Raises ``InvalidOutput`` that names the field and the path, or ``ServiceFailed``.
        """
        for where, file in find_files(output):
            if file.url and not file.id and not file.is_here:
                must = "a URL is no file yet: fetch it, then write File.from_bytes(data, type) or File.from_path(path)"
                raise field_error(InvalidOutput, where, must, "file_url")
        made = [(where, file) for where, file in find_files(output) if file.is_made]
        if any(id(file) in self._returned for _, file in made):
            try:
                output = self._copy(output)
            except Exception as error:
                must = "make a File for each output: one of these is in another job's, too, and this output has no copy"
                raise InvalidOutput(f"{must} ({type(error).__name__}: {error})") from error
            made = [(where, file) for where, file in find_files(output) if file.is_made]
        places = {id(file): where for where, file in reversed(made)}

        def refuse(file: File, error: ServicesError) -> None:
            where = places[id(file)]
            if isinstance(error, StorageUnavailable):
                raise storage_error(where, error) from error.__cause__
            raise output_error(where, error) from error.__cause__

        self._returned.update({id(file): file for _, file in made})
        self._take_all([file for _, file in made], refuse)
        return output

    def give_back(self) -> None:
        """Restore the plugin's objects: a plugin may return an object that it made in ``load`` for each job."""
        for taken in self._taken.values():
            taken.file.id, taken.file.size = "", None
            taken.file.content_type = taken.content_type
            taken.file.put(taken.path)
        self._taken.clear()
        self._returned.clear()
        self._folder = None

    def _copy(self, value: Any) -> Any:
        """A copy of the value with its own ``File`` objects; their content is taken again from the plugin's paths."""
        memo: dict[int, Any] = {}
        for _, file in find_files(value):
            if file.is_made:
                taken = self._taken.get(id(file))
                memo[id(file)] = other = copy.copy(file)
                if taken:
                    other.id, other.size, other.content_type = "", None, taken.content_type
                    other.put(taken.path)
        return copy.deepcopy(value, memo)

    def _take_all(self, files: list[File], refuse: Callable[[File, ServicesError], None]) -> None:
        """Take the files of a result; the content of a path that several files share is taken once."""
        new = [file for file in files if id(file) not in self._taken]
        moved = {file.path for file in new if file.move}
        here: dict[Path, Path] = {}
        for file in new:
            if id(file) in self._taken:
                continue
            source = file.path
            try:
                if source not in here:
                    here[source] = self._take(file, source in moved)
            except (InvalidOutput, StorageUnavailable) as error:
                refuse(file, error)
                continue
            self._taken[id(file)] = TakenFile(file, source, file.content_type)
            file.put(here[source])

    def _take(self, file: File, move: bool) -> Path:
        self._folder = self._folder or self._make_folder()
        target = self._folder / f"taken-{self._count}"
        self._count += 1
        try:
            take_file(file.path, target, move, lambda size: self._check(file, size))
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return target


def take_file(source: Path, target: Path, move: bool, check: Callable[[int], None]) -> None:
    """Copy, or move, the content of a path to another path, which is no link to it.

    Raises ``InvalidOutput`` that names the path, or ``StorageUnavailable`` if this disk is full or read-only.
    """
    with _open(source) as content:
        about = os.fstat(content.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise InvalidOutput(f"the file {source} cannot be read: it is no regular file")
        check(about.st_size)
        if move and about.st_nlink == 1 and not source.is_symlink() and _rename(source, target):
            return
        try:
            with target.open("xb") as copied:
                copy_content(content, copied)
        except OSError as error:
            if error.errno in DISK_ERRORS or not target.exists():
                raise StorageUnavailable(f"the file cannot be put on this disk: {error}") from error
            raise InvalidOutput(f"the file {source} cannot be read: {error.strerror or error}") from error
    if move:
        try:
            source.unlink()
        except OSError as error:
            raise _move_error(source, error) from error


def _open(source: Path) -> BinaryIO:
    """Open without blocking: a named pipe would block until a process writes to it."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidOutput(f"the file {source} cannot be read: {reason}") from error
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidOutput(f"the file {source} cannot be read: it is a directory")
    return os.fdopen(descriptor, "rb")


def _rename(source: Path, target: Path) -> bool:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in DISK_ERRORS | {errno.EXDEV}:
            return False
        raise _move_error(source, error) from error
    return True


def _move_error(source: Path, error: OSError) -> InvalidOutput:
    why = error.strerror or error
    return InvalidOutput(f"the file {source} cannot be moved: {why}; leave move=True out, and it is copied")


def field_error(kind: type[ServicesError], where: Where, problem: str, code: str) -> ServicesError:
    """The error of a field of the input or output."""
    return kind(f"{name_of(where)}: {problem}", errors=[{"loc": list(where), "msg": problem, "type": code}])


def output_error(where: Where, error: ServicesError) -> ServicesError:
    """The error of an output's field, made from the error of its file."""
    return field_error(InvalidOutput, where, error.message, error.errors[0]["type"] if error.errors else "file")


def storage_error(where: Where, error: StorageUnavailable) -> ServiceFailed:
    """The error of a job whose file can be neither fetched nor stored at the moment."""
    failure = ServiceFailed(f"{name_of(where)}: {error.message}")
    failure.retryable, failure.__cause__ = True, error.__cause__
    return failure


def name_of(where: Where) -> str:
    """A field's place as text."""
    return ".".join(map(str, where)) or "the whole"
