"""Schemathesis on the whole OpenAPI document: no 500, and no answer that the document does not have."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support import System


@pytest.mark.timeout(180)
def test_no_500_and_no_undocumented_answer(system: System) -> None:
    # A short limit, since it asks for waits of any length on jobs that no worker takes.
    system.start_api(SERVICES_MAX_WAIT_S="0.02")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{system.url}/openapi.json", "--seed", "7"]
    command += ["--max-examples", "25", "--phases", "examples,coverage,fuzzing", "--generation-deterministic"]
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command += ["--checks", checks, "--suppress-health-check", "all", "--request-timeout", "30"]
    env = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=system.folder, env=env, check=False)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report[-6000:]
    assert re.search(r"[1-9]\d* generated|[1-9]\d+ passed", report), report[-2000:]
