"""A real RabbitMQ of the tests' own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from kombu.connection import Connection

from tests.kit.system import free_port, poll

#: Debian's own scripts, which do not change users as those in ``/usr/sbin`` do.
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class RabbitServer:
    """One node on a free port, with its data in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        home = Path(tempfile.mkdtemp(prefix="services-rabbit-"))  # Erlang's cookie; its path must be short
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "enabled_plugins").write_text("[].")
        self._env = {
            **os.environ,
            "HOME": str(home),
            "RABBITMQ_NODENAME": f"t{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._names: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "out").open("ab") as out:
            if not self._names:  # Erlang would start one that outlives us
                self._names = subprocess.Popen(["epmd"], env=self._env, stdout=out, stderr=out)
            self._process = subprocess.Popen([SERVER], env=self._env, stdout=out, stderr=out, start_new_session=True)
        poll(self._answers, 60, "RabbitMQ answers")

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process:
            os.killpg(self._process.pid, number)
            self._process.wait(30)
            self._process = None

    def remove(self) -> None:
        self.stop(signal.SIGKILL)
        if self._names:
            self._names.kill()
            self._names.wait(5)
        shutil.rmtree(self._env["HOME"])

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1), Connection(self.url, connect_timeout=2) as link:
                link.connect()
                return True
        except OSError:
            return False
