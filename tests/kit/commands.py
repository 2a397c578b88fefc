"""Commands that a new user types, in an environment without ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(*command: str | Path, cwd: Path | None = None, timeout: float = 600, **env: str) -> str:
    """What a command prints; fails with all of it where its exit code is not 0."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**clean_environment(), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def clean_environment() -> dict[str, str]:
    """The environment without what would lead to this checkout, its Redis or its Python."""
    ours = ("SERVICES", "REDIS_URL", "CELERY", "PYTHON", "PYTEST", "VIRTUAL_ENV", "MAKE", "MFLAGS", "PORT", "FLOWER")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    own = str(Path(sys.prefix) / "bin")
    return {**kept, "PATH": os.pathsep.join(p for p in kept["PATH"].split(os.pathsep) if p != own)}
