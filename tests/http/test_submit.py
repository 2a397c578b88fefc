"""``services submit``: one job by the command line, on the real stack."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from tests.kit.system import Process, System, free_port, poll, services
from worker.ledger.api_keys import Key, Keys
from worker.local.up import Guide
from worker.settings import Settings


def submit(system: System, *arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return services(system, "submit", *arguments, stdin=stdin, PORT=str(system.port), **env)


def start_submit(system: System, *arguments: str) -> Process:
    # A shell's job in the background has SIGINT ignored, and this suite may be one.
    command = [
        "env",
        "--default-signal=INT",
        sys.executable,
        "-c",
        "from worker.cli.main import main; main()",
        "submit",
        *arguments,
    ]
    process = Process(command, {**system.env, "PORT": str(system.port)}, system.folder / "submit.log", system.folder)
    system.processes.append(process)
    return process


def job_of(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_example_json_a_file_or_stdin_becomes_a_job_and_its_end_is_printed(serving: System) -> None:
    (serving.folder / "input.json").write_text('{"n": 4}')
    job = job_of(submit(serving, "echo"))
    assert (job["status"], job["output"]["n"], job["priority"]) == ("succeeded", 1, "normal")
    assert job_of(submit(serving, "echo", '{"n": 3}', "--priority", "high"))["priority"] == "high"
    assert job_of(submit(serving, "echo", "input.json"))["output"]["n"] == 4
    assert job_of(submit(serving, "echo", "@input.json"))["output"]["n"] == 4
    assert job_of(submit(serving, "echo", "-", "--url", serving.url + "/", stdin='{"n": 5}'))["output"]["n"] == 5
    with serving.client() as client:
        assert client.get(job["links"]["self"]).json() == job


def test_a_job_that_fails_is_printed_and_told_on_one_line(serving: System) -> None:
    done = submit(serving, "echo", '{"n": 1, "do": "raise"}')
    assert (done.returncode, json.loads(done.stdout)["status"]) == (1, "failed")
    assert done.stderr.startswith("Error: predict_failed: ValueError: bad one")
    assert len(done.stderr.splitlines()) == 1


def test_it_waits_as_long_as_it_is_told_to(serving: System) -> None:
    done = submit(serving, "small", "--no-wait")
    job = job_of(done)
    assert job["status"] == "queued"
    done = submit(serving, "small", "--timeout", "0.3")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (1, "queued")
    assert "the job is queued after 0.3 s and goes on: GET http://127.0.0.1" in done.stderr
    assert "The service is no_workers: `services run small` runs it" in done.stderr


def test_make_run_tries_the_first_service_that_has_an_example(
    system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    system.start_api()
    for name in ("no_schema", "echo"):
        system.start_worker(name)

    guide = Guide(["no_schema", "echo"], system.port, flower_port=1)
    ready = guide.wait_for_services()
    guide.send_sample(ready)
    said = capsys.readouterr().out
    assert "A sample job for echo:" in said and "succeeded (job " in said

    guide.send_sample(ready[:1])
    assert capsys.readouterr().out == "no sample job is sent: there is no example of an input of no_schema\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nope"], 2, "no service is named 'nope'; installed services: "),
        (["nope", "1"], 2, "no service is named 'nope'; installed services: "),
        (["echo", '{"n": "x", "do": 3}'], 1, "invalid_input: body.input.n: Input should be a valid integer"),
        (["echo", '{"n": "x", "do": 3}'], 1, "; body.input.do: Input should be a valid string"),
        (["echo", "{"], 1, "the input is not JSON"),
        (["no_schema"], 1, "no_schema has no example; give an input: services submit no_schema JSON (or FILE, or -)"),
        (["echo", "--api-key", "ä"], 1, "must be printable ASCII"),
    ],
)
def test_a_refusal_is_one_line(serving: System, arguments: list[str], code: int, said: str) -> None:
    done = submit(serving, *arguments)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)
    assert said in done.stderr


@pytest.mark.parametrize("arguments", [["--url", "localhost:8000"], ["--timeout", "0"], ["--priority", "urgent"]])
def test_a_command_line_that_cannot_be_is_refused(serving: System, arguments: list[str]) -> None:
    assert submit(serving, "echo", *arguments).returncode == 2


class Stranger(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, format: str, *args: Any) -> None: ...


def test_where_no_api_is_it_says_how_to_start_one(system: System) -> None:
    done = submit(system, "echo")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert f"no API answers at {system.url} (Connection refused): start it with `make run`" in done.stderr
    assert "PORT must be a port" in services(system, "submit", "echo", PORT="x").stderr

    server = HTTPServer(("127.0.0.1", free_port()), Stranger)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        done = submit(system, "echo", "--url", f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert done.returncode == 1 and "answers 404, but not as this API does" in done.stderr


def test_it_sends_an_api_key(system: System) -> None:
    keys = Keys(Settings(redis_url=system.redis.url))
    key, _ = keys.create(Key(id="", name="ann"))
    keys.redis.close()
    system.start_api()
    system.start_worker("echo")
    done = submit(system, "echo")
    assert done.returncode == 1 and "SERVICES_API_KEY, or by --api-key" in done.stderr
    assert job_of(submit(system, "echo", SERVICES_API_KEY=key))["status"] == "succeeded"
    assert job_of(submit(system, "echo", "--api-key", key))["status"] == "succeeded"


def test_it_waits_through_a_restart_of_the_api(system: System) -> None:
    api = system.start_api()
    system.start_worker("echo")
    process = start_submit(system, "echo", '{"n": 7, "sleep_s": 1.5}')
    with system.client() as client:
        poll(lambda: client.get("/jobs?status=running").json()["jobs"], what="the job runs")
    api.stop(signal.SIGKILL)
    assert process.exit_code is None
    system.start_api()
    assert process.wait() == 0
    assert json.loads(process.output)["output"]["n"] == 7


def test_ctrl_c_leaves_the_job_to_itself(system: System) -> None:
    system.start_api()
    process = start_submit(system, "echo")
    with system.client() as client:
        (job,) = poll(lambda: client.get("/jobs").json()["jobs"], what="the job is there")
        held = re.compile(r"^services_api_requests_held\{.*\} 1", re.M)
        poll(lambda: held.search(client.get("/metrics").text), what="it waits for the end")
        assert process.stop(signal.SIGINT) == 128 + signal.SIGINT
        assert process.output.strip() == f"the job goes on: GET {system.url}/jobs/{job['id']}"
        assert client.get(f"/jobs/{job['id']}").json()["status"] == "queued"
