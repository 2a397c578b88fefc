"""``make setup``: what it installs, whose ``.venv`` it takes, and one plugin's trouble that stays its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.tiny import Tiny

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """One checkout for the tests that follow each other."""
    return Tiny(tmp_path_factory.mktemp("setup"))


@pytest.fixture
def fresh(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path)


def use_uv(tiny: Tiny) -> None:
    (tiny.path / "uv").symlink_to(Path(sys.prefix) / "bin" / "uv")


def test_run_time_comes_with_the_tested_versions_and_without_the_tools(tiny: Tiny) -> None:
    tiny.add("aaa", "shape>=1")
    done = tiny.make("setup")
    assert done.returncode == 0, done.stdout
    found = tiny.installed()
    assert (found["libs-service"], found["libs-service-aaa"], found["base"], found["shape"]) == (
        "1.0",
        "1.0",
        "1.0",
        "2.0",
    )
    assert "linter" not in found
    assert "setup: the framework and 1 plugin, by pip ..." in done.stdout
    assert tiny.make("setup").stdout == "", "nothing has changed"

    assert tiny.make("tools").returncode == 0
    assert tiny.installed()["linter"] == "1.0"


def test_a_plugin_that_cannot_be_installed_keeps_no_other_from_starting(tiny: Tiny) -> None:
    tiny.add("aaa", "shape>=2")
    tiny.add("bbb", "shape<2")
    (tiny.add("ccc") / "pyproject.toml").write_text("[project\n")
    tiny.add("ddd", "base==1.1")
    done = tiny.make("run")
    assert done.returncode == 2, done.stdout
    assert done.stdout.count("\nservices up\n") == 1, done.stdout
    clash, no_toml, left_out = done.stdout.split("\nError: ")[1:]
    assert clash.startswith("plugins/bbb could not be installed; pip said:\n  ERROR: Cannot install"), done.stdout
    assert "The conflict is caused by:" in clash and "libs-service-aaa 1.0 depends on shape>=2" in clash
    assert no_toml.startswith("plugins/ccc") and "pyproject.toml names no project: TOMLDecodeError" in no_toml
    assert left_out.startswith("left out: plugins/bbb, plugins/ccc (")
    found = tiny.installed()
    assert {name for name in found if name.startswith("libs-service-")} == {
        "libs-service-client",
        "libs-service-aaa",
        "libs-service-ddd",
    }
    assert (found["shape"], found["base"]) == ("2.0", "1.1"), "ddd has its own, which the framework allows"


def test_renamed_and_removed_packages_go_and_the_tools_take_nothing_from_a_plugin(tiny: Tiny) -> None:
    for plugin in ("bbb", "ccc"):
        shutil.rmtree(tiny.folder / "plugins" / plugin)
    # as setuptools leaves it beside the sources
    left = tiny.add("aaa", "shape==1.0", name="aaa-of-another-name") / "libs_service_aaa.egg-info"
    left.mkdir()
    (left / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: libs-service-aaa\nVersion: 1.0\n")
    done = tiny.make("tools")
    assert done.returncode == 0, done.stdout
    assert "removing libs-service-aaa, which this checkout has no more" in done.stdout
    found = tiny.installed()
    assert (found["shape"], found["base"], found["linter"]) == ("1.0", "1.1", "1.0"), "not those of constraints.txt"
    assert {"aaa-of-another-name", "libs-service-ddd"} < set(found) and "libs-service-aaa" not in found


@pytest.mark.parametrize("uv", [False, True])
def test_a_foreign_environment_is_used_and_keeps_its_packages(fresh: Tiny, uv: bool) -> None:
    if uv:
        use_uv(fresh)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh.folder / ".venv"], check=True)
    (site,) = fresh.folder.glob(".venv/lib/*/site-packages")
    (site / "mine.py").write_text("")
    done = fresh.make("setup")
    assert done.returncode == 0, done.stdout
    assert (site / "mine.py").exists() and fresh.installed()["libs-service"] == "1.0"
    assert ("pip" in fresh.installed()) is not uv
    assert f"the framework, by {'uv' if uv else 'pip'}" in done.stdout


def test_an_environment_that_does_not_run_is_refused_unless_it_is_ours(fresh: Tiny) -> None:
    use_uv(fresh)
    python = fresh.folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/no/such/python")
    done = fresh.make("setup")
    assert done.returncode == 2 and python.is_symlink()
    assert ".venv has no Python that runs, and `make setup` did not make it" in done.stdout

    (fresh.folder / ".venv" / "bin" / "python").unlink()
    (fresh.folder / ".venv" / "bin").rmdir()
    assert fresh.make("setup").returncode == 0, "an empty folder may be filled"
    python.unlink()
    python.symlink_to("/no/such/python")
    done = fresh.make("setup")
    assert done.returncode == 0 and "the Python of .venv is gone: it is made anew" in done.stdout, done.stdout
    assert {"pip", "base"} < set(fresh.installed())


def test_uv_gives_its_own_reasons(fresh: Tiny) -> None:
    use_uv(fresh)
    fresh.add("aaa", "shape>=2")
    fresh.add("bbb", "shape<2")
    fresh.add("ccc", "base>=2")
    fresh.add("ddd", "nosuchlibrary>=1")
    fresh.add("eee", "base==1.1")
    done = fresh.make("setup")
    assert done.returncode == 2
    errors = done.stdout.split("\nError: ")[1:]
    reasons = ("libs-service-aaa==1.0 depends on shape>=2", "depends on base>=1,<2", "nosuchlibrary was not found", "")
    for error, plugin, reason in zip(errors, ("bbb", "ccc", "ddd", "left out"), reasons, strict=True):
        assert error.startswith((f"plugins/{plugin} could not be installed; uv said:", plugin)), done.stdout
        assert reason in error.replace("\n      ", " "), error
    found = fresh.installed()
    assert {name for name in found if name.startswith("libs-service-")} == {
        "libs-service-client",
        "libs-service-aaa",
        "libs-service-eee",
    }


def test_a_framework_that_cannot_be_installed_ends_it_with_the_reason(fresh: Tiny) -> None:
    use_uv(fresh)
    (fresh.folder / "constraints.txt").write_text("base==2.0\n")
    done = fresh.make("run")
    assert done.returncode == 2 and "services up" not in done.stdout
    assert "Error: the framework could not be installed; uv said:\n  error: No solution" in done.stdout, done.stdout


def test_an_old_python_is_refused_in_words(fresh: Tiny) -> None:
    done = fresh.make("run", "PYTHON=false")
    assert done.returncode == 2
    assert done.stdout.startswith("Error: Python 3.11 or later is needed; try: make PYTHON=python3.12 setup\n")
