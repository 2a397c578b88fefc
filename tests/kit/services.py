"""The test services, named by their behaviour; each is written as a plugin of its own."""

from __future__ import annotations

from pathlib import Path

from tests.kit.system import write_plugin

SCHEMA = """
from pydantic import BaseModel, ConfigDict

class Deep(BaseModel):
    model_config = ConfigDict(extra="forbid")
    ip: int = 0

class Input(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"n": 1}]})
    n: int
    sleep_s: float = 0
    do: str = ""
    device: Deep | None = None

class Output(BaseModel):
    n: int
    batch: int
"""

ECHO = """
import ctypes, os, time
import heavy_model_library
from worker.service import Service
from {name}.schema import Input, Output

class Plugin(Service[Input, Output]):
    max_batch_size = 16
    time_limit_s = 2
    {knobs}

    def load(self):
        self.kept = []
        time.sleep(float(os.environ.get("TEST_LOAD_S", "0")))

    def is_first_run(self, n):
        try:
            os.close(os.open(os.path.join(os.environ["TEST_FOLDER"], f"run-{{n}}"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def predict_batch(self, batch):
        time.sleep(sum(item.sleep_s for item in batch))
        for item in batch:
            if item.do == "raise":
                raise ValueError("bad one")
            if item.do == "exit":
                os._exit(3)
            if item.do in ("flaky", "hang_once") and self.is_first_run(item.n):
                if item.do == "flaky":
                    raise ConnectionError("no model server")
                time.sleep(60)
            if item.do == "always_flaky":
                raise ConnectionError("no model server")
            if item.do == "hold_gil":
                ctypes.PyDLL(None).sleep(6)  # C code: no other thread of this process can do anything
                time.sleep(0.6)
            if item.do == "grow":
                self.kept.append(b"x" * 2**28)
                time.sleep(60)
            if item.do == "leak":
                self.kept.append(b"x" * 2**25)
        return [{{"n": item.n, "batch": len(batch)}} for item in batch]
"""

FILES_SCHEMA = """
from typing import Annotated
from pydantic import BaseModel, ConfigDict, Field
from worker.files import File, FileRules

class Input(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"document": "data:text/plain,hello"}]})
    document: File
    pictures: Annotated[list[File], FileRules(max_bytes=1000, types=["image/*"])] = Field(default_factory=list)
    do: str = ""

class Output(BaseModel):
    size: int
    folder: str
    batch: int
    reversed: File
    same: File | None = None
"""

TURNING = """
import os, time
from worker.files import File
from worker.service import Service
from turning.schema import Input, Output

class Plugin(Service[Input, Output]):
    max_queue_delay_ms = 100
    time_limit_s = 5

    def preprocess(self, input):
        assert all(picture.path.suffix == ".png" for picture in input.pictures)
        self.progress(0.5, "read")
        return input, input.document.path.read_bytes()

    def predict_batch(self, batch):
        if batch[0][0].do == "wait":
            while not os.path.exists(os.environ["TEST_FOLDER"] + "/go"):
                time.sleep(0.02)
        return [(input, content, len(batch)) for input, content in batch]

    def postprocess(self, raw):
        input, content, count = raw
        folder = input.document.path.parent
        path = folder / "reversed"
        path.write_bytes(content[::-1])
        made = File.from_bytes(content[::-1], "text/plain") if input.do == "bytes" else File.from_path(path)
        if input.do == "lost":
            made = File.from_path("/no/such/file")
        same = input.document if input.do == "same" else None
        return Output(size=len(content), folder=str(folder), batch=count, reversed=made, same=same)
"""

#: The same without a ``schema.py``: the API does not know that it takes files.
UNTOLD = FILES_SCHEMA + TURNING.replace("from turning.schema import Input, Output\n", "")

TALKING_SCHEMA = """
from pydantic import BaseModel, ConfigDict

class Input(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"steps": 1}]})
    steps: int = 0
    step_s: float = 0
    do: str = ""

class Output(BaseModel):
    parts: list[int]
"""

TALKING = """
import logging, os, time
from worker.service import Service
from talking.schema import Input, Output

log = logging.getLogger("talking")

class Plugin(Service[Input, Output]):
    def preprocess(self, input):
        if input.do == "talk":
            print("read", end="")
            log.info("it has %d steps", input.steps)
        return input

    def predict(self, input):
        if input.do == "talk":
            print("predicting")
        if input.do == "big":
            for part in range(10):
                yield "x" * 2**20
        if input.do == "nan":
            yield float("nan")
        for step in range(input.steps):
            self.progress((step + 1) / input.steps, f"step {step}")
            time.sleep(input.step_s)
            if input.do == "yield":
                yield step
            if input.do == "die_once" and not os.path.exists(os.environ["TEST_FOLDER"] + "/died"):
                time.sleep(0.3)
                open(os.environ["TEST_FOLDER"] + "/died", "w").close()
                os._exit(3)
        if input.do == "beyond":
            self.progress(1.5)
        if input.do != "yield":
            return [input.steps]

    def postprocess(self, raw):
        return Output(parts=raw)
"""

#: Services whose worker cannot start, each with its source.
BROKEN = {
    "bad_import": "import no_such_library",
    "bad_load": """
from worker.service import Service
from bad_load.schema import Input, Output
class Plugin(Service[Input, Output]):
    def load(self):
        raise RuntimeError("no weights")
    def predict(self, item): ...
""",
    "crash_load": """
import os
from worker.service import Service
from crash_load.schema import Input, Output
class Plugin(Service[Input, Output]):
    def load(self):
        os.abort()
    def predict(self, item): ...
""",
}


def write_echo(folder: Path, name: str = "echo", knobs: str = "pass") -> None:
    """Echo answers with its input's number and the size of its batch, and misbehaves where it is told to.

    Its package's ``__init__`` imports the service, which imports a heavy library: the API must not.
    """
    init = f"import {name}.service\n"
    write_plugin(folder, name, SCHEMA, ECHO.format(name=name, knobs=knobs), init)


def write_turning(folder: Path) -> None:
    """Turning reads a file and returns one: the same bytes backwards."""
    write_plugin(folder, "turning", FILES_SCHEMA, TURNING)


def write_untold(folder: Path) -> None:
    """Turning under another name, without a schema of which the API would know."""
    write_plugin(folder, "untold", None, UNTOLD)


def write_services(folder: Path) -> Path:
    """All test services, in a folder for PYTHONPATH."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "heavy_model_library.py").write_text("")
    write_echo(folder)
    write_echo(folder, "small", "max_queue_size = 2")
    write_echo(folder, "patient", "max_queue_delay_ms = 300")
    retries = "retry_on = (ConnectionError, TimeoutError); retry_timeouts = True; retry_backoff_s = 0.2"
    write_echo(folder, "retrying", retries)
    write_echo(folder, "bounded", "memory_limit_mb = 200; time_limit_s = 30")
    write_echo(folder, "one_by_one", "max_batch_size = 1; time_limit_s = 60")
    write_plugin(folder, "talking", TALKING_SCHEMA, TALKING)
    write_plugin(folder, "no_schema", None, ECHO.format(name="echo", knobs="pass"))
    write_plugin(folder, "bad_schema", "raise RuntimeError('broken schema')", "")
    for name, service in BROKEN.items():
        write_plugin(folder, name, SCHEMA, service)
    return folder
