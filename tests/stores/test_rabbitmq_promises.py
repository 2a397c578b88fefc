"""The same promises where RabbitMQ is Celery's broker."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery, chain
from kombu.compression import encoders
from kombu.entity import Queue

from tests.kit.rabbit import RabbitServer
from tests.kit.system import System, finished, poll, running_system


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, plugins: Path, rabbit: RabbitServer) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("rabbit_promises"), plugins, BROKER_URL=rabbit.url) as made:
        made.start_api()
        app = Celery("first", broker=rabbit.url, set_as_current=False)
        with app.connection_for_write() as link:  # as a producer with task_queue_max_priority declares it
            queue = Queue("one_by_one", routing_key="one_by_one", max_priority=10)
            queue.bind(link.channel()).declare()
        app.close()
        made.start_worker("one_by_one,echo")
        yield made


@pytest.fixture
def stock(serving: System, rabbit: RabbitServer) -> Iterator[Celery]:
    """A program that has nothing but Celery."""
    backend = serving.redis.url.replace("unix://", "redis+socket://")
    app = Celery("stock", broker=rabbit.url, backend=backend, set_as_current=False)
    app.conf.broker_transport_options = {"confirm_publish": True}
    app.conf.task_queue_max_priority = 10
    yield app
    app.close()


@pytest.fixture
def client(serving: System) -> Iterator[httpx.Client]:
    with serving.client() as made:
        yield made


def send(app: Celery, n: int = 1, sleep_s: float = 0, **options: Any) -> str:
    args = [{"n": n, "sleep_s": sleep_s}]
    return str(app.send_task("one_by_one.predict", args=args, queue="one_by_one", **options).id)


def adopted(client: httpx.Client, job_id: str) -> Any:
    poll(lambda: client.get(f"/jobs/{job_id}").status_code == 200, what="it is adopted")
    return finished(client, job_id)


def test_a_higher_number_is_more_urgent_and_the_queue_stays_as_it_was_declared(
    client: httpx.Client, stock: Celery
) -> None:
    running = send(stock, sleep_s=2)
    poll(lambda: client.get(f"/jobs/{running}").json().get("status") == "running", what="it runs")
    sent = {p: send(stock, **({} if p is None else {"priority": p})) for p in (None, 1, 0, 4, 9, 6)}
    told = {p: adopted(client, job_id) for p, job_id in sent.items()}
    assert sorted(told, key=lambda p: told[p]["started_at"]) == [9, 6, 4, 1, None, 0]
    assert [told[p]["priority"] for p in (0, 4, 6, 9)] == ["normal", "normal", "high", "high"]


def test_times_protocols_and_compressions(client: httpx.Client, stock: Celery) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1)
    later = send(stock, eta=soon)
    assert datetime.fromisoformat(adopted(client, later)["started_at"]) >= soon - timedelta(seconds=0.1)
    for protocol in (1, 2):
        stock.conf.task_protocol = protocol
        sent = [send(stock, n, compression=kind) for n, kind in enumerate([None, *encoders()])]
        jobs = [adopted(client, job_id) for job_id in sent]
        assert [job["error"] or job["output"]["n"] for job in jobs] == list(range(len(sent)))
    step = stock.signature("one_by_one.predict", args=[{"n": 1}], queue="one_by_one", immutable=True)
    with pytest.raises(Exception, match="the option chain is not supported"):
        chain(step, step.clone()).apply_async().get(timeout=20)


def test_revoke_goes_by_the_broker(client: httpx.Client, stock: Celery) -> None:
    running = send(stock, sleep_s=20)
    poll(lambda: client.get(f"/jobs/{running}").json().get("status") == "running", what="it runs")
    waiting = send(stock)
    stock.AsyncResult(waiting).revoke()
    assert adopted(client, waiting)["status"] == "cancelled"
    stock.control.revoke(running, terminate=True)
    assert finished(client, running)["status"] == "cancelled"


def test_whatever_a_message_holds_its_reader_lives_on(client: httpx.Client, stock: Celery, serving: System) -> None:
    with stock.connection_for_write() as link, link.Producer() as producer:
        task = {"task": "one_by_one.predict"}
        for body, headers in (
            (b"\xff\xfe", {}),
            (b"[[{}], {}, {}]", {**task, "id": "no-time", "expires": "9999-12-31T23:59:59-14:00"}),
            (b"[[{}], {}, {}]", {**task, "id": "odd", "eta": datetime.now(UTC), "timelimit": {"a": 1}}),
            (b"[" * 50_000, {**task, "id": "deep"}),
            (zlib.compress(b" " * 100_000_000), {**task, "id": "bomb", "compression": "application/x-gzip"}),
            (b"x", {**task, "id": "unpacked", "compression": "snappy"}),
            (b"x", {"id": "\x00", "task": None}),
        ):
            producer.publish(body, routing_key="echo", headers=headers, content_type="application/json", exchange="")
    for job_id in ("no-time", "odd", "deep", "bomb", "unpacked"):
        assert adopted(client, job_id)["error"]["code"] == "invalid_input"
    began = time.monotonic()
    assert adopted(client, send(stock))["status"] == "succeeded"
    assert time.monotonic() - began < 10
