"""The models that describe the answers have the members that the answers have, and every route is described."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel

from api.application import PARTS
from api.batches.answers import Batch
from api.files.answers import File
from api.jobs.answers import Job, JobPage, JobRow
from tests.kit.http import body
from tests.kit.system import System

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def client(serving: System) -> Iterator[httpx.Client]:
    with serving.client() as client:
        yield client


def assert_described(model: type[BaseModel], answer: dict[str, Any]) -> None:
    """Each member of the answer, at any depth, is in the model, which takes its value."""
    read = model.model_validate(answer, strict=True)
    assert read.model_dump(exclude_unset=True) == answer


def test_a_job_in_each_of_its_forms(client: httpx.Client) -> None:
    job = client.post("/jobs?wait=20", content=body(webhook="https://8.8.8.8/")).json()
    assert_described(Job, job)
    assert_described(Job, client.get(f"/jobs/{job['id']}?include=attempts,input").json())
    failed = client.post("/jobs?wait=20", content=body(input={"n": 1, "do": "raise"})).json()
    queued = client.post("/jobs", content=body(service="one_by_one")).json()
    page = client.get("/jobs?include=attempts,input,output").json()
    assert {job["id"], failed["id"], queued["id"]} <= {row["id"] for row in page["jobs"]}
    assert_described(JobPage, page)
    for row in client.get("/jobs").json()["jobs"]:
        assert_described(JobRow, row)
    client.delete(f"/jobs/{queued['id']}")


def test_a_batch_and_a_file(client: httpx.Client) -> None:
    batch = client.post("/batches", json={"service": "echo", "inputs": [{"n": 1}]}).json()
    assert_described(Batch, batch)
    file = client.post("/files", content=b"hello", headers={"Content-Type": "text/plain"}).json()
    assert_described(File, file)


def test_every_route_is_in_the_document_and_in_the_docs(client: httpx.Client) -> None:
    operations = {
        (method.upper(), path)
        for path, methods in client.get("/openapi.json").json()["paths"].items()
        for method in methods
    }
    served = {("GET", "/")}  # the console
    for part in PARTS:
        for route in part.router.routes:
            assert isinstance(route, APIRoute)
            served |= {(method, route.path) for method in (route.methods or set()) - {"HEAD"}}
    assert operations == served
    docs = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    missing = {path for _, path in served if path.partition("/{")[0] not in docs}
    assert not missing
