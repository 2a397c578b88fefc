"""API keys that Redis loses, and settings of Redis or of ours that would open the API or drop accepted jobs."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import redis

from tests.kit.http import assert_problem, body
from tests.kit.keys import make_key
from tests.kit.system import System, poll, redis_binary, services
from worker.ledger.server_rules import EvictingStore, check_info, check_server


def status(system: System, key: str = "") -> int:
    with system.client() as client:
        return client.get("/jobs", headers={"X-API-Key": key} if key else {}).status_code


@pytest.mark.parametrize("how", ["flushed", "restarted empty", "evicted"])
def test_keys_stay_required_where_redis_has_lost_them(system: System, how: str) -> None:
    api = system.start_api(SERVICES_ALLOW_UNAUTHENTICATED="true")
    assert status(system) == 200
    key = make_key(system)
    poll(lambda: status(system) == 401, what="keys are required")
    assert status(system, key) == 200

    if how == "flushed":
        system.redis.client.flushall()
    elif how == "evicted":
        system.redis.client.delete("services:keys")
    else:
        system.redis.stop(signal.SIGKILL)
        for path in system.redis.folder.rglob("*.aof*"):
            path.unlink()
        system.redis.start()
    poll(lambda: "Redis has no API keys any more" in api.output, what="the log says so")
    assert status(system) == 401
    with system.client() as client:
        assert_problem(client.post("/jobs", content=body()), 401, "unauthorized")

    # a new key opens it again
    again = make_key(system, "bob")
    assert status(system, again) == 200 and status(system, key) == 401


def test_keys_can_be_required_before_any_was_made(system: System) -> None:
    system.start_api(SERVICES_REQUIRE_KEYS="true")
    assert status(system) == 401
    assert status(system, make_key(system)) == 200


def test_contradicting_settings_are_refused(system: System) -> None:
    env = {"SERVICES_REQUIRE_KEYS": "true", "SERVICES_ALLOW_UNAUTHENTICATED": "true"}
    api = system.start_api(wait=False, **env)
    assert api.wait() != 0 and "contradict each other" in api.output
    assert "contradict each other" in services(system, "keys", "list", **env).stderr


def test_an_eviction_policy_ends_the_start(system: System) -> None:
    system.redis.client.config_set("maxmemory-policy", "allkeys-lru")
    api = system.start_api(wait=False)
    worker = system.start_worker("echo", wait=False)
    assert worker.wait() == 2 and "maxmemory-policy is allkeys-lru" in worker.output
    assert api.wait() == 3 and "set it to noeviction" in api.output
    refused = services(system, "keys", "create", "--name", "x")
    assert refused.returncode == 1 and "noeviction" in refused.stderr


def test_the_policy_of_each_node_of_a_cluster_is_read() -> None:
    nodes = {"10.0.0.1:6379": {"maxmemory_policy": "noeviction"}, "10.0.0.2:6379": {"maxmemory_policy": "allkeys-lfu"}}
    with pytest.raises(EvictingStore, match="allkeys-lfu"):
        check_info([nodes])
    check_info([{"maxmemory_policy": "noeviction"}, {"aof_enabled": 1}])


def test_a_redis_without_an_append_only_file_is_a_warning(system: System) -> None:
    system.redis.client.config_set("appendonly", "no")
    api = system.start_api()
    assert "Redis writes no append-only file" in api.output
    assert status(system) == 200


def test_a_redis_that_has_renamed_info_is_a_warning(tmp_path: Path) -> None:
    command = [
        redis_binary(),
        "--port",
        "0",
        "--unixsocket",
        str(tmp_path / "r.sock"),
        "--rename-command",
        "INFO",
        "NONE",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path) as server:
        try:
            with redis.Redis(unix_socket_path=str(tmp_path / "r.sock")) as client:
                poll((tmp_path / "r.sock").exists, what="redis answers")
                check_server(client)
        finally:
            server.kill()


FOREIGN = [
    {"Origin": "https://evil.example", "Content-Type": "text/plain"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_page_of_another_site_can_change_nothing_without_a_key(serving: System, headers: dict[str, str]) -> None:
    with serving.client() as client:
        for path, content in (("/jobs", body()), ("/files", b"hello"), ("/v2/models/echo/infer", b"{}")):
            answer = client.post(path, content=content, headers=headers)
            assert answer.status_code == 403, answer.text
        job = client.post("/jobs?wait=20", content=body()).json()
        assert client.delete(f"/jobs/{job['id']}", headers=headers).status_code == 403
        assert client.get("/jobs", headers=headers).status_code == 200


def test_the_own_page_and_other_programs_are_let_in(serving: System) -> None:
    own = {"Origin": serving.url, "Sec-Fetch-Site": "same-origin"}
    for headers in (own, {"Origin": serving.url}, {"Sec-Fetch-Site": "none"}, {}):
        with serving.client() as client:
            assert client.post("/jobs?wait=20", content=body(), headers=headers).status_code == 200


def test_a_named_origin_is_let_in(system: System) -> None:
    system.start_api(SERVICES_CORS_ORIGINS="https://app.example.org")
    foreign = {"Origin": "https://app.example.org", "Sec-Fetch-Site": "cross-site"}
    with system.client() as client:
        assert client.post("/jobs", content=body(), headers=foreign).status_code == 202
        foreign["Origin"] = "https://evil.example"
        assert client.post("/jobs", content=body(), headers=foreign).status_code == 403
