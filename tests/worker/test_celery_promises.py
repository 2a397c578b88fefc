"""What Celery's documentation promises, over the real surface: kept or refused with words, nothing dropped silently."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import TaskRevokedError
from kombu.compression import encoders

from tests.kit.system import System, finished, free_port, poll, running_system, status_of
from worker.broker.command_line import REFUSED as OPTIONS
from worker.broker.control import REFUSED as COMMANDS


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, plugins: Path) -> Iterator[System]:
    """The API and a worker of ``one_by_one``, in whose one pool process a job can be held."""
    with running_system(tmp_path_factory.mktemp("promises"), plugins) as made:
        made.start_api()
        made.start_worker("one_by_one")
        yield made


@pytest.fixture
def stock(serving: System) -> Iterator[Celery]:
    """A program that has nothing but Celery."""
    url = serving.redis.url.replace("unix://", "redis+socket://")
    app = Celery("stock", broker=url, backend=url, set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def client(serving: System) -> Iterator[httpx.Client]:
    with serving.client() as made:
        yield made


def send(app: Celery, n: int = 1, sleep_s: float = 0, **options: Any) -> str:
    args = [{"n": n, "sleep_s": sleep_s}]
    return str(app.send_task("one_by_one.predict", args=args, queue="one_by_one", **options).id)


def sig(app: Celery, n: int = 1, **options: Any) -> Any:
    return app.signature("one_by_one.predict", args=[{"n": n}], queue="one_by_one", immutable=True, **options)


def adopted(client: httpx.Client, job_id: str) -> Any:
    """The job of a message, once it has ended."""
    poll(lambda: client.get(f"/jobs/{job_id}").status_code == 200, what="it is adopted")
    return finished(client, job_id)


def running(client: httpx.Client, app: Celery, sleep_s: float = 1.5) -> str:
    """A job that runs, so that what is sent now waits in the list of messages."""
    job_id = send(app, sleep_s=sleep_s)
    poll(lambda: client.get(f"/jobs/{job_id}").json().get("status") == "running", what="it runs")
    return job_id


def ours(system: System, code: str) -> Any:
    """Run code in a process that has ``worker.celery``; gives what it prints, as JSON."""
    script = f"import json\nfrom celery import chain, chord, group\nfrom worker.celery import app\n{code}"
    done = subprocess.run([sys.executable, "-c", script], env=system.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# -- options that no worker honours -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "link"),
        ({}, "link_error"),
        ({"time_limit": 1}, "time_limit"),
        ({"soft_time_limit": 1.5}, "soft_time_limit"),
    ],
)
@pytest.mark.parametrize("protocol", [1, 2])
def test_an_option_that_is_not_honoured_fails_its_job_by_name(
    client: httpx.Client, stock: Celery, options: Any, named: str, protocol: int
) -> None:
    stock.conf.task_protocol = protocol
    if named.startswith("link"):
        options = {named: sig(stock)}
    error = adopted(client, send(stock, **options))["error"]
    assert error["code"] == "invalid_input" and f"the option {named} is not supported: " in error["message"]


@pytest.mark.parametrize("protocol", [1, 2])
def test_a_chains_last_result_is_a_failure_that_names_the_first(
    client: httpx.Client, stock: Celery, protocol: int
) -> None:
    stock.conf.task_protocol = protocol  # by which a chain is made of links
    result = chain(sig(stock, 1), sig(stock, 2), sig(stock, 3)).apply_async()
    with pytest.raises(Exception, match=r"was refused: the option (chain|link) is not supported"):
        stock.AsyncResult(result.id).get(timeout=20)
    with pytest.raises(Exception, match=r"the option (chain|link) is not supported"):
        result.get(timeout=20)  # which looks at the steps before it, too
    assert "is not supported" in adopted(client, result.parent.parent.id)["error"]["message"]


def test_a_chord_fails_and_a_plain_group_works(client: httpx.Client, stock: Celery) -> None:
    body = chord([sig(stock, n) for n in range(2)], sig(stock, 9)).apply_async()
    with pytest.raises(Exception, match="the option chord is not supported"):
        body.get(timeout=20)
    assert [out["n"] for out in group(sig(stock, n) for n in range(3)).apply_async().get(timeout=20)] == [0, 1, 2]


def test_our_own_app_refuses_them_as_it_sends(serving: System) -> None:
    code = """
def sig(**options):
    return app.signature("one_by_one.predict", args=[{"n": 1}], immutable=True, **options)

def said(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__ + ": " + str(error)
    return ""

calls = [lambda name=name: sig().apply_async(**{name: 1 if "limit" in name else sig()})
         for name in ("link", "link_error", "time_limit", "soft_time_limit")]
calls += [chain(sig(), sig()).apply_async, chord([sig(), sig()], sig()).apply_async]
calls += [(group(sig(), sig()) | sig()).apply_async]
calls += [lambda: app.send_task("one_by_one.predict", args=[{"n": 1}], time_limit=5)]
told = [said(call) for call in calls]
app.conf.task_protocol = 1
"""
    found = ours(
        serving, code + "print(json.dumps([told, [out['n'] for out in group(sig(), sig())().get(timeout=20)]]))"
    )
    told, outputs = found
    names = ["link", "link_error", "time_limit", "soft_time_limit", "chain", "chord", "chord", "time_limit"]
    for name, text in zip(names, told, strict=True):
        assert text.startswith(f"InvalidInput: the option {name} is not supported: "), text
    assert outputs == [1, 1]


def test_harmless_settings_stay(client: httpx.Client, stock: Celery) -> None:
    for options in ({"retry": True}, {"shadow": "x"}, {"headers": {"a": 1}}, {"reply_to": "me"}, {"root_id": "r"}):
        assert adopted(client, send(stock, **options))["status"] == "succeeded", options
    assert adopted(client, send(stock, ignore_result=True))["status"] == "succeeded"


# -- revoke -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminate", [False, True])
def test_a_waiting_message_is_revoked_and_a_running_job_goes_on_without_terminate(
    client: httpx.Client, stock: Celery, terminate: bool
) -> None:
    first = running(client, stock)
    waiting = stock.send_task("one_by_one.predict", args=[{"n": 2}], queue="one_by_one")
    stock.AsyncResult(first).revoke()
    waiting.revoke(terminate=terminate)
    assert adopted(client, waiting.id)["status"] == "cancelled"
    assert stock.AsyncResult(waiting.id).state == "REVOKED"
    with pytest.raises(TaskRevokedError):
        waiting.get(timeout=5)
    assert finished(client, first)["status"] == "succeeded", "Celery's revoke stops nothing that runs"


def test_a_revoke_comes_before_its_message_too_and_ends_a_running_job(client: httpx.Client, stock: Celery) -> None:
    early = str(uuid.uuid4())
    replies = stock.control.revoke([early, early], reply=True, timeout=10, limit=1)
    assert "flagged as revoked" in next(iter(replies[0].values()))["ok"]
    send(stock, task_id=early)
    assert adopted(client, early)["status"] == "cancelled"
    first = running(client, stock, 20)
    replies = stock.control.terminate(first, reply=True, timeout=10, limit=1, signal="SIGKILL")
    assert next(iter(replies[0].values())) == {"ok": f"terminate: {first}"}
    assert finished(client, first)["status"] == "cancelled"
    assert next(iter(stock.control.terminate("nobody", reply=True, timeout=10, limit=1)[0].values())) == {
        "ok": "terminate: tasks unknown"
    }


def test_flower_revokes_waiting_jobs_and_ends_running_ones(
    serving: System, client: httpx.Client, stock: Celery
) -> None:
    port = free_port()
    flower = serving.start("celery", "-A", "worker", "flower", f"--port={port}", FLOWER_UNAUTHENTICATED_API="1")
    url = f"http://127.0.0.1:{port}"
    poll(lambda: status_of(f"{url}/healthcheck") == 200, 30, "flower is up")
    first = running(client, stock, 20)
    waiting = send(stock)
    (worker,) = stock.control.ping(timeout=10, limit=1)
    grow = f"{url}/api/worker/pool/grow/{next(iter(worker))}"
    answer = poll(
        lambda: (got := httpx.post(grow, timeout=10)).status_code != 404 and got, 30, "flower knows the worker"
    )
    assert answer.status_code == 403 and "start further workers" in answer.text
    for job_id, terminate in ((waiting, ""), (first, "?terminate=true")):
        answer = httpx.post(f"{url}/api/task/revoke/{job_id}{terminate}", timeout=10)
        assert answer.status_code == 200, answer.text
    assert finished(client, first)["status"] == "cancelled"
    assert adopted(client, waiting)["status"] == "cancelled"
    flower.stop()


# -- priority, expires, countdown, eta --------------------------------------------------------------------------------


def test_messages_run_in_the_order_of_their_priorities_and_those_wait_no_longer(
    client: httpx.Client, stock: Celery
) -> None:
    running(client, stock)
    order = (9, 6, 3, 1, 0, None, 5)
    sent = {p: send(stock, **({} if p is None else {"priority": p})) for p in order}
    told = {p: adopted(client, job_id) for p, job_id in sent.items()}
    assert sorted(told, key=lambda p: told[p]["started_at"]) == [0, None, 1, 3, 5, 6, 9]
    assert [told[p]["priority"] for p in (0, 3, 6, 9)] == ["normal", "normal", "low", "low"]

    def wait_s(priority: int) -> float:
        began = time.perf_counter()
        job_id = send(stock, priority=priority)
        poll(lambda: (job := client.get(f"/jobs/{job_id}?wait=5")).status_code == 200 and job.json()["output"])
        return time.perf_counter() - began

    for priority in (3, 6, 9):
        assert min(wait_s(priority) for _ in range(5)) < 0.3, (
            f"with priority {priority}, an idle worker waits for it too"
        )


def test_many_messages_of_one_priority_keep_their_order(client: httpx.Client, stock: Celery) -> None:
    first = running(client, stock, 1)
    sent = [send(stock, n, priority=6) for n in range(20)]
    started = [adopted(client, job_id)["started_at"] for job_id in sent]
    assert started == sorted(started)
    finished(client, first)


def test_countdown_and_eta_are_kept(client: httpx.Client, stock: Celery) -> None:
    due = datetime.now(UTC) + timedelta(seconds=1.5)
    sent = [send(stock, countdown=1.5), send(stock, eta=due), send(stock, eta=due.replace(tzinfo=None))]
    past = send(stock, eta=datetime.now(UTC) - timedelta(days=1))
    assert adopted(client, past)["status"] == "succeeded"
    job = client.get(f"/jobs/{sent[0]}").json()
    assert (job["status"], job["position"]) == ("queued", None)
    for job_id in sent:
        job = adopted(client, job_id)
        assert job["status"] == "succeeded"
        assert datetime.fromisoformat(job["started_at"]) >= due - timedelta(seconds=0.1)
    too_far = adopted(client, send(stock, countdown=31 * 86_400))["error"]["message"]
    assert "more than 30 days ahead" in too_far
    later = send(stock, countdown=3600)
    poll(lambda: client.get(f"/jobs/{later}").status_code == 200, what="it is adopted")
    stock.control.revoke(later)
    assert finished(client, later)["status"] == "cancelled"


def test_expires_counts_in_absolute_time(client: httpx.Client, stock: Celery) -> None:
    running(client, stock)
    late = [send(stock, expires=0.5), send(stock, expires=datetime.now(UTC) + timedelta(seconds=0.5))]
    late += [send(stock, countdown=3, expires=0.5)]
    good = [send(stock, expires=60), send(stock, countdown=0.5, expires=60)]
    assert [adopted(client, job_id)["status"] for job_id in late] == ["expired"] * 3
    assert stock.AsyncResult(late[0]).state == "REVOKED"
    assert [adopted(client, job_id)["status"] for job_id in good] == ["succeeded"] * 2


# -- messages of any form ---------------------------------------------------------------------------------------------


def raw_message(job_id: str, **headers: Any) -> dict[str, Any]:
    body = json.dumps([[{"n": 1}], {}, {}])
    told = {"id": job_id, "task": "one_by_one.predict", **headers}
    return {"body": body, "content-type": "application/json", "headers": told, "properties": {"body_encoding": "utf-8"}}


def test_whatever_a_message_holds_its_neighbours_run(serving: System, client: httpx.Client, stock: Celery) -> None:
    first = running(client, stock)
    (worker,) = [process for process in serving.processes if "worker" in process.log.name]
    pool = worker.children
    good = [send(stock, n) for n in range(10)]
    deep = raw_message("deep")
    deep["body"] = "[[" + "[" * 100_000 + "]" * 100_000 + "], {}, {}]"
    bomb = raw_message("bomb", compression="application/x-gzip")
    bomb |= {"properties": {"body_encoding": "base64"}}
    bomb["body"] = base64.b64encode(zlib.compress(b" " * 100_000_000)).decode()
    odd: dict[str, dict[str, Any]] = {
        "never": raw_message("never", expires="9999-12-31T23:59:59-14:00"),
        "long-ago": raw_message("long-ago", expires="0001-01-01T00:00:00+14:00"),
        "deep": deep,
        "bomb": bomb,
        "infinite": raw_message("infinite") | {"body": '[[{"n": 1e999}], {}, {}]'},
        "unpacked": raw_message("unpacked", compression="snappy"),
        "encoded": raw_message("encoded") | {"properties": {"body_encoding": "rot13"}},
        "yaml": raw_message("yaml") | {"content-type": "application/x-yaml"},
        "eta": raw_message("eta", eta={"a": 1}),
        "limits": raw_message("limits", timelimit=7),
    }
    lines = [json.dumps(message).encode() for message in odd.values()]
    lines += [json.dumps(raw_message(name)).encode() for name in ("", "\ud800", "x" * 2000)]
    lines += [b'{"headers": {"id": 7, "task": "one_by_one.predict"}, "body": "x"}', b"[" * 100_000, b"null"]
    serving.redis.client.lpush("one_by_one", *lines)
    after = send(stock, 11)
    told = {name: adopted(client, name) for name in odd}
    assert {adopted(client, job_id)["status"] for job_id in [first, *good, after]} == {"succeeded"}
    assert told["never"]["status"] == "succeeded" and told["long-ago"]["status"] == "expired"
    for name, words in (
        ("deep", "RecursionError"),
        ("bomb", "SERVICES_MAX_BODY_BYTES"),
        ("infinite", "cannot be read"),
        ("unpacked", "'snappy' is not supported; expected one of application/x-brotli"),
        ("encoded", "'rot13'"),
        ("yaml", "application/x-yaml is refused"),
        ("eta", "eta must be an ISO 8601 time"),
        ("limits", "cannot be read"),
    ):
        assert told[name]["error"]["code"] == "invalid_input" and words in told[name]["error"]["message"], told[name]
    assert worker.children == pool, "no pool process has died"
    assert worker.output.count("dropped a message in queue one_by_one") == 6


@pytest.mark.parametrize("protocol", [1, 2])
def test_both_protocols_and_every_compression_are_read(client: httpx.Client, stock: Celery, protocol: int) -> None:
    stock.conf.task_protocol = protocol
    sent = [send(stock, n, compression=kind) for n, kind in enumerate([None, *encoders()])]
    jobs = [adopted(client, job_id) for job_id in sent]
    assert [job["output"]["n"] for job in jobs] == list(range(len(sent)))
    soon = datetime.now(UTC) + timedelta(seconds=0.5)
    job = adopted(client, send(stock, eta=soon, expires=soon + timedelta(seconds=60)))
    assert job["status"] == "succeeded" and datetime.fromisoformat(job["started_at"]) >= soon - timedelta(seconds=0.1)
    assert adopted(client, send(stock, expires=1e-6))["status"] == "expired"
    pickled = adopted(client, send(stock, serializer="pickle"))
    assert "messages must be application/json" in pickled["error"]["message"]


def test_kombus_own_types_reach_the_input_as_json(client: httpx.Client, stock: Celery) -> None:
    moment = datetime(2026, 12, 1, tzinfo=UTC)
    result = stock.send_task("one_by_one.predict", args=[{"n": 1, "do": moment}], queue="one_by_one")
    assert adopted(client, result.id)["status"] == "succeeded"
    told = client.get(f"/jobs/{result.id}?include=input").json()["input"]
    assert told == {"n": 1, "do": "2026-12-01T00:00:00+00:00"}


def test_a_second_message_of_one_id_is_told_in_the_log(serving: System, client: httpx.Client, stock: Celery) -> None:
    (worker,) = [process for process in serving.processes if "worker" in process.log.name]
    job_id = str(uuid.uuid4())
    for n in (1, 1, 2):
        assert stock.AsyncResult(send(stock, n, task_id=job_id)).get(timeout=20)["n"] == 1
    said = f"job {job_id} of service one_by_one was sent again with another input"
    poll(lambda: said in worker.output, what="the worker says so")
    assert worker.output.count(said) == 1, "a repeated message with the same input is the same job"


# -- control commands and the command line ----------------------------------------------------------------------------


def test_a_command_that_does_nothing_is_refused_with_words(client: httpx.Client, stock: Celery) -> None:
    told: dict[str, dict[str, Any]] = {
        "rate_limit": {"task_name": "one_by_one.predict", "rate_limit": "10/m"},
        "time_limit": {"task_name": "one_by_one.predict", "soft": 1, "hard": 2},
        "add_consumer": {"queue": "one_by_one"},
        "cancel_consumer": {"queue": "one_by_one"},
        "revoke_by_stamped_headers": {"headers": {"a": ["b"]}, "terminate": True},
    }
    for name, instead in COMMANDS.items():
        (reply,) = stock.control.broadcast(name, told.get(name, {}), reply=True, timeout=10, limit=1)
        (words,) = reply.values()
        assert words == {"error": f"{name} is not supported: {instead}"}
    for _ in range(5):
        assert adopted(client, send(stock))["status"] == "succeeded", "no message goes to Celery's own consumer"


def test_celerys_command_shows_the_words(serving: System) -> None:
    done = serving.start("celery", "-A", "worker", "control", "rate_limit", "one_by_one.predict", "10/m")
    done.wait(30)
    assert "services keys create --rate" in done.output


def test_an_option_of_the_worker_that_does_nothing_ends_it_with_2(serving: System) -> None:
    told = {
        "--autoscale=3,1": OPTIONS["autoscale"],
        "--max-tasks-per-child=1": OPTIONS["max_tasks_per_child"],
        "-c 0": "--concurrency must be at least 1 pool process",
        "-B": "celery -A worker beat",
        "-- worker.max_tasks_per_child=9": OPTIONS["max_tasks_per_child"],
    }
    command = ("celery", "-A", "worker", "worker", "-Q", "echo")
    started = {options: serving.start(*command, *options.split()) for options in told}
    for options, words in told.items():
        assert started[options].wait(30) == 2
        assert "Error: " in started[options].output and words in started[options].output


@pytest.mark.parametrize("name", OPTIONS)
def test_each_such_option_is_one_of_celerys(name: str) -> None:
    from celery.bin.worker import worker

    assert name in {parameter.name for parameter in worker.params}


def test_harmless_options_stay(serving: System, client: httpx.Client) -> None:
    options = (
        "-O fair -c 1 --without-gossip --without-mingle --without-heartbeat -E -X small -P prefork --disable-prefetch"
    )
    worker = serving.start_worker("echo,small", *options.split(), wait=False)
    poll(lambda: "service ready name=echo" in worker.output, what=f"it is ready {worker.output}")
    assert client.post("/jobs?wait=20", json={"service": "echo", "input": {"n": 1}}).json()["status"] == "succeeded"
    assert worker.stop() == 0
