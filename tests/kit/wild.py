"""Plugins that start programs and processes, and that change what belongs to the whole process."""

from __future__ import annotations

import uuid
from pathlib import Path

from tests.kit.system import command_of, write_plugin

SCHEMA = """
from typing import Any
from pydantic import BaseModel

class Input(BaseModel):
    do: str = ""
    mark: str = "300"

class Output(BaseModel):
    value: Any = None
"""

WILD = """
import asyncio, logging, logging.config, multiprocessing, os, signal, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor
from worker.service import Service
from {name}.schema import Input, Output

{top}

fork = multiprocessing.get_context("fork")
HANDLERS = "import signal; print([signal.getsignal(n).name for n in (signal.SIGTERM, signal.SIGHUP)])"

class Unsayable(Exception):
    def __str__(self):
        return None

class Panic(BaseException):
    pass

def handlers(pipe):
    found = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    pipe.send([found[0] is signal.default_int_handler, *[one == signal.SIG_DFL for one in found[1:]]])

class Plugin(Service[Input, Output]):
    max_batch_size = 8
    {knobs}

    def load(self):
        {load}

    def predict(self, input):
        return {{"value": getattr(self, input.do)(input.mark)}}

    def nothing(self, mark):
        return None

    def pid(self, mark):
        return os.getpid()

    def program(self, mark):
        subprocess.run(["sleep", mark])

    def sessions(self, mark):
        script = f"(setsid sleep {{mark}} &) ; setsid sh -c 'sleep {{mark}} & sleep {{mark}}'"
        subprocess.run(["setsid", "-w", "sh", "-c", script])

    def daemon(self, mark):
        subprocess.run(["setsid", "sh", "-c", f"setsid sleep {{mark}} > /dev/null 2>&1 &"])

    def executor(self, mark):
        self.made = getattr(self, "made", None) or ProcessPoolExecutor(1, mp_context=fork)
        return self.made.submit(os.getpid).result()

    def popen(self, mark):
        process = subprocess.Popen(["sleep", mark])
        process.terminate()
        return process.wait(20)

    def process(self, mark):
        process = fork.Process(target=time.sleep, args=(60,))
        process.start()
        process.terminate()
        process.join(20)
        return process.exitcode

    def pool(self, mark):
        with fork.Pool(2) as pool:
            pool.apply_async(time.sleep, (60,))
            time.sleep(0.2)
        return "left"

    def handlers(self, mark):
        ours, theirs = fork.Pipe()
        process = fork.Process(target=handlers, args=(theirs,))
        process.start()
        forked = ours.recv()
        process.join()
        return [forked, subprocess.check_output([sys.executable, "-c", HANDLERS], text=True).strip()]

    def fork_that_returns(self, mark):
        os.fork()
        return os.getpid()

    def exit70(self, mark):
        os._exit(70)

    def crash(self, mark):
        os.kill(os.getpid(), signal.SIGSEGV)

    def raise_cancelled(self, mark):
        raise asyncio.CancelledError("let out")

    def raise_interrupt(self, mark):
        raise KeyboardInterrupt

    def raise_panic(self, mark):
        raise Panic("index out of bounds")

    def raise_unsayable(self, mark):
        raise Unsayable

    def raise_group(self, mark):
        raise ExceptionGroup("many", [ValueError("a"), ExceptionGroup("inner", [KeyError("b")])])

    def raise_error(self, mark):
        raise ValueError("as told")

    def set_up_logging(self, mark):
        logging.config.dictConfig({{"version": 1, "root": {{"level": "INFO", "handlers": []}}}})
        logging.disable(logging.NOTSET)
        logging.getLogger("{name}.new").warning("a line of the plugin's")

    def set_up_by_force(self, mark):
        logging.basicConfig(level=logging.WARNING, force=True)
        logging.getLogger("{name}.another").warning("a line of the plugin's")

    def break_surroundings(self, mark):
        os.chdir("/")
        os.umask(0o077)
        os.environ.clear()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN)
        sys.stdout.close()
        sys.stderr.close()
"""


def write_wild(folder: Path, name: str = "wild", load: str = "pass", top: str = "", knobs: str = "pass") -> None:
    """A plugin that does what it is told to."""
    write_plugin(folder, name, SCHEMA, WILD.format(name=name, load=load, top=top, knobs=knobs))


def new_mark() -> str:
    """Seconds for ``sleep`` that no other program is given."""
    return f"30{uuid.uuid4().int % 10**12}"


def programs(mark: str) -> set[int]:
    """The living ``sleep`` programs that were given it."""
    found = {int(entry.name) for entry in Path("/proc").glob("[0-9]*")}
    return {pid for pid in found if command_of(pid).split(b"\0")[:2] == [b"sleep", mark.encode()]}
