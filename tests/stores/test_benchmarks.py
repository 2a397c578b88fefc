"""The benchmark's harness works; what it measures is for ``make bench``."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import peer_stacks, report
from benchmarks.calibrate import Line, measure_redis
from benchmarks.client import STYLES, make_call
from benchmarks.peer_stacks import KINDS, Peers
from benchmarks.simulate import Plan, simulate
from tests.kit.system import ROOT, environment_without_ours
from worker.cli.load import connect


def test_a_small_run_measures_both_stacks() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "queue", "--rounds", "1", "--jobs", "5000", "--no-report"]
    env = environment_without_ours() | {"PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    for stack in ("naive", "ours"):
        (speed,) = re.findall(rf"^no-op queue, {stack} jobs/s: \[([\d.]+)\]$", done.stdout, re.M)
        assert float(speed) > 0


def test_the_simulation_is_bound_by_workers_first_and_by_redis_at_last() -> None:
    costs = replace(measure_redis(jobs=256, rounds=1), api=100, worker=50)
    assert min(costs.create.us(1), costs.claim.us(1), costs.complete.us(1), costs.read.us(1), costs.tick) > 0
    sleeps = Line(100_000, 0)
    one, two = (simulate(Plan(workers, 16 * workers, 8, sleeps), costs) for workers in (1, 2))
    assert one.jobs_s == pytest.approx(80, rel=0.1) and two.jobs_s == pytest.approx(160, rel=0.15)
    many = simulate(Plan(64, 64 * 128, 64, Line(1000, 0), apis=16), costs)
    assert many.redis > 0.95 and many.jobs_s < 1.05e6 / (costs.create.job + costs.claim.job + costs.complete.job)


def test_an_unknown_section_is_refused_with_the_known_ones() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "nope"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "throughput" in done.stderr


def test_an_unknown_peer_is_refused_with_the_known_ones() -> None:
    command = [sys.executable, "-m", "benchmarks", "--peers", "mlserver,nope"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "no peer is named nope" in done.stderr and "triton" in done.stderr


def test_a_peer_that_cannot_be_installed_is_told_by_name_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "litserve.txt").write_text("this is no requirement\n")
    monkeypatch.setattr(peer_stacks, "HERE", tmp_path)
    monkeypatch.setattr(peer_stacks, "ENVIRONMENTS", tmp_path)
    peers = Peers.prepare(["litserve"])
    assert peers.kinds == []

    monkeypatch.setattr(report, "HERE", tmp_path)
    report.write({}, "make bench PEERS=litserve", 1, peers)
    (line,) = [line for line in (tmp_path / "RESULTS.md").read_text().splitlines() if "no figures" in line]
    assert line.startswith("* litserve has no figures: not installed: ERROR: Invalid requirement")


def test_each_peer_is_pinned_and_has_a_server_and_a_protocol() -> None:
    for kind in KINDS.values():
        folder = ROOT / "benchmarks" / "peers"
        pins = (folder / f"{kind.module}.txt").read_text().split()
        assert all("==" in pin for pin in pins) and any(pin.startswith("scikit-learn==") for pin in pins)
        assert (folder / f"{kind.module}.py").is_file() and kind.style in STYLES


def test_the_client_follows_a_task_and_reads_an_answer_in_chunks() -> None:
    answers = [
        b'{"task_id": "7", "status": "in_progress"}',
        b'{"task_id": "7", "status": "completed"}',
        b'{"score": 1}',
    ]
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in answers:
            head = await reader.readuntil(b"\r\n\r\n")
            asked.append(head.split(b" HTTP")[0].decode())
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0))
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n" + body[:5])
            await writer.drain()
            writer.write(b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 5, body[5:]))
        writer.close()

    async def run() -> object:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            connection = await connect("127.0.0.1", server.sockets[0].getsockname()[1])
            return await make_call("bentoml", "tiny", {"x": [1]})(connection)

    assert asyncio.run(run()) == {"score": 1}
    assert asked == ["POST /score/submit", "GET /score/status?task_id=7", "GET /score/get?task_id=7"]
