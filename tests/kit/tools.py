"""Tests that need a program of the system: where it is absent they are skipped, counted and listed; in CI they fail."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

import pytest

from scripts.system_packages import TOOLS, install_command, is_there, packages_of

#: How the reason of such a skip begins.
NEEDS = "needs a program of the system: "


def need(*tools: str) -> None:
    """Skip the test unless the tools are installed; in CI, fail it."""
    absent = [tool for tool in tools if not is_there(tool)]
    if not absent:
        return
    message = NEEDS + ", ".join(absent)
    if os.environ.get("CI"):
        pytest.fail(f"{message} ({install_command(packages_of(absent))})", pytrace=False)
    pytest.skip(message)


def report_skipped(reasons: Iterable[str]) -> list[str]:
    """Which tools were missing, for how many tests, and the command that installs them all."""
    found = [reason.partition(NEEDS)[2].split(", ") for reason in reasons if NEEDS in reason]
    if not found:
        return []
    counts = Counter(tool for tools in found for tool in tools)
    missing = [tool for tool in TOOLS if tool in counts]
    lines = [f"{tool}: {counts[tool]} ({' '.join(TOOLS[tool][1])})" for tool in missing]
    number = "1 test was" if len(found) == 1 else f"{len(found)} tests were"
    return [
        f"{number} skipped, each for want of a program that this machine has not:",
        *(f"  {line}" for line in lines),
        f"To run them too: {install_command(packages_of(missing))}",
    ]
