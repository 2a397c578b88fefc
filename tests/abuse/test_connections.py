"""Connections that send heads without end, nothing at all, or that read nothing of their answers."""

from __future__ import annotations

import resource
import socket
import time

import httpx
import pytest

from tests.kit.http import body
from tests.kit.system import System, poll
from worker.processes.lifetime import resident_mb


def connect(system: System) -> socket.socket:
    return socket.create_connection(("127.0.0.1", system.port), timeout=20)


def send_until_closed(connection: socket.socket, piece: bytes, most: int) -> int:
    """Bytes that were sent until the server closed the connection, at most about ``most``."""
    sent = 0
    try:
        while sent < most:
            connection.sendall(piece)
            sent += len(piece)
    except OSError:
        pass
    return sent


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    try:
        while piece := connection.recv(65536):
            answer += piece
    except OSError:
        pass
    return answer


def read_until(connection: socket.socket, end: bytes) -> bytes:
    answer = b""
    while end not in answer:
        answer += connection.recv(65536)
    return answer


HEADS = {
    "many headers": (b"GET /jobs HTTP/1.1\r\nHost: localhost\r\n", b"a:b\r\n" * 2000),
    "one long header": (b"GET /jobs HTTP/1.1\r\nHost: localhost\r\nX: ", b"x" * 10_000),
    "one long name": (b"GET /jobs HTTP/1.1\r\nHost: localhost\r\n", b"x" * 10_000),
    "a long URL": (b"GET /", b"x" * 10_000),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_without_end_is_refused(serving: System, kind: str) -> None:
    start, piece = HEADS[kind]
    pid = serving.processes[0].pid
    before = resident_mb(pid)
    for _ in range(3):
        with connect(serving) as connection:
            connection.sendall(start)
            assert send_until_closed(connection, piece, 60_000_000) < 20_000_000
    assert resident_mb(pid) - before < 50
    with serving.client() as client:
        assert client.post("/jobs?wait=20", content=body()).json()["status"] == "succeeded"


def test_a_large_head_in_one_piece_is_answered_431(serving: System) -> None:
    with connect(serving) as connection:
        connection.sendall(b"GET /jobs HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000 + b"\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 431 ")
    with connect(serving) as connection:
        connection.sendall(
            b"GET /jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: " + b"x" * 30_000 + b"\r\n\r\n"
        )
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_slow_heads_are_closed_and_slow_clients_are_not(system: System) -> None:
    system.start_api(SERVICES_HEADER_TIMEOUT_S="1.5")
    silent, half, idle = connect(system), connect(system), connect(system)
    half.sendall(b"GET /jobs HTT")
    idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert read_until(idle, b'"ok"}').startswith(b"HTTP/1.1 200")
    began = time.monotonic()
    assert read_all(silent) == b"" and read_all(half) == b""
    assert 1 < time.monotonic() - began < 6
    # a connection that is kept alive, and a request whose head came in time, live on
    idle.sendall(b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body()))
    time.sleep(2.5)
    idle.sendall(body())
    assert read_until(idle, b"\r\n\r\n").startswith(b"HTTP/1.1 202")
    for connection in (silent, half, idle):
        connection.close()


def test_an_answer_that_nobody_reads_is_dropped(system: System) -> None:
    system.start_api(SERVICES_WRITE_TIMEOUT_S="1.5", SERVICES_MAX_BODY_BYTES="30000000")
    with system.client() as client:
        sent = body(input={"n": 1, "do": "x" * 20_000_000})
        job = client.post("/jobs", content=sent).json()
    pid = system.processes[-1].pid
    before = resident_mb(pid)
    unread = [connect(system) for _ in range(5)]
    for connection in unread:
        connection.sendall(b"GET /jobs/%b?include=input HTTP/1.1\r\nHost: localhost\r\n\r\n" % job["id"].encode())
    poll(lambda: resident_mb(pid) - before > 30, what="the answers wait")
    poll(lambda: system.processes[-1].output.count("read nothing of its answer") >= 5, what="all were closed")
    for connection in unread:
        connection.close()


def test_a_low_limit_of_descriptors_is_raised(system: System) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        system.start_api()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    many = [connect(system) for _ in range(400)]
    with system.client() as client:
        assert client.get("/readyz").status_code == 200
    for connection in many:
        connection.close()


def test_a_new_connection_that_reads_slowly_gets_its_whole_answer(system: System) -> None:
    system.start_api(SERVICES_MAX_BODY_BYTES="30000000")
    with system.client() as client:
        job = client.post("/jobs", content=body(input={"n": 1, "do": "x" * 20_000_000})).json()
    for _ in range(2):
        with httpx.stream("GET", f"{system.url}/jobs/{job['id']}?include=input", timeout=20) as answer:
            size = 0
            for piece in answer.iter_raw(1_000_000):
                size += len(piece)
                time.sleep(0.1)  # so that the connections are looked at meanwhile
        assert size == int(answer.headers["content-length"]) > 20_000_000
