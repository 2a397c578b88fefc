"""A plugin that is written but not installed, or installed while the API runs: the message says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.system import System, free_port, running_system, services, write_plugin
from tests.kit.wheels import SCHEMA, SERVICE


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("newcomers")
    installed = folder / "installed"
    _install(installed, "early")
    with running_system(folder, installed) as made:
        made.start_api()
        yield made


def _install(folder: Path, name: str) -> None:
    write_plugin(folder, name, SCHEMA, SERVICE.replace("NAME", name).replace("LOAD", "pass"))


def test_the_404_names_the_restart_where_the_plugin_was_installed_since(api: System) -> None:
    with api.client() as client:
        body = {"service": "late", "input": {"n": 1}}
        before = client.post("/jobs", json=body).json()
        assert before["detail"].startswith("no service is named 'late'; installed services: ")
        _install(api.folder / "installed", "late")
        again = "no service is named 'late': its plugin was installed after this API had started: start the API again, "
        again += "and a worker of it (`services run late`); installed services: "
        for answer in (client.post("/jobs", json=body), client.get("/services/late"), client.get("/v2/models/late")):
            assert answer.status_code == 404
            assert again in answer.text
        assert client.get("/services/later").json()["detail"].startswith("no service is named 'later'; installed")
    done = services(api, "submit", "late", PORT=str(api.port))
    assert done.returncode == 2
    assert again in done.stderr


@pytest.mark.parametrize("command", [["check", "foo"], ["run", "foo"], ["predict", "foo"], ["submit", "foo"]])
def test_a_plugin_that_is_written_but_not_installed_says_how_to_install_it(api: System, command: list[str]) -> None:
    plugin = api.folder / "plugins" / "of-foo"
    plugin.mkdir(parents=True, exist_ok=True)
    entry = '[project]\nname = "x"\n[project.entry-points."libs_service.services"]\nfoo = "foo.service:Foo"\n'
    (plugin / "pyproject.toml").write_text(entry)
    done = services(api, *command, PORT=str(api.port))
    assert done.returncode == 2
    assert "it is written but not installed: pip install -e plugins/of-foo" in done.stderr
    assert "installed services: " in done.stderr
    assert json.dumps(done.stdout) == '""'


def test_services_api_refuses_as_uvicorn_by_hand_does(api: System) -> None:
    done = services(api, "api", "--host", "0.0.0.0", "--port", str(free_port()))
    assert done.returncode not in (0, None)
    assert "not started on 0.0.0.0: no API key is configured" in done.stderr
    done = services(api, "api", "--port", "0")
    assert done.returncode == 2
    assert "it must be a port from 1 to 65535, got '0'" in done.stderr


def test_a_file_that_is_no_project_harms_no_message(api: System) -> None:
    for name, text in (("broken", "[project"), ("bare", ""), ("odd", '[project]\nentry-points = "x"\n')):
        (api.folder / "plugins" / name).mkdir(parents=True, exist_ok=True)
        (api.folder / "plugins" / name / "pyproject.toml").write_text(text)
    done = services(api, "check", "nope")
    assert done.returncode == 2
    assert "no installed plugin is named 'nope'; installed services: " in done.stderr
    assert "pip install -e plugins/broken" in services(api, "check", "broken").stderr
