"""What a user gets: the wheels in an empty environment, and a copy of the checkout."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.kit.commands import run
from tests.kit.system import ROOT

#: What a clone does not have.
NOT_CLONED = (".git", ".venv", ".services", ".*_cache", "build", "dist", "*.egg-info", "__pycache__", ".hypothesis")

#: Those that the tests know; a user may have added others.
OUR_PLUGINS = ("antifraud", "embed")


#: What every Linux has, and make: no Redis, no uv, no compiler, no browser.
BARE = (
    *(
        "awk",
        "basename",
        "bash",
        "cat",
        "chmod",
        "cksum",
        "cp",
        "cut",
        "date",
        "dirname",
        "env",
        "expand",
        "expr",
        "grep",
        "head",
    ),
    *(
        "id",
        "kill",
        "ln",
        "ls",
        "make",
        "mkdir",
        "mktemp",
        "mv",
        "ps",
        "pwd",
        "rm",
        "sed",
        "setsid",
        "sh",
        "sleep",
        "sort",
    ),
    *("tail", "tee", "touch", "tr", "true", "uname", "wc"),
)


@pytest.fixture(scope="session")
def bare_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The PATH of a machine with Python and make alone."""
    folder = tmp_path_factory.mktemp("bare")
    for name in BARE:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    # Not a link: a Python that is started by a link to a virtual environment's would take that for its own.
    python = folder / "python3"
    python.write_text(f'#!{folder}/sh\nexec {Path(sys.executable).resolve()} "$@"\n')
    python.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as a fresh clone of it would be, in another folder, without plugins that were added here."""
    folder = tmp_path_factory.mktemp("clone") / "checkout"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_CLONED))
    for plugin in (folder / "plugins").iterdir():
        if plugin.name not in OUR_PLUGINS:
            shutil.rmtree(plugin)
    return folder


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory, clone: Path) -> list[Path]:
    """The wheels of the client, the framework and antifraud."""
    folder = tmp_path_factory.mktemp("wheels")
    quick = ["--no-isolation"] if find_spec("setuptools") else []
    for source in (clone / "client", clone, clone / "plugins" / "antifraud"):
        run(sys.executable, "-m", "build", *quick, "--wheel", "--outdir", folder, source)
    built = sorted(folder.glob("*.whl"))
    assert len(built) == 3
    return built


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, clone: Path, wheels: list[Path]) -> Path:
    """An empty environment's ``bin`` folder, after the wheels were installed, at once: none of them is on an index."""
    folder = tmp_path_factory.mktemp("installed")
    uv = Path(sys.prefix) / "bin" / "uv"  # as pip would do it, in a tenth of the time
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    install = ("pip", "install", "--python", folder / "venv" / "bin" / "python")
    run(uv, *install, "--constraint", clone / "constraints.txt", *wheels)
    return folder / "venv" / "bin"
