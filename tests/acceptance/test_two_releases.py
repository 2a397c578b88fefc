"""Two releases of one minor version side by side, each from its wheel: the API of one, a worker of the other."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.commands import run
from tests.kit.services import SCHEMA
from tests.kit.system import ROOT, System, finished, poll, running_system, write_plugin

PLUGIN = """
from worker.service import Service
from quick.schema import Input, Output

class Plugin(Service[Input, Output]):
    def predict(self, item):
        if item.do == "raise":
            raise ValueError("bad one")
        return {"n": item.n, "batch": 1}
"""

#: What a wheel is made of.
SOURCES = ("worker", "api", "libs_service", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """This tree as two patch releases: each one's wheel, unpacked where Python finds it and its metadata."""
    found: dict[str, Path] = {}
    text = (ROOT / "pyproject.toml").read_text()
    minor = re.search(r'^version = "(\d+\.\d+)\.', text, re.M)
    assert minor
    for patch in ("90", "91"):
        version = f"{minor[1]}.{patch}"
        source = tmp_path_factory.mktemp(f"source-{patch}")
        for name in SOURCES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, source / name)
        changed = re.sub(r'^version = ".*"$', f'version = "{version}"', text, flags=re.M)
        (source / "pyproject.toml").write_text(changed)
        pip = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
        run(sys.executable, *pip, "--wheel-dir", source / "dist", source, cwd=source)
        (wheel,) = (source / "dist").glob("*.whl")
        found[version] = tmp_path_factory.mktemp(f"release-{patch}")
        with zipfile.ZipFile(wheel) as file:
            file.extractall(found[version])
    return found


@pytest.fixture(params=["the API is newer", "the worker is newer"])
def mixed(
    request: pytest.FixtureRequest, tmp_path: Path, releases: dict[str, Path]
) -> Iterator[tuple[System, str, str]]:
    """The system, its API's and its worker's version."""
    older, newer = sorted(releases)
    api, worker = (newer, older) if request.param == "the API is newer" else (older, newer)
    plugins = write_plugin(tmp_path / "plugins", "quick", SCHEMA, PLUGIN)
    with running_system(tmp_path, plugins) as system:
        for version, start in ((worker, lambda: system.start_worker("quick")), (api, system.start_api)):
            system.env["PYTHONPATH"] = os.pathsep.join([str(plugins), str(releases[version])])
            start()
        yield system, api, worker


def test_jobs_and_a_batch(mixed: tuple[System, str, str]) -> None:
    system, api, worker = mixed
    with system.client() as client:
        assert client.get("/openapi.json").json()["info"]["version"] == api

        def versions() -> object:
            return client.get("/services/quick").json()["worker_versions"]

        expected = [{"version": "1.0", "libs_service": worker, "workers": 1}]
        poll(lambda: versions() == expected, what="the worker has told its versions")
        for do, status in (("", "succeeded"), ("raise", "failed")):
            body = {"service": "quick", "input": {"n": 1, "do": do}}
            job = finished(client, client.post("/jobs", json=body).raise_for_status().json()["id"])
            assert job["status"] == status, job
        rows = [{"n": n} for n in range(300)]
        batch = client.post("/batches", json={"service": "quick", "inputs": rows}).raise_for_status().json()["id"]
        poll(lambda: client.get(f"/batches/{batch}").json()["finished_at"], 60, "the batch ends")
        lines = client.get(f"/batches/{batch}/results").text.splitlines()
        assert [json.loads(line)["output"]["n"] for line in lines] == list(range(300))
    outputs = "".join(process.output for process in system.processes)
    assert "side by side" not in outputs
