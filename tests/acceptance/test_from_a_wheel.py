"""From the wheels, in a folder that is no checkout: any Celery and FastAPI user's commands."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from antifraud.service import Antifraud

from tests.kit.commands import run
from tests.kit.elsewhere import Elsewhere
from tests.kit.system import RedisServer, finished
from worker.testing import run_inline

pytestmark = pytest.mark.timeout(600)  # the first one installs all

#: User agents of many kinds, so that answers differ from job to job.
AGENTS = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 "
    "Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "python-requests/2.32",
    "curl/8.9.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0",
    "",
]


def event(number: int) -> dict[str, Any]:
    """A click whose verdict depends on its number."""
    choice = random.Random(number)
    return {
        "kind": choice.choice(["click", "impression"]),
        "time": f"2026-11-23T12:{number // 60 % 60:02}:{number % 60:02}Z",
        "device": {"ua": choice.choice(AGENTS), "ip": f"203.0.113.{number % 256}"},
        "imp": {"tagid": str(number)},
        "activity": {"events_1h": number % 97, "events_24h": 97 + number % 389},
    }


@pytest.fixture
def elsewhere(installed: Path, tmp_path: Path, redis_server: RedisServer) -> Iterator[Elsewhere]:
    made = Elsewhere(installed, tmp_path, redis_server)
    yield made
    made.stop()


def test_a_job_is_the_same_by_http_and_by_celery(elsewhere: Elsewhere) -> None:
    elsewhere.start_worker()
    with elsewhere.start_api() as client:
        given = event(4)
        by_http = client.post("/jobs", json={"service": "antifraud", "input": given}, headers={"Prefer": "wait=30"})
        assert by_http.status_code == 200
        job = by_http.json()
        code = f"""
import json
from worker.celery import app
sent = app.send_task("antifraud.predict", args=[{given!r}], queue="antifraud")
outputs = [sent.get(timeout=30), app.AsyncResult({job["id"]!r}).get(timeout=30)]
print(json.dumps([sent.id, sent.state, *outputs]))
"""
        sent, state, output, again = json.loads(elsewhere.python(code))
        assert state == "SUCCESS"
        assert output == again == job["output"] == finished(client, sent)["output"]
        assert job["output"]["verdict"] in ("valid", "suspicious", "invalid")
        (service,) = client.get("/services").json()["services"]
        assert (service["name"], service["state"], service["workers"]) == ("antifraud", "ready", 1)


def test_2000_jobs_of_64_clients_each_get_their_own_verdict_in_order_of_priority(elsewhere: Elsewhere) -> None:
    model = Antifraud()
    model.load()
    expected = run_inline(model, [event(i) for i in range(2000)])
    priorities = [random.Random(-i).choice(["high", "normal", "low"]) for i in range(2000)]
    with elsewhere.start_api() as client, ThreadPoolExecutor(64) as clients:

        def submit(number: int) -> str:
            body = {"service": "antifraud", "input": event(number), "priority": priorities[number]}
            answer = client.post("/jobs", json=body)
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

        ids = list(clients.map(submit, range(2000)))
        elsewhere.start_worker()
        jobs = list(clients.map(lambda job_id: client.get(f"/jobs/{job_id}", params={"wait": 60}).json(), ids))
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert [job["output"] for job in jobs] == expected
    # Jobs of one batch start in the same moment; a batch may hold two priorities where one of them runs out.
    batches: dict[str, set[str]] = {}
    for job in jobs:
        batches.setdefault(job["started_at"], set()).add(job["priority"])
    order = ["high", "normal", "low"]
    lasts = [max(order.index(priority) for priority in kinds) for _, kinds in sorted(batches.items())]
    assert lasts == sorted(lasts)
    assert sum(len(kinds) > 1 for kinds in batches.values()) <= 2
    sizes = sorted(job["batch_size"] for job in jobs)
    assert sizes[len(sizes) // 2] == Antifraud.max_batch_size


def test_the_commands_name_the_fault(elsewhere: Elsewhere) -> None:
    assert "antifraud" in run(elsewhere.bin / "services", "list", cwd=elsewhere.folder)
    for arguments, said in (
        (["-A", "worker", "worker"], "name the services to run"),
        (["-A", "worker", "worker", "-Q", "antifruad"], "no installed plugin is named 'antifruad'"),
    ):
        process = elsewhere.start("celery", *arguments)
        assert process.wait(30) == 2
        assert said in process.output
        assert "installed services: antifraud" in process.output
        assert "Traceback" not in process.output
        elsewhere.processes.remove(process)
