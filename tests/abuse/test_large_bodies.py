"""Large bodies: how long one caller's body keeps the others waiting, and how many values it may have."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from api.large_bodies import check_values
from api.problems import PayloadTooLarge
from tests.kit.http import assert_problem
from tests.kit.system import System, running_system, write_plugin

SCHEMA = """
from typing import Any
from pydantic import BaseModel

class Input(BaseModel):
    values: list[Any] = []
    text: str = ""

class Output(BaseModel):
    n: int
"""
SERVICE = """
from worker.service import Service
from lists.schema import Input, Output

class Plugin(Service[Input, Output]):
    def predict(self, item):
        return {"n": len(item.values)}
"""
MB = 2**20


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("lists")
    write_plugin(folder / "plugins", "lists", SCHEMA, SERVICE)
    with running_system(folder, folder / "plugins") as system:
        system.start_api()
        yield system


def request(value: bytes, size: int) -> bytes:
    """A job of about ``size`` bytes whose input repeats this value."""
    return b'{"service":"lists","input":{"values":[%b]}}' % b",".join([value] * (size // (len(value) + 1)))


class Witness(threading.Thread):
    """A well-behaved caller that asks again and again, and notes its longest wait and every other status than 200."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url, self._ending = url, threading.Event()
        self.longest_s, self.count = 0.0, 0
        self.others: list[int] = []

    def __enter__(self) -> Witness:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self.join()

    def run(self) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._ending.is_set():
                began = time.monotonic()
                status = client.get(f"{self._url}/readyz").status_code
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.count += 1
                if status != 200:
                    self.others.append(status)
                time.sleep(0.005)


@pytest.mark.parametrize("value", [b"[]", b'{"a":0}', b"1", b'"x"'])
def test_large_bodies_stop_no_other_caller(lists: System, value: bytes) -> None:
    bodies = [request(value, 8 * MB - 100), request(value, MB)]
    with Witness(lists.url) as witness, ThreadPoolExecutor(6) as pool:
        sent = [pool.submit(httpx.post, f"{lists.url}/jobs", content=bodies[i % 2], timeout=60) for i in range(6)]
        statuses = {answer.result().status_code for answer in sent}
    assert statuses <= {202, 413}, statuses
    assert witness.count > 5 and not witness.others
    assert witness.longest_s < 2, "six at once; the store's own limit is 2 s, after which all would get 503"


def test_the_number_of_values_is_limited(lists: System) -> None:
    with lists.client() as client:
        refused = client.post("/jobs", content=request(b"[]", 7 * MB))
        assert_problem(refused, 413, "payload_too_large")
        assert "1000000 JSON values (SERVICES_MAX_JSON_VALUES)" in refused.json()["detail"]
        rows = b'{"service":"lists","inputs":[%b]}' % b",".join([b"{}"] * 1_200_000)
        assert_problem(client.post("/batches", content=rows), 413, "payload_too_large")
        tensor = b'{"name":"values","shape":[1,1200000],"datatype":"INT64","data":[%b]}' % b",".join([b"1"] * 1_200_000)
        answer = client.post("/v2/models/lists/infer", content=b'{"inputs":[%b]}' % tensor)
        assert answer.status_code == 413 and "JSON values" in answer.json()["error"]
        # a long text with many commas is one value
        text = b'{"service":"lists","input":{"text":"%b"}}' % (b',[{\\"' * MB)
        assert client.post("/jobs", content=text).status_code == 202


def test_values_are_counted_outside_of_texts() -> None:
    check_values(b'["a,b","c\\",[["]', 4)
    with pytest.raises(PayloadTooLarge):
        check_values(b'["a",[],{}]', 4)
