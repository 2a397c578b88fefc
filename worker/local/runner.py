"""Run command lines side by side, as those of a Procfile, until one of them ends or a signal asks for the end.

The flow: ``start`` starts every line, then a thread for each that prints its output → ``wait`` returns when a line has
ended or a signal has come → ``stop`` sends SIGTERM, and SIGKILL to everything below after ``KILL_WAIT_S`` or a second
Ctrl-C.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.processes.lifetime import Stop, die_with_parent, kill_below, stop_on_signals

#: Seconds between SIGTERM and SIGKILL: a batch that runs may end; a worker's longest is its ``time_limit_s``.
KILL_WAIT_S = 120
#: Seconds for the last output of a line that has ended, whose pipe another process may hold.
LAST_OUTPUT_S = 1.0
#: Seconds between two looks at the lines.
LOOK_S = 0.05
#: Codes of ANSI colours: cyan, yellow, green, magenta, red, blue.
COLOURS = (36, 33, 32, 35, 31, 34)


@dataclass
class Line:
    """One command line and its process, a shell in a session of its own."""

    name: str
    process: subprocess.Popen[bytes]
    colour: int
    printing: threading.Thread | None = None
    has_ended: bool = False  #: and it was said so


class Runner:
    """Runs command lines of the shell.

    Args:
        lines: the command lines by their names.
        environment: of all lines.
        folder: in which they start.
    """

    def __init__(self, lines: Mapping[str, str], environment: Mapping[str, str], folder: Path) -> None:
        self._commands, self._environment, self._folder = lines, environment, folder
        self._width = max(map(len, (*lines, "system")))
        self._is_terminal = sys.stdout.isatty()
        self._lines: list[Line] = []
        self._signals = Stop()

    def start(self) -> None:
        """Start every line. A signal that comes meanwhile stops them all."""
        self._signals = stop_on_signals()
        for (name, command), colour in zip(self._commands.items(), itertools.cycle(COLOURS), strict=False):
            process = subprocess.Popen(
                command,
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self._folder,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),
            )
            self._lines.append(Line(name, process, colour))
        for line in self._lines:  # only now: a process with threads should not fork
            self._print("system", f"{line.name} started (pid={line.process.pid})")
            line.printing = threading.Thread(target=self._print_output, args=(line,), daemon=True)
            line.printing.start()

    def wait(self) -> str:
        """Wait until a line has ended or a signal has come; gives the line's name, "" for a signal."""
        while not self._signals.wait(LOOK_S):
            if ended := self._look():
                return ended[0].name
        return ""

    def stop(self) -> None:
        """End every line."""
        self._print("system", f"stopping: what runs may end, at most {KILL_WAIT_S} s; Ctrl-C again ends all at once")
        for line in self._running():
            os.killpg(line.process.pid, signal.SIGTERM)
        deadline = time.monotonic() + KILL_WAIT_S
        while running := self._running():
            if self._signals.in_a_hurry or time.monotonic() > deadline:
                self._print("system", f"killing {', '.join(line.name for line in running)}")
                break
            time.sleep(LOOK_S)
            self._look()
        self._look()
        kill_below()  # also processes that have left their line's session
        for line in self._lines:
            if line.printing:
                line.printing.join(LAST_OUTPUT_S)

    def say(self, text: str) -> None:
        """Print a message of the runner itself."""
        self._print("system", text)

    def _running(self) -> list[Line]:
        return [line for line in self._lines if line.process.poll() is None]

    def _look(self) -> list[Line]:
        """The lines that have ended since the last look."""
        ended = [line for line in self._lines if not line.has_ended and line.process.poll() is not None]
        for line in ended:
            line.has_ended = True
            if line.printing:  # not until the end of its output, which a process that it started may hold for ever
                line.printing.join(LAST_OUTPUT_S)
            self._print("system", f"{line.name} stopped (rc={line.process.returncode})")
        return ended

    def _print_output(self, line: Line) -> None:
        assert line.process.stdout
        for text in line.process.stdout:
            self._print(line.name, text.decode(errors="replace").rstrip("\n"), line.colour)

    def _print(self, name: str, text: str, colour: int = 37) -> None:
        """Print a line. Where nobody reads the output any more (``make run | head``), a signal stops everything."""
        head = f"{time.strftime('%H:%M:%S')} {name:<{self._width}} | "
        try:
            print(f"\033[{colour}m{head}\033[0m{text}" if self._is_terminal else f"{head}{text}", flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            os.kill(os.getpid(), signal.SIGTERM)
