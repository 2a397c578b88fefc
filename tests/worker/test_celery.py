"""Jobs as Celery tasks: producers without our API, AsyncResult, remote control, events."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from api.client import Client
from tests.kit.system import System, finished, listen_to, poll
from worker.ledger.messages import OURS, build_message


@pytest.fixture
def stock(serving: System) -> Iterator[Celery]:
    """A program that has nothing but Celery."""
    url = serving.redis.url.replace("unix://", "redis+socket://")
    app = Celery("stock", broker=url, backend=url, set_as_current=False)
    yield app
    app.close()


def ours(system: System, code: str) -> Any:
    """Run code in a process that has ``worker.celery``; gives what it prints, as JSON."""
    script = f"import json\nfrom worker.celery import app\n{code}"
    done = subprocess.run([sys.executable, "-c", script], env=system.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_same_job_by_either_way_has_the_same_output_and_state_by_either_way(serving: System, stock: Celery) -> None:
    with serving.client() as client:
        posted = client.post("/jobs?wait=20", json={"service": "echo", "input": {"n": 7}}).json()
        sent = stock.send_task("echo.predict", args=[{"n": 7}], queue="echo")
        assert sent.get(timeout=20) == posted["output"] == {"n": 7, "batch": 1}
        read = client.get(f"/jobs/{sent.id}").json()
        assert (read["status"], read["output"]) == ("succeeded", posted["output"])

        code = f"""
states = [[app.AsyncResult(i).state, app.AsyncResult(i).get(timeout=10)] for i in {[posted["id"], sent.id]!r}]
result = app.send_task("echo.predict", args=[{{"n": 7}}], queue="echo")
print(json.dumps([states, result.get(timeout=20), result.id]))
"""
        states, output, job_id = ours(serving, code)
        assert states == [["SUCCESS", {"n": 7, "batch": 1}]] * 2 and output == {"n": 7, "batch": 1}
        assert client.get(f"/jobs/{job_id}").json()["status"] == "succeeded"
        assert stock.AsyncResult(posted["id"]).state == "PENDING", "the API's jobs have no copy for stock Celery"


@pytest.mark.parametrize("name", ["7 of b? 100%", "a/b", "a%2Fb", "/events/", "../x"])
def test_the_links_of_a_job_lead_to_it_whatever_its_producer_called_it(
    serving: System, stock: Celery, name: str
) -> None:
    sent = stock.send_task("echo.predict", args=[{"n": 7}], queue="echo", task_id=name)
    sent.get(timeout=20)
    with serving.client() as client:
        (job,) = client.get("/jobs", params={"service": "echo", "limit": 1}).json()["jobs"]
        assert job["id"] == name
        own = job["links"]["self"]
        assert client.get(own).json()["id"] == name and client.head(own).status_code == 200
        assert client.get(f"{own}?wait=5&include=input").json()["input"] == {"n": 7}
        assert [data["id"] for kind, data, _ in listen_to(client, job["links"]["events"]) if kind == "status"][
            -1
        ] == name
        assert client.get(f"{own}/deliveries").json() == {"deliveries": []}
        for answer in (client.delete(own), client.post(f"{own}/retry")):
            assert answer.status_code == 409 and name in answer.json()["detail"]
        assert client.get(f"{own}/nope").json()["code"] == "not_found"
        with Client(serving.url) as ours:
            assert ours.get(name).id == name


def test_our_app_knows_a_services_queue(serving: System) -> None:
    code = """
result = app.send_task("echo.predict", args=[{"n": 7}])
print(json.dumps(result.get(timeout=20)))
"""
    assert ours(serving, code) == {"n": 7, "batch": 1}


def test_states_that_have_not_ended_and_failures_agree(serving: System, stock: Celery) -> None:
    with serving.client() as client:
        job = client.post("/jobs", json={"service": "echo", "input": {"n": 1, "sleep_s": 1}}).json()
        poll(lambda: client.get(f"/jobs/{job['id']}").json()["status"] == "running", what="it runs")
        waiting = client.post("/jobs", json={"service": "small", "input": {"n": 1}}).json()
        failed = client.post("/jobs?wait=20", json={"service": "echo", "input": {"n": 1, "do": "raise"}}).json()
        code = f"print(json.dumps([app.AsyncResult(i).state for i in {[waiting['id'], failed['id'], 'never']!r}]))"
        assert ours(serving, code) == ["PENDING", "FAILURE", "PENDING"]
        client.delete(f"/jobs/{waiting['id']}")
        code = f"""
results = [app.AsyncResult(i) for i in {[failed["id"], waiting["id"]]!r}]
print(json.dumps([[r.state, type(r.result).__name__, str(r.info), r.successful()] for r in results]))
"""
        assert ours(serving, code) == [
            ["FAILURE", "PredictFailed", failed["error"]["message"], False],
            ["REVOKED", "TaskRevokedError", "cancelled", False],
        ]
        finished(client, job["id"])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"args": []}, "takes one argument"),
        ({"args": [{"n": "x"}]}, "n: Input should be a valid integer"),
        ({"args": [{"n": 1}], "countdown": 31 * 86_400}, "more than 30 days ahead"),
        ({"args": [{"n": 1}], "serializer": "pickle"}, "messages must be application/json"),
    ],
)
def test_a_message_that_cannot_run_ends_as_a_failed_job(
    serving: System, stock: Celery, message: Any, words: str
) -> None:
    job_id = stock.send_task("echo.predict", queue="echo", **message).id
    with serving.client() as client:
        poll(lambda: client.get(f"/jobs/{job_id}").status_code == 200, what="it is taken")
        job = finished(client, job_id)
    assert job["error"]["code"] == "invalid_input" and words in job["error"]["message"]


def test_a_message_for_another_task_and_junk_harm_nothing(serving: System, stock: Celery) -> None:
    job_id = stock.send_task("echo.train", args=[1], queue="echo").id
    serving.redis.client.lpush("echo", b"junk", b"{}", b"\xff")
    with serving.client() as client:
        poll(lambda: client.get(f"/jobs/{job_id}").status_code == 200, what="it is taken")
        assert "runs the task 'echo.predict'" in finished(client, job_id)["error"]["message"]
        answer = client.post("/jobs?wait=20", json={"service": "echo", "input": {"n": 1}})
        assert answer.json()["status"] == "succeeded"


def test_expires_is_kept(serving: System, stock: Celery) -> None:
    job_id = stock.send_task("echo.predict", args=[{"n": 1}], queue="echo", expires=0.000001).id
    with serving.client() as client:
        poll(lambda: client.get(f"/jobs/{job_id}").status_code == 200, what="it is taken")
        assert finished(client, job_id)["status"] == "expired"


def test_500_jobs_of_another_producer(serving: System, stock: Celery) -> None:
    with stock.producer_pool.acquire(block=True) as producer:
        sent = [
            stock.send_task("echo.predict", args=[{"n": n}], queue="echo", producer=producer, priority=n % 10)
            for n in range(500)
        ]
    assert [result.get(timeout=30)["n"] for result in sent] == list(range(500))


def test_inspect_and_revoke_see_jobs_as_tasks(serving: System, stock: Celery) -> None:
    with serving.client() as client:
        job_id = client.post("/jobs", json={"service": "echo", "input": {"n": 1, "sleep_s": 1.8}}).json()["id"]
        poll(lambda: client.get(f"/jobs/{job_id}").json()["status"] == "running", what="it runs")
        (active,) = stock.control.inspect(timeout=1).active().values()
        assert [(task["id"], task["name"]) for task in active] == [(job_id, "echo.predict")]

        stock.control.revoke(job_id, terminate=True)
        assert finished(client, job_id, timeout=5)["status"] == "cancelled"

        (queues,) = stock.control.inspect(timeout=2).active_queues().values()
        assert [queue["name"] for queue in queues] == ["echo"]
        (tasks,) = stock.control.inspect(timeout=2).registered().values()
        assert "echo.predict" in tasks


def test_revoke_cancels_a_job_that_waits(system: System) -> None:
    system.start_api()
    system.start_worker("echo")
    with system.client() as client:
        job_id = client.post("/jobs", json={"service": "small", "input": {"n": 1}}).json()["id"]
        ours(system, f"app.control.revoke({job_id!r}); print(1)")
        assert finished(client, job_id, timeout=10)["status"] == "cancelled"


def test_events_show_each_job_from_received_to_its_end(serving: System, stock: Celery) -> None:
    seen: list[tuple[str, str]] = []

    def types(job_id: str) -> list[str]:
        return [kind for kind, uuid in seen if uuid == job_id]

    with serving.client() as client, stock.connection_for_read() as connection:
        handlers = {"*": lambda event: seen.append((event["type"], event.get("uuid", "")))}
        receiver = stock.events.Receiver(connection, handlers=handlers)
        listening = threading.Thread(target=lambda: receiver.capture(wakeup=True))
        listening.start()
        try:
            poll(lambda: ("worker-heartbeat", "") in seen, what="the subscription lives")
            good = client.post("/jobs?wait=20", json={"service": "echo", "input": {"n": 1}}).json()["id"]
            bad = client.post("/jobs?wait=20", json={"service": "echo", "input": {"n": 1, "do": "raise"}}).json()["id"]
            poll(lambda: len(types(good)) == len(types(bad)) == 3, what="all events are here")
            lost = client.post("/jobs?wait=30", json={"service": "echo", "input": {"n": 1, "do": "exit"}}).json()
            assert lost["error"]["code"] == "worker_lost"
            poll(lambda: "task-failed" in types(lost["id"]), what="its end is told")
        finally:
            receiver.should_stop = True
            listening.join(10)
    assert types(good) == ["task-received", "task-started", "task-succeeded"]
    assert types(bad) == ["task-received", "task-started", "task-failed"]
    run = ["task-received", "task-started"]
    assert types(lost["id"]) == [*run, "task-retried", *run, "task-retried", *run, "task-failed"]


def test_our_message_equals_the_one_that_send_task_publishes(serving: System, stock: Celery) -> None:
    # given both messages for one job, in a queue that no worker serves
    stock.send_task("small.predict", args=(), kwargs={}, queue="small", task_id="the-id")
    theirs = json.loads(serving.redis.client.lpop("small"))  # type: ignore[arg-type]
    raw = build_message("small", "the-id")
    mine = json.loads(raw)

    assert raw.startswith(OURS.encode())
    del mine["libs_service"]
    for message in (mine, theirs):
        assert message["properties"].pop("delivery_tag") and message["headers"].pop("origin")
        message["properties"].pop("reply_to")  # where a reply goes is the producer's own
        message["body"] = json.loads(base64.b64decode(message["body"]))
    assert mine == theirs
