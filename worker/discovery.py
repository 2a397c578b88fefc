"""Find the installed plugins, and import one only when it is asked for.

Listing reads the metadata of installed distributions and imports nothing. ``load_schema`` (the API) imports a plugin's
``schema.py`` alone, not even its package's ``__init__``; ``load_service`` (the worker) imports all of it. Both turn
every exception of the plugin into ``ServiceFailed`` with the plugin's name, so that one broken plugin harms no other.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
import tomllib
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from worker.errors import PLUGIN_ERRORS, ServiceFailed, UnknownService, say
from worker.names import WEBHOOKS
from worker.processes.procfile import find_checkout
from worker.service import Service

#: The entry-point group of the project's founding document.
GROUP = "libs_service.services"

#: A service's name is also a queue, a URL's part and half of a task's name.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Plugin:
    """One installed plugin, as its distribution's metadata describes it; nothing of it has been imported."""

    name: str
    target: str  #: "antifraud.service:Antifraud"
    distribution: str
    version: str
    description: str

    @property
    def module(self) -> str:
        """The module that holds the service."""
        return self.target.partition(":")[0].strip()

    @property
    def schema_module(self) -> str | None:
        """The module beside it that holds the schema; None where there is no package to hold one."""
        package = self.module.rpartition(".")[0]
        return f"{package}.schema" if package else None


def list_plugins() -> dict[str, Plugin]:
    """Every installed plugin by name, sorted. Where two distributions claim one name, the first on the path has it.

    None can be named ``webhooks``: that is a queue of our own.
    """
    plugins: dict[str, Plugin] = {}
    for entry in entry_points(group=GROUP):
        if NAME.fullmatch(entry.name) and entry.name != WEBHOOKS:
            plugins.setdefault(entry.name, _describe(entry))
    return dict(sorted(plugins.items()))


def find_plugins(names: Iterable[str]) -> list[Plugin]:
    """The installed plugins of these names; raises ``UnknownService`` that lists the installed ones."""
    installed = list_plugins()
    unknown = [name for name in names if name not in installed]
    if unknown:
        hints = "".join(f"; {hint}" for hint in map(say_written, unknown) if hint)
        named = " or ".join(map(repr, unknown))
        raise UnknownService(f"no installed plugin is named {named}{hints}; {say_known(installed)}")
    return [installed[name] for name in names]


def say_known(installed: Iterable[str]) -> str:
    """The installed services, for an error's text."""
    names = ", ".join(installed)
    return f"installed services: {names}" if names else "no service is installed (`pip install -e plugins/<name>`)"


@dataclass(frozen=True, slots=True)
class Models:
    """A service's two models as its ``schema.py`` has them; None where that is not known without the service."""

    input: Any = None
    output: Any = None
    problem: str = ""  #: why they are not known, where there is a schema


def load_models(plugin: Plugin, is_shared: bool = False) -> Models:
    """The service's models, from its ``schema.py`` alone.

    Args:
        is_shared: whether another service has the same ``schema.py``: then ``Input`` may be that one's, and the class
            itself must say which models are its own.

    Raises ``ServiceFailed`` where the module cannot be imported or has no pydantic ``Input``.
    """
    module = load_schema(plugin)
    if module is None:
        return Models()
    if not is_shared:
        return Models(module.Input, getattr(module, "Output", None))
    models = find_models(plugin, module)
    if models:
        return Models(*models)
    must = f"write the class as `class Name(Service[Input, Output])` with models imported from {module.__name__}"
    return Models(
        problem=f"other services share {module.__name__}, and the source of {plugin.target} does not say "
        f"which models are its own, so its jobs are accepted unvalidated and checked by the worker; {must}"
    )


def say_written(name: str) -> str:
    """Advice where a plugin of this name lies in ``plugins`` and is not installed; "" where none does."""
    for file in sorted(find_checkout().glob("plugins/*/pyproject.toml")):
        try:
            project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
            written = name in project["entry-points"][GROUP]
        except (OSError, ValueError, KeyError, TypeError):  # not a plugin's, or not yet right
            written = False
        if written or file.parent.name == name:
            return f"it is written but not installed: pip install -e {os.path.relpath(file.parent)}"
    return ""


def load_schema(plugin: Plugin) -> ModuleType | None:
    """Import the plugin's ``schema.py`` and nothing else of it; None where it ships none.

    Raises ``ServiceFailed`` where the module cannot be imported or has no pydantic ``Input``.
    """
    name = plugin.schema_module
    if name is None or _find_without_import(name) is None:
        return None
    try:
        with _hollow_parents(name):
            module = importlib.import_module(name)
    except PLUGIN_ERRORS as error:
        raise ServiceFailed(f"{plugin.name}: cannot import {name}: {_explain(plugin, error)}") from error
    if not hasattr(module, "Input") or not hasattr(module.Input, "model_validate_json"):
        raise ServiceFailed(f"{plugin.name}: {name} must define `class Input(BaseModel)`")
    return module


def examples_in(schema: dict[str, Any]) -> list[Any]:
    """The ``examples`` of a model's JSON Schema; that of a model which holds itself is behind a reference."""
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    examples = (schema.get("$defs", {}).get(name) or schema).get("examples", ())
    return examples if isinstance(examples, list) else []


def find_models(plugin: Plugin, schema: ModuleType) -> tuple[Any, Any] | None:
    """The ``Input`` and ``Output`` in the schema that the service's class names, read without importing the service.

    None where the source does not say it: the class names its models by another way than
    ``class Name(Service[Input, Output])`` with names imported from the schema.
    """
    spec = _find_without_import(plugin.module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    tree = ast.parse(Path(spec.origin).read_bytes())
    imported = {
        alias.asname or alias.name: alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").rpartition(".")[2] == "schema"
        for alias in node.names
    }
    wanted = plugin.target.partition(":")[2].strip()
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == wanted:
            names = [imported.get(name, "") for base in node.bases for name in _arguments_of(base)]
            if len(names) == 2 and all(hasattr(schema, name) for name in names):
                return getattr(schema, names[0]), getattr(schema, names[1])
    return None


def _arguments_of(base: ast.expr) -> list[str]:
    """The names in ``Service[Input, Output]``."""
    if not (isinstance(base, ast.Subscript) and isinstance(base.slice, ast.Tuple)):
        return []
    return [each.id for each in base.slice.elts if isinstance(each, ast.Name)]


def load_service(plugin: Plugin) -> type[Service[Any, Any]]:
    """Import the plugin's service class, with all its imports. Raises ``ServiceFailed``."""
    try:
        target = EntryPoint(name=plugin.name, value=plugin.target, group=GROUP).load()
    except PLUGIN_ERRORS as error:
        raise ServiceFailed(f"{plugin.name}: cannot import {plugin.target}: {_explain(plugin, error)}") from error
    if not (isinstance(target, type) and issubclass(target, Service)):
        raise ServiceFailed(f"{plugin.name}: {plugin.target} must be a subclass of worker.service.Service")
    return target


def _describe(entry: EntryPoint) -> Plugin:
    distribution = entry.dist
    metadata = distribution.metadata if distribution else None
    return Plugin(
        name=entry.name,
        target=entry.value,
        distribution=distribution.name if distribution else "",
        version=distribution.version if distribution else "",
        description=(metadata["Summary"] if metadata and "Summary" in metadata else "") or "",
    )


def _find_without_import(name: str) -> ModuleSpec | None:
    """Like ``importlib.util.find_spec``, which would import (and so run) the parent packages."""
    path = None
    spec = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:depth]), path) or _find_by_hooks(".".join(parts[:depth]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec


def _find_by_hooks(name: str, path: Any) -> ModuleSpec | None:
    """Ask the other finders too: an editable install may put a package on no path and bring a finder of its own."""
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if finder is not PathFinder and find is not None:
            spec: ModuleSpec | None = find(name, path)
            if spec is not None:
                return spec
    return None


@contextmanager
def _hollow_parents(name: str) -> Iterator[None]:
    """While the block runs, the packages above ``name`` are empty modules that know their folder.

    So ``schema.py`` may import its neighbours, and no package's ``__init__``, which may import the model's libraries,
    is run. Packages that are imported already are left as they are.
    """
    parts = name.split(".")
    hollow = []
    for depth in range(1, len(parts)):
        parent = ".".join(parts[:depth])
        if parent in sys.modules:
            continue
        spec = _find_without_import(parent)
        module = ModuleType(parent)
        module.__path__ = list(spec.submodule_search_locations or ()) if spec else []
        sys.modules[parent] = module
        hollow.append(parent)
    try:
        yield
    finally:
        for parent in hollow:
            sys.modules.pop(parent, None)


def _explain(plugin: Plugin, error: BaseException) -> str:
    """An import's exception, the author's own line where there is one, and advice."""
    parts = [say(error).replace("\n", " ")]
    if line := _own_line(plugin, error):
        parts.append(f" ({line})")
    if remedy := _remedy(plugin, error):
        parts.append(f"; {remedy}")
    return "".join(parts)


def _own_line(plugin: Plugin, error: BaseException) -> str:
    """The last line of the plugin's own package that the error came through."""
    package = plugin.module.partition(".")[0]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if package in Path(frame.filename).parts or Path(frame.filename).stem == package]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line}" if own else ""


def _remedy(plugin: Plugin, error: BaseException) -> str:
    """Advice for an import that failed; "" where only the author can know."""
    again = f"then run `pip install -e` of {plugin.distribution or 'the plugin'} again"
    package = plugin.module.partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = error.name.partition(".")[0]
        if missing != package:
            return f"add {missing} to the dependencies in its pyproject.toml, {again}"
        return f"the entry point in its pyproject.toml names {plugin.target}: mend it there, {again}"
    module = sys.modules.get(plugin.module)
    wanted = plugin.target.partition(":")[2].strip()
    if isinstance(error, AttributeError) and module is not None and not hasattr(module, wanted):
        classes = [name for name, value in vars(module).items() if _is_service(value, plugin.module)]
        has = f"it has {' and '.join(classes)}" if classes else "it has no subclass of Service"
        return f"{has}: mend the entry point in its pyproject.toml, {again}"
    return ""


def _is_service(value: Any, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, Service) and value.__module__ == module
