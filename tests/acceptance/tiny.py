"""A checkout of small distributions, built and installed offline in a second, for the tests of ``make setup``."""

from __future__ import annotations

import ensurepip
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.kit.commands import clean_environment
from tests.kit.system import ROOT

#: A build backend that needs no package: each project has a copy.
BACKEND = """
import base64, hashlib, pathlib, tomllib, zipfile

def _write(folder, editable):
    project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
    name, version = project["name"].replace("-", "_"), project["version"]
    info = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {need}" for need in project.get("dependencies", [])]
    for extra, needs in project.get("optional-dependencies", {}).items():
        metadata += [f"Provides-Extra: {extra}"] + [f"Requires-Dist: {need} ; extra == '{extra}'" for need in needs]
    files = {
        f"{info}/METADATA": "\\n".join(metadata) + "\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: tiny\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    groups = project.get("entry-points", {}) | ({"console_scripts": project["scripts"]} if "scripts" in project else {})
    files[f"{info}/entry_points.txt"] = "".join(
        "\\n".join([f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()), ""])
        for group, entries in groups.items()
    )
    if editable:
        files[f"{name}.pth"] = str(pathlib.Path.cwd()) + "\\n"
    files[f"{info}/RECORD"] = "".join(f"{path},,\\n" for path in [*files, f"{info}/RECORD"])
    wheel = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder) / wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel

def build_wheel(folder, config_settings=None, metadata_directory=None):
    return _write(folder, False)

def build_editable(folder, config_settings=None, metadata_directory=None):
    return _write(folder, True)
"""


def write_project(folder: Path, name: str, version: str = "1.0", needs: tuple[str, ...] = (), more: str = "") -> Path:
    """A distribution with these dependencies and no code."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(
        f'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\ndependencies = {list(needs)}\n{more}'
    )
    return folder


class Tiny:
    """A checkout with our Makefile and set-up, and a framework that needs ``base``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.wheels = folder / "checkout", folder / "wheels"
        self.wheels.mkdir(parents=True)
        for name, version in (("base", "1.0"), ("base", "1.1"), ("base", "2.0"), ("shape", "1.0"), ("shape", "2.0")):
            self.publish(name, version)
        self.publish("linter", "1.0", ("shape>=1",))
        for bundled in (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"):
            shutil.copy(bundled, self.wheels)
        write_project(
            self.folder,
            "libs-service",
            needs=("base>=1,<2", "libs-service-client"),
            more='scripts = {services = "tiny:main"}\noptional-dependencies = {dev = ["linter"]}\n',
        )
        write_project(self.folder / "client", "libs-service-client")
        (self.folder / "tiny.py").write_text("import sys\n\ndef main():\n    print('services', *sys.argv[1:])\n")
        (self.folder / "constraints.txt").write_text("base==1.0\nlinter==1.0\nshape==2.0\n")
        shutil.copy(ROOT / "Makefile", self.folder)
        shutil.copytree(ROOT / "scripts", self.folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        self.path = folder / "bin"
        self.path.mkdir()

    def publish(self, name: str, version: str, needs: tuple[str, ...] = ()) -> None:
        project = write_project(self.wheels / "sources" / f"{name}-{version}", name, version, needs)
        spec = importlib.util.spec_from_file_location("backend", project / "backend.py")
        assert spec and spec.loader
        backend = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(backend)
        here = Path.cwd()
        os.chdir(project)
        try:
            backend.build_wheel(self.wheels)
        finally:
            os.chdir(here)

    def add(self, plugin: str, *needs: str, name: str = "") -> Path:
        more = f'entry-points = {{"libs_service.services" = {{{plugin} = "{plugin}:Plugin"}}}}\n'
        distribution = name or f"libs-service-{plugin}"
        return write_project(self.folder / "plugins" / plugin, distribution, needs=("libs-service", *needs), more=more)

    def make(self, *goals: str) -> subprocess.CompletedProcess[str]:
        env = clean_environment()
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull}
        offline |= {
            "UV_NO_INDEX": "1",
            "UV_FIND_LINKS": str(self.wheels),
            "UV_CACHE_DIR": str(self.path.parent / "cache"),
        }
        env |= {**offline, "PATH": f"{self.path}{os.pathsep}{env['PATH']}", "PYTHON": sys.executable}
        return subprocess.run(
            ["make", *goals],
            cwd=self.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )

    def installed(self) -> dict[str, str]:
        code = "import importlib.metadata as m; print(*[f'{d.name}=={d.version}' for d in m.distributions()])"
        said = subprocess.run(
            [self.folder / ".venv/bin/python", "-c", code], capture_output=True, text=True, check=True
        )
        return dict(found.split("==") for found in said.stdout.split())
