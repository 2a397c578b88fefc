"""How our commands start a Python module as a process of its own."""

from __future__ import annotations

import sys


def python_command(module: str, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
    """The command line of ``python -m MODULE …`` in which no folder of the user's stands for a package of ours.

    Args:
        module: such as ``celery`` or ``worker.child``.
        arguments: of the module.
        options: of Python.
    """
    return [sys.executable, *options, "-P", "-m", "libs_service.launch", module, *arguments]
