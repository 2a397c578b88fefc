"""``api.client`` against the real API, and against a network that loses answers and cuts streams."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from api.client import (
    ApiError,
    AsyncClient,
    Client,
    Conflict,
    ConnectionFailed,
    Event,
    Gone,
    InvalidRequest,
    JobCancelled,
    JobExpired,
    JobFailed,
    NotFound,
    TooManyRequests,
    Unavailable,
    UnexpectedAnswer,
)
from tests.kit.system import ROOT, System, free_port, poll


class Input(BaseModel):
    n: int
    sleep_s: float = 0
    do: str = ""


class Output(BaseModel):
    n: int
    batch: int


@pytest.fixture
def client(serving: System) -> Iterator[Client]:
    with Client(serving.url) as made:
        yield made


@contextmanager
def listening(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A real HTTP server that answers by this function; the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        do_GET = do_POST = do_PUT = do_DELETE = lambda self: answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the tests' output stays readable."""

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:
                self.close_connection = True  # the client has gone, or was cut off

    server = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def bad_network(serving: System, mishaps: list[str]) -> Iterator[str]:
    """The API behind a proxy that has one mishap a request, as long as there are any; the address."""
    behind = httpx.Client(base_url=serving.url, trust_env=False, timeout=30)

    def answer(request: BaseHTTPRequestHandler) -> None:
        mishap = mishaps.pop(0) if mishaps else ""
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "connection")}
        if request.headers.get("transfer-encoding") == "chunked":
            content = b"".join(iter(lambda: _read_chunk(request), b""))
        else:
            content = request.rfile.read(int(request.headers.get("content-length", 0)))
        headers.pop("Transfer-Encoding", None)
        if mishap == "cut":  # before the server has it
            request.close_connection = True
            return
        if mishap.isdigit():
            _say(request, int(mishap), b'{"code": "busy", "detail": "try again"}', {"Retry-After": "0"})
            return
        told = behind.request(request.command, request.path, headers=headers, content=content)
        if mishap == "lose":  # after the server has done it
            request.close_connection = True
            return
        _say(request, told.status_code, told.content, cut_after=len(told.content) // 2 if mishap == "half" else None)

    with listening(answer) as url, behind:
        yield url


def _read_chunk(request: BaseHTTPRequestHandler) -> bytes:
    size = int(request.rfile.readline(), 16)
    data = request.rfile.read(size)
    request.rfile.readline()
    return data


def _say(
    request: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    cut_after: int | None = None,
) -> None:
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body[:cut_after])
    request.close_connection = cut_after is not None


def test_importing_the_client_makes_no_server() -> None:
    code = "import sys, api.client; print(*sys.modules); import api, fastapi; "
    code += "print(isinstance(api.app, fastapi.FastAPI))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    modules, is_app = done.stdout.splitlines()
    servers = {"fastapi", "starlette", "uvicorn", "redis", "celery", "worker.discovery", "api.application"}
    assert not servers & set(modules.split())
    assert is_app == "True"


def test_a_job_from_its_submission_to_its_output(client: Client) -> None:
    job = client.submit("echo", Input(n=3, sleep_s=0.3), priority="high", keep_for_s=600, metadata={"who": "me"})
    assert (job.service, job.priority, job.metadata, job.ended, job.output) == (
        "echo",
        "high",
        {"who": "me"},
        False,
        None,
    )
    assert job.result(timeout=20)["n"] == 3
    assert (job.status, job.attempt, job.batch_size, job.position, job.error) == ("succeeded", 1, 1, None, None)
    assert job.started_at and job.finished_at and job.expires_at
    assert job.created_at <= job.started_at <= job.finished_at
    assert job.timings.total_ms and job.timings.total_ms >= 300
    assert job.result(output_type=Output) == Output(n=3, batch=1), "asked again, without the server"
    assert client.get(job.id).refresh().result() == job.output
    assert client.submit("echo", {"n": 4}, wait=20).ended


def test_a_result_is_awaited_and_not_polled(serving: System) -> None:
    asked: list[float] = []
    with _counting(asked) as http, Client(serving.url, http=http) as client:
        assert client.submit("echo", {"n": 1, "sleep_s": 1.2}).result(timeout=30)
        assert len(asked) == 2, "one to submit, one that waits"
        with pytest.raises(TimeoutError, match=r"after 0\.4 s"):
            client.submit("echo", {"n": 1, "sleep_s": 1}).result(timeout=0.4)

    # and where the server holds no answer, it is asked with pauses
    def impatient(request: BaseHTTPRequestHandler) -> None:
        asked.append(time.monotonic())
        request.path = request.path.partition("?")[0]
        told = httpx.get(serving.url + request.path, trust_env=False)
        _say(request, told.status_code, told.content)

    with Client(serving.url) as client:
        job_id = client.submit("echo", {"n": 1, "sleep_s": 1.2}).id
    asked.clear()
    with listening(impatient) as url, Client(url) as client:
        assert client.get(job_id).result(timeout=10)
    assert len(asked) <= 6


def _counting(asked: list[float]) -> httpx.Client:
    return httpx.Client(event_hooks={"request": [lambda request: asked.append(time.monotonic())]})


def test_a_job_that_does_not_succeed_raises_its_error(client: Client) -> None:
    with pytest.raises(JobFailed, match="bad one") as failed:
        client.submit("echo", {"n": 1, "do": "raise"}).result(20)
    assert failed.value.code == "predict_failed" and "ValueError" in failed.value.message

    waiting = client.submit("one_by_one", {"n": 1})  # no worker runs it
    assert waiting.cancel().status == "cancelled"
    with pytest.raises(JobCancelled) as cancelled:
        waiting.result()
    assert cancelled.value.code == "cancelled" and cancelled.value.job_id == waiting.id
    with pytest.raises(Conflict) as finished:
        waiting.cancel()
    assert finished.value.code == "job_finished"
    assert waiting.retry().status == "queued" and waiting.cancel().ended

    with pytest.raises(JobExpired):
        client.submit("one_by_one", {"n": 1}, start_within_s=0.1).result(20)
    assert {job.id for job in client.jobs(service="one_by_one", status="cancelled")} == {waiting.id}


def test_refusals_of_the_server(client: Client) -> None:
    with pytest.raises(InvalidRequest, match=r"body\.input\.n") as wrong:
        client.submit("echo", {"n": "many"})
    assert (wrong.value.status, wrong.value.code) == (422, "invalid_input")
    assert wrong.value.errors[0]["loc"] == ["body", "input", "n"]
    with pytest.raises(InvalidRequest, match="webhook"):
        client.submit("echo", {"n": 1}, webhook={"url": "http://127.0.0.1/", "events": ["job.succeeded"]})
    with pytest.raises(NotFound) as unknown:
        client.submit("nope", {})
    assert unknown.value.code == "unknown_service" and "echo" in unknown.value.problem["services"]
    with pytest.raises(NotFound, match="job_not_found"):
        client.get("7")
    with (
        Client(f"http://127.0.0.1:{free_port()}", retries=1) as nobody,
        pytest.raises(ConnectionFailed, match="refused"),
    ):
        nobody.services()
    with (
        listening(lambda request: _say(request, 200, b"<html>")) as url,
        Client(url) as lost,
        pytest.raises(UnexpectedAnswer, match="html"),
    ):
        lost.services()
    short = client.submit("echo", {"n": 1}, keep_for_s=0.1, wait=20)

    def refreshed_in_vain() -> None:
        short.refresh()

    with pytest.raises(Gone):
        poll(refreshed_in_vain)


def test_services_keys_and_ids(client: Client) -> None:
    assert {"echo", "small"} <= {service.name for service in client.services()}
    echo = client.service("echo")
    assert (echo.state, echo.workers, echo.example) == ("ready", 1, {"n": 1})
    first = client.submit("echo", {"n": 1}, idempotency_key="client's own")
    assert client.submit("echo", {"n": 1}, idempotency_key="client's own").id == first.id
    own = str(uuid.uuid4())
    assert client.submit("echo", {"n": 1}, job_id=own).id == own == client.submit("echo", {"n": 1}, job_id=own).id
    with pytest.raises(Conflict, match="idempotency_conflict"):
        client.submit("echo", {"n": 2}, job_id=own)
    newest = [job.id for job in client.jobs(service="echo")]
    assert newest.index(own) < newest.index(first.id)


@pytest.mark.parametrize("mishap", ["lose", "cut", "503", "429", "502", "half"])
def test_a_bad_network_makes_one_job_of_one_call(serving: System, client: Client, mishap: str) -> None:
    before = {job.id for job in client.jobs(service="echo")}
    with bad_network(serving, [mishap]) as url, Client(url) as far:
        job = far.submit("echo", {"n": 5})
        assert job.result(20)["n"] == 5
    assert {job.id for job in client.jobs(service="echo")} - before == {job.id}
    waiting = client.submit("one_by_one", {"n": 1})
    with bad_network(serving, [mishap]) as url, Client(url) as far:
        # then the repetition finds its own work done
        assert far.get(waiting.id).refresh().cancel().status == "cancelled"


def test_repetitions_are_bounded_and_none_where_they_are_not_safe(serving: System, client: Client) -> None:
    for status, kind in (("503", Unavailable), ("429", TooManyRequests), ("500", ApiError)):
        mishaps = [status] * 9
        with bad_network(serving, mishaps) as url, Client(url, retries=2) as far, pytest.raises(kind):
            far.services()
        assert len(mishaps) == (8 if status == "500" else 6)
    waiting = client.submit("one_by_one", {"n": 1}).cancel()
    with bad_network(serving, ["lose"]) as url, Client(url) as far:
        job = far.get(waiting.id)  # by a repetition: a read is safe
    with bad_network(serving, ["", "lose"]) as url, Client(url) as far:
        job = far.get(waiting.id)
        with pytest.raises(ConnectionFailed):  # to run it once more is not
            job.retry()
    assert client.get(waiting.id).cancel().ended, "the first try had arrived"


def test_a_batch_streams_up_and_down_in_order(client: Client) -> None:
    inputs = (Input(n=i, do="raise" if i == 7 else "x" * 200) for i in range(2000))
    results = list(client.batch("echo", inputs, priority="high"))
    assert [result.index for result in results] == list(range(2000))
    assert [result.output and result.output["n"] for result in results] == [i if i != 7 else None for i in range(2000)]
    error = results[7].error
    assert error and error.code == "predict_failed" and results[8].error is None
    assert list(client.batch("echo", [])) == []
    batch = client.submit_batch("one_by_one", [{"n": 1}, {"n": 2}], keep_for_s=60)
    assert (batch.total, batch.status, batch.ended) == (2, "queued", False)
    assert client.get_batch(batch.id).cancel().counts["cancelled"] == 2
    assert [result.error and result.error.code for result in batch.refresh().results()] == ["cancelled"] * 2
    assert batch.retry().counts["queued"] == 2
    with pytest.raises(Conflict):
        batch.retry()
    assert batch.cancel().ended


def test_a_batch_is_followed_and_run_again_over_a_bad_network(serving: System) -> None:
    rows = [{"n": n, "do": "raise" if n == 7 else "", "sleep_s": 0.002} for n in range(400)]
    with Client(serving.url) as client:
        batch = client.submit_batch("echo", rows)
    with bad_network(serving, ["half", "half", "503", "cut"]) as url, Client(url) as far:
        events = list(far.get_batch(batch.id).events())
        assert [event.type for event in events if event.ends_job] == ["status"] == [events[-1].type]
        shares = [event.data["progress"] for event in events]
        assert shares == sorted(shares) and shares[-1] == 1 and len({event.id for event in events}) == len(events)
        again = far.get_batch(batch.id).retry()
        ends = [event.data["status"] for event in again.events(events[-1].id) if event.ends_job]
        assert ends == ["failed"] and again.refresh().counts["succeeded"] == 399


@pytest.mark.parametrize("mishaps", [["lose"], ["cut", "503"], ["", "half", "half"]])
def test_a_batch_with_broken_streams_is_stored_once(serving: System, mishaps: list[str]) -> None:
    with bad_network(serving, mishaps) as url, Client(url) as far:
        results = list(far.batch("echo", ({"n": i, "do": "x" * 500} for i in range(500))))
    assert [result.output["n"] for result in results] == list(range(500))


def test_many_threads_share_a_client(client: Client) -> None:
    with ThreadPoolExecutor(16) as threads:
        outputs = list(threads.map(lambda n: client.submit("echo", {"n": n}).result(30), range(200)))
    assert [output["n"] for output in outputs] == list(range(200))


async def use_asynchronous_client(url: str) -> None:
    async with AsyncClient(url) as client:
        jobs = await asyncio.gather(*(client.submit("echo", Input(n=n)) for n in range(50)))
        assert [output["n"] for output in await asyncio.gather(*(job.result(20) for job in jobs))] == list(range(50))
        assert await jobs[0].result(output_type=Output) == Output(n=0, batch=jobs[0].batch_size or 0)
        assert jobs[9].id in [job.id async for job in client.jobs(service="echo")]
        assert (await client.service("echo")).state == "ready" and await client.services()

        async def inputs() -> Any:
            for n in range(300):
                yield {"n": n}

        for some in (inputs(), [{"n": n} for n in range(300)]):
            assert [r.output["n"] async for r in client.batch("echo", some)] == list(range(300))
        waiting = await client.submit("one_by_one", {"n": 1})
        with pytest.raises(TimeoutError):
            await waiting.result(timeout=0.2)
        assert (await waiting.cancel()).ended and (await (await client.get(waiting.id)).refresh()).ended
        assert (await waiting.retry()).status == "queued" and (await waiting.cancel()).ended
        batch = await client.submit_batch("one_by_one", [{"n": 1}])
        assert (
            (await (await client.get_batch(batch.id)).cancel()).status == (await batch.refresh()).status == "cancelled"
        )
        assert [r.error and r.error.code async for r in batch.results()] == ["cancelled"]
        assert (await batch.retry()).counts["queued"] == 1 and (await batch.cancel()).ended
        assert [event.data["status"] async for event in batch.events()] == ["cancelled"]
        with pytest.raises(InvalidRequest):
            await client.submit("echo", {})


def test_the_asynchronous_client_does_the_same(serving: System) -> None:
    with bad_network(serving, ["lose", "cut", "429", "503"]) as url:
        asyncio.run(use_asynchronous_client(url))


def test_the_documents_code_runs(serving: System) -> None:
    serving.start_worker("antifraud")
    readme = (ROOT / "README.md").read_text()
    (in_readme,) = re.findall(r"```python\n(from libs_service import Client.*?)```", readme, re.S)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), re.S)
    assert len(blocks) == 7
    code = "\n".join((in_readme, *blocks)).replace("http://127.0.0.1:8000", serving.url)
    code += "\nassert receive({}, b'{}') == 401\n"
    done = serving.start("tests.kit.run_code", code, name="documents")
    assert done.wait(100) == 0, done.output
    assert "invalid_input" in done.output and "'verdict'" in done.output


# -- events: a server of the test's own that speaks as the contract has it --------------------------------------------

EVENTS = 1000


def _event(number: int) -> bytes:
    kind = ("status", "progress", "log", "output")[number % 4]
    data: Any = {"status": "running", "number": number, "text": "zwölf\n\r🙂"}
    if number == EVENTS:
        kind, data = "status", {"status": "succeeded", "number": number}
    text = json.dumps(data, ensure_ascii=False, indent=1 if number % 3 else None)
    end = ("\n", "\r\n", "\r")[number % 3 if number < EVENTS else 0]
    lines = [f"id: {number}", f"event: {kind}", *(f"data: {line}" for line in text.split("\n")), "", ": alive", ""]
    return end.join(lines).encode()


@contextmanager
def event_server(cuts: list[int], seen: list[str]) -> Iterator[str]:
    """Sends the events; each cut is the bytes after which one connection breaks."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        if "/events" not in request.path:
            _say(request, 200, JOB)
            return
        seen.append(request.headers.get("last-event-id", ""))
        after = int(request.headers.get("last-event-id") or 0)
        body = "\ufeff".encode() + b"retry: 5\n\n" + b"".join(_event(i) for i in range(after + 1, EVENTS + 1))
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.send_header("Connection", "close")
        if len(seen) % 2:  # by its length, so that a cut is an error; else a cut looks like an end
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        left = body[: cuts.pop(0)] if cuts else body
        for start in range(0, len(left), 777):  # through the middle of lines and of letters
            request.wfile.write(left[start : start + 777])
        request.close_connection = True

    with listening(answer) as url:
        yield url


JOB = (
    b'{"id": "j", "service": "s", "version": "1", "status": "running", "priority": "normal", '
    b'"created_at": "2026-11-24T00:00:00Z"}'
)


def _assert_events(events: list[Event], seen: list[str], cuts: int) -> None:
    assert [event.data["number"] for event in events] == list(range(1, EVENTS + 1))
    assert [event.id for event in events] == [str(number) for number in range(1, EVENTS + 1)]
    assert events[0].data["text"] == "zwölf\n\r🙂" and events[0].type == "progress" and events[-1].ends_job
    assert len(seen) == cuts + 1 and seen[0] == ""


def test_events_come_once_and_in_order_however_often_the_stream_breaks() -> None:
    seen: list[str] = []
    with event_server([4000 + 97 * i for i in range(20)], seen) as url, Client(url, retries=2) as client:
        _assert_events(list(client.get("j").events()), seen, 20)
        assert [event.id for event in client.get("j").events(last_event_id="990")] == [str(i) for i in range(991, 1001)]


def test_events_of_the_asynchronous_client() -> None:
    seen: list[str] = []

    async def read(url: str) -> list[Event]:
        async with AsyncClient(url, retries=2) as client:
            return [event async for event in (await client.get("j")).events()]

    with event_server([9000, 9001], seen) as url:
        _assert_events(asyncio.run(read(url)), seen, 2)


def test_events_of_the_real_server(serving: System, client: Client) -> None:
    job = client.submit("echo", {"n": 1, "sleep_s": 0.2})
    events = list(job.events())
    assert [event.data["status"] for event in events if event.type == "status"][-1] == "succeeded"
    assert events[-1].ends_job and job.refresh().ended
    assert list(job.events(last_event_id=events[0].id)) == events[1:]
    assert list(job.events(last_event_id=events[-1].id)) == []


def test_events_that_never_come_are_given_up() -> None:
    seen: list[str] = []
    with event_server([0] * 9, seen) as url, Client(url, retries=2) as client:
        with pytest.raises(ConnectionFailed):
            list(client.get("j").events())
        assert len(seen) == 3
