"""Schemas and clients of all kinds before one stack: each odd input has an answer that says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx_sse
import pytest
import tritonclient.http as triton

from tests.kit.system import System, finished, free_port, poll, running_system, services, status_of, write_plugin

SHAPES_SCHEMA = """
from __future__ import annotations
from decimal import Decimal
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

class Circle(BaseModel):
    r: float

class Square(BaseModel):
    side: Decimal

class Input(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"shape": {"r": 1}}]})
    shape: Circle | Square
    user_id: int | None = Field(None, validation_alias="userId", serialization_alias="uid")
    secret: SecretStr | None = None
    tags: set[str] = set()
    parts: list[Input] = []
    odd: int = 0

    @field_validator("odd")
    @classmethod
    def check(cls, value):
        return value if value != 13 else None + 1

class Output(BaseModel):
    secret: str | None
    user_id: int | None
    parts: int
"""
SHAPES = """
from worker.service import Service
from shapes.schema import Input, Output

class Plugin(Service[Input, Output]):
    cache_for_s = 60

    def predict(self, item):
        secret = item.secret and item.secret.get_secret_value()
        return {"secret": secret, "user_id": item.user_id, "parts": len(item.parts)}
"""
PAIR_SCHEMA = """
from pydantic import BaseModel, ConfigDict

class Input(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str

class NumberInput(BaseModel):
    model_config = ConfigDict(extra="forbid")
    number: int

class Output(BaseModel):
    n: int
"""
PAIR = """
from worker.service import Service
from pair.schema import Input, NumberInput, Output

class Texts(Service[Input, Output]):
    def predict(self, item):
        return {"n": len(item.text)}

class Numbers(Service[NumberInput, Output]):
    def predict(self, item):
        return {"n": item.number}
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("plugins")
    write_plugin(folder, "shapes", SHAPES_SCHEMA, SHAPES)
    write_plugin(folder, "pair", PAIR_SCHEMA, PAIR, known_as="texts")
    info = next(folder.glob("pair*.dist-info"))
    (info / "entry_points.txt").write_text(
        "[libs_service.services]\ntexts = pair.service:Texts\nnumbers = pair.service:Numbers\n"
    )
    with running_system(tmp_path_factory.mktemp("words"), folder) as made:
        made.start_api()
        made.start_worker("shapes")
        yield made


@pytest.fixture
def client(stack: System) -> Iterator[httpx.Client]:
    with stack.client() as made:
        yield made


def post(client: httpx.Client, service: str, value: Any, **fields: Any) -> httpx.Response:
    return client.post("/jobs", json={"service": service, "input": value, **fields})


def test_the_client_sends_secrets_and_a_model_with_aliases(stack: System) -> None:
    from pydantic import BaseModel, Field, SecretStr

    from api.client import Client

    class Circle(BaseModel):
        r: float

    class Input(BaseModel):
        shape: Circle
        user_id: int = Field(validation_alias="userId", serialization_alias="uid")
        secret: SecretStr

    value = Input.model_validate({"shape": {"r": 1}, "userId": 7, "secret": "hunter2"})
    with Client(stack.url) as client:
        job = client.submit("shapes", value)
        assert job.result() == {"secret": "hunter2", "user_id": 7, "parts": 0}


def test_unions_optional_fields_decimals_and_recursion_hold(client: httpx.Client) -> None:
    value = {"shape": {"side": "1.50"}, "userId": None, "parts": [{"shape": {"r": 2}, "parts": []}]}
    job = finished(client, post(client, "shapes", value).raise_for_status().json()["id"])
    assert job["output"] == {"secret": None, "user_id": None, "parts": 1}


def test_a_validator_that_raises_another_error_refuses_that_input_alone(client: httpx.Client) -> None:
    answer = post(client, "shapes", {"shape": {"r": 1}, "odd": 13})
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["code"] == "invalid_input" and "TypeError" in problem["detail"]
    assert problem["errors"][0]["loc"] == ["body", "input"]
    assert post(client, "shapes", {"shape": {"r": 1}}).status_code == 202


@pytest.mark.parametrize(
    ("path", "kind"), [("/jobs", "application/json"), ("/batches?service=shapes", "application/x-ndjson")]
)
def test_a_byte_order_mark_is_named(client: httpx.Client, path: str, kind: str) -> None:
    body = json.dumps({"service": "shapes", "input": {"shape": {"r": 1}}}).encode("utf-8-sig")
    answer = client.post(path, content=body, headers={"Content-Type": kind})
    assert answer.status_code == 422
    assert "byte order mark" in answer.json()["detail"]


def test_nan_in_a_row_has_the_words_of_a_single_job(client: httpx.Client) -> None:
    body = b'{"shape": {"r": NaN}}\n{"shape": {"r": 1e400}}\n{"shape": {"r": 1}}\n'
    headers = {"Content-Type": "application/x-ndjson"}
    batch = client.post("/batches?service=shapes", content=body, headers=headers).raise_for_status().json()
    lines = [json.loads(line) for line in client.get(f"/batches/{batch['id']}/results").text.splitlines()]
    single = client.post("/jobs", content=b'{"service":"shapes","input":{"shape":{"r":NaN}}}')
    words = "NaN and Infinity are no JSON numbers; leave the value out, or send null"
    assert words in single.json()["detail"]
    assert lines[0]["error"]["message"] == f"the input is not JSON: {words}"
    assert "too large" in lines[1]["error"]["message"]
    assert lines[2]["output"]["parts"] == 0


def test_equal_sets_are_equal_in_every_api_process(stack: System, client: httpx.Client) -> None:
    value = {"shape": {"r": 5}, "tags": ["one", "two", "three", "four", "five"]}
    first = finished(client, post(client, "shapes", value).json()["id"])
    for seed in ("1", "2", "3"):
        port = free_port()
        other = stack.start("uvicorn", "api:app", "--port", str(port), name="other", PYTHONHASHSEED=seed)
        poll(lambda port=port: status_of(f"http://127.0.0.1:{port}/healthz") == 200, what="the other API is up")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as elsewhere:
            again = finished(client, post(elsewhere, "shapes", value).json()["id"])
        other.stop()
        assert again["cached_from"] == first["id"]


def test_two_services_of_one_package_are_validated_each_by_its_own_schema(client: httpx.Client) -> None:
    assert post(client, "numbers", {"number": 1}).status_code == 202
    refused = post(client, "numbers", {"text": "a"})
    assert refused.status_code == 422 and "number" in refused.text
    assert post(client, "texts", {"text": "a"}).status_code == 202
    schema = client.get("/services/numbers").json()["input_schema"]
    assert list(schema["properties"]) == ["number"]


def test_triton_clients_read_a_models_configuration_and_statistics(stack: System, client: httpx.Client) -> None:
    job = finished(client, post(client, "shapes", {"shape": {"r": 9}}, cache_for_s=0).json()["id"])
    assert job["status"] == "succeeded"
    server = triton.InferenceServerClient(stack.url.removeprefix("http://"))
    config = server.get_model_config("shapes")
    assert (config["name"], config["max_batch_size"]) == ("shapes", 0)
    inputs = {each["name"]: each for each in config["input"]}
    assert inputs["odd"] == {"name": "odd", "data_type": "TYPE_INT64", "dims": [-1], "optional": True}
    assert {each["name"] for each in config["output"]} == {"secret", "user_id", "parts"}
    (stats,) = server.get_inference_statistics("shapes")["model_stats"]
    assert stats["inference_count"] == stats["inference_stats"]["success"]["count"] >= 1
    names = {each["name"] for each in server.get_inference_statistics()["model_stats"]}
    assert names >= {"shapes", "texts", "numbers"}
    assert client.get("/v2/models/nope/config").status_code == 404
    server.close()


def test_the_first_event_of_a_stream_bears_the_retry(client: httpx.Client) -> None:
    job = post(client, "shapes", {"shape": {"r": 2}}).json()
    with httpx_sse.connect_sse(client, "GET", f"/jobs/{job['id']}/events") as source:
        events = list(source.iter_sse())
    assert all(json.loads(event.data) for event in events), "no event without data"
    assert events[0].retry == 1000
    assert events[-1].event == "status"


def test_the_body_of_the_index_is_told_its_own_limit(client: httpx.Client) -> None:
    answer = client.post("/v2/repository/index", content=b" " * 1025)
    assert answer.status_code == 413
    assert "SERVICES_MAX_BODY_BYTES" not in answer.text and "1024" in answer.text


def test_the_document_tells_the_longest_keep_for_s(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["components"]["schemas"]["BatchRequest"]["properties"]["keep_for_s"]["maximum"] == 2_592_000
    assert document["components"]["schemas"]["shapes.JobRequest"]["properties"]["keep_for_s"]["maximum"] == 2_592_000


def test_submit_says_why_a_service_failed(stack: System, tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    service = "from worker.service import Service\nfrom absent.schema import Input, Output\n"
    service += "class Plugin(Service[Input, Output]):\n    def load(self): open('/no/such/weights')\n"
    write_plugin(folder, "absent", SHAPES_SCHEMA, service + "    def predict(self, item): ...\n")
    with running_system(tmp_path, folder) as system:
        system.start_api()
        worker = system.start_worker("absent", wait=False)
        poll(lambda: worker.exit_code is not None, what="the worker has given up")
        told = services(system, "submit", "absent", "--timeout", "1", "--url", system.url)
    assert "/no/such/weights" in told.stderr, told.stderr
