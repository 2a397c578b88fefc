"""The benchmark's harness works; what it measures is for ``make bench``."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.support import ROOT, environment_without_ours


def test_a_small_run_measures_both_stacks() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "queue", "--rounds", "1", "--jobs", "5000", "--no-report"]
    env = environment_without_ours() | {"PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    for stack in ("naive", "ours"):
        (speed,) = re.findall(rf"^no-op queue, {stack} jobs/s: \[([\d.]+)\]$", done.stdout, re.M)
        assert float(speed) > 0


def test_an_unknown_section_is_refused_with_the_known_ones() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "nope"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "throughput" in done.stderr
