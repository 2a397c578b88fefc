"""``services new``: what it writes works, and it writes nothing where it should not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.system import ROOT
from worker.discovery import list_plugins

NAME = "mood-teller"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with no plugin."""
    (tmp_path / "plugins").mkdir()
    for name in ("Procfile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name in ("worker", "api", "libs_service"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def run(folder: Path, *arguments: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """``python -m …`` in a folder, in an environment that is activated."""
    search = f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"
    env = {**os.environ, "PYTHONPATH": str(path), "MYPYPATH": str(path), "PATH": search}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=110, check=False)


def new(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, "worker.cli.main", "new", *arguments)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_new_plugin_can_be_installed_checked_run_and_tested(checkout: Path) -> None:
    done = new(checkout / "plugins", NAME)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-6:] == [
        f"  pip install -e {NAME}",
        f"  services check {NAME}",
        f"  services predict {NAME}",
        "",
        "An API that runs already does not know it: start `services up` (`make run`), or the API and a worker, again.",
        f"For `docker compose`, its block stands in {NAME}/README.md.",
    ]
    plugin, installed = checkout / "plugins" / NAME, checkout / "installed"
    pip = run(checkout, "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(plugin))
    assert pip.returncode == 0, pip.stderr

    listed = run(checkout, "worker.cli.main", "list", path=installed).stdout
    assert f"{NAME}  0.1.0     mood_teller.service:MoodTeller  Tells happy texts from sad ones" in " ".join(
        listed.split(" ")
    )
    checked = run(checkout, "worker.cli.main", "check", NAME, path=installed)
    assert checked.returncode == 0 and "FAILED" not in checked.stdout, checked.stdout + checked.stderr
    assert json.loads(run(checkout, "worker.cli.main", "predict", NAME, path=installed).stdout) == {"score": 1.0}
    tested = run(checkout, "pytest", str(plugin), "-q", path=installed)
    assert tested.returncode == 0 and "2 passed" in tested.stdout, tested.stdout

    again = new(checkout, NAME, "--into", str(checkout / "plugins"))
    assert again.returncode == 1 and "nothing is overwritten" in again.stderr


def test_the_next_commands_are_this_environments_where_none_is_activated(checkout: Path) -> None:
    env = checkout / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", env], check=True)
    command = [str(env / "bin" / "python"), "-c", "from worker.cli.main import main; main()", "new", NAME]
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry.endswith("site-packages"))])
    settings = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path}
    done = subprocess.run(command, cwd=checkout, env=settings, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"\n  .venv/bin/pip install -e plugins/{NAME}\n  .venv/bin/services check {NAME}\n" in done.stdout
    (checkout / "uv").write_text("")  # its environments hold no pip
    (checkout / "uv").chmod(0o755)
    command[-1], settings["PATH"] = "another", f"{checkout}:{settings['PATH']}"
    done = subprocess.run(command, cwd=checkout, env=settings, capture_output=True, text=True, timeout=60, check=False)
    assert "\n  uv pip install --python .venv/bin/python -e plugins/another\n" in done.stdout


def test_a_new_plugin_passes_mypy(checkout: Path) -> None:
    assert new(checkout, NAME).returncode == 0
    source = checkout / "plugins" / NAME / "src"
    typed = run(checkout, "mypy", "--cache-dir", "mypy", str(source), str(source.parent / "tests"), path=source)
    assert typed.returncode == 0, typed.stdout + typed.stderr


@pytest.mark.parametrize("name", [NAME, "zebra", "a", "x_1-2", "a" * 20 + "-" + "b" * 19])
def test_a_new_plugin_of_any_name_passes_ruff(checkout: Path, name: str) -> None:
    assert new(checkout, name).returncode == 0
    for command in (["check", "."], ["format", "--check", "."]):
        done = run(checkout / "plugins", "ruff", *command)
        assert done.returncode == 0, done.stdout
    assert not [path for path in files(checkout / "plugins") if "plugin_name" in path or "pycache" in path]


@pytest.mark.parametrize(
    ("name", "said", "code"),
    [
        ("Mood", "expected at most 40 lower-case letters", 2),
        ("mood-", "expected at most 40 lower-case letters", 2),
        ("a" * 41, "expected at most 40 lower-case letters", 2),
        ("../mood", "expected at most 40 lower-case letters", 2),
        ("webhooks", "means something else", 2),
        ("input", "means something else", 2),
        ("client", "means something else", 2),
        ("class", "means something else", 2),
        ("json", "there is a Python module json", 1),
        ("worker", "there is a Python module worker", 1),
        (next(iter(list_plugins())), "is installed already", 1),
    ],
)
def test_a_name_that_is_not_good_is_refused_and_nothing_is_written(
    checkout: Path, name: str, said: str, code: int
) -> None:
    before = files(checkout / "plugins") | {path.name for path in checkout.iterdir()}
    done = new(checkout, name)
    assert (done.returncode, done.stdout) == (code, "") and "Traceback" not in done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert files(checkout / "plugins") | {path.name for path in checkout.iterdir()} == before


def test_nothing_is_overwritten_and_no_folder_is_made_up(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (checkout / "plugins" / NAME).mkdir()
    (elsewhere / NAME).symlink_to(elsewhere / "nowhere")
    for folder, arguments, said in (
        (checkout, [NAME], "nothing is overwritten"),
        (checkout, [NAME, "--into", str(elsewhere)], "nothing is overwritten"),
        (checkout, [NAME, "--into", "no/such"], "there is no folder no/such"),
    ):
        done = new(folder, *arguments)
        assert done.returncode == 1 and said in done.stderr, done.stderr
    assert files(checkout / "plugins") == {NAME}
    assert files(elsewhere) == {NAME}
