"""API, Redis and two workers, each on a host of its own (a network namespace), and the cables between them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.audit import read_trace
from tests.chaos.stack import write_services
from tests.kit.system import ROOT, Process, RedisServer, System, finished, poll, redis_binary, status_of
from tests.kit.tools import need

HOSTS = {"redis": 2, "api": 3, "w1": 4, "w2": 5}


class Network:
    """A switch with a cable to each host. Needs root and iproute2."""

    def __init__(self) -> None:
        self.tag = f"{os.getpid() % 10000:04}"
        self.net = f"10.213.{os.getpid() % 200}"

    def __enter__(self) -> Network:
        ip(f"link add sw{self.tag} type bridge")
        ip(f"addr add {self.net}.1/24 dev sw{self.tag}")
        ip(f"link set sw{self.tag} up")
        for host, number in HOSTS.items():
            space, cable = self.space(host), f"c{number}{self.tag}"
            ip(f"netns add {space}")
            ip(f"link add {cable} type veth peer name eth0 netns {space}")
            ip(f"link set {cable} master sw{self.tag} up")
            for command in (f"addr add {self.net}.{number}/24 dev eth0", "link set eth0 up", "link set lo up"):
                ip(f"-n {space} {command}")
        return self

    def __exit__(self, *_: object) -> None:
        for host in HOSTS:
            ip(f"netns del {self.space(host)}")
        ip(f"link del sw{self.tag}")

    def space(self, host: str) -> str:
        return f"svc-{host}-{self.tag}"

    def address(self, host: str) -> str:
        return f"{self.net}.{HOSTS[host]}"

    def cut(self, host: str) -> None:
        ip(f"link set c{HOSTS[host]}{self.tag} down")

    def heal(self, host: str) -> None:
        ip(f"link set c{HOSTS[host]}{self.tag} up")


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    need("ip")
    try:
        with Network() as made:
            yield made
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    made: list[Process] = []
    yield made
    for process in reversed(made):
        if process.exit_code is None:
            process.stop(signal.SIGKILL)


def test_a_host_that_is_cut_off_has_its_long_job_run_elsewhere_but_never_at_once(
    network: Network, processes: list[Process], tmp_path: Path
) -> None:
    (tmp_path / "trace" / "running").mkdir(parents=True)
    write_services(tmp_path / "plugins")
    env: dict[str, str] = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "plugins"), str(ROOT)]),
        "CHAOS_FOLDER": str(tmp_path / "trace"),
        "REDIS_URL": f"redis://{network.address('redis')}:6379/0",
        "SERVICES_ALLOW_UNAUTHENTICATED": "true",
    }

    def start(host: str, *command: str) -> Process:
        inside = ["ip", "netns", "exec", network.space(host), *command]
        processes.append(Process(inside, env, tmp_path / f"{host}.log", tmp_path))
        return processes[-1]

    start("redis", redis_binary(), "--protected-mode", "no", "--appendonly", "yes", "--save", "")
    start("api", sys.executable, "-m", "uvicorn", "api:app", "--host", network.address("api"))
    for host in ("w1", "w2"):
        start(host, sys.executable, "-m", "celery", "-A", "worker", "worker", "-Q", "long", "-n", f"{host}@%h")
    url = f"http://{network.address('api')}:8000"
    poll(lambda: status_of(f"{url}/readyz") == 200, 30, "the API is ready")

    with httpx.Client(base_url=url, timeout=10, trust_env=False) as client:

        def get(job_id: str) -> Any:
            return client.get(f"/jobs/{job_id}?include=attempts").json()

        body = {"service": "long", "input": {"n": 1, "sleep_s": 12}}
        job_id = client.post("/jobs", json=body).json()["id"]
        poll(lambda: get(job_id)["status"] == "running", 30)

        def hosts() -> list[str]:
            return [worker for worker in ("w1", "w2") if children_of(processes, worker) & running(tmp_path)]

        (host,) = poll(hosts, 10, "the plugin has begun the job")

        network.cut(host)  # no packet passes and no connection closes
        cut_at = time.monotonic_ns()
        poll(lambda: get(job_id)["attempts"][0]["outcome"] == "lost", 15, "its lease has lapsed")
        network.cut("api")
        time.sleep(2)  # how long the cable is out is what is tested
        network.heal("api")
        poll(lambda: status_of(f"{url}/readyz") == 200, 20, "the API is back")
        network.heal(host)
        poll(lambda: get(job_id)["status"] == "succeeded", 40, "the job ends")

        network.cut("redis")
        answer = client.post("/jobs", json=body)
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        network.heal("redis")
        body["input"] = {"n": 2}
        poll(lambda: client.post("/jobs?wait=5", json=body).json().get("status") == "succeeded", 40, "all goes on")

    assert not (tmp_path / "trace" / "overlaps").exists(), "the host that was cut off had stopped its run by then"
    first, second = read_trace(tmp_path / "trace" / "log")[1]
    assert not first.end_ns
    assert (second.start_ns - cut_at) / 1e9 < 10


def children_of(processes: list[Process], host: str) -> set[str]:
    """The pool processes of a worker, by its node's name."""
    worker = next(process for process in processes if process.log.name == f"{host}.log")
    return {str(pid) for pid in worker.children}


def running(folder: Path) -> set[str]:
    """The processes in which a job runs."""
    return {marker.read_text() for marker in (folder / "trace" / "running").iterdir()}


@pytest.mark.needs("mount")
def test_a_full_disk_under_the_private_redis_refuses_jobs_and_loses_none(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk]).returncode:
        pytest.skip("a small disk needs root")
    write_services(tmp_path / "plugins")
    system = System(tmp_path, RedisServer(), tmp_path / "plugins", CHAOS_FOLDER=str(tmp_path / "trace"))
    del system.env["REDIS_URL"]
    system.env["SERVICES_DATA_DIR"] = str(disk / "data")
    (tmp_path / "trace" / "running").mkdir(parents=True)
    try:
        server = system.start("worker.cli.main", "redis", name="redis")
        system.start_api()
        poll(lambda: status_of(f"{system.url}/readyz") == 200, what="the private Redis is up")
        with system.client() as client:
            body = {"service": "chaos", "input": {"n": 1}, "metadata": {"fill": "x" * 10_000}}
            kept = [client.post("/jobs", json=body).json()["id"] for _ in range(5)]
            (disk / "ballast").write_bytes(b"x" * 2**20)
            with (disk / "ballast").open("ab") as ballast:
                try:
                    while True:
                        ballast.write(b"x" * 65536)
                        ballast.flush()
                except OSError:
                    pass  # the disk is full

            def refused() -> bool:
                answer = client.post("/jobs", json=body)
                if answer.status_code == 202:
                    kept.append(answer.json()["id"])
                return answer.status_code == 503

            poll(refused, 20, "Redis refuses what it cannot write")
            (disk / "ballast").unlink()
            if server.exit_code is not None:
                system.start("worker.cli.main", "redis", name="redis")
            poll(lambda: not refused(), 20, "with room again, all goes on")
            system.start_worker("chaos")
            assert {finished(client, job_id)["status"] for job_id in kept} == {"succeeded"}
    finally:
        system.stop()
        system.redis.remove()
        subprocess.run(["umount", disk], check=True)
