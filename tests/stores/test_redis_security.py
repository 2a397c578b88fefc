"""Redis with least rights, with TLS, and behind Sentinel: real servers, real failover."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.kit.redis_access import PRODUCER, use_files
from tests.kit.services import write_echo, write_turning
from tests.kit.system import ROOT, Process, RedisServer, System, finished, free_port, poll, redis_binary, status_of
from worker.ledger.api_keys import Key, Keys
from worker.settings import Settings

USERS = ("api", "worker", "flower", "webhooks")


class Server:
    """A redis-server with a configuration of its own, on a TCP port."""

    def __init__(self, folder: Path, *options: str, name: str = "redis", binary: str = "") -> None:
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        command = [binary or redis_binary(), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        command += ["--port", str(self.port)] if "--tls-port" not in options else ["--port", "0"]
        self.process = Process([*command, *options], dict(os.environ), folder / f"{name}.log", folder)

    def await_ready(self, **login: Any) -> redis.Redis:
        client = redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=2, **login)

        def answers() -> bool:
            assert self.process.exit_code is None, self.process.output
            try:
                return bool(client.execute_command("PING"))
            except redis.RedisError:
                return False

        poll(answers, what="redis answers")
        return client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def stack(folder: Path) -> Iterator[tuple[System, list[Server]]]:
    """An installation with one service that no Redis belongs to yet; whatever servers a test adds are stopped."""
    servers: list[Server] = []
    plugins = folder / "plugins"
    plugins.mkdir()
    (plugins / "heavy_model_library.py").touch()
    write_echo(plugins)
    write_turning(plugins)
    system = System(folder, RedisServer(folder=folder), plugins)
    yield system, servers
    system.stop()
    system.redis.client.close()
    for server in servers:
        if server.process.exit_code is None:
            server.process.send_signal(signal.SIGCONT)
            server.process.stop(signal.SIGKILL)


def start_with_users(folder: Path) -> tuple[Server, redis.Redis]:
    """A server with our ACL file, each user's password his name, and an admin for the test."""
    text = (ROOT / "deploy" / "redis" / "users.acl").read_text()
    # antifraud and embed are installed here too, and the API looks at all services
    text = text.replace("~antifraud ", "~antifraud ~echo ~echo??[369] ~turning ~turning??[369] ")
    text = text.replace("~{antifraud}:* ", "~{echo}:* ~{turning}:* ")
    for user in (*USERS, "embed"):
        text = text.replace(f"{user.upper()}_SHA256", hashlib.sha256(user.encode()).hexdigest())
    (folder / "users.acl").write_text(text + "user admin on nopass ~* &* +@all\n")
    server = Server(folder, "--aclfile", str(folder / "users.acl"))
    return server, server.await_ready(username="admin", password="-")


def tried(client: httpx.Client, links: dict[str, str]) -> list[dict[str, Any]]:
    """The deliveries of a job once each of them was tried."""
    answer = client.get(links["deliveries"])
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["deliveries"]
    return found if all(delivery["attempts"] for delivery in found) else []


def test_each_part_works_with_its_least_rights_and_has_no_more(stack: tuple[System, list[Server]]) -> None:
    system, servers = stack
    server, admin = start_with_users(system.folder)
    servers.append(server)
    urls = {user: f"redis://{user}:{user}@127.0.0.1:{server.port}/0" for user in USERS}
    allowed = {"SERVICES_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.1/32", "SERVICES_WEBHOOK_BACKOFF_S": "60"}
    system.env |= allowed
    system.start_api(REDIS_URL=urls["api"])
    webhooks = system.start_worker("webhooks", REDIS_URL=urls["webhooks"])
    worker = system.start_worker("echo,turning", REDIS_URL=urls["worker"])
    port = free_port()
    flower = system.start("celery", "-A", "worker", "flower", f"--port={port}", REDIS_URL=urls["flower"])
    poll(lambda: status_of(f"http://127.0.0.1:{port}/healthcheck") == 200, 30, "flower is up")
    with system.client() as client:
        job = client.post("/jobs?wait=20", json={"service": "echo", "input": {"n": 1}}).json()
        assert job["status"] == "succeeded"
        batch = client.post("/batches", json={"service": "echo", "inputs": [{"n": 1}, {"n": 2}]}).json()
        assert client.get(batch["links"]["results"]).text.count('"output"') == 2
        late = client.post("/jobs", json={"service": "echo", "input": {"n": 2, "sleep_s": 9}}).json()
        assert client.delete(f"/jobs/{late['id']}").status_code == 202
        assert client.post(f"/jobs/{late['id']}/retry").status_code == 202
        assert client.delete(f"/jobs/{late['id']}").status_code == 202
        nobody = f"http://127.0.0.1:{free_port()}"
        told = client.post("/jobs", json={"service": "echo", "input": {"n": 1}, "webhook": nobody}).json()
        links = told["links"]
        (first,) = poll(lambda: tried(client, links), what="the webhook is tried")
        assert client.post(f"{links['deliveries']}/{first['id']}/retry").status_code == 202
        poll(lambda: [d["status"] for d in tried(client, links)] == ["pending", "cancelled"], what="it is sent again")
        assert len(client.get("/jobs").json()["jobs"]) == 3
        assert client.get("/services/echo").json()["state"] == "ready"
        use_files(client)
        keys = Keys(Settings(redis_url=urls["api"]))
        client.headers["X-API-Key"] = keys.create(Key(id="", name="limited", rate=100, burst=100, concurrency=9))[0]
        keys.redis.close()
        assert client.post("/jobs?wait=20", json={"service": "echo", "input": {"n": 1}}).json()["status"] == "succeeded"
        batch = client.post("/batches", json={"service": "echo", "inputs": [{"n": 1}]}).json()
        assert client.get(batch["links"]["results"]).text.count('"output"') == 1
        assert len(client.get("/jobs").json()["jobs"]) == 1
    assert webhooks.stop() == 0
    sent = system.start("tests.kit.run_code", PRODUCER, REDIS_URL=urls["worker"])
    assert sent.wait(60) == 0, sent.output
    assert sent.output == "7 SUCCESS\n[['echo.predict', 'turning.predict']]\n"
    assert status_of(f"http://127.0.0.1:{port}/broker") == 200
    assert worker.stop() == 0
    # redis-py tells its name (CLIENT SETINFO) to servers that let it, and goes on where they do not
    denied = {(e["username"], e["object"]) for e in admin.acl_log() if not e["object"].startswith("client")}
    assert not denied, flower.output

    for user in USERS:
        own = redis.Redis(port=server.port, username=user, password=user)
        refused = ["FLUSHALL", "CONFIG GET *", "KEYS *", "ACL LIST", "SHUTDOWN", "MONITOR"]
        refused += ["SET other 1", "GET other", "PUBLISH other 1"]
        if user == "flower":
            refused += [f"HSET {{echo}}:job:{job['id']} status failed", f"GET celery-task-meta-{job['id']}"]
        for command in refused:
            with pytest.raises(redis.exceptions.NoPermissionError):
                own.execute_command(*command.split())
        own.close()
    admin.close()


def make_certificates(folder: Path) -> None:
    """A certificate authority and a certificate for 127.0.0.1 that it signed."""
    alt = folder / "alt"
    alt.write_text("subjectAltName=IP:127.0.0.1")
    commands = [
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.crt",
        "req -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout redis.key -out redis.csr",
        "x509 -req -in redis.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile alt -out redis.crt",
    ]
    for command in commands:
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


@pytest.mark.needs("redis", "openssl")
def test_tls_is_used_by_every_part_and_an_unknown_certificate_refused(stack: tuple[System, list[Server]]) -> None:
    system, servers = stack
    folder = system.folder
    make_certificates(folder)
    port = free_port()
    tls = ["--tls-port", str(port), "--tls-cert-file", "redis.crt", "--tls-key-file", "redis.key"]
    server = Server(folder, *tls, "--tls-ca-cert-file", "ca.crt", "--tls-auth-clients", "no")
    server.port = port
    servers.append(server)
    server.await_ready(ssl=True, ssl_ca_certs=str(folder / "ca.crt")).close()

    url = f"rediss://127.0.0.1:{port}/0"
    trusted: Any = {"REDIS_URL": f"{url}?ssl_ca_certs={folder / 'ca.crt'}"}
    system.start_api(**trusted)
    system.start_worker("echo", **trusted)
    with system.client() as client:
        job = client.post("/jobs?wait=20", json={"service": "echo", "input": {"n": 1}}).json()
        assert job["status"] == "succeeded"
    sent = system.start("tests.kit.run_code", PRODUCER, **trusted)
    assert (sent.wait(60), sent.output) == (0, "7 SUCCESS\n[['echo.predict']]\n")

    # a certificate that nobody known has signed: nothing is sent to that server
    other = System(folder, system.redis, Path(system.env["PYTHONPATH"].split(os.pathsep)[0]))
    system.processes.append(other.start_api(REDIS_URL=url))
    with other.client() as client:
        answer = client.post("/jobs", json={"service": "echo", "input": {"n": 1}})
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    unknown = system.start_worker("echo", wait=False, REDIS_URL=url)
    poll(lambda: "certificate verify failed" in unknown.output.lower(), 30, "the worker says why")


def test_after_a_failover_the_jobs_go_on_with_the_new_master(stack: tuple[System, list[Server]]) -> None:
    system, servers = stack
    master = Server(system.folder / "master")
    replica = Server(system.folder / "replica", "--replicaof", "127.0.0.1", str(master.port))
    servers += [master, replica]
    first, second = master.await_ready(), replica.await_ready()
    poll(lambda: second.info("replication")["master_link_status"] == "up", what="the replica follows")
    ports = []
    for index in range(3):
        folder = system.folder / f"sentinel-{index}"
        folder.mkdir()
        config = folder / "sentinel.conf"
        lines = [f"sentinel monitor ours 127.0.0.1 {master.port} 2", "sentinel down-after-milliseconds ours 1000"]
        config.write_text("\n".join([*lines, "sentinel failover-timeout ours 5000", ""]))
        port = free_port()
        options = ["--port", str(port), "--bind", "127.0.0.1", "--sentinel"]
        sentinel = Server.__new__(Server)
        sentinel.port = port
        command = [redis_binary(), str(config), *options]
        sentinel.process = Process(command, dict(os.environ), folder / "log", folder)
        servers.append(sentinel)
        sentinel.await_ready().close()
        ports.append(port)
    ask = redis.Redis(port=ports[0])

    def quorum() -> bool:
        try:
            return bool(ask.execute_command("SENTINEL", "CKQUORUM", "ours"))
        except redis.ResponseError:
            return False

    poll(quorum, 30, "the sentinels know each other")
    url: Any = {"REDIS_URL": f"sentinel://{','.join(f'127.0.0.1:{p}' for p in ports)}/0?master=ours"}
    system.start_api(**url)
    system.start_worker("echo", **url)
    with system.client() as client:

        def submit(count: int, sleep_s: float) -> list[str]:
            ids = []
            for n in range(count):
                answer = client.post("/jobs", json={"service": "echo", "input": {"n": n, "sleep_s": sleep_s}})
                assert answer.status_code in (202, 503), answer.text
                if answer.status_code == 202:
                    ids.append(answer.json()["id"])
            return ids

        before = submit(40, 0.05)
        # What a master tells its client before its replica has it may die with it: that is Redis's promise, not ours.
        poll(lambda: first.execute_command("WAIT", 1, 1000) == 1, what="the replica has it all")
        master.process.send_signal(signal.SIGKILL)
        assert client.get("/readyz").status_code == 503
        poll(lambda: client.get("/readyz").status_code == 200, 30, "the API follows the new master")
        after = submit(20, 0)
        assert len(after) == 20
        assert {finished(client, job_id, 30)["status"] for job_id in before + after} == {"succeeded"}
        sent = system.start("tests.kit.run_code", PRODUCER, **url)
        assert (sent.wait(60), sent.output) == (0, "7 SUCCESS\n[['echo.predict']]\n")
    for open_client in (first, second, ask):
        open_client.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sentinel://127.0.0.1:1/0", "expected sentinel://host:port,host:port/<db>?master=<name>"),
        ("sentinel:///0?master=m", "expected sentinel://host:port,host:port/<db>?master=<name>"),
        ("http://127.0.0.1", "expected one of redis://, rediss://"),
    ],
)
def test_a_url_that_cannot_be_is_refused(stack: tuple[System, list[Server]], url: str, said: str) -> None:
    system, _ = stack
    process = system.start("worker.cli.main", "list", REDIS_URL=url)
    assert process.wait() == 2
    assert process.output.startswith("Error: REDIS_URL: ")
    assert said in process.output
    assert url not in process.output, "a URL may hold a password"
