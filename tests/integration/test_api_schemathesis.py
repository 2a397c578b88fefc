"""Schemathesis on the whole OpenAPI document: no 500, and no answer that the document does not have."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import write_echo
from tests.support import ROOT, System, running_system
from worker.keys import Key, Keys
from worker.settings import Settings


@pytest.mark.timeout(180)
@pytest.mark.parametrize("with_key", [False, True])
def test_no_500_and_no_undocumented_answer(tmp_path: Path, with_key: bool) -> None:
    # given services whose schemas work: a broken one answers 503, as documented, which schemathesis takes for a bug
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "heavy_model_library.py").write_text("")
    write_echo(folder)
    write_echo(folder, "small", "max_queue_size = 2")
    with running_system(tmp_path, folder) as system:
        # A short limit, since it asks for waits of any length on jobs that no worker takes.
        system.start_api(SERVICES_MAX_WAIT_S="0.02")
        options = ["--max-examples", "25"]
        if with_key:
            keys = Keys(Settings(redis_url=system.redis.url))
            limited = Key(id="", name="schemathesis", services=("echo",), rate=50, burst=50, concurrency=20)
            options = ["--max-examples", "8", "--header", f"Authorization: Bearer {keys.create(limited)[0]}"]
            keys.redis.close()
        run_schemathesis(system, *options)


def run_schemathesis(system: System, *options: str) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{system.url}/openapi.json", "--seed", "7"]
    command += [*options, "--phases", "examples,coverage,fuzzing", "--generation-deterministic"]
    checks = "no_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command += ["--checks", checks, "--suppress-health-check", "all", "--request-timeout", "30"]
    # Results and events are open until their batch or job has ended, which here no worker sees to.
    command += ["--exclude-path", "/batches/{batch_id}/results", "--exclude-path", "/jobs/{job_id}/events"]
    command += ["--exclude-path", "/batches/{batch_id}/events"]
    env = {**os.environ, "NO_COLOR": "1", "SCHEMATHESIS_HOOKS": "tests.hooks_of_schemathesis", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=system.folder, env=env, check=False)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report[-6000:]
    assert re.search(r"[1-9]\d* generated|[1-9]\d+ passed", report), report[-2000:]
