"""Results that are reused, and equal jobs that run once, from outside by HTTP with real workers."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery

from api.client import Client
from tests.kit.http import assert_problem
from tests.kit.receiver import Receiver
from tests.kit.system import Process, System, finished, poll, running_system, status_of, write_plugin
from worker.ledger.api_keys import Key, Keys
from worker.settings import Settings

SCHEMA = """
from pydantic import BaseModel, ConfigDict

class Input(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"n": 1}]})
    n: float
    do: str = ""

class Output(BaseModel):
    n: float
    run: int
"""

#: Notes each run of an input; with ``do`` "hold" it waits for the test, with "fail" and "die" its first run comes to
#: nothing. The output's ``run`` tells which run of this input it was.
COUNTED = """
import os, time
from worker.service import Service
from {name}.schema import Input, Output

FOLDER = os.environ["TEST_FOLDER"]

class Plugin(Service[Input, Output]):
    max_batch_size = 1
    {knobs}

    def predict(self, item):
        path = f"{{FOLDER}}/runs-{{item.n:g}}"
        with open(path, "a") as file:
            file.write("x")
        run = os.path.getsize(path)
        print(f"run {{run}}")
        while item.do and not os.path.exists(f"{{FOLDER}}/go-{{item.n:g}}"):
            time.sleep(0.01)
        if item.do == "fail" and run == 1:
            raise ValueError("the first one")
        if item.do == "die" and run == 1:
            os._exit(3)
        return {{"n": item.n, "run": run}}
"""


def told(system: System, name: str = "counted") -> tuple[str, str]:
    """Version and model as the service's last worker told them, by which equal jobs are known."""
    version, model = system.redis.client.hmget(f"{{{name}}}:about", "version", "model")
    return ((version or b"").decode(), model.decode()) if model else ("", "")


_numbers = iter(range(1, 10_000))


def write_counted(folder: Path, name: str = "counted", version: str = "1.0", knobs: str = "cache_for_s = 600") -> Path:
    return write_plugin(folder, name, SCHEMA, COUNTED.format(name=name, knobs=knobs), version=version)


@pytest.fixture(scope="module")
def caching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The API, and workers of ``counted``, which keeps results, of ``plain``, which does not, and of webhooks."""
    folder = tmp_path_factory.mktemp("caching-plugins")
    write_counted(folder)
    write_counted(folder, "plain", knobs="pass")
    allowed = {"SERVICES_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8"}
    with running_system(tmp_path_factory.mktemp("caching"), folder, **allowed) as made:
        made.start_api()
        made.start_worker("counted,plain", wait=False)
        made.start_worker("webhooks")
        for name in ("counted", "plain"):
            poll(lambda name=name: told(made, name)[1], 30, "its worker has told version and knobs")
        yield made


@pytest.fixture
def client(caching: System) -> Iterator[httpx.Client]:
    with caching.client() as made:
        yield made


@pytest.fixture
def n() -> int:
    """The number of an input that no other test has."""
    return next(_numbers)


def ask(n: float, do: str = "", service: str = "counted", **more: Any) -> dict[str, Any]:
    return {"service": service, "input": {"n": n, **({"do": do} if do else {})}, **more}


def send(client: httpx.Client, *about: Any, **more: Any) -> Any:
    answer = client.post("/jobs", json=ask(*about, **more))
    assert answer.status_code == 202, answer.text
    return answer.json()


def runs(system: System, n: int) -> int:
    path = system.folder / f"runs-{n}"
    return path.stat().st_size if path.exists() else 0


def hold(system: System, client: httpx.Client, n: int, do: str = "hold", **more: Any) -> Any:
    """A job that runs until ``let_go``."""
    job = send(client, n, do, **more)
    poll(lambda: client.get(f"/jobs/{job['id']}").json()["status"] == "running", what="it runs")
    return job


def let_go(system: System, n: int) -> None:
    (system.folder / f"go-{n}").touch()


def test_a_result_is_reused_by_a_job_of_its_own(caching: System, client: httpx.Client, n: int) -> None:
    first = finished(client, send(client, n, metadata={"a": 1})["id"])
    assert "cached_from" not in first and first["output"] == {"n": n, "run": 1}
    answer = client.post("/jobs", json=ask(n, metadata={"b": 2}, keep_for_s=50, priority="high"))
    hit = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/jobs/{hit['id']}")
    assert (hit["status"], hit["output"], hit["cached_from"]) == ("succeeded", first["output"], first["id"])
    assert hit["id"] != first["id"] and (hit["metadata"], hit["priority"], hit["attempt"]) == ({"b": 2}, "high", 0)
    assert hit["created_at"] <= hit["started_at"] == hit["finished_at"] < hit["expires_at"] < first["expires_at"]
    assert hit["timings"]["predict_ms"] is None and hit["batch_size"] is None and hit["version"] == "1.0"
    assert client.get(f"/jobs/{hit['id']}").json() == hit
    assert client.get(f"/jobs/{hit['id']}?include=attempts,input").json()["attempts"] == []
    waited = client.post("/jobs?wait=10", json=ask(n))
    assert waited.status_code == 200 and waited.json()["cached_from"] == first["id"]
    assert waited.headers["preference-applied"] == "wait=10"
    assert hit["id"] in [job["id"] for job in client.get("/jobs?service=counted&status=succeeded").json()["jobs"]]
    assert_problem(client.delete(f"/jobs/{hit['id']}"), 409, "job_finished")
    assert runs(caching, n) == 1
    text = client.get("/metrics").text
    assert 'services_jobs_reused_total{service="counted"} ' in text


def test_inputs_that_count_as_equal(caching: System, client: httpx.Client, n: int) -> None:
    finished(client, send(client, n)["id"])
    for text in (f'{{"do":"","n":{n}.0}}', f'{{ "n" : {n} }}', f'{{"n":"{n}"}}'):
        body = f'{{"service":"counted","input":{text}}}'
        assert "cached_from" in client.post("/jobs?wait=10", content=body).json(), text
    assert runs(caching, n) == 1
    assert "cached_from" not in client.post("/jobs?wait=10", json=ask(n + 0.5)).json()
    assert "cached_from" not in client.post("/jobs?wait=10", json=ask(n, service="plain")).json()
    assert runs(caching, n) == 2


def test_a_job_may_ask_for_it_or_not(caching: System, client: httpx.Client, n: int) -> None:
    def post(**more: Any) -> Any:
        return client.post("/jobs?wait=10", json=ask(n, **more)).raise_for_status().json()

    plain = {"service": "plain"}
    assert [post(**plain)["output"]["run"] for _ in range(2)] == [1, 2], "the knob is 0 by default"
    asked = post(**plain, cache_for_s=60)
    assert asked["output"]["run"] == 3 and "cached_from" not in asked
    assert post(**plain, cache_for_s=60)["cached_from"] == asked["id"]
    assert post(**plain)["output"]["run"] == 4 and post(**plain, cache_for_s=0)["output"]["run"] == 5
    assert post(cache_for_s=0)["output"]["run"] == 6 and post()["output"]["run"] == 7
    assert post(cache_for_s=0)["output"]["run"] == 8, "it takes none although there is one"
    assert post()["output"]["run"] == 7
    path = f"/jobs/{uuid.uuid4()}"
    put = client.put(path, json=ask(n, **plain, cache_for_s=60))
    assert put.status_code == 202 and put.json()["cached_from"] == asked["id"]
    again = client.put(path, json=ask(n, **plain, cache_for_s=60))
    assert (again.status_code, again.json()) == (200, put.json())
    assert_problem(client.put(path, json=ask(n, **plain, cache_for_s=61)), 409, "idempotency_conflict")


@pytest.mark.parametrize("value", ["-1", "-0.001", "1e400", "NaN", "Infinity", '"60"', "true", "[]", "2592001"])
def test_impossible_wishes_are_refused(client: httpx.Client, value: str) -> None:
    text = f'{{"service":"counted","input":{{"n":1}},"cache_for_s":{value}}}'
    for answer in (client.post("/jobs", content=text), client.put(f"/jobs/{uuid.uuid4()}", content=text)):
        assert_problem(answer, 422, "invalid_input")
        assert value in ("NaN", "Infinity", "1e400") or answer.json()["errors"][0]["loc"] == ["body", "cache_for_s"]


def test_a_batch_refuses_it(client: httpx.Client) -> None:
    answer = client.post("/batches", json={"service": "counted", "inputs": [{"n": 1}], "cache_for_s": 60})
    assert_problem(answer, 422, "invalid_input")
    assert "a batch uses no cache" in answer.json()["detail"]
    headers = {"Content-Type": "application/x-ndjson"}
    answer = client.post("/batches?service=counted&cache_for_s=60", content='{"n":1}', headers=headers)
    assert_problem(answer, 422, "invalid_input")
    assert answer.json()["errors"][0]["loc"] == ["query", "cache_for_s"]


def test_a_result_is_forgotten_in_time(caching: System, client: httpx.Client, n: int) -> None:
    def post(cache_for_s: float) -> Any:
        return client.post("/jobs?wait=10", json=ask(n, service="plain", cache_for_s=cache_for_s)).json()

    first = post(1)
    assert post(60).get("cached_from") == first["id"]
    later = poll(lambda: (job := post(60))["output"]["run"] == 2 and job, 10, "it runs again")
    assert "cached_from" not in later, "as old as its own job had said"
    assert post(60)["cached_from"] == later["id"]
    poll(lambda: post(0.3)["output"]["run"] == 3, 10, "as old as the one that asks allows")
    keys = caching.redis.client.keys("{plain}:cached:*")
    assert keys and all(caching.redis.client.pttl(key) != -1 for key in keys)


def test_fifty_equal_jobs_at_once_are_one_run(caching: System, client: httpx.Client, n: int) -> None:
    blocker = hold(caching, client, next(_numbers))
    with ThreadPoolExecutor(50) as threads:
        made = list(threads.map(lambda _: client.post("/jobs", json=ask(n)), range(50)))
    assert {answer.status_code for answer in made} == {202}
    jobs = [answer.json() for answer in made]
    assert len({job["id"] for job in jobs}) == 50 and {job["status"] for job in jobs} == {"queued"}
    assert {job["position"] for job in jobs} == {0}
    assert client.get("/services/counted").json()["queue_depth"] == 50
    let_go(caching, int(client.get(f"/jobs/{blocker['id']}?include=input").json()["input"]["n"]))
    ended = [finished(client, job["id"]) for job in jobs]
    assert [job["status"] for job in ended] == ["succeeded"] * 50
    assert [job["output"] for job in ended] == [{"n": n, "run": 1}] * 50 and runs(caching, n) == 1
    (ran,) = [job for job in ended if "cached_from" not in job]
    assert {job.get("cached_from") for job in ended if job is not ran} == {ran["id"]}
    assert client.get("/services/counted").json()["queue_depth"] == 0
    assert caching.redis.client.keys("{counted}:equals:*") == caching.redis.client.keys("{counted}:leader:*") == []


def test_one_that_waits_with_its_answer_held_hears_of_anothers_end(
    caching: System, client: httpx.Client, n: int
) -> None:
    leader = hold(caching, client, n)
    with ThreadPoolExecutor(3) as threads:
        held = [threads.submit(client.post, "/jobs?wait=20", json=ask(n, "hold")) for _ in range(3)]
        poll(lambda: client.get("/services/counted").json()["queue_depth"] == 3)
        let_go(caching, n)
        answers = [future.result() for future in held]
    assert {(a.status_code, a.json()["status"], a.json()["cached_from"]) for a in answers} == {
        (200, "succeeded", leader["id"])
    }
    assert runs(caching, n) == 1


def test_events_webhooks_and_celery_tell_of_a_job_that_did_not_run(
    caching: System, client: httpx.Client, n: int
) -> None:
    receiver = Receiver().start()
    try:
        leader = hold(caching, client, n)
        follower = send(client, n, "hold", webhook=receiver.url("/f"))
        with client.stream("GET", f"/jobs/{follower['id']}/events") as stream:
            lines = stream.iter_lines()
            assert any('"status":"queued"' in line for line in lines)
            let_go(caching, n)
            told = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        assert told[-1]["status"] == "succeeded" and told[-1]["cached_from"] == leader["id"]
        assert [event["status"] for event in told] in (["succeeded"], ["running", "succeeded"])
        hit = send(client, n, "hold", webhook=receiver.url("/h"))
        events = client.get(f"/jobs/{hit['id']}/events").text
        assert '"status":"succeeded"' in events and "log" not in events, "what another's run said is not its own"
        for job, path in ((follower, "/f"), (hit, "/h")):
            poll(lambda path=path: any(got.path == path for got in receiver.got), 20, "the webhook came")
            (got,) = [got for got in receiver.got if got.path == path]
            assert got.event["type"] == "job.succeeded" and got.event["data"]["id"] == job["id"]
            assert got.event["data"]["cached_from"] == leader["id"]
        url = caching.redis.url.replace("unix://", "redis+socket://")
        with Celery("stock", broker=url, backend=url, set_as_current=False) as stock:
            sent = stock.send_task("counted.predict", args=[{"n": n, "do": "hold"}], queue="counted")
            assert sent.get(timeout=20)["run"] == 2, "jobs of other producers use no cache"
    finally:
        receiver.stop()


def test_a_cancelled_leader_leaves_its_run_to_the_next(caching: System, client: httpx.Client, n: int) -> None:
    leader = hold(caching, client, n)
    followers = [send(client, n, "hold") for _ in range(3)]
    assert client.delete(f"/jobs/{followers[0]['id']}").status_code == 202
    assert client.delete(f"/jobs/{leader['id']}").status_code == 202
    poll(lambda: client.get(f"/jobs/{followers[1]['id']}").json()["status"] == "running", what="the next runs")
    assert client.get(f"/jobs/{followers[2]['id']}").json()["status"] == "queued"
    let_go(caching, n)
    ended = [finished(client, job["id"]) for job in (leader, *followers)]
    assert [job["status"] for job in ended] == ["cancelled", "cancelled", "succeeded", "succeeded"]
    assert ended[3]["cached_from"] == followers[1]["id"] and runs(caching, n) == 2
    again = client.post(f"/jobs/{leader['id']}/retry")
    assert again.status_code == 202 and finished(client, leader["id"])["output"]["run"] == 3, "a retry is a run"


def test_a_failed_leader_leaves_each_its_own_outcome(caching: System, client: httpx.Client, n: int) -> None:
    leader = hold(caching, client, n, "fail")
    followers = [send(client, n, "fail") for _ in range(3)]
    let_go(caching, n)
    ended = [finished(client, job["id"]) for job in (leader, *followers)]
    assert [job["status"] for job in ended] == ["failed", "succeeded", "succeeded", "succeeded"]
    assert sorted(job["output"]["run"] for job in ended[1:]) == [2, 3, 4]


def test_idempotency_keys_are_first_and_the_cache_second(caching: System, client: httpx.Client, n: int) -> None:
    first = finished(client, send(client, n)["id"])
    headers = {"Idempotency-Key": f"key-{n}"}
    hit = client.post("/jobs", json=ask(n), headers=headers)
    assert hit.status_code == 202 and hit.json()["cached_from"] == first["id"]
    again = client.post("/jobs", json=ask(n), headers=headers)
    assert (again.status_code, again.json()) == (200, hit.json())
    assert_problem(client.post("/jobs", json=ask(n, cache_for_s=60), headers=headers), 409, "idempotency_conflict")
    with ThreadPoolExecutor(20) as threads:
        headers = {"Idempotency-Key": f"other-{n}"}
        made = list(threads.map(lambda _: client.post("/jobs", json=ask(n), headers=headers), range(20)))
    assert len({answer.json()["id"] for answer in made}) == 1
    assert sorted({answer.status_code for answer in made}) == [200, 202]


def test_the_typed_client_and_v2_use_it_too(caching: System, client: httpx.Client, n: int) -> None:
    with Client(caching.url) as typed:
        first = typed.submit("counted", {"n": n}, wait=10)
        assert first.cached_from is None
        hit = typed.submit("counted", {"n": n})
        assert hit.ended and hit.cached_from == first.id and hit.result() == first.output
        assert typed.submit("counted", {"n": n}, cache_for_s=0, wait=10).output["run"] == 2

    def infer(*rows: float, **parameters: Any) -> httpx.Response:
        tensor = {"name": "n", "datatype": "FP64", "shape": [len(rows)], "data": list(rows)}
        return client.post("/v2/models/counted/infer", json={"inputs": [tensor], "parameters": parameters})

    def numbers(answer: httpx.Response) -> Any:
        return next(output["data"] for output in answer.json()["outputs"] if output["name"] == "run")

    assert numbers(infer(n)) == [1] and numbers(infer(n, n + 0.25, n + 0.25, n)) == [1, 1, 1, 1]
    assert numbers(infer(n, cache_for_s=0)) == [3]
    for bad in (-1, "60", True, 1e9):
        answer = infer(n, cache_for_s=bad)
        assert answer.status_code == 400 and "parameters.cache_for_s" in answer.json()["error"]


def test_the_knob_is_shown(client: httpx.Client) -> None:
    assert client.get("/services/counted").json()["knobs"]["cache_for_s"] == 600
    assert client.get("/services/plain").json()["knobs"]["cache_for_s"] == 0
    request = client.get("/openapi.json").json()["components"]["schemas"]["counted.JobRequest"]
    assert request["properties"]["cache_for_s"]["minimum"] == 0


def test_an_api_key_sees_its_own_results_alone(tmp_path: Path) -> None:
    write_counted(tmp_path / "plugins")
    with running_system(tmp_path, tmp_path / "plugins") as system:
        system.start_api()
        system.start_worker("counted")
        poll(lambda: told(system)[1], what="it has told its model")
        keys = Keys(Settings(redis_url=system.redis.url))
        made = [keys.create(Key(id="", name=name))[0] for name in ("alice", "bob")]
        keys.redis.close()
        poll(lambda: status_of(f"{system.url}/jobs") == 401, 3, "the API knows of the keys")
        with system.client() as client:

            def post(key: str) -> Any:
                headers = {"Authorization": f"Bearer {key}"}
                return client.post("/jobs?wait=10", json=ask(1), headers=headers).raise_for_status().json()

            mine, his, mine_again, his_again = post(made[0]), post(made[1]), post(made[0]), post(made[1])
        assert (mine["output"]["run"], his["output"]["run"]) == (1, 2)
        assert (mine_again["cached_from"], his_again["cached_from"]) == (mine["id"], his["id"])


def test_another_version_or_other_knobs_have_results_of_their_own(tmp_path: Path) -> None:
    old = write_counted(tmp_path / "old")
    new, tuned = write_counted(tmp_path / "new", version="2.0"), tmp_path / "tuned"
    write_counted(tuned, version="2.0", knobs="cache_for_s = 600; max_attempts = 2")
    with running_system(tmp_path, old) as system:

        def restart(api: Process | None, worker: Process | None, folder: Path) -> tuple[Process, Process]:
            path = system.env["PYTHONPATH"].split(":", 1)[1]
            system.env["PYTHONPATH"] = f"{folder}:{path}"
            if worker:
                worker.stop()
            worker = start_worker()
            if api:
                api.stop()
            return system.start_api(), worker

        def start_worker() -> Process:
            system.redis.client.hdel("{counted}:about", "model")
            worker = system.start_worker("counted")
            poll(lambda: told(system)[1], what="it has told its model")
            return worker

        def post() -> Any:
            answer: httpx.Response = client.post("/jobs?wait=10", json=ask(1))
            return answer.raise_for_status().json()

        with system.client() as client:
            processes = restart(None, None, old)
            assert [post()["output"]["run"] for _ in range(2)] == [1, 1]
            restarted = restart(*processes, old)
            assert post()["output"]["run"] == 1, "a restart forgets nothing"
            processes = restart(*restarted, new)
            assert [(job["version"], job["output"]["run"]) for job in (post(), post())] == [("2.0", 2), ("2.0", 2)]
            processes = restart(*processes, tuned)
            assert [post()["output"]["run"] for _ in range(2)] == [3, 3]
            processes = restart(*processes, old)
            assert post()["output"]["run"] == 1, "back at the old one, its result is there still"
            _, worker = processes
            system.env["PYTHONPATH"] = f"{new}:{system.env['PYTHONPATH'].split(':', 1)[1]}"
            worker.stop()
            start_worker()
            assert [post()["output"]["run"] for _ in range(2)] == [4, 5], "the API reads inputs by another version"


@pytest.mark.parametrize("victim", ["worker", "child", "redis", "api"])
def test_whatever_is_killed_every_equal_job_ends(tmp_path: Path, victim: str) -> None:
    write_counted(tmp_path / "plugins")
    with running_system(tmp_path, tmp_path / "plugins") as system, system.client() as client:
        api = system.start_api()
        worker = system.start_worker("counted")
        poll(lambda: told(system)[1], what="it has told its model")
        leader = hold(system, client, 1, "die" if victim == "child" else "hold")
        followers = [send(client, 1, "die" if victim == "child" else "hold") for _ in range(5)]
        if victim == "worker":
            system.start_worker("counted")
            worker.send_signal(signal.SIGKILL)
            poll(lambda: runs(system, 1) == 2, 15, "it runs again elsewhere")
        elif victim == "redis":
            system.redis.stop(signal.SIGKILL)
            system.redis.start()
            poll(lambda: status_of(f"{system.url}/readyz") == 200)
        elif victim == "api":
            api.send_signal(signal.SIGKILL)
            api.wait()
            system.start_api()
        let_go(system, 1)
        ended = [finished(client, job["id"]) for job in (leader, *followers)]
        assert [job["status"] for job in ended] == ["succeeded"] * 6
        assert {job.get("cached_from") for job in ended[1:]} == {leader["id"]}
        assert len({job["output"]["run"] for job in ended}) == 1
        assert runs(system, 1) == (2 if victim in ("worker", "child") else ended[0]["output"]["run"])
        assert system.redis.client.keys("{counted}:equals:*") == system.redis.client.keys("{counted}:leader:*") == []
        assert int(system.redis.client.hget("{counted}:about", "parked") or 0) == 0
