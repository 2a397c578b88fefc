"""A checkout with a private Redis, and a program in the place of its server."""

from __future__ import annotations

import sys
from pathlib import Path

import redis

from tests.kit.system import ROOT, Process, environment_without_ours
from worker.settings import Settings


class Checkout:
    """A folder with a private Redis of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**environment_without_ours(), "PYTHONPATH": str(ROOT), "SERVICES_DATA_DIR": str(folder)}
        self.settings = Settings(redis_url="", data_dir=folder)
        self.processes: list[Process] = []

    def serve(self, **env: str) -> Process:
        command = [sys.executable, "-c", "from worker.cli.main import main; main(['redis'])"]
        log = self.folder.parent / f"redis-{len(self.processes)}.log"
        process = Process(command, {**self.env, "PYTHONUNBUFFERED": "1", **env}, log)
        self.processes.append(process)
        return process

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.settings.url, socket_timeout=5)


def write_server(binary: Path, version: str) -> Path:
    binary.write_text(f"#!/bin/sh\necho Redis server v={version} sha=0\n")
    binary.chmod(0o755)
    return binary
