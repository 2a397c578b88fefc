"""Clients that others' generators write from ``/openapi.json``."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support import System

#: No formatting afterwards; JSON lines and files as bytes, as docs/client.md has it.
CONFIG = """
post_hooks: []
content_type_overrides: {application/x-ndjson: application/octet-stream, "*/*": application/octet-stream}
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
