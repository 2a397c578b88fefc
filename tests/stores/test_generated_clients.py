"""Clients that others' generators write from ``/openapi.json``."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.kit.system import System

#: No formatting afterwards; JSON lines and files as bytes, as docs/client.md has it.
CONFIG = """
post_hooks: []
content_type_overrides: {application/x-ndjson: application/octet-stream, "*/*": application/octet-stream}
"""

#: The releases that docs/client.md names.
PACKAGE = {
    "private": True,
    "type": "module",
    "dependencies": {"openapi-fetch": "0.17.0", "openapi-typescript": "7.13.0", "typescript": "5.9.3"},
}
#: What npm says where no registry can be reached.
NO_REGISTRY = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH")
TYPESCRIPT = """
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { argv: string[] };
const client = createClient<paths>({ baseUrl: process.argv[2] });

const input: components["schemas"]["echo.Input"] = { n: 5 };
const made = await client.POST("/jobs", {
  params: { query: { wait: 20 } },
  body: { service: "echo", input, priority: "high" },
});
const job = made.data!;
const again = await client.GET("/jobs/{job_id}", { params: { path: { job_id: job.id } } });
const refused = await client.POST("/jobs/{job_id}/retry", { params: { path: { job_id: job.id } } });
const batch = (await client.POST("/batches", { body: { service: "echo", inputs: [{ n: 1 }, { n: 2 }] } })).data!;
const lines = await client.GET("/batches/{batch_id}/results", {
  params: { path: { batch_id: batch.id } },
  parseAs: "text",
});
console.log(JSON.stringify([job.status, job.output, again.data!.id === job.id, refused.error!.code, lines.data]));
"""


@pytest.fixture
def generated(serving: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package that openapi-python-client writes."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--url", f"{serving.url}/openapi.json"]
    command += ["--meta", "none", "--output-path", "made_client", "--config", "config.yaml", "--fail-on-warning"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("made_client")


def test_a_client_by_openapi_python_client_works(serving: System, generated: ModuleType) -> None:
    def operation(name: str) -> Any:
        return importlib.import_module(f"made_client.api.{name}")

    models: Any = importlib.import_module("made_client.models")
    with generated.Client(serving.url, raise_on_unexpected_status=True) as client:
        wanted = models.EchoJobRequest(service="echo", input_=models.EchoInput(n=5))
        wanted.priority = models.EchoJobRequestPriority.HIGH
        job = operation("jobs.create_job").sync(client=client, body=wanted, wait=20)
        assert isinstance(job, models.Job) and job.status == "succeeded" and job.priority == "high"
        assert job.output.to_dict() == {"n": 5, "batch": 1} and job.timings.total_ms > 0
        again = operation("jobs.get_job").sync(job.id, client=client, include=models.GetJobInclude.ATTEMPTS)
        assert again.id == job.id and again.attempts[0].outcome == "succeeded"
        page = operation("jobs.list_jobs").sync(client=client, service="echo", limit=1)
        assert [found.id for found in page.jobs] == [job.id]

        refused = operation("jobs.retry_job").sync(job.id, client=client)
        assert isinstance(refused, models.Problem) and (refused.status, refused.code) == (409, "job_not_retryable")
        lost = operation("jobs.get_job").sync_detailed("7", client=client)
        assert lost.status_code == 404 and lost.parsed.code == "job_not_found"

        asked = models.BatchRequest(service=models.BatchRequestService.ECHO, inputs=[{"n": 1}, {"n": 2}])
        batch = operation("batches.create_batch").sync(client=client, body=asked)
        assert batch.total == 2
        lines = operation("batches.get_results").sync(batch.id, client=client)
        assert lines.count(b'"output"') == 2
        echo = operation("services.get_service").sync("echo", client=client)
        assert echo.state == "ready" and echo.workers == 1
        assert operation("health.ready").sync(client=client).status == "ready"


@pytest.mark.timeout(180)
@pytest.mark.needs("npm")
def test_a_client_by_openapi_typescript_works(serving: System, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text(json.dumps(PACKAGE))
    installed = run_in(tmp_path, "npm", "install", "--no-audit", "--no-fund")
    if any(reason in installed.stderr for reason in NO_REGISTRY):
        pytest.skip("no npm registry can be reached")
    assert installed.returncode == 0, installed.stderr
    made = run_in(tmp_path, "npx", "openapi-typescript", f"{serving.url}/openapi.json", "-o", "schema.d.ts")
    assert made.returncode == 0, made.stdout + made.stderr

    # given a program that uses the types, it compiles and runs
    check = ("npx", "tsc", "--strict", "--target", "es2022", "--module", "nodenext")
    (tmp_path / "program.ts").write_text(TYPESCRIPT)
    compiled = run_in(tmp_path, *check, "program.ts")
    assert compiled.returncode == 0, compiled.stdout
    ran = run_in(tmp_path, "node", "program.js", serving.url)
    assert ran.returncode == 0, ran.stderr
    status, output, is_same, refused, lines = json.loads(ran.stdout)
    assert (status, output, is_same, refused) == ("succeeded", {"n": 5, "batch": 1}, True, "job_not_retryable")
    assert lines.count('"output"') == 2

    # and those with a wrong type do not
    wrong = {"{ n: 5 }": '{ n: "5" }', '"high"': '"highest"', 'service: "echo", input': "input"}
    names = [f"wrong{i}.ts" for i in range(len(wrong))]
    for name, (right, other) in zip(names, wrong.items(), strict=True):
        assert right in TYPESCRIPT
        (tmp_path / name).write_text(TYPESCRIPT.replace(right, other, 1))
    compiled = run_in(tmp_path, *check, "--noEmit", *names)
    assert all(f"{name}(" in compiled.stdout for name in names), compiled.stdout


def run_in(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
