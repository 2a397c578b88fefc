"""RabbitMQ as Celery's broker, with Redis as the ledger."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from tests.kit.rabbit import RabbitServer
from tests.kit.system import System, finished, poll, running_system


@pytest.fixture
def with_rabbit(tmp_path: Path, plugins: Path, rabbit: RabbitServer) -> Iterator[System]:
    with running_system(tmp_path, plugins, BROKER_URL=rabbit.url) as made:
        made.start_api()
        yield made


@pytest.fixture
def stock(with_rabbit: System, rabbit: RabbitServer) -> Iterator[Celery]:
    """A program that has nothing but Celery."""
    backend = with_rabbit.redis.url.replace("unix://", "redis+socket://")
    app = Celery("stock", broker=rabbit.url, backend=backend, set_as_current=False)
    app.conf.broker_transport_options = {"confirm_publish": True}
    yield app
    app.close()


def test_jobs_of_either_origin_run_and_read_the_same(with_rabbit: System, stock: Celery) -> None:
    worker = with_rabbit.start_worker("echo")
    with with_rabbit.client() as client:
        posted = client.post("/jobs?wait=20", json={"service": "echo", "input": {"n": 7}}).json()
        sent = stock.send_task("echo.predict", args=[{"n": 7}], queue="echo")
        assert sent.get(timeout=20) == posted["output"] == {"n": 7, "batch": 1}
        assert client.get(f"/jobs/{sent.id}").json()["status"] == "succeeded"

        # sent twice, as after a redelivery: one job
        twice = str(uuid.uuid4())
        for _ in range(2):
            stock.send_task("echo.predict", args=[{"n": 8}], queue="echo", task_id=twice)
        bad = stock.send_task("echo.predict", args=[{"n": "x"}], queue="echo")
        pickled = stock.send_task("echo.predict", args=[{"n": 1}], queue="echo", serializer="pickle")
        assert stock.AsyncResult(twice).get(timeout=20) == {"n": 8, "batch": 1}
        for result in (bad, pickled):
            poll(lambda i=result.id: client.get(f"/jobs/{i}").status_code == 200, what="it is adopted")
            assert finished(client, result.id)["error"]["code"] == "invalid_input"
        assert worker.output.count(f"job succeeded id={twice}") == 1

    # what is no task at all is dropped and said
    with stock.connection_for_write() as link, link.Producer() as producer:
        producer.publish({"hello": 1}, exchange="", routing_key="echo")
    poll(lambda: "dropped a message in queue echo" in worker.output, what="the worker says so")
    assert stock.control.inspect(timeout=5).ping(), "remote control goes by the broker"
    assert worker.stop() == 0


def test_confirmed_messages_run_after_the_broker_was_killed(
    with_rabbit: System, stock: Celery, rabbit: RabbitServer
) -> None:
    sent = [stock.send_task("echo.predict", args=[{"n": n}], queue="echo").id for n in range(50)]
    rabbit.stop(signal.SIGKILL)
    worker = with_rabbit.start_worker("echo")  # which starts without its broker
    with with_rabbit.client() as client:
        job = client.post("/jobs?wait=20", json={"service": "echo", "input": {"n": 1}}).json()
        assert job["status"] == "succeeded", "the API's jobs need no broker"
        rabbit.start()

        def adopted() -> Any:
            return all(client.get(f"/jobs/{i}").status_code == 200 for i in sent)

        poll(adopted, 60, "all messages are adopted")
        assert [finished(client, i)["output"]["n"] for i in sent] == list(range(50))
        rabbit.stop(signal.SIGKILL)
        rabbit.start()
        later = str(poll(lambda: _send(stock), what="the producer's connection is new"))
        poll(lambda: client.get(f"/jobs/{later}").status_code == 200, 60, "the worker reads its queue again")
        assert finished(client, later)["status"] == "succeeded"
    assert worker.exit_code is None


def test_a_broker_that_is_none_is_refused(system: System) -> None:
    worker = system.start("celery", "-A", "worker", "worker", "-Q", "echo", BROKER_URL="redis://x")
    assert worker.wait() == 2 and "BROKER_URL" in worker.output and "amqp://" in worker.output


def _send(stock: Celery) -> str | None:
    try:
        return str(stock.send_task("echo.predict", args=[{"n": 1}], queue="echo", retry=False).id)
    except OperationalError:
        return None
