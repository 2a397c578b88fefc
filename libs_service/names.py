"""Our packages ``worker`` and ``api``, found in any current folder.

Python, uvicorn and Celery look into the current folder first, and many a team's repository has an ``api/`` or a
``worker/`` of its own there. ``pin`` has such a name mean our package in this process; ``ours_first`` lets the current
folder hide nothing while our modules are imported. Neither takes anything else away: a plugin's modules that lie in the
current folder are found as before. A name that a process does not need is not pinned in it: a worker does not need
``api``, so a plugin may import its team's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

#: Where our packages lie, beside this one: site-packages, or the checkout.
ROOT = Path(__file__).resolve().parent.parent


class OurNames:
    """A finder that knows where the pinned packages are. It stands before Python's own."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Where a pinned package is; None leaves a name to the other finders."""
        top, _, rest = name.partition(".")
        if top not in self.names:
            return None
        found = PathFinder.find_spec(name, path if rest else [str(ROOT)])
        if found is None and rest and (other := _find_other(top)):
            must = f"the package {top} is libs-service's in this process, so that of {other} cannot be imported"
            raise ModuleNotFoundError(f"No module named {name!r}: {must}", name=name)
        return found


_finder = OurNames()


def pin(*names: str) -> None:
    """Have these names mean our packages in this process.

    Raises ``ImportError`` where another package of such a name is imported already.
    """
    for name in names:
        module = sys.modules.get(name)
        if module is not None and not _is_ours(module):
            where = getattr(module, "__file__", None) or str(next(iter(module.__path__), "?"))
            raise ImportError(
                f"libs-service needs its own package {name} here, but {where} is imported under this name already: "
                f"use them in different processes (libs_service_client needs neither), or rename that package"
            )
        _finder.names.add(name)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


@contextmanager
def ours_first(*names: str) -> Iterator[None]:
    """Pin these names; while the block runs, the current folder is the last in which modules are looked for."""
    pin(*names)
    before = list(sys.path)
    here = [entry for entry in before if _is_here(entry)]
    sys.path[:] = [entry for entry in before if not _is_here(entry)] + here
    try:
        yield
    finally:
        added = [entry for entry in sys.path if entry not in before]
        sys.path[:] = before + added


def import_ours(module: str) -> ModuleType:
    """Import one of our modules, which pins its package's name."""
    with ours_first("worker", *(["api"] if module.startswith("api") else [])):
        return importlib.import_module(module)


def _is_ours(module: ModuleType) -> bool:
    folders = [Path(folder) for folder in getattr(module, "__path__", [])]
    return any(folder.resolve().parent == ROOT for folder in folders)


def _is_here(entry: str) -> bool:
    """Whether an entry of ``sys.path`` is the current folder."""
    try:
        return not entry or Path(entry).samefile(Path.cwd())
    except OSError:  # it is not there
        return False


def _find_other(name: str) -> str | None:
    """Where another package of this name lies on ``sys.path``; None where there is none."""
    others = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    spec = PathFinder.find_spec(name, others)
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    return next((place for place in places if place and Path(place).parent != ROOT), None)
