"""The files that a plugin's verbs return, taken in that moment: later writes to their paths change nothing."""

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

#: Gives an empty folder of the run's own.
MakeFolder = Callable[[], Path]
#: Raises ``InvalidOutput`` for a file that is too large; called before its content is copied.
Check = Callable[[File, int], None]


@dataclass(frozen=True, slots=True)
class Taken:
    """A plugin's file whose content is here, and as it was before."""

    file: File  #: held, so that no other object gets its ``id()``
    path: Path
    content_type: str


class Taker:
    """For one run of the stages. A ``File`` object that a plugin keeps is as it was once the run is over."""

    def __init__(self, make_folder: MakeFolder, check: Check) -> None:
        self._make_folder = make_folder
        self._check = check
        self._folder: Path | None = None
        self._taken: dict[int, Taken] = {}  # by id() of the file
        self._returned: dict[int, File] = {}  # those that are in an output, held for the same reason
        self._count = 0

    def look(self, raw: Any) -> Any:
        """After ``predict``: take existing files. A missing one may come to exist until ``postprocess`` returns it."""
        with suppress(Exception):  # a raw result may hold anything, such as cycles and objects that cannot be copied
            files = [file for _, file in find_files(raw) if file.is_made]
            if any(id(file) in self._taken for file in files):  # an object that another result has too
                raw = self._copy(raw)
                files = [file for _, file in find_files(raw) if file.is_made]
            self._take_all(files, lambda _file, _error: None)
        return raw

    def take(self, output: Any) -> Any:
        """After ``postprocess``: take the remaining files; gives the output, or a copy where another shares its files.

        Raises ``InvalidOutput`` that names the field and the path, or ``ServiceFailed``.
        """
        for where, file in find_files(output):
            if file.url and not file.id and not file.is_here:
                must = "a URL is no file yet: fetch it, then write File.from_bytes(data, type) or File.from_path(path)"
                raise misfit(InvalidOutput, where, must, "file_url")
        found = [(where, file) for where, file in find_files(output) if file.is_made]
        if any(id(file) in self._returned for _, file in found):
            try:
                output = self._copy(output)
            except Exception as error:
                must = "make a File for each output: one of these is in another job's, too, and this output has no copy"
                raise InvalidOutput(f"{must} ({type(error).__name__}: {error})") from error
            found = [(where, file) for where, file in find_files(output) if file.is_made]
        places = {id(file): where for where, file in reversed(found)}

        def refuse(file: File, error: ServicesError) -> None:
            where = places[id(file)]
            if isinstance(error, StorageUnavailable):
                raise unavailable(where, error) from error.__cause__
            raise unfit_output(where, error) from error.__cause__

        self._returned.update({id(file): file for _, file in found})
        self._take_all([file for _, file in found], refuse)
        return output

    def give_back(self) -> None:
        """Restore the plugin's objects: one that was made in ``load`` is returned again and again."""
        for taken in self._taken.values():
            taken.file.id, taken.file.size = "", None
            taken.file.content_type = taken.content_type
            taken.file.put(taken.path)
        self._taken.clear()
        self._returned.clear()
        self._folder = None

    def _copy(self, value: Any) -> Any:
        """The same with files of its own, which are to be taken anew from where the plugin has them."""
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
        """The files of one result; where several have one path, its content is taken once."""
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
            self._taken[id(file)] = Taken(file, source, file.content_type)
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
    """Have the content of one path at another, which is no link to it.

    Raises ``InvalidOutput`` that names the path, or ``StorageUnavailable`` where the disk does not take it.
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
            raise _immovable(source, error) from error


def _open(source: Path) -> BinaryIO:
    """Not blocking: a named pipe has no content until somebody writes."""
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
        raise _immovable(source, error) from error
    return True


def _immovable(source: Path, error: OSError) -> InvalidOutput:
    why = error.strerror or error
    return InvalidOutput(f"the file {source} cannot be moved: {why}; leave move=True out, and it is copied")


def misfit(kind: type[ServicesError], where: Where, problem: str, code: str) -> ServicesError:
    """The error of one field."""
    return kind(f"{name_of(where)}: {problem}", errors=[{"loc": list(where), "msg": problem, "type": code}])


def unfit_output(where: Where, error: ServicesError) -> ServicesError:
    """The error of an output's field, out of that of its file."""
    return misfit(InvalidOutput, where, error.message, error.errors[0]["type"] if error.errors else "file")


def unavailable(where: Where, error: StorageUnavailable) -> ServiceFailed:
    """The error of a job whose file can be neither brought nor stored at the moment."""
    failure = ServiceFailed(f"{name_of(where)}: {error.message}")
    failure.retryable, failure.__cause__ = True, error.__cause__
    return failure


def name_of(where: Where) -> str:
    """A field's place as text."""
    return ".".join(map(str, where)) or "the whole"
