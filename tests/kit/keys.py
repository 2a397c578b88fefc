"""API keys, made by the command."""

from __future__ import annotations

from tests.kit.system import System, services


def make_key(system: System, name: str = "ann") -> str:
    done = services(system, "keys", "create", "--name", name)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
