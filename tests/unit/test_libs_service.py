"""The package that others import: light, complete, and its names mean our packages whatever lies in the folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import libs_service
import libs_service_client
import pytest
from celery import Celery
from celery.app.utils import find_app
from fastapi import FastAPI
from libs_service import names
from libs_service_client import states

import api.client
from tests.kit.system import ROOT
from worker.ledger import jobs
from worker.processes import procfile


def python(code: str, folder: Path) -> str:
    """What Python prints in a folder, which it searches first."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout


def test_importing_it_imports_nothing_and_a_plugin_no_server(tmp_path: Path) -> None:
    heavy = "print(sorted({m.partition('.')[0] for m in sys.modules} & {'pydantic', 'httpx', 'celery', 'fastapi'}))"
    assert python(f"import sys, libs_service; {heavy}", tmp_path) == "[]\n"
    assert python(f"import sys; from libs_service import Service, File; {heavy}", tmp_path) == "['pydantic']\n"
    assert python(f"import sys; from libs_service import Client; {heavy}", tmp_path) == "['httpx', 'pydantic']\n"


def test_it_has_all_of_the_client_and_the_older_names_are_the_same() -> None:
    assert sorted(libs_service_client.__all__) == sorted(libs_service._OF_THE_CLIENT)
    for name in libs_service_client.__all__:
        found = getattr(libs_service_client, name)
        assert getattr(libs_service, name) is getattr(api.client, name) is found
    assert sys.modules["api.client.errors"] is sys.modules["libs_service_client.errors"]
    from worker.service import Service

    assert libs_service.Service is Service
    assert {"Service", "Client", "app"} <= set(dir(libs_service))
    with pytest.raises(AttributeError, match="no attribute 'client'"):
        _ = libs_service.client


def test_the_client_knows_the_servers_states() -> None:
    assert list(map(str, states.Status)) == list(map(str, jobs.Status))
    assert sorted(map(str, states.TERMINAL)) == sorted(map(str, jobs.TERMINAL))
    assert list(map(str, states.Priority)) == list(map(str, jobs.Priority))


def test_uvicorn_finds_the_api_and_celery_the_celery_app() -> None:
    assert isinstance(libs_service.app, FastAPI)
    found = find_app("libs_service")
    assert isinstance(found, Celery)
    assert find_app("worker") is found is find_app("libs_service.celery:app")


@pytest.mark.parametrize("module", ["worker.py", "worker/__init__.py", "api.py", "api/__init__.py"])
def test_a_package_of_the_teams_hides_none_of_ours(tmp_path: Path, module: str) -> None:
    (tmp_path / module).parent.mkdir(exist_ok=True)
    (tmp_path / module).write_text("raise RuntimeError('the team\\'s')")
    (tmp_path / "pydantic.py").write_text("raise RuntimeError('found in the current folder')")
    (tmp_path / "words.py").write_text("WORDS = 7")
    code = "from libs_service import Service, app; import words; "
    shown = "print(Service.__module__, type(app).__module__, words.WORDS)"
    assert python(code + shown, tmp_path) == "worker.service api.jobs.fast_path 7\n"


def test_the_current_folder_is_searched_first_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "/a", str(Path.cwd()), "/b"])
    with names.ours_first():
        assert sys.path == ["/a", "/b", "", str(Path.cwd())]
        sys.path.append("/added")
    assert sys.path == ["", "/a", str(Path.cwd()), "/b", "/added"]


def test_a_procfile_for_other_programs_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "repository" / "below"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert (procfile.read_procfile(), procfile.find_checkout(), procfile.say_others()) == (procfile.DEFAULT, folder, "")
    (folder / "Procfile").write_text("web: gunicorn api:app\nworker: celery -A worker worker\n")
    assert (procfile.read_procfile(), procfile.find_checkout()) == (procfile.DEFAULT, folder)
    assert f"{folder / 'Procfile'} starts nothing of libs-service" in procfile.say_others()
    ours = (ROOT / "Procfile").read_text()
    (folder.parent / "Procfile").write_text(ours)
    assert (procfile.read_procfile(), procfile.find_checkout(), procfile.say_others()) == (ours, folder.parent, "")
    lines = {line.partition(":")[0] for line in ours.splitlines()}
    assert {line.partition(":")[0] for line in procfile.DEFAULT.splitlines()} == lines
