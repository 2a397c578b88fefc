"""Who may do what, from outside: keys, scopes, limits, owners; headers, CORS, time limits, the audit log."""

from __future__ import annotations

import json
import re
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.client import Client, NotFound, Unauthorized
from tests.kit.guarded import NDJSON, Guarded
from tests.kit.http import assert_problem, body
from tests.kit.system import System, finished, poll, running_system, services, status_of
from worker.cli.main import main
from worker.ledger.api_keys import Scope


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, plugins: Path) -> Iterator[Guarded]:
    with running_system(tmp_path_factory.mktemp("guarded"), plugins) as system:
        api = system.start_api(SERVICES_BODY_TIMEOUT_S="1", SERVICES_CORS_ORIGINS="https://example.org")
        system.start_worker("echo")
        made = Guarded(system, api)
        made.make("first")
        poll(lambda: status_of(f"{system.url}/jobs") == 401, 3, "the API knows of the first key")
        yield made
        made.close()


@pytest.fixture(scope="module")
def alice(guarded: Guarded) -> httpx.Client:
    return guarded.new("alice")


@pytest.fixture(scope="module")
def bob(guarded: Guarded) -> httpx.Client:
    return guarded.new("bob")


@pytest.fixture(scope="module")
def admin(guarded: Guarded) -> httpx.Client:
    return guarded.new("admin", scopes=(Scope.ADMIN,))


def test_without_a_valid_key_nothing_is_told(guarded: Guarded, alice: httpx.Client) -> None:
    with guarded.system.client() as client:
        for headers in ({}, {"Authorization": "Bearer lsk_no"}, {"X-API-Key": "no"}, {"Authorization": "Basic eDp5"}):
            for method, path in (("GET", "/jobs"), ("POST", "/jobs"), ("GET", "/services"), ("GET", "/nope")):
                answer = client.request(method, path, headers=headers)
                assert_problem(answer, 401, "unauthorized")
                assert answer.headers["www-authenticate"].startswith("Bearer")
        for path in ("/healthz", "/readyz", "/docs", "/openapi.json", "/static/swagger-ui.css"):
            assert client.get(path).status_code == 200
        key = alice.headers["Authorization"].removeprefix("Bearer ")
        assert client.get("/services", headers={"X-API-Key": key}).status_code == 200
        assert client.get("/services", headers={"Authorization": f"bearer  {key}"}).status_code == 200


def test_a_key_is_shown_once_stored_as_its_hash_listed_and_revoked(guarded: Guarded) -> None:
    options = ["--rate", "5.5", "--concurrency", "7", "--expires", "30d", "--service", "echo"]
    made = services(guarded.system, "keys", "create", "--name", "fleeting", *options)
    key, id = made.stdout.strip(), made.stderr.split()[1]
    assert re.fullmatch(r"lsk_[\w-]{43}", key)
    held = guarded.system.redis.client.hgetall("services:keys")
    assert key not in json.dumps({k.decode(): v.decode() for k, v in held.items()})
    client = guarded.client(key)
    assert client.get("/jobs").status_code == 200, "a new key is good at once"
    listed = services(guarded.system, "keys", "list").stdout
    (line,) = [line.split() for line in listed.splitlines() if "fleeting" in line]
    assert line[:3] == [id, "fleeting", "valid"] and line[4:7] == ["echo", "5.5/6", "7"] and key not in listed

    assert services(guarded.system, "keys", "revoke", id).returncode == 0
    poll(lambda: client.get("/jobs").status_code == 401, 3, "it is refused")
    assert "revoked" in client.get("/jobs").json()["detail"]
    assert f"{id}  fleeting              revoked" in services(guarded.system, "keys", "list").stdout
    assert "`services keys list`" in services(guarded.system, "keys", "revoke", "nope").stderr
    short = guarded.new("short", expires=time.time() + 1)
    poll(lambda: short.get("/jobs").status_code == 401, 3, "it expires")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["create"], 2, "--name"),
        (["create", "--name", "x", "--service", "nope"], 2, "installed services: "),
        (["create", "--name", "x", "--scope", "all"], 2, "submit, read, cancel, admin"),
        (["create", "--name", "x", "--rate", "0"], 2, "--rate"),
        (["create", "--name", "x", "--concurrency", "-1"], 2, "--concurrency"),
        (["create", "--name", "x", "--expires", "2001-01-01"], 2, "a time to come"),
        (["create", "--name", "x", "--expires", "soon"], 2, "30d"),
        (["create", "--name", "x\ny"], 2, "printable"),
        (["create", "--name", "x", "--scope", "admin", "--service", "embed"], 1, "no --service"),
        ([], 2, "create  Make an API key"),
    ],
)
def test_a_command_that_cannot_be(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["keys", *arguments])
    told = capsys.readouterr()
    assert (exit.value.code, told.out) == (code, "") and said in told.err, told.err


def test_without_redis_no_table_is_begun(system: System) -> None:
    system.redis.stop()
    done = services(system, "keys", "list")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done
    assert "Check that the Redis of REDIS_URL is running" in done.stderr


def test_jobs_and_batches_are_their_owners(alice: httpx.Client, bob: httpx.Client, admin: httpx.Client) -> None:
    job = alice.post("/jobs?wait=20", content=body(), headers={"Idempotency-Key": "same"}).json()
    other = bob.post("/jobs?wait=20", content=body(), headers={"Idempotency-Key": "same"})
    assert other.status_code == 200 and other.json()["id"] != job["id"], "a key for each owner"
    batch = alice.post("/batches", json={"service": "echo", "inputs": [{"n": 1}]}).json()
    gone = alice.post("/jobs?wait=20", content=body(keep_for_s=0.1)).json()
    poll(lambda: alice.get(f"/jobs/{gone['id']}").status_code == 410, what="it is dropped")

    paths = [("GET", f"/jobs/{job['id']}"), ("DELETE", f"/jobs/{job['id']}"), ("POST", f"/jobs/{job['id']}/retry")]
    paths += [("GET", f"/jobs/{gone['id']}"), ("GET", f"/batches/{batch['id']}"), ("DELETE", f"/batches/{batch['id']}")]
    paths += [("GET", f"/batches/{batch['id']}/results"), ("GET", f"/batches/{batch['id']}/deliveries")]
    paths += [("GET", f"/jobs/{job['id']}/events"), ("GET", f"/jobs/{job['id']}/deliveries")]
    paths += [("POST", f"/jobs/{job['id']}/deliveries/x/retry")]
    for path in paths:
        assert_problem(bob.request(*path), 404, "job_not_found")
    for client in (alice, admin):
        assert client.get(f"/jobs/{job['id']}").json() == job
        assert '"output"' in client.get(f"/batches/{batch['id']}/results").text
    assert_problem(admin.get(f"/jobs/{gone['id']}"), 410, "job_expired")

    def listed(client: httpx.Client) -> set[str]:
        return {job["id"] for job in client.get("/jobs?limit=100&service=echo").json()["jobs"]}

    assert job["id"] in listed(alice) and other.json()["id"] not in listed(alice)
    assert other.json()["id"] in listed(bob) and job["id"] not in listed(bob)
    assert {job["id"], other.json()["id"]} <= listed(admin)
    poll(lambda: gone["id"] not in listed(alice), what="what was dropped leaves the list")


def test_a_scope_or_a_service_that_a_key_lacks(guarded: Guarded, alice: httpx.Client) -> None:
    job = alice.post("/jobs", content=body(input={"n": 1, "sleep_s": 0.2})).json()
    reader = guarded.new("reader", scopes=(Scope.READ,), services=("echo",))
    assert_problem(reader.post("/jobs", content=body()), 403, "forbidden")
    assert_problem(reader.delete(f"/jobs/{job['id']}"), 403, "forbidden")
    assert [service["name"] for service in reader.get("/services").json()["services"]] == ["echo"]
    assert_problem(reader.get("/services/small"), 403, "forbidden")

    writer = guarded.new("writer", scopes=(Scope.SUBMIT,), services=("echo",))
    assert writer.post("/jobs", content=body()).status_code == 202
    assert_problem(writer.get("/jobs"), 403, "forbidden")
    for answer in (
        writer.post("/jobs", content=body(service="small")),
        writer.post("/batches", json={"service": "small", "inputs": [1]}),
        writer.post("/batches?service=small", content=b"1\n", headers=NDJSON),
    ):
        assert "small" in assert_problem(answer, 403, "forbidden")["detail"]


def test_the_open_inference_protocol_goes_by_the_same_keys(guarded: Guarded, bob: httpx.Client) -> None:
    tensor = {"name": "n", "datatype": "INT64", "shape": [1, 1], "data": [5]}
    answer = bob.post("/v2/models/echo/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    assert bob.get(f"/jobs/{answer.json()['parameters']['job_id']}").json()["status"] == "succeeded", "it is bob's"
    client = guarded.new("one model", services=("echo",))
    refused = client.post("/v2/models/small/infer", json={"inputs": [tensor]})
    assert refused.status_code == 403 and list(refused.json()) == ["error"]
    assert [model["name"] for model in client.post("/v2/repository/index").json()] == ["echo"]
    reader = guarded.new("looks", scopes=(Scope.READ,))
    assert reader.post("/v2/repository/index").status_code == 200, "it only reads, whatever its method"
    refused = reader.post("/v2/models/echo/infer", json={"inputs": [tensor]})
    assert refused.status_code == 403 and "'submit'" in refused.json()["error"]
    with guarded.system.client() as stranger:
        refused = stranger.post("/v2/models/echo/infer", json={"inputs": [tensor]})
        assert refused.status_code == 401 and list(refused.json()) == ["error"] and refused.headers["www-authenticate"]
        assert stranger.get("/v2/health/ready").status_code == 200


def test_a_rate_is_kept_over_all_requests(guarded: Guarded) -> None:
    client = guarded.new("hasty", rate=2, burst=5)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.get("/services"), range(16)))
    assert sorted(answer.status_code for answer in answers)[:5] == [200] * 5
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) >= 9
    problem = assert_problem(refused[0], 429, "rate_limited")
    assert "2 requests a second" in problem["detail"] and refused[0].headers["retry-after"] == "1"
    poll(lambda: client.get("/services").status_code == 200, 3, "its bucket fills again")


def test_a_concurrency_counts_unfinished_jobs(guarded: Guarded) -> None:
    client = guarded.new("narrow", concurrency=3)
    idle = {"service": "one_by_one", "input": {"n": 1}}  # which has no worker
    made = [client.post("/jobs", json=idle).json()["id"] for _ in range(2)]
    batch = client.post("/batches", json={"service": "small", "inputs": [{"n": 1}]})
    assert batch.status_code == 202, "an input of a batch counts as a job"
    refused = client.post("/jobs", content=body())
    assert_problem(refused, 429, "rate_limited")
    assert int(refused.headers["retry-after"]) >= 1
    assert_problem(client.post("/batches", json={"service": "echo", "inputs": [{"n": 1}]}), 429, "rate_limited")
    client.delete(f"/jobs/{made[0]}")
    assert client.post("/jobs?wait=20", content=body()).json()["status"] == "succeeded", "there is room for one"
    assert client.post("/jobs", json=idle).status_code == 202
    assert_problem(client.post(f"/jobs/{made[0]}/retry"), 429, "rate_limited")
    client.delete(f"/jobs/{made[1]}")
    client.delete(f"/batches/{batch.json()['id']}")
    assert client.post(f"/jobs/{made[0]}/retry").status_code == 202
    answer = client.post("/batches", json={"service": "echo", "inputs": [{"n": 1}] * 4})
    assert "concurrency" in assert_problem(answer, 413, "payload_too_large")["detail"]


def test_a_files_link_lets_in_by_itself_and_nothing_else_does(guarded: Guarded, alice: httpx.Client) -> None:
    links = alice.post("/files", content=b"hello", headers={"Content-Type": "text/plain"}).json()["links"]
    with guarded.system.client() as client:
        assert client.get(links["download"]).text == "hello"
        assert_problem(client.get(links["download"][:-1] + "x"), 403, "link_invalid")
        assert_problem(client.get(links["content"]), 401, "unauthorized")
        assert_problem(client.get(links["self"] + "?signature=x"), 401, "unauthorized")
    assert alice.get(links["content"]).text == "hello"


def test_jobs_of_celery_belong_to_nobody(guarded: Guarded, alice: httpx.Client, admin: httpx.Client) -> None:
    code = "from worker.celery import app\nprint(app.send_task('echo.predict', args=[{'n': 1}], queue='echo').id)"
    sent = guarded.system.start("tests.kit.run_code", code)
    assert sent.wait(30) == 0, sent.output
    assert finished(admin, sent.output.strip())["status"] == "succeeded"
    assert_problem(alice.get(f"/jobs/{sent.output.strip()}"), 404, "job_not_found")


def test_headers_and_origins(guarded: Guarded, alice: httpx.Client) -> None:
    answer = alice.get("/jobs", headers={"Origin": "https://example.org"})
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
    assert answer.headers["access-control-allow-origin"] == "https://example.org"
    assert "access-control-allow-origin" not in alice.get("/jobs", headers={"Origin": "https://evil.org"}).headers
    exposed = answer.headers["access-control-expose-headers"]
    assert {"Location", "Content-Range", "Inference-Header-Content-Length"} <= set(exposed.split(", "))
    page = alice.get("/docs").headers
    assert "frame-ancestors 'none'" in page["content-security-policy"] and page["x-frame-options"] == "DENY"
    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization,content-type,inference-header-content-length,range"
    with guarded.system.client() as client:
        assert client.options("/jobs", headers=asked).status_code == 200, "a browser asks before it sends the key"
        refused = client.get("/jobs", headers=asked)
        assert refused.status_code == 401 and "access-control-allow-origin" in refused.headers


def test_a_body_that_does_not_come(guarded: Guarded, alice: httpx.Client) -> None:
    key = alice.headers["Authorization"]
    for path in ("/jobs", "/batches?service=echo"):
        with socket.create_connection(("127.0.0.1", guarded.system.port)) as connection:
            kind = "application/x-ndjson" if "batches" in path else "application/json"
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Type: {kind}\r\n"
            connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            connection.settimeout(10)
            started = time.monotonic()
            reply = b"".join(iter(lambda c=connection: c.recv(65_536), b"")).decode()
        assert reply.startswith("HTTP/1.1 408 ") and '"code":"request_timeout"' in reply
        assert 0.9 < time.monotonic() - started < 5

    def slowly() -> Iterator[bytes]:  # two seconds in all, but a second more for each 16 kB
        for n in range(20):
            yield b'{"n": %d}' % n + b" " * 20_000 + b"\n"
            time.sleep(0.1)

    assert alice.post("/batches?service=echo", content=slowly(), headers=NDJSON).status_code == 202


def test_the_audit_log_names_the_key_and_the_action(guarded: Guarded) -> None:
    client = guarded.new("watched", scopes=(Scope.SUBMIT,))
    made = client.post("/jobs", content=body()).json()
    client.delete("/jobs/a%0Ab")
    client.get("/jobs")
    tensor = {"name": "n", "datatype": "INT64", "shape": [1, 1], "data": [5]}
    inferred = client.post("/v2/models/echo/infer", json={"inputs": [tensor]}).json()["parameters"]["job_id"]
    with guarded.system.client() as stranger:
        stranger.post("/jobs", content=body(), headers={"X-API-Key": "guess"})
    lines = [line for line in guarded.api.output.splitlines() if " services.audit " in line]
    who = f"key={guarded.ids['watched']} client=127.0.0.1"
    mine = [line.partition("services.audit ")[2] for line in lines if guarded.ids["watched"] in line]
    assert mine == [
        f"{who} verb=POST path=/jobs job={made['id']} status=202",
        f"{who} verb=DELETE path='/jobs/a\\nb' job='a\\nb' status=403",
        f"{who} verb=POST path=/v2/models/echo/infer job={inferred} status=200",
    ]
    assert lines[-1].endswith("key=- client=127.0.0.1 verb=POST path=/jobs job=- status=401")
    assert "guess" not in guarded.api.output


# -- without any key --------------------------------------------------------------------------------------------------


def test_open_on_loopback_alone_unless_told_so(system: System) -> None:
    elsewhere = _another_address()
    if not elsewhere:
        pytest.skip("this machine has no address but loopback")
    target = ["uvicorn", "api:app", "--port", str(system.port), "--host"]
    refused = system.start(*target, "0.0.0.0")
    assert refused.wait(30) != 0 and "SERVICES_ALLOW_UNAUTHENTICATED" in refused.output

    # behind what hides its command line, each request is looked at
    code = f"import uvicorn; uvicorn.run('api:app', host='0.0.0.0', port={system.port}, log_level='warning')"
    hidden = system.start("tests.kit.run_code", code)
    with system.client() as near, httpx.Client(base_url=f"http://{elsewhere}:{system.port}", trust_env=False) as far:
        poll(lambda: _status(near, "/healthz") == 200, what="it is up")
        assert near.post("/jobs", content=body()).status_code == 202
        assert far.get("/healthz").status_code == far.get("/readyz").status_code == 200
        problem = assert_problem(far.post("/jobs", content=body()), 403, "forbidden")
        assert "services keys create" in problem["detail"]
        assert_problem(near.get("/jobs", headers={"Host": "rebound.example"}), 403, "forbidden")
        assert_problem(near.get("/jobs", headers={"X-Forwarded-For": "203.0.113.7"}), 403, "forbidden")
        assert "services.audit" not in hidden.output, "nobody is known who could be named"
        key = services(system, "keys", "create", "--name", "first").stdout.strip()
        poll(lambda: _status(near, "/jobs") == 401, 3, "the first key closes the door")
        assert far.get("/jobs", headers={"X-API-Key": key}).status_code == 200
        hidden.stop()

        system.redis.client.delete("services:keys")
        allowed = system.start(*target, "0.0.0.0", SERVICES_ALLOW_UNAUTHENTICATED="true")
        poll(lambda: _status(near, "/healthz") == 200, what=f"it is up\n{allowed.output}")
        assert far.post("/jobs", content=body()).status_code == 202


def test_while_it_is_not_known_whether_there_are_keys_nobody_is_let_in(system: System) -> None:
    elsewhere = _another_address()
    if not elsewhere:
        pytest.skip("this machine has no address but loopback")
    system.redis.stop()
    api = system.start("uvicorn", "api:app", "--port", str(system.port), "--host", "0.0.0.0")
    with system.client() as near, httpx.Client(base_url=f"http://{elsewhere}:{system.port}", trust_env=False) as far:
        poll(lambda: _status(far, "/healthz") == 200, what="it is up")
        assert "get 503 until the API keys can be read" in api.output
        for client in (near, far):
            assert_problem(client.post("/jobs", content=body()), 503, "store_unavailable")
            assert_problem(client.get("/services", headers={"X-API-Key": "guess"}), 503, "store_unavailable")
        system.redis.start()
        poll(lambda: _status(near, "/services") == 200, what="there is none")
        assert_problem(far.post("/jobs", content=body()), 403, "forbidden")
        key = services(system, "keys", "create", "--name", "first").stdout.strip()
        poll(lambda: _status(near, "/jobs") == 401, 3, "the first key closes the door")
        assert far.post("/jobs", content=body(), headers={"X-API-Key": key}).status_code == 202


def _status(client: httpx.Client, path: str) -> int:
    try:
        return client.get(path).status_code
    except httpx.HTTPError:
        return 0


def _another_address() -> str:
    """An address of this machine that is not loopback; "" for none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only chooses where to send from
        except OSError:
            return ""
        address: Any = probe.getsockname()[0]
        return "" if address.startswith("127.") else str(address)


def test_an_id_of_a_clients_own_is_its_keys_alone(guarded: Guarded, alice: httpx.Client, bob: httpx.Client) -> None:
    own = str(uuid.uuid4())
    assert alice.put(f"/jobs/{own}?wait=20", content=body()).json()["id"] == own
    assert alice.put(f"/jobs/{own}", content=body()).status_code == 200
    assert_problem(bob.put(f"/jobs/{own}", content=body()), 409, "idempotency_conflict")
    assert_problem(guarded.new("reader", scopes=(Scope.READ,)).put(f"/jobs/{own}", content=body()), 403, "forbidden")


def test_the_clients_api_key(guarded: Guarded) -> None:
    with Client(guarded.system.url, api_key=guarded.make("carol")) as client:
        job = client.submit("echo", {"n": 1})
        assert job.result(20)["n"] == 1 and next(job.events()).type == "status"
        assert [result.index for result in client.batch("echo", [{"n": 1}, {"n": 2}])] == [0, 1]
    with Client(guarded.system.url, api_key="wrong") as client, pytest.raises(Unauthorized):
        client.get(job.id)
    with Client(guarded.system.url, api_key=guarded.make("dave")) as client, pytest.raises(NotFound):
        client.get(job.id)
