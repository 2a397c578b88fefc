"""``services check``: every file that a plugin's ``load`` opens is in its wheel.

An editable install reads its files from the source folder, so a model's file that the wheel lacks is missed first in a
container. The wheel is built from a copy of the source, in which large files are empty: only names matter here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from worker.discovery import Plugin
from worker.settings import child_environment
from worker.testing.opened import NOT_SOURCE

#: Larger files are copied as empty ones.
MAX_COPIED_BYTES = 1_000_000
#: Most files of a source that is copied.
MAX_FILES = 20_000
#: Longest time that a build may take.
BUILD_S = 120
#: These choose the wheel's files by version control, which a copy has not.
BY_VERSION_CONTROL = ("setuptools-scm", "setuptools_scm", "hatch-vcs", "setuptools-git")

_BUILD = """
import importlib, sys
backend, folder, *paths = sys.argv[1:]
sys.path[:0] = paths
module, _, name = backend.partition(":")
found = importlib.import_module(module)
for part in filter(None, name.split(".")):
    found = getattr(found, part)
found.build_wheel(folder)
"""


class CheckSkipped(Exception):
    """The check cannot be made here; says why."""


def find_source(plugin: Plugin) -> Path | None:
    """The folder from which a plugin is installed editable; None where it is installed from a wheel.

    Raises ``CheckSkipped`` where that is not known.
    """
    try:
        package = distribution(plugin.distribution)
    except (PackageNotFoundError, ValueError) as error:
        raise CheckSkipped(f"no distribution {plugin.distribution!r} is installed") from error
    origin = _read_direct_url(package)
    if not origin.get("dir_info", {}).get("editable"):
        if package.read_text("RECORD") is None:
            raise CheckSkipped("its distribution does not say where its source is; install it by `pip install -e`")
        return None
    url = urlsplit(origin.get("url", ""))
    source = Path(unquote(url.path))
    if url.scheme != "file" or not source.is_dir():
        raise CheckSkipped(f"its source folder {origin.get('url')} is not there")
    return source.resolve()


def check_wheel(plugin: Plugin, source: Path, opened: set[Path]) -> str | None:
    """The files that ``load`` opened and the wheel lacks, relative to the source; None where it has all.

    Raises ``CheckSkipped`` where no wheel can be built.
    """
    top = plugin.module.partition(".")[0]
    spec = importlib.util.find_spec(top)
    places = [Path(place).resolve() for place in (spec.submodule_search_locations if spec else None) or ()]
    package = next((place for place in places if place.is_relative_to(source)), None)
    if package is None:
        raise CheckSkipped(f"its package {top} does not lie below {source}")
    names = _names_in_wheel(source, plugin.version)
    inside, outside = [], []
    for path in sorted(opened):
        if not (source / path).is_relative_to(package):
            outside.append(path)
        elif str((source / path).relative_to(package.parent)) not in names:
            inside.append(path)
    return _say(source, package, inside, outside)


def _say(source: Path, package: Path, inside: list[Path], outside: list[Path]) -> str | None:
    faults = []
    if inside:
        must = f"have {_read_backend(source)[0]} put all files of the package into it"
        if _read_backend(source)[0].startswith("setuptools"):
            must = f'write [tool.setuptools.package-data] {package.name} = ["**/*"] into pyproject.toml'
        faults.append(f"load() opens {_join(inside)}, which its wheel lacks: {must}")
    if outside:
        where = package.relative_to(source)
        faults.append(f"load() opens {_join(outside)}, outside the package, so no wheel has it: move it into {where}/")
    return "; ".join(faults) or None


def _join(paths: list[Path]) -> str:
    shown = [str(path) for path in paths[:5]]
    return ", ".join(shown) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def _read_direct_url(package: Distribution) -> dict[str, Any]:
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    return origin if isinstance(origin, dict) else {}


def _read_backend(source: Path) -> tuple[str, list[str], list[str]]:
    """The build backend, where it lies in the source, and its requirements."""
    file = source / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    system = project.get("build-system", {})
    return (
        system.get("build-backend", "setuptools.build_meta:__legacy__"),
        system.get("backend-path", []),
        system.get("requires", []),
    )


def _names_in_wheel(source: Path, version: str) -> set[str]:
    with tempfile.TemporaryDirectory(prefix="services-check-") as folder:
        copy, out = Path(folder) / "source", Path(folder) / "wheel"
        _copy(source, copy)
        out.mkdir()
        reason = _build(copy, out, version)
        wheel = next(out.glob("*.whl"), None)
        if wheel is None:
            raise CheckSkipped(f"its wheel cannot be built here: {reason}")
        with zipfile.ZipFile(wheel) as archive:
            return {_in_site_packages(name) for name in archive.namelist()}


def _in_site_packages(name: str) -> str:
    """A wheel's name where it is installed: ``x-1.data/purelib/…`` goes where all else does."""
    first, _, rest = name.partition("/")
    return rest.partition("/")[2] if first.endswith(".data") and rest.startswith(("purelib/", "platlib/")) else name


def _copy(source: Path, target: Path) -> None:
    left = MAX_FILES
    for path, names, files in os.walk(source):
        here = target / Path(path).relative_to(source)
        here.mkdir()
        names[:] = [name for name in names if not name.startswith(".") and name not in NOT_SOURCE]
        names[:] = [name for name in names if not name.endswith(".egg-info")]
        left -= len(files)
        if left < 0:
            raise CheckSkipped(f"{source} has more than {MAX_FILES} files")
        for name in files:
            file = Path(path) / name
            if file.is_file() and file.stat().st_size <= MAX_COPIED_BYTES:
                shutil.copy2(file, here / name)
            else:
                (here / name).touch()


def _build(copy: Path, out: Path, version: str) -> str:
    """Build the wheel; without the network, if its build backend is installed. Gives why the last try failed."""
    backend, paths, requires = _read_backend(copy)
    if scm := next((need for need in requires if need.startswith(BY_VERSION_CONTROL)), None):
        raise CheckSkipped(f"its wheel's files are chosen by version control ({scm})")
    reason = "neither its build backend nor pip nor uv is installed"
    for command in _commands(backend, [str(copy / path) for path in paths], copy, out):
        env = child_environment({"SETUPTOOLS_SCM_PRETEND_VERSION": version})
        try:
            done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=BUILD_S)
        except subprocess.TimeoutExpired:
            reason = f"the build took longer than {BUILD_S} s"
            continue
        if done.returncode == 0:
            return ""
        reason = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
    return reason


def _commands(backend: str, paths: list[str], copy: Path, out: Path) -> Iterator[list[str]]:
    yield [sys.executable, "-c", _BUILD, backend, str(out), *paths]
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "0", "--timeout", "10"]
        yield [*pip, "wheel", "--no-deps", "--wheel-dir", str(out), str(copy)]
    if uv := shutil.which("uv"):
        yield [uv, "build", "--wheel", "--out-dir", str(out), str(copy)]
