"""The HTTP front from outside: each row of the contract, good and bad."""

from __future__ import annotations

import gzip
import signal
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.kit.http import assert_problem, body
from tests.kit.system import System, finished, poll

JOB_FIELDS = {
    "id", "service", "version", "status", "output", "error", "attempt", "progress", "position",
    "estimated_start_at", "not_before", "created_at", "started_at", "finished_at", "expires_at", "timings",
    "batch_size", "priority", "metadata", "links",
}  # fmt: skip


def test_a_job_is_accepted_stored_and_read_back(serving: System) -> None:
    with serving.client() as client:
        answer = client.post("/jobs", content=body(metadata={"who": "me"}, priority="high", keep_for_s=60))
        job = answer.json()
        assert answer.status_code == 202 and answer.headers["location"] == f"/jobs/{job['id']}"
        assert set(job) == JOB_FIELDS
        assert (job["status"], job["attempt"], job["output"], job["priority"]) == ("queued", 0, None, "high")

        done = finished(client, job["id"])
        assert set(done) == JOB_FIELDS
        assert (done["status"], done["output"]["n"], done["error"], done["attempt"]) == ("succeeded", 1, None, 1)
        assert done["metadata"] == {"who": "me"} and done["version"] == "1.0" and done["position"] is None
        assert done["links"] == {"self": f"/jobs/{job['id']}", "events": f"/jobs/{job['id']}/events"}
        times = [done[name] for name in ("created_at", "started_at", "finished_at", "expires_at")]
        assert times == sorted(times) and all(moment.endswith("Z") for moment in times)
        assert set(done["timings"]) == {"queued_ms", "preprocess_ms", "predict_ms", "postprocess_ms", "total_ms"}
        assert all(ms >= 0 for ms in done["timings"].values())


@pytest.mark.parametrize("how", [{"headers": {"Prefer": "wait=20"}}, {"params": {"wait": "20"}}])
def test_waiting_gives_the_finished_job(serving: System, how: Any) -> None:
    with serving.client() as client:
        answer = client.post("/jobs", content=body(), **how)
        assert answer.status_code == 200 and answer.json()["status"] == "succeeded"
        assert answer.headers["preference-applied"] == "wait=20" and "location" in answer.headers
        again = client.get(answer.headers["location"], **how)
        assert again.status_code == 200 and again.json() == answer.json()


def test_a_wait_that_is_too_short_gives_the_job_as_it_stands(serving: System) -> None:
    with serving.client() as client:
        answer = client.post("/jobs", content=body(input={"n": 1, "sleep_s": 1.8}), headers={"Prefer": "wait=0.1"})
        assert answer.status_code == 202 and answer.json()["status"] in ("queued", "running")
        address = answer.headers["location"]
        poll(lambda: client.get(address).json()["status"] == "running", what="it runs")
        job = client.get(f"{address}?wait=0.1")
        assert job.status_code == 200 and job.json()["status"] == "running"
        assert finished(client, job.json()["id"])["status"] == "succeeded"


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=0", None),
        ("wait=1e9", "wait=3"),
        ("wait=100", "wait=3"),
        ("respond-async, wait=2", "wait=2"),
        ('handling=lenient; x="a,b", WAIT="2"', "wait=2"),
        ("respond-async", None),
    ],
)
def test_prefer_is_read_as_its_rfc_has_it_and_capped(system: System, prefer: str, applied: str | None) -> None:
    system.start_api(SERVICES_MAX_WAIT_S="3")
    with system.client() as client:
        answer = client.post("/jobs", content=body(), headers={"Prefer": prefer})
    assert answer.status_code == 202
    assert answer.headers.get("preference-applied") == applied


@pytest.mark.parametrize("wait", ["-1", "nan", "inf", "soon", "", "1_0", "0x10"])
def test_a_wait_that_cannot_be(serving: System, wait: str) -> None:
    with serving.client() as client:
        answer = client.post("/jobs", params={"wait": wait}, content=body())
        assert_problem(answer, 422, "invalid_input", ["query", "wait"])
        assert_problem(client.get("/jobs/x", params={"wait": wait}), 422, "invalid_input", ["query", "wait"])
        assert_problem(client.get("/jobs/x?wait=\u0663"), 422, "invalid_input", ["query", "wait"])  # no ASCII digit
        header = {"Prefer": f"wait={wait}"}
        assert_problem(client.post("/jobs", headers=header, content=body()), 422, "invalid_input", ["header", "prefer"])


@pytest.mark.parametrize(
    ("content", "loc"),
    [
        (b"", ["body"]),
        (b"{", ["body"]),
        (b"hello", ["body"]),
        (b"[]", ["body"]),
        (b'"text"', ["body"]),
        (b"null", ["body"]),
        (body() + b"x", ["body"]),
        (b"\xff\xfe", ["body"]),
        (b'{"service": "echo", "input": {"n": 1, "do": "\xc3\x28"}}', ["body"]),
        (b'{"service": "echo", "input": {"n": 1, "do": "\\ud800"}}', ["body"]),
        (b'{"service": "echo", "input": {"n": NaN}}', ["body"]),
        (b'{"service": "echo", "input": {"n": Infinity}}', ["body"]),
        (b'{"service": "echo", "input": {"sleep_s": 1e999, "n": 1}}', ["body", "input"]),
        (b'{"service": "echo", "input": {"n": ' + b"9" * 5000 + b"}}", ["body"]),
        (b'{"service": "echo", "input": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", ["body"]),
        (b'{"input": {"n": 1}}', ["body", "service"]),
        (b'{"service": "echo"}', ["body", "input"]),
        (body(service=7), ["body", "service"]),
        (body(service=None), ["body", "service"]),
        (body(input={}), ["body", "input", "n"]),
        (body(input=7), ["body", "input"]),
        (body(input=None), ["body", "input"]),
        (body(input={"n": 1, "zz": 1}), ["body", "input", "zz"]),
        (body(input={"n": 1, "device": {"ip": "home"}}), ["body", "input", "device", "ip"]),
        (body(input={"n": 1, "device": {"ua": "x"}}), ["body", "input", "device", "ua"]),
        (body(zz=1), ["body", "zz"]),
        (body(webhook="http://127.0.0.1"), ["body", "webhook"]),
        (body(priority="urgent"), ["body", "priority"]),
        (body(start_within_s=0), ["body", "start_within_s"]),
        (body(start_within_s="5"), ["body", "start_within_s"]),
        (body(finish_within_s=-1), ["body", "finish_within_s"]),
        (body(finish_within_s=True), ["body", "finish_within_s"]),
        (body(keep_for_s=0), ["body", "keep_for_s"]),
        (body(keep_for_s=1e12), ["body", "keep_for_s"]),
        (body(metadata=[]), ["body", "metadata"]),
        (body(metadata={"a": "x" * 20_000}), ["body", "metadata"]),
    ],
)
def test_a_body_that_cannot_be_names_the_place(serving: System, content: bytes, loc: list[Any]) -> None:
    with serving.client() as client:
        assert_problem(client.post("/jobs", content=content), 422, "invalid_input", loc)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b" ", "it is empty"),
        (b"hello", "line 1 column 1"),
        (b'{"service": "echo", "input": {"n": "\xff"}}', "expected UTF-8, got the byte 0xff at offset 36"),
        (b'{"service": "echo", "input": {"n": NaN}}', "NaN and Infinity are no JSON numbers"),
        (b'{"service": "echo", "input": {"n": -Infinity}}', "NaN and Infinity are no JSON numbers"),
    ],
)
def test_a_body_that_is_no_json_says_why(serving: System, content: bytes, words: str) -> None:
    with serving.client() as client:
        problem = assert_problem(client.post("/jobs", content=content), 422, "invalid_input", ["body"])
    assert problem["detail"].startswith("the body is not JSON: ") and words in problem["detail"]


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_equal_requests_at_once_are_one_job_and_one_run(serving: System, method: str) -> None:
    # given a job whose first run fails and whose second would succeed
    own = str(uuid.uuid4())
    content = body(input={"n": 70 + len(method), "do": "flaky"})
    path, headers = (f"/jobs/{own}", {}) if method == "PUT" else ("/jobs", {"Idempotency-Key": own})
    with serving.client() as client, ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: client.request(method, path, content=content, headers=headers), range(100)))
        assert [answer.status_code for answer in answers].count(202) == 1
        assert [answer.status_code for answer in answers].count(200) == 99
        (job_id,) = {answer.json()["id"] for answer in answers}
        assert {answer.headers["location"] for answer in answers} == {f"/jobs/{job_id}"}
        assert method == "POST" or job_id == own

        done = finished(client, job_id)
        assert done["status"] == "failed" and done["attempt"] == 1
        spaced = b'{"input": {"do": "flaky", "n": %d}, "priority": "normal",  "service": "echo"}' % (70 + len(method))
        again = client.request(method, f"{path}?wait=5", content=spaced, headers=headers)
        assert again.status_code == 200 and again.json() == done, "also once it has ended"

        other = client.request(method, path, content=body(), headers=headers)
        assert job_id in assert_problem(other, 409, "idempotency_conflict")["detail"]
        elsewhere = client.request(method, path, content=body(service="small"), headers=headers)
        assert_problem(elsewhere, 409, "idempotency_conflict")
        fresh = {"Idempotency-Key": "another"} if headers else {}
        path = path if headers else f"/jobs/{uuid.uuid4()}"
        third = client.request(method, path, content=body(input={"n": 8}), headers=fresh)
        assert third.status_code == 202 and third.json()["id"] != job_id


def test_a_put_that_cannot_be(serving: System) -> None:
    with serving.client() as client:
        for own in ("7", "x" * 36, str(uuid.uuid4()).upper(), uuid.uuid4().hex, f"{uuid.uuid4()}.0"):
            assert_problem(client.put(f"/jobs/{own}", content=body()), 422, "invalid_input", ["path", "job_id"])
        keyed = client.put(f"/jobs/{uuid.uuid4()}", content=body(), headers={"Idempotency-Key": "k"})
        assert_problem(keyed, 422, "invalid_input", ["header", "idempotency-key"])
        # and a server's own id is nobody else's
        posted = client.post("/jobs", content=body()).json()["id"]
        assert_problem(client.put(f"/jobs/{posted}", content=body()), 409, "idempotency_conflict")
        # nor is that of a job that was dropped
        own = str(uuid.uuid4())
        kept = client.put(f"/jobs/{own}?wait=20", content=body(keep_for_s=0.2))
        assert kept.status_code == 200 and kept.json()["id"] == own
        poll(lambda: client.get(f"/jobs/{own}").status_code == 410)
        assert_problem(client.put(f"/jobs/{own}", content=body(keep_for_s=0.2)), 410, "job_expired")


@pytest.mark.parametrize("keys", [[""], ["x" * 256], ["a\tb"], ["a", "b"]])
def test_a_key_that_cannot_be_kept(serving: System, keys: list[str]) -> None:
    with serving.client() as client:
        headers = [("Idempotency-Key", key) for key in keys]
        answer = client.post("/jobs", content=body(), headers=headers)
        assert_problem(answer, 422, "invalid_input", ["header", "idempotency-key"])


@pytest.mark.parametrize("method_and_path", ["POST /jobs", "POST /batches?service=echo", "POST /files"])
def test_a_compressed_body_is_refused_and_not_read_as_json(serving: System, method_and_path: str) -> None:
    method, path = method_and_path.split()
    kind = "application/json" if path == "/jobs" else "application/x-ndjson"
    headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
    with serving.client() as client:
        answer = client.request(method, path, content=gzip.compress(b'{"n":1}\n'), headers=headers)
        assert_problem(answer, 422, "invalid_input", ["header", "content-encoding"])
        assert "'gzip'; send the body uncompressed" in answer.json()["detail"]


def test_null_is_as_if_it_was_left_out(serving: System) -> None:
    optional = ["priority", "start_within_s", "finish_within_s", "keep_for_s", "metadata", "webhook", "cache_for_s"]
    with serving.client() as client:
        key = {"Idempotency-Key": str(uuid.uuid4())}
        job = client.post("/jobs?wait=20", content=body(**dict.fromkeys(optional)), headers=key).json()
        assert (job["status"], job["priority"], job["metadata"]) == ("succeeded", "normal", {})
        assert client.post("/jobs", content=body(), headers=key).json()["id"] == job["id"], "the same request"
        asked = {"service": "echo", "inputs": [{"n": 1}], **dict.fromkeys(["priority", "keep_for_s", "metadata"])}
        batch = client.post("/batches", json=asked)
        assert (batch.status_code, batch.json()["priority"], batch.json()["metadata"]) == (202, "low", {})


def test_only_failed_rows_run_again(serving: System) -> None:
    with serving.client() as client:
        job = client.post("/jobs?wait=20", content=body()).json()
        problem = assert_problem(client.post(f"/jobs/{job['id']}/retry"), 409, "job_not_retryable")
    assert f"the status of job {job['id']} is succeeded: only a job that has failed" in problem["detail"]


def test_an_unknown_service_lists_the_known_ones(serving: System) -> None:
    with serving.client() as client:
        for answer in (
            client.post("/jobs", content=body(service="nope")),
            client.get("/services/nope"),
            client.get("/jobs?service=nope"),
        ):
            problem = assert_problem(answer, 404, "unknown_service")
            assert "echo" in problem["services"] and "echo" in problem["detail"]


@pytest.mark.parametrize("size", [9, 20, 80])
def test_a_body_that_is_too_large(serving: System, size: int) -> None:
    content = body(input={"n": 1, "do": "x" * (size * 1024 * 1024)})
    with serving.client() as client:
        if size < 80:
            assert_problem(client.post("/jobs", content=content), 413, "payload_too_large")

            def chunks() -> Any:
                for start in range(0, len(content), 65_536):
                    yield content[start : start + 65_536]

            assert_problem(client.post("/jobs", content=chunks()), 413, "payload_too_large")
        else:
            with suppress(httpx.WriteError):  # a client that will not stop sending is cut off
                assert_problem(client.post("/jobs", content=content), 413, "payload_too_large")
        assert client.get("/healthz").status_code == 200


def test_a_string_of_almost_8_mb_is_taken_and_given_back(serving: System) -> None:
    with serving.client() as client:
        answer = client.post("/jobs?wait=20", content=body(input={"n": 1, "do": "x" * 8_000_000}))
        assert answer.status_code == 200 and answer.json()["status"] == "succeeded"


@pytest.mark.parametrize(
    "job_id", ["x", "00000000-0000-0000-0000-000000000000", "%00", "a" * 5000, "ü", "..%2F..", "job:1"]
)
def test_an_id_that_was_never_seen(serving: System, job_id: str) -> None:
    with serving.client() as client:
        assert_problem(client.get(f"/jobs/{job_id}"), 404, "job_not_found")
        assert_problem(client.delete(f"/jobs/{job_id}"), 404, "job_not_found")


def test_a_queued_job_is_cancelled_once_and_never_runs(system: System) -> None:
    system.start_api()
    with system.client() as client:
        job_id = client.post("/jobs", content=body()).json()["id"]
        answer = client.delete(f"/jobs/{job_id}")
        assert answer.status_code == 202 and answer.json()["status"] == "cancelled"
        assert_problem(client.delete(f"/jobs/{job_id}"), 409, "job_finished")
        system.start_worker("echo")
        assert client.post("/jobs?wait=20", content=body()).json()["status"] == "succeeded"
        job = client.get(f"/jobs/{job_id}").json()
        assert (job["status"], job["attempt"], job["started_at"]) == ("cancelled", 0, None)


def test_a_waiting_client_hears_of_a_cancel(system: System) -> None:
    system.start_api()
    with system.client() as client, ThreadPoolExecutor() as pool:
        job_id = client.post("/jobs", content=body()).json()["id"]
        waiting = pool.submit(lambda: httpx.get(f"{system.url}/jobs/{job_id}?wait=30", timeout=40, trust_env=False))
        assert client.delete(f"/jobs/{job_id}").status_code == 202
        assert waiting.result(10).json()["status"] == "cancelled"


def test_a_dropped_job_is_gone_not_unknown(serving: System) -> None:
    with serving.client() as client:
        job_id = client.post("/jobs?wait=20", content=body(keep_for_s=0.2)).json()["id"]
        poll(lambda: client.get(f"/jobs/{job_id}").status_code == 410, what="its record is dropped")
        assert_problem(client.get(f"/jobs/{job_id}"), 410, "job_expired")
        assert_problem(client.delete(f"/jobs/{job_id}"), 410, "job_expired")
    left_s = serving.redis.client.ttl(f"{{echo}}:seen:{job_id}")
    assert 86_000 < left_s <= 86_400, "its id is remembered for a day"


def test_position_counts_the_jobs_before_it(system: System) -> None:
    system.start_api()
    with system.client() as client:
        jobs = [client.post("/jobs", content=body(priority=p)).json() for p in ("normal", "normal", "low", "high")]
        assert [job["position"] for job in jobs] == [0, 1, 2, 0]
        assert [client.get(f"/jobs/{job['id']}").json()["position"] for job in jobs] == [1, 2, 3, 0]


def test_listing_pages_through_all_newest_first(system: System) -> None:
    system.start_api()
    with system.client() as client:
        made = [client.post("/jobs", content=body(service=s)).json()["id"] for s in ("echo", "small") for _ in range(7)]
        client.delete(f"/jobs/{made[3]}")
        seen, cursor = [], ""
        while True:
            page = client.get("/jobs", params={"limit": 4, **({"cursor": cursor} if cursor else {})}).json()
            seen += [job["id"] for job in page["jobs"]]
            cursor = page["next_cursor"]
            if not cursor:
                break
        assert seen == made[::-1]
        of_echo = client.get("/jobs?service=echo&status=queued&limit=100").json()
        assert [job["id"] for job in of_echo["jobs"]] == [i for i in made[:7] if i != made[3]][::-1]
        assert [job["id"] for job in client.get("/jobs?status=cancelled").json()["jobs"]] == [made[3]]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=-1", "limit"),
        ("status=done", "status"),
        ("cursor=zz", "cursor"),
        ("cursor=ZZ%3D%3D", "cursor"),
        ("colour=red", "colour"),
        ("limit=1&limit=2", "limit"),
    ],
)
def test_a_query_that_cannot_be(serving: System, query: str, name: str) -> None:
    with serving.client() as client:
        assert_problem(client.get(f"/jobs?{query}"), 422, "invalid_input", ["query", name])


def test_services_show_the_installed_plugins(serving: System) -> None:
    with serving.client() as client:
        poll(lambda: client.get("/services/echo").json()["state"] == "ready", what="the worker has told so")
        services = {service["name"]: service for service in client.get("/services").json()["services"]}
        echo = client.get("/services/echo").json()
    assert {"echo", "small", "no_schema", "bad_schema", "bad_load"} <= set(services)
    assert (echo["state"], echo["workers"], echo["queue_depth"], echo["version"]) == ("ready", 1, 0, "1.0")
    assert echo["example"] == {"n": 1} and echo["input_schema"]["properties"]["n"]["type"] == "integer"
    assert echo["knobs"]["max_batch_size"] == 16 and echo["description"] == "A test's echo"
    assert services["small"]["state"] == "no_workers" and services["small"]["knobs"] is None
    assert services["no_schema"]["input_schema"] is None
    assert services["bad_schema"]["state"] == "failed" and "broken schema" in services["bad_schema"]["reason"]


def test_a_plugin_without_a_schema_is_accepted_and_a_broken_schema_refused(serving: System) -> None:
    with serving.client() as client:
        assert client.post("/jobs", content=body(service="no_schema", input=[1, {"a": None}])).status_code == 202
        problem = assert_problem(client.post("/jobs", content=body(service="bad_schema")), 503, "service_failed")
        assert "broken schema" in problem["detail"]


def test_the_longest_keep_for_is_told_as_a_plain_number(serving: System) -> None:
    with serving.client() as client:
        problem = assert_problem(client.post("/jobs", content=body(keep_for_s=1e12)), 422, "invalid_input")
        assert "at most 2592000 (SERVICES_MAX_KEEP_FOR_S)" in problem["detail"]


def test_health_docs_and_unknown_routes(serving: System) -> None:
    with serving.client() as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").status_code == 200
        page = client.get("/docs")
        assert page.status_code == 200 and "//cdn" not in page.text and "static/swagger-ui-bundle.js" in page.text
        assert client.get("/static/swagger-ui-bundle.js").status_code == 200
        assert_problem(client.get("/nope"), 404, "not_found")
        for method, path, allowed in [
            ("PUT", "/jobs", "GET, HEAD, POST"),
            ("PATCH", "/jobs/x", "DELETE, GET, HEAD, PUT"),
            ("DELETE", "/services", "GET, HEAD"),
        ]:
            answer = client.request(method, path)
            assert_problem(answer, 405, "method_not_allowed")
            assert answer.headers["allow"] == allowed
        answer = client.get("/v2/models/echo/infer")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_head_is_answered_as_get_without_the_body_and_at_once(serving: System) -> None:
    with serving.client(timeout=5) as client:
        job = client.post("/jobs?wait=20", content=body()).json()
        queued = client.post("/jobs", content=body(service="one_by_one")).json()  # which has no worker
        batch = client.post("/batches", json={"service": "one_by_one", "inputs": [{"n": 1}]}).json()
        file = client.post("/files", content=b"hello", headers={"Content-Type": "text/plain"}).json()
        ids = {"job_id": job["id"], "batch_id": batch["id"], "file_id": file["id"], "name": "echo", "version": "1.0"}
        document = client.get("/openapi.json").json()
        paths = [path.format(**ids) for path, operations in document["paths"].items() if "get" in operations]
        paths += ["/docs", "/openapi.json", "/static/swagger-ui.css", "/static/console/api.js", "/jobs/none"]
        paths += ["/jobs/none/events", "/jobs?limit=0", "/healthz?x=1"]
        streams = [batch["links"]["results"], batch["links"]["events"], queued["links"]["events"]]
        assert len(paths) > 25 and set(streams) - set(paths) == {streams[2]}
        for path in [*paths, *streams]:
            with client.stream("GET", path) as read:  # the head of an answer whose body goes on
                heard = client.head(path)
            assert (heard.status_code, heard.content) == (read.status_code, b""), path
            assert heard.headers["content-type"] == read.headers["content-type"], path
            if path not in ("/metrics", "/services", "/services/echo"):  # whose numbers change
                assert heard.headers.get("content-length") == read.headers.get("content-length"), path
        heard = client.head(file["links"]["content"], headers={"Range": "bytes=0-1"})
        assert (heard.status_code, heard.headers["content-length"]) == (200, "5"), "HEAD knows no ranges"
        assert client.head("/v2/models/echo/infer").status_code == 405
        again = client.get(f"/batches/{batch['id']}")
        assert again.json()["status"] == "queued"
        client.delete(f"/batches/{batch['id']}")
        client.delete(f"/jobs/{queued['id']}")


def test_openapi_holds_each_services_own_models(serving: System) -> None:
    with serving.client() as client:
        document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert schemas["echo.Input"]["properties"]["device"]["anyOf"][0] == {"$ref": "#/components/schemas/echo.Input.Deep"}
    assert "echo.Input.Deep" in schemas and "batch" in schemas["echo.Output"]["properties"]
    posted = document["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert posted["examples"]["echo"]["value"] == {"service": "echo", "input": {"n": 1}}
    assert {"$ref": "#/components/schemas/echo.JobRequest"} in posted["schema"]["oneOf"]
    # /docs shows the titles, not the keys.
    titles = [schema.get("title") for name, schema in schemas.items() if name.partition(".")[0] in ("echo", "small")]
    assert {"echo Input", "echo Output", "echo Input Deep", "small Input"} <= set(titles)
    assert len(titles) == len(set(titles))
    assert all(operation["tags"] for path in document["paths"].values() for operation in path.values())


def test_no_model_library_in_the_apis_process(system: System) -> None:
    # given the API behind a wrapper of the test's own that tells what its process has imported
    (system.folder / "probe.py").write_text(
        "import json, sys\nfrom api import app as api\n"
        "async def app(scope, receive, send):\n"
        "    if scope.get('path') != '/modules':\n        return await api(scope, receive, send)\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': json.dumps(sorted(sys.modules)).encode()})\n"
    )
    system.start_api("probe:app")
    system.start_worker("echo")
    with system.client() as client:
        assert client.post("/jobs?wait=20", content=body()).json()["status"] == "succeeded"
        modules = set(client.get("/modules").json())
    assert "echo.schema" in modules, "it validates by the plugin's own schema"
    heavy = {"heavy_model_library", "echo", "echo.service", "celery", "kombu", "numpy", "lightgbm", "antifraud.service"}
    assert not modules & heavy


@pytest.mark.parametrize("how", ["stopped", "frozen", "killed"])
def test_without_redis_answers_503_in_time_and_goes_on_by_itself(system: System, how: str) -> None:
    system.redis.stop()
    system.redis.start("always")
    api = system.start_api()
    system.start_worker("echo")
    with system.client() as client:
        kept = client.post("/jobs?wait=20", content=body()).json()

        if how == "frozen":
            system.redis.send_signal(signal.SIGSTOP)
        else:
            system.redis.stop(signal.SIGTERM if how == "stopped" else signal.SIGKILL)

        def timed(request: Any) -> Any:
            started = time.monotonic()
            answer = request()
            assert time.monotonic() - started < 5
            return answer

        requests = [
            lambda: client.post("/jobs", content=body()),
            lambda: client.post("/jobs?wait=2", content=body()),
            lambda: client.get(f"/jobs/{kept['id']}"),
            lambda: client.get("/jobs"),
            lambda: client.get("/services"),
            lambda: client.delete(f"/jobs/{kept['id']}"),
            lambda: client.get("/readyz"),
        ] * 5
        with ThreadPoolExecutor(35) as pool:
            answers = list(pool.map(timed, requests))
        for answer in answers:
            problem = assert_problem(answer, 503, "store_unavailable")
            assert answer.headers["retry-after"]
            assert ("Idempotency-Key" in problem["detail"]) == (answer.request.method == "POST")
        heard = timed(lambda: client.head("/readyz"))
        assert (heard.status_code, heard.content, heard.headers["retry-after"]) == (503, b"", "1")
        assert client.get("/healthz").status_code == 200
        poll(lambda: "Redis is away" in api.output, what="the log says so")

        if how == "frozen":
            system.redis.send_signal(signal.SIGCONT)
        else:
            system.redis.start("always")
        poll(lambda: client.get("/readyz").status_code == 200, what="ready again")
        assert client.get(f"/jobs/{kept['id']}").json() == kept
        assert client.post("/jobs?wait=20", content=body()).json()["status"] == "succeeded"
        poll(lambda: "Redis answers again" in api.output, what="the log says so")
    assert api.output.count("Redis is away") == 1


def test_without_any_redis_the_api_starts_and_names_the_remedy(system: System) -> None:
    api = system.start_without_redis(
        "uvicorn", "api:app", "--port", str(system.port), SERVICES_DATA_DIR=str(system.folder / "none")
    )
    with system.client() as client:
        poll(lambda: "running" in api.output, what="it starts")
        problem = assert_problem(client.post("/jobs", content=body()), 503, "store_unavailable")
    assert "services redis" in problem["detail"]


def test_2000_jobs_by_64_clients_each_with_its_own_answer(serving: System) -> None:
    def submit(numbers: range) -> list[tuple[int, Any]]:
        with serving.client() as client:
            return [(n, client.post("/jobs?wait=30", content=body(input={"n": n})).json()) for n in numbers]

    with ThreadPoolExecutor(64) as pool:
        answers = [pair for part in pool.map(submit, (range(i, 2000, 64) for i in range(64))) for pair in part]

    assert len(answers) == 2000
    assert all(job["status"] == "succeeded" and job["output"]["n"] == n for n, job in answers)
    sizes = [job["batch_size"] for _, job in answers]
    assert sum(size > 1 for size in sizes) > 1000, "batching happened"


def test_a_client_that_goes_away_harms_no_other(serving: System) -> None:
    with serving.client() as client:
        for _ in range(20):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    f"{serving.url}/jobs?wait=20",
                    content=body(input={"n": 1, "sleep_s": 0.05}),
                    timeout=0.02,
                    trust_env=False,
                )
        assert client.post("/jobs?wait=20", content=body()).json()["status"] == "succeeded"
        jobs = client.get("/jobs?service=echo&limit=100").json()["jobs"]
        assert all(finished(client, job["id"])["status"] in ("succeeded", "cancelled") for job in jobs)


@pytest.mark.parametrize("path", ["/jobs", "/batches?service=echo", "/v2/models/echo/infer"])
def test_a_body_that_breaks_off_is_no_bug_of_ours(serving: System, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += "Content-Type: application/x-ndjson\r\nContent-Length: 99\r\n\r\n"
    before = count_broken(serving)
    with socket.create_connection(("127.0.0.1", serving.port)) as connection:
        connection.sendall(head.encode() + b'{"n":')
    poll(lambda: count_broken(serving) == before + 1, what="it is told in the log")
    assert "uncaught error" not in serving.processes[0].output


def count_broken(system: System) -> int:
    return system.processes[0].output.count("client left before its answer POST")
