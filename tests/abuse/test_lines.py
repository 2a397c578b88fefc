"""A ``predict_batch`` that prints a line for each input of a large batch."""

from __future__ import annotations

import time
from pathlib import Path

from tests.kit.http import body
from tests.kit.system import poll, running_system, write_plugin

SCHEMA = """
from pydantic import BaseModel

class Input(BaseModel):
    n: int

class Output(BaseModel):
    n: int
"""
SERVICE = """
from worker.service import Service
from batchy.schema import Input, Output

class Plugin(Service[Input, Output]):
    max_batch_size = 1024
    max_queue_delay_ms = 500
    def predict_batch(self, batch):
        for item in batch:
            print("line", item.n, "x" * 100)
        return [{"n": item.n} for item in batch]
"""
JOBS = 1024


def test_lines_of_a_large_call_hold_up_neither_its_worker_nor_redis(tmp_path: Path) -> None:
    write_plugin(tmp_path / "plugins", "batchy", SCHEMA, SERVICE)
    with running_system(tmp_path, tmp_path / "plugins") as system, system.client() as client:
        system.start_api()
        system.redis.client.config_set("slowlog-log-slower-than", 1_000_000)
        for n in range(JOBS):
            client.post("/jobs", content=body(service="batchy", input={"n": n}))
        memory = system.redis.client.info("memory")["used_memory"]
        system.start_worker("batchy")
        began = time.monotonic()
        depth = "/services/batchy"
        poll(lambda: client.get(depth).json()["queue_depth"] == 0, what="all are claimed")
        poll(lambda: not client.get("/jobs?status=running&limit=1").json()["jobs"], 30, "all have ended")
        assert time.monotonic() - began < 25
        jobs = client.get("/jobs?limit=100").json()["jobs"]
        assert {job["status"] for job in jobs} == {"succeeded"} and jobs[0]["batch_size"] > 100
        grown = system.redis.client.info("memory")["used_memory"] - memory
        assert grown < 100_000_000, grown
        assert not system.redis.client.slowlog_get(10), "no call holds Redis for a second"
        # lines of the call are still the events of its jobs
        with client.stream("GET", jobs[-1]["links"]["events"]) as stream:
            assert any("line" in line for line in stream.iter_lines())
