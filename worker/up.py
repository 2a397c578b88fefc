"""``services up``, the body of ``make run``: everything in the Procfile, one real job, and then until Ctrl-C.

The flow: check ports and names → start the Procfile's processes (honcho) → beside them, one thread waits until all are
ready, sends the sample and prints the addresses → a signal stops everything.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import honcho.manager
from honcho.environ import parse_procfile

from worker.discovery import find_plugins, list_plugins
from worker.errors import UnknownService
from worker.settings import EX_USAGE, Settings, find_checkout

#: A running batch may end before the rest is killed; a worker's longest is its ``time_limit_s``.
KILL_WAIT_S = 120
#: A failure that the ledger knows may be of an earlier run: a worker that starts again has told of itself by then.
STALE_FAILURE_S = 15.0
SAMPLE_WAIT_S = 30


class Refused(Exception):
    """It cannot be started like this; nothing was."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def up(settings: Settings) -> int:
    """Run everything until a signal; gives the exit code."""
    try:
        ports = {name: _free_port(name, default) for name, default in (("PORT", 8000), ("FLOWER_PORT", 5555))}
        names = _names(settings)
        lines = _procfile()
    except Refused as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.code
    honcho.manager.KILL_WAIT = KILL_WAIT_S
    manager = Manager(Guide(names, ports["PORT"], ports["FLOWER_PORT"]))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {**os.environ, **{name: str(port) for name, port in ports.items()}, "PATH": path, "PYTHONUNBUFFERED": "1"}
    for name, command in lines.items():
        manager.add_process(name, command, env=env, cwd=str(find_checkout()))
    manager.loop()
    return manager.exit_code()


class Manager(honcho.manager.Manager):  # type: ignore[misc]  # honcho ships no types
    """honcho's manager, which also starts the guide, and knows a wanted end from an accident."""

    def __init__(self, guide: Guide) -> None:
        super().__init__()
        self._guide = guide
        self._first_stopped = ""

    def terminate(self) -> None:
        """Stop everything; called once by a signal or after the first process that stopped."""
        self._guide.stop.set()
        stopped = [name for name, process in self._processes.items() if "returncode" in process]
        if self.returncode not in (130, 143) and stopped and not self._first_stopped:
            self._first_stopped = stopped[0]
            self._system_print(f"{stopped[0]} stopped by itself: stopping everything\n")
        super().terminate()

    def exit_code(self) -> int:
        """0 after a signal; 1 where a process stopped by itself."""
        return 1 if self._first_stopped else 0

    def _start(self) -> None:
        super()._start()  # forks, so no thread of ours may run yet
        self._guide.start()


class Guide(threading.Thread):
    """Waits until everything is ready, sends the sample job and says where things are."""

    def __init__(self, names: Sequence[str], port: int, flower_port: int) -> None:
        super().__init__(name="guide", daemon=True)
        self.stop = threading.Event()
        self._names = names
        self._api = f"http://127.0.0.1:{port}"
        self._flower = f"http://127.0.0.1:{flower_port}"
        self._begun = time.monotonic()
        self._loading: set[str] = set()

    def run(self) -> None:
        """The guide's four steps."""
        self._wait("the API", lambda: _get(f"{self._api}/readyz") is not None)
        ready = self._wait_for_services()
        self._wait("Flower", lambda: _get(f"{self._flower}/healthcheck") is not None)
        if self.stop.is_set():
            return
        if ready:
            self._send_sample(ready[0])
        self._say(f"API     {self._api}   (try {self._api}/docs)\nFlower  {self._flower}\nCtrl-C stops everything.")

    def _wait_for_services(self) -> list[dict[str, Any]]:
        """Those that are ready, once none is still on its way; says why the others are not."""
        settled: dict[str, dict[str, Any]] = {}

        def look() -> bool:
            answer = json.loads(_get(f"{self._api}/services") or '{"services": []}')
            for service in answer["services"]:
                if service["name"] in self._names and self._is_settled(service):
                    settled[service["name"]] = service
            return len(settled) == len(self._names)

        self._wait(f"the workers of {', '.join(self._names) or 'no service'}", look)
        for name, service in settled.items():
            if service["state"] == "failed":
                self._say(f"service {name} failed: {service['reason']}")
        return [service for service in settled.values() if service["state"] == "ready"]

    def _is_settled(self, service: dict[str, Any]) -> bool:
        if service["state"] == "loading":
            self._loading.add(service["name"])
        late = time.monotonic() - self._begun > STALE_FAILURE_S
        failed = service["state"] == "failed" and (late or service["name"] in self._loading)
        return failed or service["state"] == "ready"

    def _send_sample(self, service: dict[str, Any]) -> None:
        body = {"service": service["name"], "input": service["example"]}
        if service["example"] is None:
            self._say(f"service {service['name']} is ready; its Input has no example to try it with")
            return
        text = json.dumps(body, ensure_ascii=False)
        answer = _get(f"{self._api}/jobs", text.encode(), {"Prefer": f"wait={SAMPLE_WAIT_S}"}, SAMPLE_WAIT_S + 5)
        result = json.dumps(json.loads(answer), indent=2, ensure_ascii=False) if answer else "no answer; see above"
        again = f"curl -s {self._api}/jobs -H 'Prefer: wait=10' -d '{text.replace(chr(39), chr(92) + 'u0027')}'"
        self._say(f"A sample job for {service['name']}:\n\n{again}\n\n{result}")

    def _wait(self, what: str, look: Any) -> None:
        told = time.monotonic()
        while not self.stop.is_set() and not look():
            if time.monotonic() - told > 10:
                told = time.monotonic()
                self._say(f"still waiting for {what}")
            self.stop.wait(0.2)

    def _say(self, text: str) -> None:
        if not self.stop.is_set():
            print(f"\n{text}\n" if "\n" in text else text, flush=True)


def _free_port(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65_536):
        raise Refused(f"{name} must be a port from 1 to 65535, got {text!r}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(text)))
        except OSError as error:
            raise Refused(f"port {text} cannot be used ({error.strerror}); set {name} to another") from error
    return int(text)


def _names(settings: Settings) -> list[str]:
    try:
        return [plugin.name for plugin in find_plugins(settings.services or list_plugins())]
    except UnknownService as error:
        raise Refused(f"SERVICES: {error.message}", EX_USAGE) from error


def _procfile() -> dict[str, str]:
    path = find_checkout() / "Procfile"
    if not path.is_file():
        raise Refused(f"there is no Procfile in {path.parent} or above it")
    lines: dict[str, str] = parse_procfile(path.read_text()).processes
    return lines


def _get(url: str, body: bytes | None = None, headers: dict[str, str] | None = None, timeout: float = 5) -> bytes | None:
    """The body of a 2xx answer; None for any other or none."""
    request = urllib.request.Request(url, body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            found: bytes = answer.read()
            return found
    except (urllib.error.URLError, OSError):
        return None
