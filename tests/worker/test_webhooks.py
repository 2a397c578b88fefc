"""Webhooks: each end arrives, signed, whatever its receiver and its sender go through."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.kit.receiver import Receiver
from tests.kit.system import ROOT, System, finished, free_port, poll, running_system

ALLOWED: dict[str, Any] = {"SERVICES_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8"}
QUICK: dict[str, Any] = {**ALLOWED, "SERVICES_WEBHOOK_BACKOFF_S": "0.2", "SERVICES_WEBHOOK_TIMEOUT_S": "2"}


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory, plugins: Path) -> Iterator[System]:
    """The API, a worker of ``echo`` and one of webhooks, which may go to this machine."""
    with running_system(tmp_path_factory.mktemp("hooked"), plugins, **QUICK) as made:
        made.start_api()
        made.start_worker("echo")
        made.start_worker("webhooks")
        yield made


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver().start()
    yield made
    made.stop()


@pytest.fixture
def client(hooked: System) -> Iterator[httpx.Client]:
    with hooked.client() as made:
        yield made


def submit(client: httpx.Client, webhook: Any, **input: Any) -> dict[str, Any]:
    answer = client.post("/jobs", json={"service": "echo", "input": {"n": 1, **input}, "webhook": webhook})
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    assert job["links"]["deliveries"] == f"/jobs/{job['id']}/deliveries"
    return job


def deliveries(client: httpx.Client, job: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(job["links"]["deliveries"]).raise_for_status().json()["deliveries"]
    return found


def settled(client: httpx.Client, job: dict[str, Any], timeout: float = 20) -> dict[str, Any]:
    """The newest delivery once nothing more is tried."""

    def look() -> Any:
        found = deliveries(client, job)
        return found[0] if found and found[0]["status"] != "pending" else None

    told: dict[str, Any] = poll(look, timeout, "the delivery is settled")
    return told


def secrets(system: System, action: str = "secret") -> list[str]:
    command = [sys.executable, "-c", "from worker.cli.main import main; main()", "webhooks", action]
    done = subprocess.run(command, env=system.env, cwd=system.folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_every_end_arrives_signed_as_get_shows_it(hooked: System, client: httpx.Client, receiver: Receiver) -> None:
    succeeded = submit(client, receiver.url("/all"))
    failed = submit(client, {"url": receiver.url("/all"), "events": ["job.failed"]}, do="raise")
    unwanted = submit(client, {"url": receiver.url("/unwanted"), "events": ["job.failed", "job.expired"]})
    slow = client.post("/jobs", json={"service": "echo", "input": {"n": 1, "sleep_s": 1.2}}).json()
    poll(lambda: client.get(f"/jobs/{slow['id']}").json()["status"] == "running", what="the worker is busy")
    cancelled = submit(client, receiver.url("/all"))
    expired = client.post(
        "/jobs",
        json={"service": "echo", "input": {"n": 1}, "start_within_s": 0.2, "webhook": receiver.url("/all")},
    ).json()
    assert client.delete(f"/jobs/{cancelled['id']}").status_code == 202
    got = receiver.await_at("/all", 4)
    events = {request.event["data"]["id"]: request for request in got}
    (secret,) = secrets(hooked)
    for job, status in ((succeeded, "succeeded"), (failed, "failed"), (cancelled, "cancelled"), (expired, "expired")):
        request = events[job["id"]]
        event: Any = Webhook(secret).verify(request.body, request.headers)
        told = client.get(f"/jobs/{job['id']}").json()
        assert told["status"] == status
        assert event == {"type": f"job.{status}", "timestamp": told["finished_at"], "data": told}
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(got[0].body + b" ", got[0].headers)
    finished(client, unwanted["id"])
    assert len(receiver.got) == 4 and len({request.headers["webhook-id"] for request in got}) == 4
    assert not deliveries(client, unwanted)


def test_a_receiver_that_fails_is_tried_again_and_one_that_is_gone_is_not(
    client: httpx.Client, receiver: Receiver
) -> None:
    flaky = submit(client, receiver.on("/flaky", lambda count: (500 if count < 3 else 204, {})))
    moved = submit(client, receiver.on("/moved", lambda count: (302 if count < 1 else 200, {"Location": "/other"})))
    polite = submit(client, receiver.on("/polite", lambda count: (429 if count < 1 else 200, {"Retry-After": "2"})))
    gone = submit(client, receiver.on("/gone", lambda _: (410, {})))
    told = settled(client, flaky)
    assert told["status"] == "delivered" and told["type"] == "job.succeeded"
    assert [attempt["status_code"] for attempt in told["attempts"]] == [500, 500, 500, 204]
    assert [attempt["error"] for attempt in told["attempts"]] == ["HTTP 500"] * 3 + [None]
    assert all(attempt["duration_ms"] > 0 and attempt["ended_at"] for attempt in told["attempts"])
    got = receiver.at("/flaky")
    assert len({request.headers["webhook-id"] for request in got}) == len({request.body for request in got}) == 1
    assert (settled(client, moved)["status"], receiver.at("/other")) == ("delivered", [])
    first, second = settled(client, polite)["attempts"]
    assert second["ended_at"] > first["ended_at"] and receiver.at("/polite")
    waited = int(receiver.at("/polite")[1].headers["webhook-timestamp"]) - int(
        receiver.at("/polite")[0].headers["webhook-timestamp"]
    )
    assert waited >= 1
    told = settled(client, gone)
    assert (told["status"], len(told["attempts"]), len(receiver.at("/gone"))) == ("failed", 1, 1)

    again = client.post(f"{gone['links']['deliveries']}/{told['id']}/retry")
    assert again.status_code == 202, again.text
    assert again.json()["id"] != told["id"] and again.json()["webhook_id"] == told["webhook_id"]
    receiver.await_at("/gone", 2)
    assert len({request.headers["webhook-id"] for request in receiver.at("/gone")}) == 1
    assert len(deliveries(client, gone)) == 2
    none = client.post(f"{gone['links']['deliveries']}/none/retry")
    assert (none.status_code, none.json()["code"]) == (404, "delivery_not_found")
    assert client.get(f"/jobs/{told['id']}").status_code == 404, "a delivery is no job of a client's"


def test_a_hanging_receiver_and_one_that_is_away_hold_up_nobody(client: httpx.Client, receiver: Receiver) -> None:
    away = Receiver()
    hanging = Receiver().start()
    try:
        late = [submit(client, away.url("/late")) for _ in range(20)]
        for _ in range(100):
            submit(client, hanging.hang("/hang"))
        poll(lambda: hanging.begun, what="the first ones hang")
        durations = []
        for _ in range(5):
            begun = time.monotonic()
            job = submit(client, receiver.url("/well"))
            poll(lambda job=job: job["id"] in [r.event["data"]["id"] for r in receiver.at("/well")], 10)
            durations.append(time.monotonic() - begun)
        assert min(durations) < 1, "far less than the time for which a receiver may hang"
        away.start()
        assert {request.event["data"]["id"] for request in away.await_at("/late", 20, 40)} == {j["id"] for j in late}
        errors = {attempt["error"] for attempt in settled(client, late[0])["attempts"]}
        assert None in errors and any("Cannot connect" in str(error) for error in errors)
    finally:
        away.stop()
        hanging.stop()


def test_nothing_is_lost_with_a_killed_sender(hooked: System, client: httpx.Client, receiver: Receiver) -> None:
    def slow(_: int) -> tuple[int, dict[str, str]]:
        time.sleep(0.3)
        return 200, {}

    jobs = [submit(client, receiver.on("/slow", slow)) for _ in range(60)]
    receiver.await_at("/slow", 5)
    worker = hooked.processes[-1]
    assert worker.stop(signal.SIGKILL) == -signal.SIGKILL
    before = len(receiver.at("/slow"))
    assert before < 60
    unsent = submit(client, receiver.url("/slow"))
    finished(client, unsent["id"])
    hooked.start_worker("webhooks")
    wanted = {job["id"] for job in [*jobs, unsent]}
    poll(lambda: {r.event["data"]["id"] for r in receiver.at("/slow")} == wanted, 40, "all have arrived")
    ids = {(r.event["data"]["id"], r.headers["webhook-id"]) for r in receiver.at("/slow")}
    assert len(ids) == 61, "what is sent twice has the same id"
    assert all(settled(client, job)["status"] == "delivered" for job in jobs)
    assert not hooked.redis.client.xlen("{echo}:outbox")
    worker = hooked.processes[-1]
    submit(client, receiver.url("/slow"))
    assert worker.stop() == 0, worker.output
    hooked.start_worker("webhooks")


def test_a_batch_tells_of_its_end_once(client: httpx.Client, receiver: Receiver) -> None:
    rows = [{"n": n} for n in range(200)]
    body = {"service": "echo", "inputs": rows, "webhook": {"url": receiver.url("/batch"), "events": ["batch.finished"]}}
    batch = client.post("/batches", json=body).raise_for_status().json()
    lines = "\n".join(map(json.dumps, rows)).encode()
    query = {"service": "echo", "webhook": receiver.url("/lines")}
    headers = {"Content-Type": "application/x-ndjson"}
    other = client.post("/batches", params=query, content=lines, headers=headers).raise_for_status().json()
    for path, sent in (("/batch", batch), ("/lines", other)):
        (request,) = receiver.await_at(path)
        assert request.event["type"] == "batch.finished"
        assert request.event["data"] == client.get(sent["links"]["self"]).json()
        assert request.event["data"]["counts"]["succeeded"] == 200
        assert settled(client, sent)["status"] == "delivered"
    told = deliveries(client, batch)[0]
    assert client.post(f"{batch['links']['deliveries']}/{told['id']}/retry").status_code == 202
    receiver.await_at("/batch", 2)


def test_a_batch_with_repeated_rows_sends_one_event_for_each_end(client: httpx.Client, receiver: Receiver) -> None:
    rows = [{"n": n, "do": "raise" if n == 5 else ""} for n in range(200)]
    body = {"service": "echo", "inputs": rows, "webhook": receiver.url("/again")}
    batch = client.post("/batches", json=body).raise_for_status().json()
    (first,) = receiver.await_at("/again")
    client.post(batch["links"]["retry"]).raise_for_status()
    second = receiver.await_at("/again", 2)[1]
    assert second.headers["webhook-id"] != first.headers["webhook-id"]
    assert first.event["data"]["finished_at"] < second.event["data"]["finished_at"]
    assert second.event["data"]["counts"] == first.event["data"]["counts"]
    assert len(deliveries(client, batch)) == len(receiver.at("/again")) == 2


def test_a_job_that_is_run_again_tells_of_each_end(client: httpx.Client, receiver: Receiver) -> None:
    job = submit(client, receiver.url("/ends"), do="raise")
    receiver.await_at("/ends")
    assert client.post(f"/jobs/{job['id']}/retry").status_code == 202
    first, second = receiver.await_at("/ends", 2)
    assert first.headers["webhook-id"] != second.headers["webhook-id"]
    assert (first.event["data"]["attempt"], second.event["data"]["attempt"]) == (1, 2)


def test_both_secrets_sign_after_a_rotation(hooked: System, client: httpx.Client, receiver: Receiver) -> None:
    (old,) = secrets(hooked)
    new, second = secrets(hooked, "rotate")
    assert (second, len({old, new})) == (old, 2)

    def arrives_with_both() -> Any:
        job = submit(client, receiver.url("/rotated"))
        settled(client, job)
        request = receiver.at("/rotated")[-1]
        return request if " " in request.headers["webhook-signature"] else None

    request = poll(arrives_with_both, 20, "the new secret is known")
    for secret in (old, new):
        Webhook(secret).verify(request.body, request.headers)


def test_celery_shows_deliveries_as_tasks(hooked: System, client: httpx.Client, receiver: Receiver) -> None:
    submit(client, receiver.hang("/shown"))
    code = """
from worker.celery import app
told = []
while not told:
    found = app.control.inspect(timeout=3)
    active = found.active() or {}
    told = [task["name"] for tasks in active.values() for task in tasks]
    queues = [q["name"] for tasks in (found.active_queues() or {}).values() for q in tasks]
print(told[0], "webhooks" in queues)
"""
    sent = hooked.start("tests.kit.run_code", code)
    assert sent.wait(60) == 0
    assert sent.output == "webhooks.deliver True\n"


def test_the_documents_receiver_works(hooked: System, client: httpx.Client) -> None:
    (code,) = re.findall(r"```python\n(# receiver\.py.*?)```", (ROOT / "docs" / "webhooks.md").read_text(), re.S)
    port, (secret, *_) = free_port(), secrets(hooked)
    process = hooked.start("tests.kit.run_code", code, WEBHOOK_SECRET=secret, RECEIVER_PORT=str(port))
    job = submit(client, f"http://127.0.0.1:{port}/")
    poll(lambda: f"job.succeeded {job['id']}" in process.output, what="the receiver has printed it")
    told = settled(client, job)
    assert told["status"] == "delivered"
    assert client.post(f"{job['links']['deliveries']}/{told['id']}/retry").status_code == 202
    assert settled(client, job)["attempts"][0]["status_code"] == 204
    assert process.output.count(job["id"]) == 1, "it knows what it has had"
    forged = httpx.post(f"http://127.0.0.1:{port}/", content=b"{}", headers={"webhook-id": "x"}, trust_env=False)
    assert forged.status_code == 401


@pytest.mark.parametrize(
    ("webhook", "says"),
    [
        ("http://127.0.0.1/x", "127.0.0.1 is not a public address, so it is refused unless SERVICES_WEBHOOK_ALLOWED"),
        ("https://localhost/", "not a public address"),
        ("https://[::1]/", "not a public address"),
        ("https://2130706433/", "its address is not a public address"),
        ("https://169.254.169.254/latest", "169.254.169.254 is not"),
        ("http://1.1.1.1/", "expected https"),
        ("https://1.1.1.1:22/", "port 22"),
        ("https://me:secret@1.1.1.1/", "without user and password"),
        ("ftp://1.1.1.1/", "expected https://"),
        ("https:///x", "expected https://"),
        ("https://1.1.1.1/#f", "fragment"),
        ({"url": "https://1.1.1.1/", "events": ["job.done"]}, "job.succeeded"),
        ({"url": "https://1.1.1.1/", "events": []}, "at least 1"),
        ({"url": "https://1.1.1.1/", "secret": "x"}, "secret"),
        (7, "webhook"),
    ],
)
def test_an_impossible_webhook_is_refused(serving: System, webhook: Any, says: str) -> None:
    with serving.client() as client:
        answer = client.post("/jobs", json={"service": "echo", "input": {"n": 1}, "webhook": webhook})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input"), answer.text
        assert says in json.dumps(answer.json()["errors"]) and answer.json()["errors"][0]["loc"][:2] == [
            "body",
            "webhook",
        ]


def test_the_address_is_checked_again_as_the_connection_is_made(system: System, receiver: Receiver) -> None:
    """A name may mean another address by then; here, the rules do, which are looked at in the same place."""
    system.start_api(**ALLOWED)
    system.start_worker("echo")
    system.start_worker("webhooks", SERVICES_WEBHOOK_BACKOFF_S="0.1", SERVICES_WEBHOOK_GIVE_UP_S="1")
    with system.client() as client:
        job = submit(client, receiver.url("/secret").replace("127.0.0.1", "localhost"))
        told = settled(client, job)
    assert told["status"] == "failed" and len(told["attempts"]) > 1
    assert "is not a public address" in told["attempts"][-1]["error"]
    assert not receiver.begun


def test_a_worker_of_webhooks_has_no_other_queue(system: System) -> None:
    refused = system.start_worker("echo,webhooks", wait=False)
    assert refused.wait() == 2
    assert "celery -A worker worker -Q webhooks" in refused.output
    wrong = system.start_worker("webhooks", wait=False, SERVICES_WEBHOOK_SECRETS="whsec_c2hvcnQ=")
    assert wrong.wait() == 2
    assert "SERVICES_WEBHOOK_SECRETS" in wrong.output and "c2hvcnQ" not in wrong.output
    key = base64.b64encode(os.urandom(24)).decode()
    assert secrets_with(system, f"whsec_{key}") == [f"whsec_{key}"]


def secrets_with(system: System, configured: str) -> list[str]:
    system.env["SERVICES_WEBHOOK_SECRETS"] = configured
    return secrets(system)
