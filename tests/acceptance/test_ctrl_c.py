"""Ctrl-C of ``services up`` and ``services run``, with a plugin whose processes and programs hold their output."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Self

import pytest

from tests.kit.system import ROOT, Process, RedisServer, environment_without_ours, free_port, make_http, poll
from tests.kit.wild import new_mark, programs, write_wild

pytestmark = pytest.mark.timeout(400)

EXECUTOR = "self.pool = ProcessPoolExecutor(2, mp_context=fork); list(self.pool.map(abs, range(4)))"
SERVICES = str(Path(sys.executable).parent / "services")


class Terminal:
    """``services up`` or ``services run`` in a session of its own, as in a terminal."""

    def __init__(self, folder: Path, *command: str, **env: str) -> None:
        self.folder = folder
        if not (folder / "plugins").exists():
            write_wild(folder / "plugins", "pooled", EXECUTOR)
            (folder / "Procfile").write_text((ROOT / "Procfile").read_text())
        path = os.pathsep.join([str(folder / "plugins"), str(ROOT)])
        self.port = free_port()
        ports = {"PORT": str(self.port), "FLOWER_PORT": str(free_port())}
        ours = {"PYTHONPATH": path, "SERVICES": "pooled", "CTRL_C": str(folder), **ports, **env}
        log = folder / f"{command[0]}-{time.monotonic_ns()}.log"
        self.process = Process(["setsid", SERVICES, *command], {**environment_without_ours(), **ours}, log, folder)

    @property
    def output(self) -> str:
        return self.process.output

    def press_ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def left_over(self) -> dict[int, str]:
        """Processes that were started here, wherever they have gone: their commands by their ids."""
        ours, found = f"CTRL_C={self.folder}".encode(), {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if ours in (process / "environ").read_bytes():
                    command = (process / "cmdline").read_bytes()
                    found[int(process.name)] = command.replace(b"\0", b" ").decode()
            except OSError:
                continue  # it has ended meanwhile
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what a failed test has left."""
        for pid in self.left_over():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def start_long_job(terminal: Terminal) -> str:
    """A job whose programs hold the worker's output; their mark."""
    mark = new_mark()
    body = {"service": "pooled", "input": {"do": "sessions", "mark": mark}}
    with make_http(f"http://127.0.0.1:{terminal.port}", 30) as client:
        client.post("/jobs", json=body).raise_for_status()
    poll(lambda: len(programs(mark)) == 3, 60, "its programs run")
    return mark


def test_ctrl_c_ends_services_up_and_a_second_one_at_once(tmp_path: Path) -> None:
    with Terminal(tmp_path, "up") as terminal:
        poll(lambda: "Ctrl-C stops everything" in terminal.output, 120, "all is ready")
        terminal.press_ctrl_c()
        assert terminal.process.wait(60) == 0, terminal.output
        assert "stopping: what runs may end, at most 120 s; Ctrl-C again ends all at once" in terminal.output
        assert "killing" not in terminal.output and not terminal.left_over()

    with Terminal(tmp_path, "up") as terminal:
        poll(lambda: "Ctrl-C stops everything" in terminal.output, 120, "all is ready")
        start_long_job(terminal)
        terminal.press_ctrl_c()
        poll(lambda: "Ctrl-C again ends all at once" in terminal.output, 20, "it says how to end at once")
        terminal.press_ctrl_c()
        assert terminal.process.wait(20) == 0, terminal.output
        assert terminal.output.count("killing") == 1 and not terminal.left_over(), terminal.output


def test_a_second_ctrl_c_ends_services_run_at_once(tmp_path: Path, redis_server: RedisServer) -> None:
    mark = new_mark()
    code = "import sys; from worker.celery import app; app.send_task('pooled.predict', args=[eval(sys.argv[1])])"
    given = repr({"do": "sessions", "mark": mark})
    env = {**environment_without_ours(), "PYTHONPATH": str(ROOT), "REDIS_URL": redis_server.url}
    Process([sys.executable, "-c", code, given], env, tmp_path / "send.log").wait(60)

    with Terminal(tmp_path, "run", "pooled", REDIS_URL=redis_server.url) as terminal:
        poll(lambda: len(programs(mark)) == 3, 60, "its programs run")
        terminal.press_ctrl_c()
        poll(lambda: "Ctrl-C again ends all at once" in terminal.output, 20, "it says how to end at once")
        terminal.press_ctrl_c()
        assert terminal.process.wait(20) == 0, terminal.output
        assert not programs(mark) and not terminal.left_over()
