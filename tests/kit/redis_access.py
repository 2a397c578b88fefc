"""A Redis with users and passwords, and a producer of Celery that uses it."""

from __future__ import annotations

import httpx

from tests.kit.system import poll

PRODUCER = """
from worker.celery import app
result = app.send_task("echo.predict", args=[{"n": 7}], queue="echo")
print(result.get(timeout=20)["n"], result.state)
while not (told := app.control.inspect(timeout=3).registered()):
    pass  # its connection to the broker is a matter of seconds after a failover
print(list(told.values()))
"""


def use_files(client: httpx.Client) -> None:
    """Every call of Redis that files and events need: by the API, by a worker, and by the sweep."""
    stored = client.post("/files", content=b"abc").json()
    assert client.post("/files", content=b"abc").status_code == 200
    body = {"service": "turning", "input": {"document": {"file": stored["id"]}, "do": "same"}}
    job = client.post("/jobs?wait=20", json=body).json()
    assert client.get(job["links"]["events"]).text.count("event: progress") == 1
    made = job["output"]["reversed"]
    assert client.get(client.get(f"/files/{made['file']}").json()["links"]["download"]).content == b"cba"
    assert client.delete(f"/files/{stored['id']}").status_code == 204
    short = client.post("/files?keep_for_s=0.1", content=b"short").json()
    poll(lambda: client.get(f"/files/{short['id']}").status_code == 404, what="it is swept")
