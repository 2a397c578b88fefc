"""The sync client is generated: ``make check`` fails while it differs from the asyncio client."""

from __future__ import annotations

import subprocess
import sys

from tests.kit.system import ROOT


def check(change: str = "pass") -> tuple[int, str]:
    """Run the check after a change of the generator, in a process of its own, since unasync imports setuptools."""
    code = f"import sys; from scripts import generate_client as g; {change}; sys.exit(g.main())"
    command = [sys.executable, "-c", code, "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def test_a_stale_file_is_named_with_the_command_that_writes_it() -> None:
    assert check() == (0, "")
    code, text = check("g.HEADER = '# another\\n'")
    assert code == 1 and "sync.py is stale" in text and "Run `make generate`." in text
