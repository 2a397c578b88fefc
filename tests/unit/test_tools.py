"""A machine with Python and make alone: tests that need more are skipped, counted and listed; in CI they fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import system_packages
from tests.kit.system import ROOT
from tests.kit.tools import NEEDS, report_skipped

#: One file of each kind: a mark for all of a file, a fixture, a mark of one test.
FILES = (
    "tests/browser/test_console.py",
    "tests/stores/test_rabbitmq.py",
    "tests/chaos/test_scenarios.py",
    "tests/stores/test_generated_clients.py::test_a_client_by_openapi_typescript_works",
)


def run_bare(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """pytest where nothing is on the PATH."""
    kept = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**kept, "PATH": str(folder), **env}, capture_output=True, text=True, timeout=100
    )


def test_tests_that_a_bare_machine_cannot_run_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    done = run_bare(
        tmp_path, *FILES, "--deselect", "tests/stores/test_rabbitmq.py::test_a_broker_that_is_none_is_refused"
    )
    assert done.returncode == 0 and " passed" not in done.stdout, done.stdout
    counted = [line for line in done.stdout.splitlines() if "skipped, each for want of a program" in line]
    total = sum("SKIPPED" in line for line in done.stdout.splitlines())
    assert counted and total, done.stdout
    (command,) = [line for line in done.stdout.splitlines() if line.startswith("To run them too: ")]
    for package in ("rabbitmq-server", "chromium-driver", "libc6-dev", "npm"):
        assert package in command
    assert command.count("apt-get install") == 1 and "openssl" not in command, "only what was missed"


def test_in_ci_they_fail(tmp_path: Path) -> None:
    done = run_bare(tmp_path, FILES[-1], CI="true")
    assert done.returncode == 1 and "1 error" in done.stdout, done.stdout
    assert "needs a program of the system: npm (" in done.stdout and "apt-get install" in done.stdout


def test_the_list_names_each_tool_with_its_number_of_tests() -> None:
    lines = report_skipped([f"Skipped: {NEEDS}openssl, redis", f"Skipped: {NEEDS}openssl", "Skipped: no network"])
    assert lines[0].startswith("2 tests were skipped")
    assert lines[1:3] == ["  redis: 1 (redis-server)", "  openssl: 2 (openssl)"]
    assert lines[3].endswith("--no-install-recommends redis-server openssl")
    assert report_skipped(["Skipped: no network"]) == []


def test_nothing_is_installed_without_the_right_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing is run"))
    monkeypatch.setattr(system_packages, "is_there", lambda tool: tool != "ip")
    monkeypatch.setattr(sys, "argv", ["system_packages"])
    assert system_packages.main() == 0
    assert capsys.readouterr().out == (
        "not installed: ip; tests that need them are skipped. To run all: "
        "sudo apt-get update && sudo apt-get install --yes --no-install-recommends iproute2\n"
    )
    monkeypatch.setattr(sys, "argv", ["system_packages", "--required"])
    assert system_packages.main() == 1


def test_root_is_told_before_apt_installs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By an ``apt-get`` that only writes down what it was asked for."""
    asked = tmp_path / "asked"
    (tmp_path / "apt-get").write_text(f'#!/bin/sh\necho "$RUNLEVEL $@" >>{asked}\n')
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["system_packages"])
    assert system_packages.main() == 0
    assert (
        asked.read_text()
        .splitlines()[1]
        .startswith("1 install --yes -qq --no-install-recommends redis-server rabbitmq")
    )
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("apt-get install redis-server rabbitmq-server chromium") and "as root" in first
    assert last.startswith("not installed: redis, rabbitmq, chromium")
