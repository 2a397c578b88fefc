"""The command ``services`` and what it starts."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.plugins import SCHEMA
from tests.kit.system import ROOT, Process, System, poll, running_system, services, write_plugin
from worker.local.supervisor import LAST_PAUSE_S, Worker
from worker.local.up import Refused, find_ports

SERVICE = """
from worker.service import Service
from twice.schema import Input, Output

class Plugin(Service[Input, Output]):
    def predict(self, item):
        if item.n < 0:
            raise ValueError("no negative numbers")
        return {"n": item.n * 2}
"""


@pytest.fixture
def twice(tmp_path: Path) -> Iterator[System]:
    """An installation with one plugin, which doubles; a folder of its own to be the checkout."""
    folder = tmp_path / "installed"
    folder.mkdir()
    write_plugin(folder, "twice", SCHEMA, SERVICE, init="raise RuntimeError('nobody may import me')\n")
    (folder / "twice" / "__init__.py").write_text("")
    with running_system(tmp_path, folder) as made:
        yield made


def start_services(system: System, *arguments: str, **env: str) -> Process:
    log = system.folder / "services.log"
    command = [sys.executable, "-c", "from worker.cli.main import main; main()", *arguments]
    process = Process(command, {**system.env, "PYTHONUNBUFFERED": "1", **env}, log, system.folder)
    system.processes.append(process)
    return process


def test_help_lists_the_commands_and_the_services_without_importing_one(twice: System) -> None:
    (twice.folder / "installed" / "twice" / "__init__.py").write_text("raise RuntimeError('imported')")
    done = services(twice, "--help")
    assert done.returncode == 0, done.stderr
    for word in ("list", "redis", "run", "new", "check", "predict", "submit", "up", "twice"):
        assert word in done.stdout
    assert "twice" in services(twice, "list").stdout


def test_lists_are_written_as_json_too(twice: System) -> None:
    (listed,) = [one for one in json.loads(services(twice, "list", "--json").stdout) if one["name"] == "twice"]
    assert (listed["version"], listed["target"]) == ("1.0", "twice.service:Plugin")
    services(twice, "keys", "create", "--name", "mine")
    (key,) = json.loads(services(twice, "keys", "list", "--json").stdout)
    assert (key["name"], key["state"], key["scopes"]) == ("mine", "valid", ["submit", "read", "cancel"])


NOISY = """
import os, sys
from worker.service import Service
from noisy.schema import Input, Output
class Plugin(Service[Input, Output]):
    def load(self):
        print("loading")
    def predict(self, item):
        print("predicting")
        os.system("echo from a program")
        return {"n": 1}
"""


def test_the_output_of_a_plugin_does_not_mix_with_that_of_predict_and_check(twice: System, tmp_path: Path) -> None:
    write_plugin(tmp_path / "plugins", "noisy", SCHEMA, NOISY)
    path = f"{tmp_path / 'plugins'}:{twice.env['PYTHONPATH']}"
    told = services(twice, "predict", "noisy", '{"n": 1}', PYTHONPATH=path)
    assert json.loads(told.stdout) == {"n": 1}
    assert all(text in told.stderr for text in ("loading", "predicting", "from a program"))
    assert "predicting" not in services(twice, "check", "noisy", PYTHONPATH=path).stdout


@pytest.mark.parametrize(
    "command", [["run", "nope"], ["check", "nope"], ["predict", "nope"], ["bench", "nope"], ["run", "twice", "nope"]]
)
def test_an_unknown_name_is_refused_with_the_known_ones(twice: System, command: list[str]) -> None:
    done = services(twice, *command)
    assert done.returncode == 2
    assert "'nope'" in done.stderr
    assert "installed services: " in done.stderr
    assert "twice" in done.stderr


def test_predict_runs_the_example_json_a_file_or_stdin(twice: System) -> None:
    (twice.folder / "input.json").write_text('{"n": 4}')
    assert json.loads(services(twice, "predict", "twice").stdout) == {"n": 4}
    assert json.loads(services(twice, "predict", "twice", "input.json").stdout) == {"n": 8}
    assert json.loads(services(twice, "predict", "twice", "@input.json").stdout) == {"n": 8}
    assert json.loads(services(twice, "predict", "twice", '{"n": 6}').stdout) == {"n": 12}
    assert json.loads(services(twice, "predict", "twice", "-", stdin='{"n": 8}').stdout) == {"n": 16}


@pytest.mark.parametrize("given", ["-5", "-0.5"])
def test_an_input_may_be_a_negative_number(twice: System, given: str) -> None:
    done = services(twice, "predict", "twice", given)
    assert done.returncode == 1 and "invalid_input" in done.stderr, done.stderr
    refused = services(twice, "predict", "twice", given, "--unknown")
    assert refused.returncode == 2 and "--unknown" in refused.stderr, refused.stderr


@pytest.mark.parametrize(("given", "said"), [('{"n": "x"}', "n: Input should be"), ("{", "is not JSON")])
def test_predict_names_the_fault_in_one_line(twice: System, given: str, said: str) -> None:
    done = services(twice, "predict", "twice", "-", stdin=given)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("given", ["{", "none.json", "@none.json", "installed"])
def test_an_input_that_cannot_be_read_is_named(twice: System, given: str) -> None:
    done = services(twice, "predict", "twice", given)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert ("is not JSON" if given == "{" else f"cannot read {given.removeprefix('@')}") in done.stderr


def test_an_exception_of_a_plugin_is_shown_with_its_traceback(twice: System) -> None:
    done = services(twice, "predict", "twice", "-", stdin='{"n": -1}')
    assert (done.returncode, done.stdout) == (1, "")
    assert 'twice/service.py", line 8, in predict' in done.stderr
    assert done.stderr.splitlines()[-1] == "Error: predict_failed: ValueError: no negative numbers (in predict)"

    (twice.folder / "installed" / "twice" / "service.py").write_text(SERVICE.replace("item.n < 0", "True"))
    done = services(twice, "check", "twice")
    assert done.returncode == 1
    assert "FAILED  its Input has valid examples: the job of example 0 would fail: predict_failed" in done.stdout
    assert "a full batch" not in done.stdout, "what cannot run cannot agree with anything"
    assert done.stderr.count("ValueError: no negative numbers") == 1

    load = "\n    def load(self):\n        raise OSError('no weights')\n"
    (twice.folder / "installed" / "twice" / "service.py").write_text(SERVICE + load)
    for command in ("predict", "check"):
        done = services(twice, command, "twice")
        assert done.returncode == 1 and "in load" in done.stderr and "OSError: no weights" in done.stderr


def test_check_names_the_remedy_where_there_is_no_schema(twice: System) -> None:
    package = twice.folder / "installed" / "twice"
    (package / "schema.py").rename(package / "shapes.py")
    (package / "service.py").write_text(SERVICE.replace("twice.schema", "twice.shapes"))
    done = services(twice, "check", "twice")
    (failed,) = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert done.returncode == 1 and "put its Input and Output into a schema.py beside twice.service" in failed


def test_check_passes_a_service_that_keeps_the_contract(twice: System) -> None:
    done = services(twice, "check", "twice")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(line.startswith("ok") for line in done.stdout.splitlines())


def test_run_starts_a_killed_worker_again_and_stops_all(twice: System) -> None:
    process = start_services(twice, "run", "twice")
    poll(lambda: process.output.count("service ready") == 1, what="the worker is ready")
    (killed,) = process.children
    os.kill(killed, signal.SIGKILL)
    poll(lambda: "worker twice ended (signal 9); starting it again in 1 s" in process.output)
    poll(lambda: process.output.count("service ready") == 2, what="the worker is ready again")
    (again,) = process.children
    assert process.stop() == 0
    assert not Path(f"/proc/{again}").exists()


def test_workers_end_with_a_killed_supervisor(twice: System) -> None:
    process = start_services(twice, "run", SERVICES="twice")
    poll(lambda: process.output.count("service ready") == 2, what="its worker and that of webhooks are ready")
    workers = process.children
    assert len(workers) == 2
    assert process.stop(signal.SIGKILL) == -signal.SIGKILL
    poll(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), what="no worker is left")


def test_a_death_doubles_the_pause_and_a_plugin_that_cannot_load_waits_longest() -> None:
    worker = Worker("s")
    assert [worker._pause(-9, 0) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert worker._pause(-9, 1000) == 1
    assert worker._pause(1, 0) == LAST_PAUSE_S


@pytest.mark.parametrize("text", ["0", "65536", "-1", "abc", "80 80", "٣"])
def test_a_text_that_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="PORT must be a port"):
        find_ports({"PORT": text})


def test_a_port_in_use_is_refused_by_name() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Refused, match=rf"port {port} \(FLOWER_PORT\) cannot be used"):
            find_ports({"PORT": "18000", "FLOWER_PORT": str(port)})


def test_up_refuses_before_anything_starts(twice: System) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = services(twice, "up", PORT=str(taken.getsockname()[1]))
    assert (done.returncode, done.stdout) == (1, "")
    assert "(PORT) cannot be used" in done.stderr
    done = services(twice, "up", SERVICES="twice,nope", PORT="18001", FLOWER_PORT="18002")
    assert (done.returncode, done.stdout) == (2, "")
    assert "installed services: " in done.stderr


def test_the_procfile_starts_the_api_first() -> None:
    assert (ROOT / "Procfile").read_text().startswith("api: ")
