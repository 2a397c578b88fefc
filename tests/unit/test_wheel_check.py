"""``services check`` builds a plugin's wheel and names what ``load`` opens that is not in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.system import write_plugin
from tests.kit.wheels import SCHEMA, SERVICE
from worker.discovery import Plugin
from worker.testing import Check, check_plugin
from worker.testing.wheel import MAX_COPIED_BYTES

CHECK = "its wheel holds what load() opens"
PYPROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "BACKEND"

[project]
name = "NAME"
version = "1.0"

[tool.setuptools.packages.find]
where = ["src"]
namespaces = false

[tool.setuptools.package-data]
NAME = DATA
"""
READ = '(HERE / "model.bin").read_bytes()'
#: As most libraries of models do, in C: Python's audit hooks hear nothing of it.
READ_IN_C = 'sqlite3.connect(HERE / "model.bin").execute("PRAGMA schema_version").fetchone()'


class Editable:
    """A plugin as ``pip install -e`` leaves it, without pip."""

    def __init__(self, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source, self.name = folder / "source", name
        self.package = self.source / "src" / name
        self.site = folder / "site"
        monkeypatch.syspath_prepend(str(self.site))
        monkeypatch.syspath_prepend(str(self.source / "src"))
        monkeypatch.setenv("PYTHONPATH", f"{self.source / 'src'}:{self.site}")  # for the check's own process

    def write(self, load: str, data: str = '["py.typed"]', backend: str = "setuptools.build_meta") -> None:
        service = SERVICE.replace("NAME", self.name).replace("LOAD", load)
        write_plugin(self.site, self.name, SCHEMA, service)
        self.package.parent.mkdir(parents=True)
        (self.site / self.name).rename(self.package)
        told = {"dir_info": {"editable": True}, "url": self.source.as_uri()}
        (self.site / f"{self.name}-1.0.dist-info" / "direct_url.json").write_text(json.dumps(told))
        project = PYPROJECT.replace("NAME", self.name).replace("DATA", data).replace("BACKEND", backend)
        (self.source / "pyproject.toml").write_text(project)
        (self.package / "model.bin").write_bytes(b"")

    def check(self) -> Check:
        checks = list(check_plugin(Plugin(self.name, f"{self.name}.service:Plugin", self.name, "1.0", "")))
        assert [check.name for check in checks if check.problem] in ([], [CHECK])
        (found,) = [check for check in checks if check.name == CHECK]
        return found


@pytest.mark.parametrize("load", [READ, READ_IN_C])
def test_a_models_file_that_the_wheel_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: str
) -> None:
    name = f"lacks_{len(load)}"
    plugin = Editable(tmp_path, name, monkeypatch)
    plugin.write(load)
    problem = plugin.check().problem
    assert problem and f"load() opens src/{name}/model.bin, which its wheel lacks: write" in problem
    assert f'[tool.setuptools.package-data] {name} = ["**/*"] into pyproject.toml' in problem
    assert {path.name for path in plugin.source.iterdir()} == {"src", "pyproject.toml"}, "nothing is left behind"


def test_files_in_the_wheel_are_accepted_at_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = Editable(tmp_path, "holds", monkeypatch)
    plugin.write(f'{READ}; (HERE / "cache").write_text("x"); (HERE / "cache").read_text()', '["**/*.bin"]')
    (plugin.package / "model.bin").write_bytes(b"x" * (MAX_COPIED_BYTES + 1))
    assert plugin.check() == Check(CHECK, None), "what load writes itself is not missed"


def test_files_outside_the_package_and_modules_that_are_left_out_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = Editable(tmp_path, "strays", monkeypatch)
    plugin.write('(HERE.parents[1] / "weights" / "w.bin").read_bytes(); from strays.part import words')
    (plugin.source / "weights").mkdir()
    (plugin.source / "weights" / "w.bin").touch()
    (plugin.package / "part").mkdir()  # no __init__.py: setuptools finds no package in it
    (plugin.package / "part" / "words.py").touch()
    problem = plugin.check().problem
    assert problem and "load() opens src/strays/part/words.py, which its wheel lacks" in problem
    assert "load() opens weights/w.bin, outside the package, so no wheel has it: move it into src/strays/" in problem


def test_the_check_says_why_it_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = Editable(tmp_path, "unbuilt", monkeypatch)
    plugin.write("pass", backend="no_such.backend")
    left_out = plugin.check().left_out
    assert left_out and "its wheel cannot be built here" in left_out
    (plugin.site / "unbuilt-1.0.dist-info" / "direct_url.json").unlink()
    assert plugin.check().left_out == (
        "its distribution does not say where its source is; install it by `pip install -e`"
    )
    (plugin.site / "unbuilt-1.0.dist-info" / "RECORD").touch()
    assert plugin.check() == Check(CHECK, None), "installed from a wheel, it was loaded from what that holds"
