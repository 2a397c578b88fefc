"""``python -P -m libs_service.launch MODULE …``: ``python -m MODULE …``, with our package ``worker`` in any folder.

This is how our commands start processes (``worker.processes.launch``). ``-P`` keeps the current folder out of the way
until the module's own imports are done. Then it is put where ``-m`` would have put it, first, since a plugin may import
there; ``PYTHONSAFEPATH`` keeps it out, as in any Python.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

from libs_service.names import ours_first, pin


def main() -> None:
    """Run the module that the command line names. ``__main__`` stays this one."""
    module = sys.argv[1]
    with ours_first("worker"):
        if (spec := find_spec(module)) and spec.submodule_search_locations is not None:
            module = f"{module}.__main__"
        imported = importlib.import_module(module)
    del sys.modules[module]  # its imports stay
    sys.argv = [str(imported.__file__), *sys.argv[2:]]
    if not os.environ.get("PYTHONSAFEPATH"):
        sys.path.insert(0, str(Path.cwd()))
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # in a process that a plugin has started by multiprocessing
    pin("worker")
