"""In a team's own repository, from the wheels alone, beside packages ``api`` and ``worker`` of the team's.

The environment is quickly made: only our wheels are installed, and the libraries are this environment's.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from tests.kit.commands import clean_environment, run
from tests.kit.elsewhere import Elsewhere
from tests.kit.system import Process, RedisServer, free_port, poll, status_of

pytestmark = pytest.mark.timeout(300)

#: What of this environment is ours.
OURS = ("libs_service", "antifraud", "embed", "__editable__")
#: The wheels of the framework.
FRAMEWORK = ("libs_service-", "libs_service_client-")


class Environment:
    """A virtual environment with the libraries of this one."""

    def __init__(self, folder: Path) -> None:
        (site,) = {Path(entry) for entry in sys.path if entry.startswith(sys.prefix) and entry.endswith("-packages")}
        libraries = folder / "libraries"
        libraries.mkdir(parents=True)
        for entry in site.iterdir():
            if not entry.name.startswith(OURS):
                (libraries / entry.name).symlink_to(entry)
        run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
        (into,) = (folder / "venv").glob("lib/*/site-packages")
        (into / "libraries.pth").write_text(f"{libraries}\n")
        self.bin = folder / "venv" / "bin"
        for name in ("celery", "uvicorn"):
            script = (Path(sys.prefix) / "bin" / name).read_text().partition("\n")[2]
            (self.bin / name).write_text(f"#!{self.bin / 'python'}\n{script}")
            (self.bin / name).chmod(0o755)

    def pip(self, *arguments: str | Path, cwd: Path | None = None) -> None:
        """pip for this environment."""
        run(sys.executable, "-m", "pip", "--quiet", "--python", self.bin / "python", *arguments, cwd=cwd)

    def install(self, *what: str | Path, cwd: Path | None = None) -> None:
        """Install without what it needs: that is there."""
        quick = ["--no-build-isolation"] if find_spec("setuptools") else []
        self.pip("install", "--no-deps", *quick, *what, cwd=cwd)


@pytest.fixture(scope="module")
def environment(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """With the framework and the client."""
    made = Environment(tmp_path_factory.mktemp("environment"))
    made.install(*[wheel for wheel in wheels if wheel.name.startswith(FRAMEWORK)])
    return made


@pytest.fixture(scope="module")
def installed(environment: Environment) -> Path:
    """Its folder of commands."""
    return environment.bin


@pytest.fixture(scope="module")
def repository(environment: Environment, installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A team's repository with packages ``api`` and ``worker`` and a Procfile of its own, and a plugin by the docs."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "api").mkdir()
    (folder / "api" / "__init__.py").write_text('"""The team\'s."""\n')
    (folder / "api" / "words.py").write_text('WORDS = {"lovely": 1.0, "awful": -1.0}\n')
    (folder / "worker").mkdir()
    (folder / "worker" / "__init__.py").write_text('raise RuntimeError("the worker of the team was imported")\n')
    (folder / "Procfile").write_text("web: uvicorn api:app\nworker: celery -A worker worker\n")
    made = run(installed / "services", "new", "mood", cwd=folder)
    assert "written: plugins/mood" in made
    # The team's own package, which a worker may import: it is not the API's there.
    service = folder / "plugins" / "mood" / "src" / "mood" / "service.py"
    old, new = 'self.words = {"lovely": 1.0, "awful": -1.0}', "from api.words import WORDS\n        self.words = WORDS"
    assert old in service.read_text()
    service.write_text(service.read_text().replace(old, new))
    environment.install("-e", "plugins/mood", cwd=folder)
    return folder


def test_services_check_builds_the_wheel_and_looks_for_the_models_file(installed: Path, repository: Path) -> None:
    model = repository / "plugins" / "mood" / "src" / "mood" / "mood.bin"
    service = model.parent / "service.py"
    project = repository / "plugins" / "mood" / "pyproject.toml"
    before, told = service.read_text(), project.read_text()
    try:
        model.touch()
        load = 'open(__file__.replace("service.py", "mood.bin")).close()\n        from api'
        service.write_text(before.replace("from api", load))
        said = run(installed / "services", "check", "mood", cwd=repository)
        assert "ok      its wheel holds what load() opens" in said
        assert '["**/*"]' in told, "as services new writes it"
        project.write_text(told.replace('["**/*"]', '["py.typed"]'))
        done = subprocess.run([installed / "services", "check", "mood"], cwd=repository, capture_output=True, text=True)
        assert done.returncode == 1
        assert "FAILED  its wheel holds what load() opens: load() opens src/mood/mood.bin" in done.stdout
    finally:
        service.write_text(before)
        project.write_text(told)


def test_services_up_runs_beside_packages_and_a_procfile_of_the_teams(installed: Path, repository: Path) -> None:
    ports = {"PORT": str(free_port()), "FLOWER_PORT": str(free_port()), "SERVICES": "mood"}
    env = {**clean_environment(), **ports}
    process = Process([str(installed / "services"), "up"], env, repository / "up.log", repository)
    try:
        poll(lambda: "Ctrl-C stops everything" in process.output or process.exit_code is not None, 90, "all is up")
        assert process.exit_code is None, process.output
        assert f"{repository / 'Procfile'} starts nothing of libs-service" in process.output
        assert "succeeded (job " in process.output
        url = f"http://127.0.0.1:{ports['PORT']}"
        code = f"""
from libs_service import Client
with Client({url!r}) as client:
    print(client.submit("mood", {{"text": "an awful day"}}).result(timeout=30))
import api.words
"""
        assert run(installed / "python", "-c", code, cwd=repository) == "{'score': -1.0}\n"
        submitted = run(installed / "services", "submit", "mood", cwd=repository, PORT=ports["PORT"])
        assert json.loads(submitted)["output"] == {"score": 1.0}
        assert "<html" in httpx.get(url, trust_env=False).text, "the console"
        assert (repository / ".services" / "redis").is_dir()
    finally:
        assert process.stop(signal.SIGINT, 60) == 0
    assert "Traceback" not in process.output


def test_the_commands_by_hand_run_beside_packages_of_the_teams(
    installed: Path, repository: Path, redis_server: RedisServer
) -> None:
    made = Elsewhere(installed, repository, redis_server)
    flower = free_port()
    try:
        made.start("uvicorn", "libs_service:app", "--port", str(made.port), "--log-level", "warning")
        worker = made.start("python", "-m", "celery", "-A", "libs_service", "worker", "-Q", "mood")
        made.start("celery", "-A", "libs_service", "flower", f"--port={flower}", "--logging=warning")
        url = f"http://127.0.0.1:{made.port}"
        poll(lambda: status_of(f"{url}/readyz") == 200, 60, "the API is ready")
        poll(lambda: "service ready" in worker.output or worker.exit_code is not None, 60, "mood is ready")
        assert worker.exit_code is None, worker.output
        code = f"""
import asyncio
from libs_service import AsyncClient, NotFound
async def main():
    async with AsyncClient({url!r}) as client:
        print((await (await client.submit("mood", {{"text": "lovely"}})).result(timeout=30))["score"])
        try:
            await client.service("nope")
        except NotFound as error:
            print(error.code)
asyncio.run(main())
from libs_service.celery import app
print(app.send_task("mood.predict", args=[{{"text": "awful"}}], queue="mood").get(timeout=30)["score"])
"""
        assert made.python(code).split() == ["1.0", "unknown_service", "-1.0"]
        poll(lambda: status_of(f"http://127.0.0.1:{flower}/healthcheck") == 200, 60, "Flower is ready")
    finally:
        made.stop()
    assert "Traceback" not in "".join(process.output for process in made.processes)


def test_a_process_that_has_imported_the_teams_package_names_the_clash(installed: Path, repository: Path) -> None:
    (repository / "worker" / "__init__.py").write_text("")
    code = "import worker\nfrom libs_service import Client\ntry:\n    from libs_service import Service\n"
    code += "except ImportError as error:\n    print(error)"
    said = run(installed / "python", "-c", code, cwd=repository)
    assert f"{repository / 'worker' / '__init__.py'} is imported under this name already" in said
    code = "from libs_service import Service\ntry:\n    import worker.tasks\nexcept ImportError as error:"
    said = run(installed / "python", "-c", f"{code}\n    print(error)", cwd=repository)
    assert "No module named 'worker.tasks': the package worker is libs-service's in this process" in said


def test_either_wheel_works_when_the_other_is_uninstalled(wheels: list[Path], tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    python = environment.bin / "python"
    both = [wheel for wheel in wheels if wheel.name.startswith(FRAMEWORK)]
    environment.install("--no-index", *both)
    names = "import libs_service, libs_service_client as client; print(set(client.__all__) - set(dir(libs_service)))"
    same = (
        "; from libs_service import Client; from api.client import Client as Old; print(Client is client.Client is Old)"
    )
    assert run(python, "-c", names + same, cwd=tmp_path).split() == ["set()", "True"]

    environment.pip("uninstall", "--yes", "libs-service-client")
    assert "no service is installed" in run(environment.bin / "services", "list", cwd=tmp_path)
    lost = "from libs_service import Service, app\ntry:\n    from libs_service import Client\n"
    lost += "except ImportError as error:\n    print(error)"
    assert "install the wheel of libs-service-client" in run(python, "-c", lost, cwd=tmp_path)

    environment.install("--no-index", *both)
    environment.pip("uninstall", "--yes", "libs-service")
    alone = "import sys; from libs_service_client import Client, AsyncClient, verify_webhook; print(*sys.modules)"
    loaded = set(run(python, "-c", alone, cwd=tmp_path).split())
    assert not loaded & {"worker", "api", "fastapi", "redis", "celery", "libs_service"}
