"""How our commands start a Python module as a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path


def python_command(module: str, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
    """The command line of ``python -m MODULE …`` in which no folder of the user's stands for a package of ours.

    Args:
        module: such as ``celery`` or ``worker.pool.child``.
        arguments: of the module.
        options: of Python.
    """
    return [sys.executable, *options, "-P", "-m", "libs_service.launch", module, *arguments]


def find_here() -> None:
    """Let modules of the current folder be imported as in a worker: a command's own folder is its script's."""
    here = str(Path.cwd())
    if not sys.flags.safe_path and not {"", here} & set(sys.path):
        sys.path.insert(0, here)
