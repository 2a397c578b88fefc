"""Files by URLs that hang, or that are too many."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.kit.http import assert_problem
from tests.kit.system import System, finished, running_system, write_plugin

SCHEMA = """
from typing import Annotated
from pydantic import BaseModel
from worker.files import File, FileRules

class Input(BaseModel):
    files: list[Annotated[File, FileRules()]] = []
    n: int = 0

class Output(BaseModel):
    n: int
"""
SERVICE = """
from worker.service import Service
from fetching.schema import Input, Output

class Plugin(Service[Input, Output]):
    max_batch_size = 1
    time_limit_s = 20
    def predict(self, item):
        return {"n": len(item.files)}
"""


@pytest.fixture
def hanging() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0), backlog=512)
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                held.append(server.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}/"
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)
    for connection in held:
        connection.close()


@pytest.fixture
def fetching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("fetching")
    write_plugin(folder / "plugins", "fetching", SCHEMA, SERVICE)
    limits = {"SERVICES_FETCH_TIMEOUT_S": "5", "SERVICES_FETCH_TOTAL_TIMEOUT_S": "2"}
    networks = {"SERVICES_FETCH_ALLOWED_NETWORKS": "127.0.0.1/32"}
    with running_system(folder, folder / "plugins", **limits, **networks) as system:
        system.start_api()
        system.start_worker("fetching")
        yield system


def test_hanging_urls_hold_a_service_for_a_limited_time(fetching: System, hanging: str) -> None:
    with fetching.client() as client:
        files = [f"{hanging}{number}" for number in range(64)]
        attack = client.post("/jobs", json={"service": "fetching", "input": {"files": files}}).json()
        began = time.monotonic()
        other = client.post("/jobs?wait=30", json={"service": "fetching", "input": {"n": 1}}).json()
        assert other["status"] == "succeeded" and time.monotonic() - began < 10
        failed = finished(client, attack["id"])
        assert failed["error"]["code"] == "invalid_input"


def test_an_input_has_a_limit_of_urls(fetching: System) -> None:
    with fetching.client() as client:
        files = [f"https://host.example/{number}" for number in range(65)]
        refused = client.post("/jobs", json={"service": "fetching", "input": {"files": files}})
        assert_problem(refused, 422, "invalid_input", ["body", "input", "files", 64])
        assert "SERVICES_MAX_URLS" in refused.json()["detail"]

        # rows of a batch are checked by the worker
        batch = client.post("/batches", json={"service": "fetching", "inputs": [{"files": files}, {"n": 1}]}).json()
        lines = client.get(batch["links"]["results"]).text.splitlines()
        assert "SERVICES_MAX_URLS" in lines[0] and '"output"' in lines[1]
