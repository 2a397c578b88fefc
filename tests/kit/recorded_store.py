"""A store as an earlier release left it, killed in the middle of its work: how ``tests/data/store-*`` was made.

    git archive cfb42b4 | tar x -C /tmp/old
    python -m tests.kit.recorded_store /tmp/old tests/data/store-0.1.0

Whatever the release, the API, the worker and the command ``services`` are its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from celery import Celery

from tests.kit.system import RedisServer, System, finished, poll, services, write_plugin

SCHEMA = """
from pydantic import BaseModel, ConfigDict
from worker.files import File

class Input(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"n": 1}]})
    n: int
    do: str = ""
    document: File | None = None

class Output(BaseModel):
    n: int
    copy_of_it: File | None = None
"""

PLUGIN = """
import os, time
from worker.files import File
from worker.service import Service
from recorded.schema import Input, Output

class Plugin(Service[Input, Output]):
    max_batch_size = 4
    time_limit_s = 600
    retry_on = (ConnectionError,)
    retry_backoff_s = 300

    def predict(self, item):
        if item.do == "fail":
            raise ValueError("as it was to")
        if item.do == "flaky" and not os.path.exists(os.environ["TEST_FOLDER"] + "/go"):
            raise ConnectionError("no model server")
        while item.do == "wait" and not os.path.exists(os.environ["TEST_FOLDER"] + "/go"):
            time.sleep(0.02)
        return item.n, item.document.path.read_bytes() if item.document else None

    def postprocess(self, raw):
        n, content = raw
        return Output(n=n, copy_of_it=File.from_bytes(content[::-1], "text/plain") if content else None)
"""

#: Long enough that nothing of the record is dropped while anybody tests it.
KEEP_S = 3_000_000_000
DOCUMENT = b"The quick brown fox jumps over the lazy dog.\n"
#: Rows of the batch that is cut off; the one that waits.
ROWS, WAITING_ROW = 200, 90


def write_recorded(folder: Path) -> Path:
    """The plugin, installed in this folder."""
    return write_plugin(folder, "recorded", SCHEMA, PLUGIN)


class Recorder:
    """The release at work, and what it says of its jobs."""

    def __init__(self, system: System, client: httpx.Client) -> None:
        self.system, self.client = system, client
        self.jobs: dict[str, Any] = {}

    def send(self, name: str, n: int, do: str = "", **more: Any) -> str:
        """A job, under a name that the test knows it by."""
        document = more.pop("document", None)
        input = {"n": n, **({"do": do} if do else {}), **({"document": document} if document else {})}
        headers = {"Idempotency-Key": more.pop("key")} if "key" in more else {}
        body = {"service": "recorded", "input": input, "keep_for_s": KEEP_S, **more}
        answer = self.client.post("/jobs", json=body, headers=headers)
        assert answer.status_code == 202, answer.text
        self.jobs[name] = answer.json()["id"]
        return str(answer.json()["id"])

    def batch(self, rows: list[dict[str, Any]]) -> str:
        body = {"service": "recorded", "inputs": rows, "keep_for_s": KEEP_S}
        return str(self.client.post("/batches", json=body).raise_for_status().json()["id"])

    def status(self, job_id: str) -> str:
        return str(self.client.get(f"/jobs/{job_id}").json()["status"])

    def record(self) -> dict[str, Any]:
        """All that the fixture holds; API and worker run on."""
        told: dict[str, Any] = {}
        answer = self.client.post("/files", content=DOCUMENT, params={"keep_for_s": KEEP_S})
        told["file"] = answer.raise_for_status().json()
        document = {"file": told["file"]["id"]}
        # Before there is a worker.
        self.client.delete(f"/jobs/{self.send('cancelled', 1)}").raise_for_status()
        finished(self.client, self.send("expired", 2, start_within_s=0.3))
        self.system.start_worker("recorded", "-c", "2")
        for name, n, do in (("succeeded", 3, ""), ("failed", 4, "fail")):
            finished(self.client, self.send(name, n, do, metadata={"of": name}, key=f"key of {name}"))
        finished(self.client, self.send("with a file", 5, document=document))
        flaky = self.send("paused", 6, "flaky")
        poll(lambda: self.client.get(f"/jobs/{flaky}").json()["attempt"] == 1, what="its first run failed")
        told["ended_batch"] = self.batch([{"n": n, "do": "fail"} if n == 7 else {"n": n} for n in range(10)])
        poll(lambda: self.client.get(f"/batches/{told['ended_batch']}").json()["finished_at"], what="the batch ends")
        # From here on something is running to the end.
        running = self.send("running", 8, "wait")
        poll(lambda: self.status(running) == "running", what="it runs")
        rows = [{"n": n, "do": "wait"} if n == WAITING_ROW else {"n": n} for n in range(ROWS)]
        told["cut_batch"] = self.batch(rows)

        def is_stuck() -> bool:
            counts = self.client.get(f"/batches/{told['cut_batch']}").json()["counts"]
            return bool(counts["succeeded"] and counts["running"] and counts["queued"])

        poll(is_stuck, what="the batch is in its middle")
        poll(lambda: self._count_done(told["cut_batch"]) == self._count_done(told["cut_batch"], 0.5), 30)
        self.send("queued", 9, metadata={"of": "queued"}, priority="low", key="key of queued")
        self.send("queued with a file", 10, document=document)
        self._send_by_celery()
        made = services(self.system, "keys", "create", "--name", "recorded")
        assert made.returncode == 0, made.stderr
        self.client.headers["Authorization"] = f"Bearer {made.stdout.strip()}"
        self.send("of a key", 11, priority="high")
        told |= {"jobs": self.jobs}
        return told

    def _count_done(self, batch: str, after_s: float = 0) -> int:
        if after_s:
            subprocess.run(["sleep", str(after_s)], check=True)
        return int(self.client.get(f"/batches/{batch}").json()["counts"]["succeeded"])

    def _send_by_celery(self) -> None:
        app = Celery(broker=f"redis+socket://{self.system.redis.socket}")
        app.send_task("recorded.predict", args=[{"n": 12}], queue="recorded", task_id="by-celery")
        self.jobs["by celery"] = "by-celery"
        app.close()


def write_down(server: RedisServer, into: Path) -> None:
    """The append-only file as text, in one piece that Redis 6 reads too, without this machine's name."""
    client = server.client
    client.config_set("aof-use-rdb-preamble", "no")
    client.bgrewriteaof()
    poll(lambda: not client.info("persistence")["aof_rewrite_in_progress"], what="it is rewritten")
    poll(lambda: not client.info("persistence")["aof_rewrite_scheduled"], what="it is rewritten")
    server.stop()
    folder = server.folder / "appendonlydir"
    parts = sorted(folder.glob("*.base.aof")) + sorted(folder.glob("*.incr.aof")) if folder.is_dir() else []
    text = b"".join(part.read_bytes() for part in parts or [server.folder / "appendonly.aof"])
    name = re.escape(socket.gethostname().encode())
    places = re.compile(rb"(?<=@)%b\b|\b%b(?=:\d+:[0-9a-f]{8})|(?<=\"host\": \")%b(?=\")" % (name, name, name))
    (into / "appendonly.aof").write_bytes(places.sub(lambda found: b"h" * len(found[0]), text))


def main(code: str, target: str) -> None:
    """Record what the release in the folder ``code`` leaves behind."""
    folder, into = Path(tempfile.mkdtemp(prefix="recording-")), Path(target)
    into.mkdir(parents=True)
    server = RedisServer()
    system = System(folder, server, write_recorded(folder / "plugins"), SERVICES_MAX_KEEP_FOR_S=str(KEEP_S))
    system.env |= {
        "PYTHONPATH": os.pathsep.join([str(folder / "plugins"), code]),
        "SERVICES_DATA_DIR": str(folder / "d"),
    }
    try:
        server.start("always")
        system.start_api()
        with system.client() as client:
            told = Recorder(system, client).record()
            admin = services(system, "keys", "create", "--name", "all", "--scope", "admin").stdout.strip()
            client.headers["Authorization"] = f"Bearer {admin}"
            told["shown"] = {name: client.get(f"/jobs/{id}").json() for name, id in told["jobs"].items()}
            told["batches"] = {
                id: client.get(f"/batches/{id}").json() for id in (told["ended_batch"], told["cut_batch"])
            }
            told["results"] = client.get(f"/batches/{told['ended_batch']}/results").text
        system.stop()
        shutil.copytree(folder / "d" / "files", into / "files")
        write_down(server, into)
        told["document"] = hashlib.sha256(DOCUMENT).hexdigest()
        (into / "told.json").write_text(json.dumps(told, indent=1) + "\n")
    finally:
        system.stop()
        server.remove()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
