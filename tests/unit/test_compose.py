"""The containers: what can be checked of them without an engine."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.kit.system import ROOT
from worker.settings import Settings

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def variables() -> set[str]:
    """Every environment variable that Settings reads."""
    names = {f"SERVICES_{name.upper()}" for name in Settings.model_fields}
    return names - {"SERVICES_REDIS_URL", "SERVICES_SERVICES"} | {"REDIS_URL", "SERVICES"}


def workers() -> Iterator[tuple[str, list[str]]]:
    for name, service in SERVICES.items():
        command = service.get("command", [])
        if command[:4] == ["celery", "-A", "worker", "worker"]:
            yield name, command


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_runs_as_root_and_everything_is_watched(name: str) -> None:
    service = SERVICES[name]
    assert str(service["user"]).split(":")[0] not in ("", "0", "root")
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"
    assert "container_name" not in service  # it could not be scaled


@pytest.mark.parametrize("name", SERVICES)
def test_every_variable_is_a_setting(name: str) -> None:
    assert set(SERVICES[name].get("environment", {})) <= variables()


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_this_machine_alone(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))


def test_each_worker_is_a_plugins_on_its_queue() -> None:
    """A plugin may be without one: to install it is all that it takes to add it."""
    assert all(command[command.index("-n") + 1] == f"{name}@%h" for name, command in workers())
    queues = {name: command[command.index("-Q") + 1] for name, command in workers()}
    assert queues == {name: name for name in queues}
    assert {"antifraud", "embed", "webhooks"} <= set(queues) <= {*PLUGINS, "webhooks"}
    for name in queues:
        assert name == "webhooks" or SERVICES[name]["build"]["args"]["PLUGIN"] == name
        assert "stop_grace_period" in SERVICES[name]
        assert f"-d {name}@$$HOSTNAME" in SERVICES[name]["healthcheck"]["test"][1]


def test_workers_are_named_by_their_services_entry_points() -> None:
    for name in {name for name, _ in workers()} - {"webhooks"}:
        project = tomllib.loads((ROOT / "plugins" / name / "pyproject.toml").read_text())["project"]
        assert name in project["entry-points"]["libs_service.services"]


def test_the_block_that_services_new_writes_is_as_the_others() -> None:
    readme = (ROOT / "worker" / "cli" / "new_plugin" / "README.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", readme, re.S)
    pasted = (ROOT / "docker-compose.yml").read_text().replace("\n  webhooks:", f"\n{block}\n  webhooks:")
    found = yaml.safe_load(pasted)["services"]
    assert set(found) - set(SERVICES) == {"plugin-name"}
    assert json.loads(json.dumps(found["plugin-name"]).replace("plugin-name", "embed")) == SERVICES["embed"]


def test_redis_keeps_its_own_settings() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command and "--maxmemory ${REDIS_MAXMEMORY:-4gb}" in command
    assert any(volume.endswith(":/data") for volume in SERVICES["redis"]["volumes"])


def test_nothing_starts_before_redis_answers() -> None:
    for name, service in SERVICES.items():
        if name != "redis":
            assert service["depends_on"]["redis"] == {"condition": "service_healthy"}


def test_the_dockerfile_copies_files_that_exist_and_may_be_copied() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.M) for name in line.split()}
    assert copied <= allowed
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_is_not_roots() -> None:
    (user,) = re.findall(r"^USER (\S+)$", DOCKERFILE, re.M)
    assert user == SERVICES["api"]["user"]
