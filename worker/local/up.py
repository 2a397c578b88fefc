"""``services up``, the body of ``make run``: everything in the Procfile (else the built-in one), one real job, and then
until Ctrl-C.

The flow: check ports and names → start the Procfile's lines (``Runner``) → beside them, one thread waits until all are
ready, sends the sample and prints the addresses (``Guide``) → a signal stops everything.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from worker.discovery import find_plugins, list_plugins
from worker.errors import UnknownService
from worker.local.runner import Runner
from worker.processes.lifetime import become_reaper
from worker.processes.procfile import find_checkout, parse_procfile, read_procfile, say_others
from worker.settings import EX_USAGE, Settings

#: A failure that the ledger knows may be of an earlier run: a worker that starts again has reported its state by then.
STALE_FAILURE_S = 15.0
#: Seconds for the sample's result, and between two messages about a missing part.
SAMPLE_WAIT_S, PATIENCE_S = 30, 10.0

DEFAULT_PORTS = {"PORT": 8000, "FLOWER_PORT": 5555}

#: Uses no proxy of the environment: our own processes are on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Refused(Exception):
    """It cannot be started like this; nothing was."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def up(settings: Settings) -> int:
    """Run everything until a signal; gives the exit code."""
    try:
        ports = find_ports(os.environ)
        names = _names(settings)
        lines = parse_procfile(read_procfile())
    except Refused as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.code
    if note := say_others():
        print(note, flush=True)
    become_reaper()
    runner = Runner(lines, _environment(ports), find_checkout())
    runner.start()
    guide = Guide(names, ports["PORT"], ports["FLOWER_PORT"])
    guide.start()
    ended = runner.wait()
    guide.stop.set()
    if ended:
        runner.say(f"{ended} stopped by itself: stopping everything")
    runner.stop()
    return 1 if ended else 0


def find_ports(environ: os._Environ[str] | dict[str, str]) -> dict[str, int]:
    """The ports to use. Raises ``Refused`` for one that is no port, is taken, or is named twice."""
    ports: dict[str, int] = {}
    for name, default in DEFAULT_PORTS.items():
        port = _free_port(name, environ.get(name) or str(default))
        if port in ports.values():
            raise Refused(f"{' and '.join(DEFAULT_PORTS)} are both {port}; set {name} to another")
        ports[name] = port
    return ports


def find_api() -> str:
    """The address of this machine's API, by ``PORT``. Raises ``Refused``."""
    return f"http://127.0.0.1:{find_port()}"


def find_port() -> int:
    """The port of this machine's API, by ``PORT``. Raises ``Refused``."""
    return read_port("PORT", os.environ.get("PORT") or str(DEFAULT_PORTS["PORT"]))


def serve_api(host: str, port: int) -> None:
    """Run the API by uvicorn until a signal, as the checkout's Procfile does."""
    import uvicorn

    # The API refuses to listen for other machines without API keys, by the address in uvicorn's command line.
    sys.argv = ["uvicorn", "libs_service:app", "--host", host, "--port", str(port)]
    uvicorn.run(
        "libs_service:app",
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=5,
        timeout_keep_alive=75,  # longer than clients and proxies keep a connection
        app_dir="",  # as uvicorn's own command: modules in the current folder can be imported
    )


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
        self._needs_key = False  # whether the API asks for a key, which is stored nowhere

    def run(self) -> None:
        """The guide's steps."""
        self._wait("the API", lambda: fetch(f"{self._api}/readyz")[0] == 200)
        ready = self.wait_for_services()
        self._wait("Flower", lambda: fetch(f"{self._flower}/healthcheck")[0] == 200)
        if ready and not self.stop.is_set():
            self.send_sample(ready)
        self._say(
            f"Console  {self._api}/\nAPI      {self._api}  (documentation: {self._api}/docs)\nFlower   {self._flower}"
        )
        self._say("Ctrl-C stops everything")

    def wait_for_services(self) -> list[dict[str, Any]]:
        """Those that are ready, once none is still on its way; says why the others are not."""
        settled: dict[str, dict[str, Any]] = {}

        def look() -> bool:
            status, answer = fetch(f"{self._api}/services")
            self._needs_key = status == 401
            for service in answer["services"] if status == 200 else ():
                if service["name"] in self._names and self._is_settled(service):
                    settled[service["name"]] = service
            return len(settled) == len(self._names) or self._needs_key

        self._wait(f"the workers of {', '.join(self._names) or 'no service'}", look)
        if self._needs_key:
            self._say("API keys are configured: no sample job is sent; send yours with `Authorization: Bearer <key>`")
        ended = [settled[name] for name in self._names if name in settled]
        for service in ended:
            if service["state"] == "failed":
                self._say(f"service {service['name']} failed: {service['reason']}")
        return [service for service in ended if service["state"] == "ready"]

    def _is_settled(self, service: dict[str, Any]) -> bool:
        if service["state"] == "loading":
            self._loading.add(service["name"])
        late = time.monotonic() - self._begun > STALE_FAILURE_S
        failed = service["state"] == "failed" and (late or service["name"] in self._loading)
        return failed or service["state"] == "ready"

    def send_sample(self, ready: Sequence[dict[str, Any]]) -> None:
        """The example of the first service that has one, as a job."""
        name, example = next(
            ((each["name"], each["example"]) for each in ready if each["example"] is not None), ("", None)
        )
        if example is None:
            names = ", ".join(service["name"] for service in ready)
            self._say(f"no sample job is sent: there is no example of an input of {names}")
            return
        body = json.dumps({"service": name, "input": example}, ensure_ascii=False)
        headers = {"Content-Type": "application/json", "Prefer": f"wait={SAMPLE_WAIT_S}"}
        _, job = fetch(f"{self._api}/jobs", body.encode(), headers, SAMPLE_WAIT_S + 5)
        self._say(f"A sample job for {name}:\n{_pretty(example)}\n\n{_outcome(job)}")
        self._say(f"The same by hand:\n\n{self._curl(body)}")

    def _curl(self, body: str) -> str:
        headers = "-H 'Content-Type: application/json' -H 'Prefer: wait=10'"
        return f"  curl -s {self._api}/jobs {headers} -d {shlex.quote(body)}"

    def _wait(self, part: str, look: Callable[[], bool]) -> None:
        last_message = time.monotonic()
        while not self.stop.is_set() and not look():
            if time.monotonic() - last_message > PATIENCE_S:
                last_message = time.monotonic()
                self._say(f"still waiting for {part}")
            self.stop.wait(0.2)

    def _say(self, text: str) -> None:
        if not self.stop.is_set():
            print(f"\n{text}\n" if "\n" in text else text, flush=True)


def fetch(
    url: str, body: bytes | None = None, headers: dict[str, str] | None = None, timeout_s: float = 5
) -> tuple[int, Any]:
    """Status and JSON (else text) of an answer; 0 and why where there is none."""
    try:
        with _opener.open(urllib.request.Request(url, body, headers or {}), timeout=timeout_s) as answer:
            return answer.status, _parse(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _parse(error.read())
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)  # urllib wraps the error of the connection
        return 0, getattr(reason, "strerror", None) or str(reason)


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.decode(errors="replace")


def _outcome(job: Any) -> str:
    if not isinstance(job, dict) or "status" not in job or "id" not in job:
        return f"was refused: {_pretty(job)}"
    shown = job["error"] if job["error"] else job["output"]
    return f"{job['status']} (job {job['id']}):\n{_pretty(shown)}"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def read_port(name: str, text: str) -> int:
    """A port as it was written. Raises ``Refused``."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65_536):
        raise Refused(f"{name} must be a port from 1 to 65535, got {text!r}")
    return int(text)


def _free_port(name: str, text: str) -> int:
    port = read_port(name, text)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Refused(f"port {text} ({name}) cannot be used: {error.strerror}; set {name} to another") from error
    return port


def _names(settings: Settings) -> list[str]:
    try:
        return [plugin.name for plugin in find_plugins(settings.services or list_plugins())]
    except UnknownService as error:
        raise Refused(f"SERVICES: {error.message}", EX_USAGE) from error


def _environment(ports: dict[str, int]) -> dict[str, str]:
    """This process's, with the ports, and our own ``services`` and ``celery`` first on the PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, **{name: str(port) for name, port in ports.items()}, "PATH": path, "PYTHONUNBUFFERED": "1"}
