"""The ledger in a Redis Cluster of three masters, with RabbitMQ as Celery's broker."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
from celery import Celery
from redis.crc import key_slot

from tests.kit.jobs import post, results
from tests.kit.rabbit import RabbitServer
from tests.kit.receiver import Receiver
from tests.kit.redis_access import use_files
from tests.kit.services import write_turning
from tests.kit.system import System, finished, free_port, poll, redis_binary, running_system
from worker.ledger.api_keys import Key, Keys
from worker.settings import Settings

SLOTS = 16_384


class Cluster:
    """Three masters that share the slots."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ports = [free_port() for _ in range(3)]
        self.nodes = [redis.Redis(port=port, socket_timeout=5) for port in self.ports]
        self._processes: list[subprocess.Popen[bytes]] = []
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def start(self) -> None:
        buses = [str(free_port()) for _ in self.ports]
        for port, bus in zip(self.ports, buses, strict=True):
            folder = self._folder / str(port)
            folder.mkdir()
            command = [redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
            command += ["--cluster-enabled", "yes", "--cluster-port", bus]
            with (folder / "log").open("ab") as log:
                self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        for i, node in enumerate(self.nodes):
            poll(lambda node=node: _answers(node), what="the node answers")
            node.execute_command("CLUSTER", "ADDSLOTS", *range(i * SLOTS // 3, (i + 1) * SLOTS // 3))
            self.nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", self.ports[i], buses[i])
        for node in self.nodes:
            poll(lambda node=node: self._is_whole(node), what="the node knows all slots")

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(10)
        for node in self.nodes:
            node.close()

    def contents(self) -> list[set[str]]:
        return [{key.decode() for key in node.keys("*")} for node in self.nodes]

    def _is_whole(self, node: redis.Redis) -> bool:
        about: dict[str, str] = node.execute_command("CLUSTER INFO")
        return (about["cluster_state"], about["cluster_known_nodes"]) == ("ok", "3")


def _answers(node: redis.Redis) -> bool:
    try:
        return bool(node.execute_command("PING"))
    except redis.RedisError:
        return False


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def clustered(tmp_path: Path, plugins: Path, cluster: Cluster, rabbit: RabbitServer) -> Iterator[System]:
    write_turning(tmp_path / "more")
    both = Path(f"{plugins}{os.pathsep}{tmp_path / 'more'}")
    allowed = "127.0.0.1/32"
    urls = {"REDIS_URL": cluster.url, "BROKER_URL": rabbit.url}
    with running_system(tmp_path, both, SERVICES_WEBHOOK_ALLOWED_NETWORKS=allowed, **urls) as made:
        made.start_api()
        yield made


def test_services_share_a_cluster_each_in_a_slot_of_its_own(
    clustered: System, cluster: Cluster, rabbit: RabbitServer
) -> None:
    worker = clustered.start_worker("echo,turning")
    patient = clustered.start_worker("patient")
    with clustered.client() as client:
        ids = post(clustered, *({"n": n} for n in range(50)))
        assert [job["output"]["n"] for job in results(clustered, ids)] == list(range(50))
        assert client.get(f"/jobs/{ids[0]}").json()["service"] == "echo"
        assert client.get("/jobs/unknown").status_code == 404
        assert len(client.get("/jobs?limit=100").json()["jobs"]) == 50
        (dropped,) = post(clustered, {"n": 0}, keep_for_s=0.1)
        poll(lambda: client.get(f"/jobs/{dropped}").status_code == 410, what="the id is remembered")

        body, key = {"service": "echo", "input": {"n": 1}}, {"Idempotency-Key": "k"}
        first = client.post("/jobs?wait=9", json=body, headers=key)
        assert client.post("/jobs", json=body, headers=key).json()["id"] == first.json()["id"]
        assert client.post("/jobs", json={**body, "service": "patient"}, headers=key).status_code == 409

        stock = Celery("stock", broker=rabbit.url, set_as_current=False)
        sent = stock.send_task("echo.predict", args=[{"n": 7}], queue="echo")
        stock.close()
        poll(lambda: client.get(f"/jobs/{sent.id}").status_code == 200, what="the message is adopted")
        assert finished(client, sent.id)["output"]["n"] == 7

        use_files(client)
        # its end is told, out of another slot
        receiver = Receiver().start()
        clustered.start_worker("webhooks")
        (told,) = post(clustered, {"n": 2}, webhook=receiver.url("/"))
        assert [request.event["data"]["id"] for request in receiver.await_at("/")] == [told]
        log = f"/jobs/{told}/deliveries"
        (delivery,) = poll(lambda: client.get(log).json()["deliveries"], what="it is in the log")
        assert client.post(f"{log}/{delivery['id']}/retry").status_code == 202
        receiver.await_at("/", 2)
        receiver.stop()

        # its worker dies in the midst, and another one finishes
        (running,) = post(clustered, {"n": 1, "sleep_s": 1.5}, service="patient")
        poll(lambda: client.get(f"/jobs/{running}").json()["status"] == "running")
        patient.send_signal(signal.SIGKILL)
        clustered.start_worker("patient")
        assert finished(client, running)["status"] == "succeeded"
        assert worker.exit_code is None

        made = Keys(Settings(redis_url=cluster.url, broker_url=rabbit.url))
        client.headers["X-API-Key"] = made.create(Key(id="", name="limited", rate=100, burst=100, concurrency=5))[0]
        made.redis.close()
        mine = client.post("/jobs?wait=9", json={"service": "echo", "input": {"n": 1}}).json()
        assert mine["status"] == "succeeded" and len(client.get("/jobs").json()["jobs"]) == 1
    for keys in cluster.contents():
        of_services = {key for key in keys if key.startswith(("{", "echo", "patient", "turning"))}
        slots = {key_slot(key.encode()) for key in of_services}
        assert len(slots) <= 5 and not any("celery" in key for key in keys)
    assert sum(bool(keys) for keys in cluster.contents()) >= 2


def test_a_node_that_is_away_fails_its_services_alone_and_in_time(clustered: System, cluster: Cluster) -> None:
    by_slot = {service: key_slot(service.encode()) * 3 // SLOTS for service in ("echo", "patient")}
    assert by_slot["echo"] != by_slot["patient"]
    cluster._processes[by_slot["echo"]].send_signal(signal.SIGSTOP)
    try:
        with clustered.client() as client:
            answer = client.post("/jobs", json={"service": "echo", "input": {"n": 1}})
            assert answer.status_code == 503 and answer.elapsed.total_seconds() < 5
    finally:
        cluster._processes[by_slot["echo"]].send_signal(signal.SIGCONT)
    with clustered.client() as client:
        poll(lambda: _accepts(client), timeout=30, what="the cluster takes jobs again")


def _accepts(client: httpx.Client) -> bool:
    return client.post("/jobs", json={"service": "echo", "input": {"n": 1}}).status_code == 202
