"""Which files below a folder are opened while a block runs, by any library: for ``services check``.

On Linux the kernel reports them (inotify), since most libraries of models read their files in C. Elsewhere Python's own
opens are seen alone.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

#: Most folders that are watched.
MAX_FOLDERS = 1000

#: inotify's events (``man 7 inotify``) and how one of them begins: watch, mask, cookie, length of the name.
IN_OPEN, IN_MODIFY, IN_CREATE, IN_ISDIR = 0x20, 0x2, 0x100, 0x40000000
EVENT = struct.Struct("iIII")

#: Another program may open these in the same moment, such as an editor; Python reads them itself, and is heard.
TEXTS = frozenset({".py", ".pyi", ".md", ".rst", ".toml", ".cfg", ".ini", ".lock", ".yml", ".yaml"})

_paths: set[str] | None = None  # paths that Python opens, while somebody listens
_is_hooked = False


class OpenedFiles:
    """Use as a context; ``files`` has the result afterwards."""

    def __init__(self, folder: Path) -> None:
        self.files: set[Path] = set()
        self._folder = folder
        self._folders: dict[int, Path] = {}
        self._fd = -1

    def __enter__(self) -> Self:
        global _paths
        _hook()
        _paths = set()
        self._start_inotify()
        return self

    def __exit__(self, *_: object) -> None:
        global _paths
        paths = {Path(path) for path in _paths or ()}
        _paths = None
        opened, written = self._read_inotify()
        modules = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        paths |= {Path(path) for path in modules if path}  # those that are imported from __pycache__ are not opened
        folder = self._folder.resolve()
        for path in paths | {path for path in opened if path.suffix not in TEXTS}:
            real = path.parent.resolve() / path.name
            if real.is_relative_to(folder) and not is_left_out(real.relative_to(folder)) and real.is_file():
                self.files.add(real.relative_to(folder))
        self.files -= {path.relative_to(folder) for path in written}

    def _start_inotify(self) -> None:
        if sys.platform != "linux":
            return
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for folder in list(_folders_below(self._folder.resolve()))[:MAX_FOLDERS] if self._fd >= 0 else []:
            watch = libc.inotify_add_watch(self._fd, os.fsencode(folder), IN_OPEN | IN_MODIFY | IN_CREATE)
            if watch >= 0:
                self._folders[watch] = folder

    def _read_inotify(self) -> tuple[set[Path], set[Path]]:
        """The files that were opened, and those that were written meanwhile."""
        opened: set[Path] = set()
        written: set[Path] = set()
        for watch, mask, name in self._events():
            if watch in self._folders and not mask & IN_ISDIR:
                (opened if mask & IN_OPEN else written).add(self._folders[watch] / name)
        if self._fd >= 0:
            os.close(self._fd)
        return opened, written

    def _events(self) -> Iterator[tuple[int, int, str]]:
        while self._fd >= 0:
            try:
                data = os.read(self._fd, 65_536)
            except BlockingIOError:
                return
            while data:
                watch, mask, _, length = EVENT.unpack_from(data)
                name = data[EVENT.size : EVENT.size + length].rstrip(b"\0")
                data = data[EVENT.size + length :]
                yield watch, mask, os.fsdecode(name)


def is_left_out(path: Path) -> bool:
    """Whether a path below a plugin's source is none of its own files: hidden, built, or compiled by Python."""
    return any(part.startswith(".") or part in NOT_SOURCE or part.endswith(".egg-info") for part in path.parts)


NOT_SOURCE = frozenset({"__pycache__", "build", "dist", "node_modules", "venv"})


def _folders_below(folder: Path) -> Iterator[Path]:
    for path, names, _ in os.walk(folder):
        yield Path(path)
        names[:] = [name for name in names if not is_left_out(Path(name))]


def _hook() -> None:
    """An audit hook stays until the process ends; it does nothing while nobody listens."""
    global _is_hooked
    if not _is_hooked:
        _is_hooked = True
        sys.addaudithook(_hear)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or _paths is None or not isinstance(arguments[0], str | os.PathLike):
        return
    if not set(arguments[1] or "r") & set("wax+"):
        _paths.add(str(arguments[0]))
