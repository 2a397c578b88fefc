"""A plugin that ends its own process, with whichever exit code: a death that counts, and no other job waits for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit.http import body
from tests.kit.system import System, poll, running_system, write_plugin

SCHEMA = """
from pydantic import BaseModel

class Input(BaseModel):
    code: int | None = None

class Output(BaseModel):
    pid: int
"""
SERVICE = """
import os
from worker.service import Service
from leaving.schema import Input, Output

class Plugin(Service[Input, Output]):
    max_batch_size = 1  # or a batch of several is run again one by one, uncharged
    max_attempts = 2
    def predict(self, input):
        if input.code is not None:
            with open(os.environ["TEST_FOLDER"] + f"/left-{input.code}", "a") as file:
                file.write("x")
            os._exit(input.code)
        return {"pid": os.getpid()}
"""


@pytest.fixture(scope="module")
def leaving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("leaving")
    write_plugin(folder / "plugins", "leaving", SCHEMA, SERVICE)
    with running_system(folder, folder / "plugins") as system:
        system.start_api()
        system.start_worker("leaving")
        yield system


# 70 and 71 were the worker's own codes for "hand my jobs back"; os.EX_SOFTWARE is 70.
@pytest.mark.parametrize("code", [0, os.EX_SOFTWARE, os.EX_OSERR])
def test_a_job_whose_process_leaves_by_itself_fails_and_the_next_one_runs(leaving: System, code: int) -> None:
    with leaving.client() as client:
        bad = client.post("/jobs", content=body(service="leaving", input={"code": code})).json()
        good = client.post("/jobs?wait=20", content=body(service="leaving", input={})).json()
        assert good["status"] == "succeeded", good
        ended = poll(lambda: find_ended(client, bad["id"]), what="the bad job ends")
        assert ended["status"] == "failed" and ended["error"]["code"] == "worker_lost"
        assert ended["attempt"] == 2
        assert runs_of(leaving, code) == 2, "every run was charged"


def find_ended(client: httpx.Client, job_id: str) -> Any:
    job = client.get(f"/jobs/{job_id}").json()
    return job if job["status"] not in ("queued", "running") else None


def runs_of(system: System, code: int) -> int:
    (path,) = Path(system.folder).rglob(f"left-{code}")
    return len(path.read_text())
