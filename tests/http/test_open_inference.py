"""``/v2`` from outside: tritonclient unchanged, MLServer's recorded requests, and each refusal."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.kit.data_folder import data_folder
from tests.kit.recorded_clients import KSERVE, MLSERVER, Recorded
from tests.kit.services import write_services
from tests.kit.system import System, finished, poll, running_system, write_plugin

#: What MLServer's sum-model does: it adds up each row of its one input.
SUM_SCHEMA = """
from pydantic import BaseModel, Field

class Input(BaseModel):
    numbers: list[float] = Field(alias="input-0", json_schema_extra={"datatype": "FP32"})

class Output(BaseModel):
    total: float = Field(alias="output-0", json_schema_extra={"datatype": "FP32"})
"""
SUM_SERVICE = """
from worker.service import Service
from sum_model.schema import Input, Output

class Plugin(Service[Input, Output]):
    def predict(self, item):
        return {"output-0": sum(item.numbers)}
"""
RAGGED_SCHEMA = """
from pydantic import BaseModel

class Input(BaseModel):
    n: int

class Output(BaseModel):
    ones: list[int]
"""
RAGGED_SERVICE = """
from worker.service import Service
from ragged.schema import Input, Output

class Plugin(Service[Input, Output]):
    def predict(self, item):
        return {"ones": [1] * item.n}
"""

MODELS = ("sum-model", "echo", "ragged", "antifraud", "embed")
TEXTS = ["hello world", "How do I reset my password?", "grüße, 世界"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """An API with a body limit of 64 kB, and a worker for each of the models."""
    folder = tmp_path_factory.mktemp("models")
    plugins = write_services(folder / "plugins")
    write_plugin(plugins, "sum_model", SUM_SCHEMA, SUM_SERVICE, known_as="sum-model")
    write_plugin(plugins, "ragged", RAGGED_SCHEMA, RAGGED_SERVICE)
    with running_system(folder, plugins, SERVICES_MAX_BODY_BYTES="65536") as system:
        system.start_api()
        system.start_worker("sum-model,echo,ragged", wait=False)
        system.start_worker("antifraud,embed", wait=False)
        with system.client() as client:
            for name in MODELS:
                poll(lambda name=name: client.get(f"/v2/models/{name}/ready").status_code == 200, 60, name)
        yield system


@pytest.fixture
def client(models: System) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{models.port}") as made:
        yield made


def tensor(name: str, values: Any, datatype: str, binary: bool = True) -> triton.InferInput:
    kind = np.object_ if datatype == "BYTES" else np.dtype(datatype.lower().replace("fp", "float"))
    array = np.array(values, dtype=kind)
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def events(binary: bool = True) -> list[triton.InferInput]:
    return [
        tensor("kind", ["click", "impression"], "BYTES", binary),
        tensor("time", ["2026-08-22T10:15:07Z", "2026-08-22T10:15:08Z"], "BYTES", binary),
        tensor("device", ['{"ua": "python-requests/2.32"}', "null"], "BYTES", binary),
    ]


def by_jobs(models: System, service: str, inputs: list[Any]) -> list[Any]:
    """The outputs of the same inputs by ``POST /jobs``."""
    with models.client() as client:
        posts = [client.post("/jobs?wait=30", json={"service": service, "input": one}) for one in inputs]
        return [post.raise_for_status().json()["output"] for post in posts]


def infer(models: System, model: str, request: Any, **headers: str) -> httpx.Response:
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    with models.client() as client:
        return client.post(f"/v2/models/{model}/infer", content=body, headers=headers)


def one(name: str, shape: list[int], datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data}]}


def test_tritonclient_reads_health_and_metadata(models: System, client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("embed")
    assert client.is_model_ready("sum-model", "1.0")
    assert not client.is_model_ready("small") and not client.is_model_ready("nope")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    told = client.get_model_metadata("sum-model")
    assert told["versions"] == ["1.0"]
    assert told["inputs"] == [{"name": "input-0", "datatype": "FP32", "shape": [-1, -1]}]
    assert told["outputs"] == [{"name": "output-0", "datatype": "FP32", "shape": [-1]}]
    index = {row["name"]: row for row in client.get_model_repository_index()}
    assert index["echo"] == {"name": "echo", "version": "1.0", "state": "READY", "reason": ""}
    assert index["bad_schema"]["state"] == "UNAVAILABLE" and "broken schema" in index["bad_schema"]["reason"]
    with models.client() as plain:
        ready = plain.post("/v2/repository/index", json={"ready": True}).json()
        assert sorted(row["name"] for row in ready) == sorted(MODELS)
        assert plain.get("/v2/health/ready").json() == {"ready": True, "live": True}
    with pytest.raises(InferenceServerException, match=r"\[404\] no service is named 'nope'"):
        client.get_model_metadata("nope")
    with pytest.raises(InferenceServerException, match=r"\[404\] model 'echo' has no version '7'; it has '1\.0'"):
        client.get_model_metadata("echo", "7")


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_the_results_of_jobs(
    models: System, client: triton.InferenceServerClient, binary: bool
) -> None:
    names = ["embedding", "tokens", "truncated"]
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    told = client.infer("embed", [tensor("text", TEXTS, "BYTES", binary)], outputs=wanted, request_id="r-1")
    expected = by_jobs(models, "embed", [{"text": text} for text in TEXTS])
    assert told.get_response()["id"] == "r-1" and told.as_numpy("model_version") is None
    # The texts were batched in another way than by three jobs, which changes the last digits.
    np.testing.assert_allclose(told.as_numpy("embedding"), [job["embedding"] for job in expected], atol=1e-5)
    assert told.as_numpy("embedding").dtype == np.float32 and told.as_numpy("embedding").shape == (3, 384)
    assert told.as_numpy("tokens").tolist() == [job["tokens"] for job in expected]
    assert told.as_numpy("truncated").tolist() == [False] * 3 and told.as_numpy("truncated").dtype == bool

    scored = client.infer("antifraud", events(binary))  # all outputs, in binary
    inputs = [
        {"kind": "click", "time": "2026-08-22T10:15:07Z", "device": {"ua": "python-requests/2.32"}},
        {"kind": "impression", "time": "2026-08-22T10:15:08Z"},
    ]
    by_job = by_jobs(models, "antifraud", inputs)
    assert scored.as_numpy("score").tolist() == [job["score"] for job in by_job]
    assert scored.as_numpy("verdict").tolist() == [job["verdict"].encode() for job in by_job]
    assert [json.loads(reasons) for reasons in scored.as_numpy("reasons")] == [job["reasons"] for job in by_job]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_tritonclient_compresses_both_ways(client: triton.InferenceServerClient, coding: str) -> None:
    inputs = [tensor("text", TEXTS, "BYTES")]
    plain = client.infer("embed", inputs)
    packed = client.infer("embed", inputs, request_compression_algorithm=coding, response_compression_algorithm=coding)
    assert packed.as_numpy("embedding").tobytes() == plain.as_numpy("embedding").tobytes()


def test_tritonclient_asyncio_many_at_once(models: System) -> None:
    async def ask() -> list[Any]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{models.port}") as client:
            assert await client.is_server_ready() and await client.is_model_ready("sum-model")
            asked = [client.infer("sum-model", [tensor("input-0", [[i, 1], [i, 2]], "INT32")]) for i in range(50)]
            asked.append(client.infer("embed", [tensor("text", ["a"], "BYTES")], response_compression_algorithm="gzip"))
            asked.append(client.infer("antifraud", events()))
            return await asyncio.gather(*asked)

    *sums, embedded, scored = asyncio.run(ask())
    assert [told.as_numpy("output-0").tolist() for told in sums] == [[i + 1, i + 2] for i in range(50)]
    assert embedded.as_numpy("embedding").shape == (1, 384) and scored.as_numpy("score").shape == (2,)


def test_recorded_requests_of_mlserver_get_the_recorded_answers(models: System) -> None:
    folder = data_folder() / "mlserver"
    recorded = folder / "tests" / "testdata"
    lines = [
        line
        for name in ("single", "single_with_id", "many")
        for line in (recorded / "batch_processing" / f"{name}.txt").read_text().splitlines()
    ]
    requests = [json.loads(text) for text in [(recorded / "inference-request.json").read_text(), *lines]]
    load = json.loads((folder / "benchmarking" / "data" / "sum-model" / "rest-requests.json").read_text())
    for request in [*requests, load]:
        answer = infer(models, "sum-model", request).raise_for_status().json()
        (output,) = answer["outputs"]
        assert output["data"] == pytest.approx([sum(request["inputs"][0]["data"])])
        assert {**output, "data": 0} == {"name": "output-0", "datatype": "FP32", "shape": [1], "data": 0}
        assert answer.get("id") == request.get("id") and answer["model_name"] == "sum-model"

    # The recorded answer tells 21 for "123".
    answer = infer(models, "sum-model", {"id": "123", **one("input-0", [1, 6], "INT32", [1, 2, 3, 4, 5, 6])}).json()
    expected = json.loads((recorded / "inference-response.json").read_text())
    assert {name: answer[name] for name in expected} == expected

    # Refused, with the reason: the recorded invalid ones, BYTES for numbers, an output that the model does not have.
    for name, reason in [
        ("inference-request-invalid-datatype.json", "inputs.0.datatype: Input should be 'BOOL'"),
        ("batch_processing/invalid.txt", "inputs.0.datatype: Field required"),
        ("batch_processing/bytes.txt", "expected FP32 or another number, got BYTES"),
        ("inference-request-with-output.json", "unexpected output 'requested-output-0'"),
    ]:
        answer = infer(models, "sum-model", (recorded / name).read_bytes())
        assert answer.status_code == 400 and reason in answer.json()["error"], answer.text


RECORDED = [pytest.param(sent, id=name) for name, sent in (KSERVE | MLSERVER).items()]


@pytest.mark.parametrize("sent", RECORDED)
def test_the_requests_of_kserves_and_mlservers_clients(models: System, sent: Recorded) -> None:
    answer = infer(models, sent.model, sent.json + sent.binary, **sent.headers).raise_for_status()
    asked, size = json.loads(sent.json), int(answer.headers.get("inference-header-content-length", 0))
    wants_binary = b'"binary_data":true' in sent.json or b'"binary_data_output":true' in sent.json
    assert bool(size) == wants_binary, "KServe's client takes the whole for JSON where the header is not there"
    told = triton.InferenceServerClient.parse_response_body(answer.content, header_length=size or None)
    assert told.get_response()["id"] == asked["id"] and told.get_response()["model_name"] == sent.model
    if sent.texts:
        vectors = [output["embedding"] for output in by_jobs(models, "embed", [{"text": text} for text in sent.texts])]
        assert told.as_numpy("embedding") == pytest.approx(np.array(vectors), abs=1e-5)
    else:
        (text,) = told.as_numpy("output")
        assert json.loads(text)["verdict"] == "invalid"


@pytest.mark.parametrize(
    ("model", "request_", "status", "expected"),
    [
        ("nope", one("n", [1], "INT8", [1]), 404, "no service is named 'nope'"),
        ("echo", b"\xff\xfe", 400, "the request is not JSON"),
        ("echo", b"", 400, "the request is not JSON"),
        ("echo", one("m", [1], "INT8", [1]), 400, "unexpected input 'm' for model 'echo'; its inputs: 'n', 'sleep_s'"),
        ("echo", one("n", [1, 2], "INT8", [1, 2]), 400, "expected the shape [-1], got [1, 2]"),
        ("echo", one("input", [2], "BYTES", ['{"n": 1}', '{"n": "x"}']), 400, "row 1: input.n: Input should be"),
        ("echo", {**one("n", [1], "INT8", [1]), "outputs": [{"name": "m"}]}, 400, "unexpected output 'm' for model"),
        ("echo", {**one("n", [1], "INT8", [1]), "parameters": {"timeout": -1}}, 400, "parameters.timeout: expected"),
        ("echo", {**one("n", [1], "INT8", [1]), "parameters": {"priority": 1.5}}, 400, "parameters.priority: expected"),
        ("echo", {**one("n", [1], "INT8", [1]), "parameters": {"sequence_id": 7}}, 400, "'sequence_id' is not"),
        ("echo", one("do", [1], "BYTES", ["x" * 70_000]), 413, "the body is larger than 65536 bytes"),
        ("bad_schema", one("input", [1], "BYTES", ["{}"]), 503, "bad_schema: cannot import"),
        ("ragged", one("n", [2], "INT8", [1, 2]), 400, "ask for 'output', the whole of each row as JSON"),
    ],
)  # fmt: skip
def test_refused_requests(models: System, model: str, request_: Any, status: int, expected: str) -> None:
    answer = infer(models, model, request_)
    assert answer.status_code == status and answer.headers["content-type"] == "application/json", answer.text
    assert set(answer.json()) == {"error"} and expected in answer.json()["error"], answer.text


def test_encodings_and_paths_that_cannot_be(models: System) -> None:
    small = json.dumps(one("n", [1], "INT8", [1])).encode()
    bomb = gzip.compress(json.dumps(one("do", [1], "BYTES", ["x" * 1_000_000])).encode())
    for body, coding, status in [
        (small, "br", 415),
        (small, "gzip", 400),
        (gzip.compress(small)[:-9], "gzip", 400),
        (zlib.compress(small) + b"x", "deflate", 400),
        (bomb, "gzip", 413),
    ]:
        answer = infer(models, "echo", body, **{"Content-Encoding": coding})
        assert answer.status_code == status and answer.json()["error"], answer.text
    length = infer(models, "echo", small, **{"Inference-Header-Content-Length": "-1"})
    assert length.status_code == 400 and "expected a number of bytes" in length.json()["error"]
    with models.client() as client:
        for method, path, status in [("GET", "/v2/models/echo/infer", 405), ("GET", "/v2/nope", 404)]:
            answer = client.request(method, path)
            assert answer.status_code == status and path in answer.json()["error"]
        assert client.post("/v2/repository/index", content=b"[").status_code == 400


def test_whole_rows_work_for_every_model(models: System) -> None:
    asked = {**one("input", [2], "BYTES", ['{"n": 1}', '{"n": 2}']), "outputs": [{"name": "output"}]}
    (output,) = infer(models, "ragged", asked).raise_for_status().json()["outputs"]
    assert output["shape"] == [2] and [json.loads(row)["ones"] for row in output["data"]] == [[1], [1, 1]]


def test_a_row_is_a_job_with_the_requests_priority(models: System) -> None:
    asked = {**one("n", [1], "INT8", [5]), "parameters": {"priority": 1}, "id": "mine"}
    answer = infer(models, "echo", asked).raise_for_status().json()
    with models.client() as client:
        job = client.get(f"/jobs/{answer['parameters']['job_id']}").json()
    assert (job["status"], job["output"]["n"], job["priority"]) == ("succeeded", 5, "high")
    assert job["metadata"] == {"infer": {"id": "mine", "row": 0, "rows": 1}}


def test_a_row_that_fails_fails_the_request_but_not_the_other_rows(models: System) -> None:
    answer = infer(models, "echo", one("input", [3], "BYTES", ['{"n": 71}', '{"n": 72, "do": "raise"}', '{"n": 73}']))
    assert answer.status_code == 500
    assert "row 1: predict_failed: ValueError: bad one" in answer.json()["error"]
    with models.client() as client:
        assert client.get(answer.headers["location"]).json()["status"] == "failed"
        jobs = client.get("/jobs?service=echo&status=succeeded&include=output").json()["jobs"]
        assert {71, 73} <= {job["output"]["n"] for job in jobs}


def test_a_timeout_ends_the_wait_and_the_job(models: System, client: triton.InferenceServerClient) -> None:
    slow = [tensor("n", [1], "INT64"), tensor("sleep_s", [1.5], "FP32")]
    with pytest.raises(InferenceServerException, match=r"\[504\] the job has not ended within 0\.3 s: job ") as raised:
        client.infer("echo", slow, timeout=300_000)
    job_id = str(raised.value).split(": job ")[1].split()[0]
    with models.client() as http:
        assert finished(http, job_id)["error"]["code"] == "timed_out"


def test_the_queued_jobs_of_a_client_that_leaves_are_cancelled(models: System) -> None:
    def leave_once(http: httpx.Client, service: str, status: str, request: Any) -> list[str]:
        """Send a request and close its connection once its jobs are so far; their ids."""
        body = json.dumps(request).encode()
        head = f"POST /v2/models/{service}/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", models.port)) as connection:
            connection.sendall(head.encode() + body)
            rows = request["inputs"][0]["shape"][0]
            path = f"/jobs?service={service}&status={status}"
            jobs = poll(lambda: len(found := http.get(path).json()["jobs"]) == rows and found, what=f"all {status}")
            return [job["id"] for job in jobs]

    with models.client() as http:
        # given a model without a worker, whose rows wait
        waiting = leave_once(http, "one_by_one", "queued", one("n", [3], "INT8", [1, 2, 3]))
        for job_id in waiting:
            assert finished(http, job_id)["status"] == "cancelled"

        # given one that runs: to stop it would cost others of its batch their time
        (running,) = leave_once(http, "echo", "running", one("input", [1], "BYTES", ['{"n": 8, "sleep_s": 1}']))
        assert finished(http, running)["status"] == "succeeded"
    assert "uncaught error" not in models.processes[0].output


def test_a_full_queue_takes_none_of_the_rows(models: System) -> None:
    # given a model that takes two jobs, as its worker told before it ended
    worker = models.start_worker("small")
    worker.stop()
    answer = infer(models, "small", one("n", [3], "INT8", [1, 2, 3]))
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    assert "the queue of small is full" in answer.json()["error"]
    with models.client() as client:
        assert [job["status"] for job in client.get("/jobs?service=small").json()["jobs"]] == ["cancelled"] * 2


def test_a_store_that_is_away(tmp_path: Path, plugins: Path) -> None:
    with running_system(tmp_path, plugins) as system:
        system.start_api()
        system.redis.stop(signal.SIGKILL)
        with system.client() as client:
            for answer in [
                client.get("/v2/health/ready"),
                client.get("/v2/models/echo/ready"),
                client.post("/v2/models/echo/infer", json=one("n", [1], "INT8", [1])),
            ]:
                assert answer.status_code == 503 and "retry-after" in answer.headers and answer.json()["error"]
            assert client.get("/v2/health/live").json() == {"live": True}
