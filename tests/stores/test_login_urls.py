"""Servers whose user and password mean something in a URL: API, worker, Celery and Flower all come in."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.kit.redis_access import PRODUCER
from tests.kit.system import Process, RedisServer, System, free_port, poll, redis_binary, status_of

USER, PASSWORD, ESCAPED = "us@er", "p@ss/w#x%41", "us%40er:p%40ss%2Fw%23x%2541"


@pytest.fixture
def stack(tmp_path: Path, plugins: Path) -> Iterator[System]:
    """An installation whose servers are processes of the test's."""
    system = System(tmp_path, RedisServer(folder=tmp_path), plugins)
    yield system
    system.stop()
    system.redis.client.close()


def start_server(system: System, name: str, *options: str, config: str = "") -> tuple[int, Process]:
    folder = system.folder / name
    folder.mkdir()
    port = free_port()
    (folder / "server.conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\nsave ''\n{config}\n")
    command = [redis_binary(), str(folder / "server.conf"), *options]
    process = Process(command, dict(os.environ), folder / "log", folder)
    system.processes.insert(0, process)  # stopped last
    client = redis.Redis(port=port, username=USER, password=PASSWORD)

    def answers() -> bool:
        assert process.exit_code is None, process.output
        try:
            return bool(client.execute_command("PING"))
        except redis.AuthenticationError:
            return True  # a sentinel has no such user
        except redis.RedisError:
            return False

    poll(answers, what=f"{name} answers")
    client.close()
    return port, process


def see_every_part_work(system: System, url: str) -> None:
    env: Any = {"REDIS_URL": url}
    system.start_api(**env)
    worker = system.start_worker("echo", **env)
    port = free_port()
    system.start("celery", "-A", "worker", "flower", f"--port={port}", **env)
    with system.client() as client:
        job = client.post("/jobs?wait=20", json={"service": "echo", "input": {"n": 1}}).json()
        assert job["status"] == "succeeded"
    sent = system.start("tests.kit.run_code", PRODUCER, **env)
    assert (sent.wait(60), sent.output) == (0, "7 SUCCESS\n[['echo.predict']]\n")
    listed = system.start("worker.cli.main", "keys", "list", **env)
    assert listed.wait() == 0, listed.output
    poll(lambda: status_of(f"http://127.0.0.1:{port}/broker") == 200, 30, "flower reads the broker")
    assert worker.stop(signal.SIGTERM) == 0


def test_behind_sentinel(stack: System) -> None:
    port, _ = start_server(stack, "master", config=f"user {USER} on >{PASSWORD} ~* &* +@all\nuser default off")
    watched = f"sentinel monitor ours 127.0.0.1 {port} 1\n"
    login = f"sentinel auth-user ours {USER}\nsentinel auth-pass ours {PASSWORD}\n"
    sentinel, _ = start_server(stack, "sentinel", "--sentinel", config=watched + login)
    see_every_part_work(stack, f"sentinel://{ESCAPED}@127.0.0.1:{sentinel}/2?master=ours")


def test_over_a_unix_socket_in_another_database(stack: System) -> None:
    folder = stack.folder / "a b#c"
    folder.mkdir()
    config = f'unixsocket "{folder}/r.sock"\nuser {USER} on >{PASSWORD} ~* &* +@all\nuser default off'
    start_server(stack, "redis", config=config)
    path = str(folder).replace(" ", "%20").replace("#", "%23")
    see_every_part_work(stack, f"unix://{ESCAPED}@{path}/r.sock?db=3")
    with redis.Redis(unix_socket_path=f"{folder}/r.sock", username=USER, password=PASSWORD, db=0) as other:
        assert other.dbsize() == 0, "nothing went to another database"


@pytest.mark.parametrize("url", ["redis://:p/w@127.0.0.1:1/0", "redis://127.0.0.1:1/x", "unix://?db=1"])
def test_a_url_that_cannot_be_is_refused_without_its_password(stack: System, url: str) -> None:
    process = stack.start("worker.cli.main", "list", REDIS_URL=url)
    assert process.wait() == 2
    assert process.output.startswith("Error: REDIS_URL: expected ") and "%-escaped" in process.output
    assert url not in process.output
