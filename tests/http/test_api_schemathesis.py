"""Schemathesis on the whole OpenAPI document: no 500, and no answer that the document does not have."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kit.services import TALKING, TALKING_SCHEMA, write_echo
from tests.kit.system import ROOT, System, finished, listen_to, poll, running_system, write_plugin
from worker.ledger.api_keys import Key, Keys
from worker.settings import Settings

EVENTS = ("/jobs/{job_id}/events", "/batches/{batch_id}/events")
RESULTS = "/batches/{batch_id}/results"
NO_QUERY = {"wait": "1"}  #: which a stream does not take
#: Each run takes most of a minute. CI makes both.
WITH_KEY = [True, False] if os.environ.get("CI") else [True]

#: How to change a generated request: its id, headers and query.
Asked = dict[str, Any]
AS_GENERATED: Asked = {}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("with_key", WITH_KEY)
def test_no_500_and_no_undocumented_answer(tmp_path: Path, with_key: bool) -> None:
    # given services whose schemas work: a broken one answers 503, as documented, which schemathesis takes for a bug
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "heavy_model_library.py").write_text("")
    write_echo(folder)
    write_echo(folder, "small", "max_queue_size = 2")
    write_plugin(folder, "talking", TALKING_SCHEMA, TALKING)
    with running_system(tmp_path, folder) as system:
        options, headers = ["--max-examples", "25"], {}
        if with_key:
            keys = Keys(Settings(redis_url=system.redis.url))
            limited = Key(id="", name="schemathesis", services=("echo", "talking"), concurrency=20)
            headers = {"Authorization": f"Bearer {keys.create(limited)[0]}"}
            options = ["--max-examples", "12", "--header", f"Authorization: {headers['Authorization']}"]
            keys.redis.close()
        # A short limit, since it asks for waits of any length on jobs that no worker takes.
        system.start_api(SERVICES_MAX_WAIT_S="0.02")
        streams = make_streams(system, headers)
        run_schemathesis(system, streams, *options)

        # then each stream was asked for with ids that exist, did and never did, with good and bad headers and queries
        answers = count_answers(system, headers)
        for path in EVENTS:
            assert {"200", "204", "404", "410", "422"} <= answers[path], answers
        assert {"200", "404", "410", "422"} <= answers[RESULTS], answers


def make_streams(system: System, headers: dict[str, str]) -> dict[str, list[Asked]]:
    """What ``before_call`` asks streams for: jobs and batches that were dropped, never were, or ended in all ways."""
    worker = system.start_worker("talking")
    with system.client() as client:
        client.headers.update(headers)
        talking = [make_job(client, {"steps": 3, "do": do}) for do in ("yield", "talk", "beyond")]
        batch = make_batch(client, [{"steps": 1}, {"steps": "no number"}])
        for job_id in talking:
            finished(client, job_id)
        poll(lambda: client.get(f"/batches/{batch}").json()["finished_at"], what="the batch ends")
        assert worker.stop() == 0

        late, cancelled = make_job(client, {}, start_within_s=0.01), make_job(client, {})
        client.delete(f"/jobs/{cancelled}").raise_for_status()
        assert finished(client, late)["status"] == "expired"
        gone, gone_batch = make_job(client, {}, keep_for_s=0.01), make_batch(client, [{}], keep_for_s=0.01)
        client.delete(f"/jobs/{gone}").raise_for_status()
        client.delete(f"/batches/{gone_batch}").raise_for_status()
        poll(lambda: client.get(f"/jobs/{gone}").status_code == 410, what="the job is dropped")
        poll(lambda: client.get(f"/batches/{gone_batch}").status_code == 410, what="the batch is dropped")

        of_jobs = ask_for(client, "/jobs", *talking, late, cancelled)
        of_batch = ask_for(client, "/batches", batch)
    never = [{"id": str(uuid.uuid4())}, AS_GENERATED]
    return {
        EVENTS[0]: [{"id": gone}, *never, *of_jobs],
        EVENTS[1]: [{"id": gone_batch}, *never, *of_batch],
        RESULTS: [{"id": gone_batch}, *never, {"id": batch}, {"id": batch, "query": NO_QUERY}],
    }


def make_job(client: httpx.Client, input: Any, **asked: Any) -> str:
    answer = client.post("/jobs", json={"service": "talking", "input": input, **asked})
    return str(answer.raise_for_status().json()["id"])


def make_batch(client: httpx.Client, inputs: Any, **asked: Any) -> str:
    answer = client.post("/batches", json={"service": "talking", "inputs": inputs, **asked})
    return str(answer.raise_for_status().json()["id"])


def ask_for(client: httpx.Client, kind: str, *ids: str) -> list[Asked]:
    """The whole streams; of the first, what follows its last event, no event of it and an earlier one; with a query."""
    events = [event for _, _, event in listen_to(client, f"{kind}/{ids[0]}/events")]
    after = ("", events[-1], "1/x", events[len(events) // 2])
    first = [{"id": ids[0], "headers": {"Last-Event-ID": event}} for event in after]
    whole = [{"id": id, "headers": {"Last-Event-ID": ""}} for id in ids[1:]]
    return [*first, {"id": ids[0], "query": NO_QUERY}, *whole]


def count_answers(system: System, headers: dict[str, str]) -> dict[str, set[str]]:
    """The statuses that each route has answered a GET with."""
    found: dict[str, set[str]] = {}
    answer = httpx.get(f"{system.url}/metrics", headers=headers, trust_env=False).raise_for_status()
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if sample.name == "services_api_requests_total" and sample.labels["method"] == "GET":
                found.setdefault(sample.labels["route"], set()).add(sample.labels["status"])
    return found


def run_schemathesis(system: System, streams: dict[str, list[Asked]], *options: str) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{system.url}/openapi.json", "--seed", "7"]
    command += [*options, "--phases", "examples,coverage,fuzzing", "--generation-deterministic"]
    checks = "no_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command += ["--checks", checks, "--suppress-health-check", "all", "--request-timeout", "30"]
    env = {
        **os.environ,
        "NO_COLOR": "1",
        "SCHEMATHESIS_HOOKS": "tests.kit.hooks_of_schemathesis",
        "PYTHONPATH": str(ROOT),
    }
    env["SCHEMATHESIS_STREAMS"] = json.dumps(streams)
    done = subprocess.run(command, capture_output=True, text=True, cwd=system.folder, env=env, check=False)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report[-6000:]
    assert re.search(r"[1-9]\d* generated|[1-9]\d+ passed", report), report[-2000:]
