"""Large and odd outputs: limits, parts of a chunk's results, lists without outputs; Redis is never held up by them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from celery import Celery

from api.client import AsyncClient, Client, ClientError
from tests.kit.system import System, finished, listen_to, poll, running_system, write_plugin

MB = 2**20

SCHEMA = """
from typing import Any
from pydantic import BaseModel, ConfigDict

class Input(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"size": 1}]})
    size: int = 0
    do: str = ""
    ill: bool = False
    numbers: list[int] = []

class Output(BaseModel):
    value: Any = None
    scores: list[float] = []
"""

#: Gives as many characters as it is asked for, and misbehaves where it is told to.
LARGE = """
import os, time
from pathlib import Path
from worker.service import Service
from large.schema import Input, Output

FOLDER = Path(os.environ["TEST_FOLDER"])

def nest(depth, value):
    for _ in range(depth):
        value = [value]
    return value

class Plugin(Service[Input, Output]):
    max_batch_size = 4
    max_attempts = 2
    cache_for_s = 0

    def preprocess(self, input):
        if input.do == "log":
            print("y" * 3_000_000)
            self.progress(0.5, "z" * 3_000_000)
        if input.do == "die" and not (FOLDER / "healed").exists():
            os._exit(3)
        if input.ill and not (FOLDER / "healed").exists():
            raise ValueError("ill")
        return input

    def predict(self, input):
        if input.do == "yield":
            for _ in range(3):
                yield "x" * input.size
        if input.do == "endless":
            while True:
                yield 0
        if input.do == "yield nan":
            yield {"a": [1.0, float("-inf")]}
        if input.do == "yield deep":
            yield nest(199, None)
            yield nest(300, 0)
        if input.do == "wait":
            while not (FOLDER / "go").exists():
                time.sleep(0.02)
        return input

    def postprocess(self, input):
        if input.do.startswith("none in"):
            return Output(value=nest(int(input.do.split()[-1]), None))
        if input.do == "nan":
            return Output(scores=[0, 1, 2, float("nan")])
        if input.do == "inner nan":
            return Output(value={"NaN": "NaN", "a": [{"b": float("inf")}, None]})
        if input.do == "object":
            return Output(value=object())
        if input.do == "circle":
            circle = []
            circle.append(circle)
            return Output(value=circle)
        return Output(value="x" * input.size)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("large")
    write_plugin(folder / "plugins", "large", SCHEMA, LARGE)
    networks = {"SERVICES_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.1/32"}
    with running_system(folder, folder / "plugins", **networks) as made:
        busy = time_of_32_mb(made)
        made.redis.client.config_set("slowlog-log-slower-than", 100_000)
        made.start_api()
        made.start_worker("large")
        with made.client() as client:  # from then on, chunks are of four times its max_batch_size
            poll(lambda: client.get("/services/large").json()["state"] == "ready", what="its knobs are told")
        yield made
        slow = [(entry["duration"], entry["command"][:80]) for entry in made.redis.client.slowlog_get()]
        limit = 1.5 * max(100_000, busy, time_of_32_mb(made))
        assert not [call for call in slow if call[0] > limit], (
            "nothing held Redis for longer than 100 ms, on an idle machine"
        )


def time_of_32_mb(system: System) -> int:
    """Microseconds for which a value of 32 MB holds up Redis here and now: 100,000 on an idle machine (measured)."""
    client = system.redis.client
    client.config_set("slowlog-log-slower-than", 0)
    client.slowlog_reset()
    for _ in range(3):
        client.eval("redis.call('HSET', KEYS[1], 'value', ARGV[1])", 1, "{large}:measured", b"x" * 32 * MB)
    durations: list[int] = [entry["duration"] for entry in client.slowlog_get() if b"EVAL" in entry["command"]]
    client.delete("{large}:measured")
    client.slowlog_reset()
    return max(durations)


@pytest.fixture
def client(large: System) -> Iterator[httpx.Client]:
    with large.client() as client:
        yield client


def run(client: httpx.Client, **input: Any) -> dict[str, Any]:
    job = client.post("/jobs?wait=30", json={"service": "large", "input": input}).raise_for_status().json()
    ended: dict[str, Any] = job if job["status"] in ("succeeded", "failed") else finished(client, job["id"], 60)
    return ended


# -- limits -----------------------------------------------------------------------------------------------------------


def test_an_output_of_520_mb_ends_its_job_with_words_and_the_worker_goes_on(client: httpx.Client) -> None:
    job = run(client, size=520 * MB)
    assert (job["status"], job["error"]["code"], job["attempt"]) == ("failed", "invalid_output", 1)
    message = job["error"]["message"]
    assert f"{520 * MB + len(json.dumps({'value': '', 'scores': []}, separators=(',', ':')))} bytes" in message
    assert f"{16 * MB} bytes (SERVICES_MAX_OUTPUT_BYTES)" in message and "return a File" in message
    assert run(client, size=1)["output"] == {"value": "x", "scores": []}


def test_an_output_at_the_limit_is_kept_and_mates_of_one_over_it_are_not_harmed(client: httpx.Client) -> None:
    around = len(json.dumps({"value": "", "scores": []}, separators=(",", ":")))
    assert len(run(client, size=16 * MB - around)["output"]["value"]) == 16 * MB - around
    sizes = [1, 16 * MB - around + 1, 10 * MB, 12 * MB]
    jobs = [client.post("/jobs", json={"service": "large", "input": {"size": size}}).json()["id"] for size in sizes]
    ended = [finished(client, job, 60) for job in jobs]
    assert [job["status"] for job in ended] == ["succeeded", "failed", "succeeded", "succeeded"]
    assert [len(job["output"]["value"]) for job in ended if job["output"]] == [1, 10 * MB, 12 * MB]


@pytest.mark.parametrize(
    ("input", "words"),
    [
        (
            {"do": "yield", "size": 9 * MB},
            ["partial output 0 of predict", f"{9 * MB + 2} bytes", f"{8 * MB} bytes in all"],
        ),
        ({"do": "yield", "size": 5 * MB}, ["partial output 1 of predict", f"{10 * MB + 4} of this run"]),
        ({"do": "endless"}, ["more than 100000 partial outputs"]),
    ],
)
def test_partial_outputs_have_limits(client: httpx.Client, input: dict[str, Any], words: list[str]) -> None:
    job = run(client, **input)
    assert job["error"]["code"] == "invalid_output" and all(word in job["error"]["message"] for word in words), job


def test_lines_and_errors_are_bounded(client: httpx.Client) -> None:
    job = run(client, do="log")
    said = [data["message"] for name, data, _ in listen_to(client, f"/jobs/{job['id']}/events") if name != "status"]
    assert sum(map(len, said)) < 10_000_000 and max(map(len, said)) == 2000
    answer = client.post("/jobs", json={"service": "large", "input": {"numbers": ["x"] * 100_000}})
    assert answer.status_code == 422 and len(answer.json()["errors"]) == 100
    assert "(and 99999 more)" in answer.json()["detail"]


def test_a_call_that_redis_cuts_off_each_time_is_given_up(large: System, client: httpx.Client) -> None:
    bulk = large.redis.client.config_get("proto-max-bulk-len")["proto-max-bulk-len"]
    large.redis.client.config_set("proto-max-bulk-len", MB)
    try:
        sizes = [1, 2 * MB, 2]
        jobs = [client.post("/jobs", json={"service": "large", "input": {"size": size}}).json()["id"] for size in sizes]
        ended = [finished(client, job, 60) for job in jobs]
        batch = client.post("/batches", json={"service": "large", "inputs": [{"size": 2 * MB}, {"size": 1}]}).json()
        lines = results(client, batch["id"])
    finally:
        large.redis.client.config_set("proto-max-bulk-len", str(bulk))
    assert [job["status"] for job in ended] == ["succeeded", "failed", "succeeded"]
    for error in (ended[1]["error"], lines[0]["error"], lines[1]["error"]):
        assert error["code"] == "invalid_output" and "Redis cut the connection each time" in error["message"]
    assert run(client, size=2 * MB)["status"] == "succeeded"


# -- what is no JSON --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 199, 230, 250])
def test_none_in_many_lists_is_an_output(client: httpx.Client, depth: int) -> None:
    value = run(client, do=f"none in {depth}")["output"]["value"]
    for _ in range(depth):
        (value,) = value
    assert value is None


@pytest.mark.parametrize(
    ("do", "words"),
    [
        ("none in 300", "the output is nested deeper than the 250 levels that can be written as JSON"),
        ("nan", "scores[3] of the output: NaN is not JSON"),
        ("inner nan", "value.a[0].b of the output: Infinity is not JSON"),
        ("yield nan", "a[1] of partial output 0 of predict: -Infinity is not JSON"),
        ("yield deep", "partial output 1 of predict is nested deeper than the 250 levels"),
        ("object", "the output cannot be written as JSON"),
        ("circle", "the output cannot be written as JSON"),
    ],
)
def test_an_output_that_is_no_json_is_refused_by_its_place(
    large: System, client: httpx.Client, do: str, words: str
) -> None:
    job = run(client, do=do)
    assert job["error"]["code"] == "invalid_output" and words in job["error"]["message"], job["error"]
    if "nan" in do:
        places = {"nan": ["scores", 3], "inner nan": ["value", "a", 0, "b"], "yield nan": ["a", 1]}
        assert job["error"]["errors"][0]["loc"] == places[do]
        (log,) = [process.output for process in large.processes if "worker" in process.log.name]
        assert "strict_json" not in log, "no traceback of our own"


# -- batches ----------------------------------------------------------------------------------------------------------


def post(large: System, client: httpx.Client, rows: list[dict[str, Any]]) -> str:
    """A batch whose first 16 rows are one chunk of four batches, whatever rows took before."""
    large.redis.client.hset("{large}:about", "pace", 1000)
    answer = client.post("/batches", json={"service": "large", "inputs": rows})
    assert answer.status_code == 202, answer.text
    batch: str = answer.json()["id"]
    return batch


def results(client: httpx.Client, batch_id: str) -> list[dict[str, Any]]:
    answer = client.get(f"/batches/{batch_id}/results", timeout=120)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["index"] for line in lines] == list(range(len(lines)))
    return lines


def sizes_of(lines: list[dict[str, Any]]) -> list[int | str]:
    return [len(line["output"]["value"]) if "output" in line else line["error"]["code"] for line in lines]


def fields_of(large: System, batch_id: str) -> dict[str, int]:
    """The bytes of each field of the batch's first chunk that holds results."""
    key = f"{{large}}:job:{batch_id}.0"
    names = [name.decode() for name in large.redis.client.hkeys(key)]
    lengths = {name: int(large.redis.client.hstrlen(key, name)) for name in names}
    return {
        name: size for name, size in lengths.items() if "." in name or name in ("output", "partial", "out", "so_far")
    }


def test_a_chunk_of_large_results_is_kept_in_parts(large: System, client: httpx.Client) -> None:
    sizes = [3 * MB] * 10 + [17 * MB, 1, 15 * MB]
    batch = post(large, client, [{"size": size} for size in sizes])
    expected = [size if size < 16 * MB else "invalid_output" for size in sizes]
    assert sizes_of(results(client, batch)) == expected
    kept = fields_of(large, batch)
    parts = [size for name, size in kept.items() if "." in name]
    assert len(parts) >= 4 and max(parts) < 16 * MB and kept["output"] < 16 * MB and "so_far" not in kept
    assert client.get(f"/batches/{batch}").json()["counts"]["failed"] == 1
    first = client.post("/batches", json={"service": "large", "inputs": [{"size": 3}], "keep_for_s": 0.05}).json()["id"]
    poll(lambda: not large.redis.client.exists(f"{{large}}:job:{first}.0"), what="it is dropped with its batch")


def test_a_chunk_of_small_results_is_one_value(large: System, client: httpx.Client) -> None:
    batch = post(large, client, [{"size": size} for size in range(12)])
    assert sizes_of(results(client, batch)) == list(range(12))
    assert set(fields_of(large, batch)) == {"output"}


def test_rows_run_again_are_merged_part_by_part(large: System, client: httpx.Client) -> None:
    healed = large.folder / "healed"
    rows: list[dict[str, Any]] = [{"size": 2 * MB + n, "ill": n % 2 == 0 or n > 12} for n in range(16)]
    batch = post(large, client, rows)
    expected = ["predict_failed" if row["ill"] else row["size"] for row in rows]
    assert sizes_of(results(client, batch)) == expected
    try:
        # cancelled as they run again, the rows are told so, and the parts that there were are there still
        rows_waiting = client.post(f"/batches/{batch}/retry")
        assert rows_waiting.status_code == 202
        assert sizes_of(results(client, batch)) == expected, "they are ill still"
        healed.touch()
        assert client.post(f"/batches/{batch}/retry").status_code == 202
        assert sizes_of(results(client, batch)) == [row["size"] for row in rows]
    finally:
        healed.unlink(missing_ok=True)
    series = {name.partition(".")[0] for name in fields_of(large, batch) if "." in name}
    assert len(series) == 1, "those of earlier runs are gone"


def test_a_run_that_is_lost_goes_on_after_its_parts(large: System, client: httpx.Client) -> None:
    rows: list[dict[str, Any]] = [{"size": 3 * MB + n} for n in range(12)]
    rows[9] = {"do": "die"}
    batch = post(large, client, rows)
    lines = results(client, batch)
    assert sizes_of(lines) == [row.get("size", "worker_lost") for row in rows]
    assert client.get(f"/batches/{batch}").json()["counts"]["failed"] == 1


def test_a_batch_cancelled_in_the_midst_leaves_no_parts(large: System, client: httpx.Client) -> None:
    rows: list[dict[str, Any]] = [{"size": 4 * MB} for _ in range(8)] + [{"do": "wait"}] * 4
    batch = post(large, client, rows)
    try:
        poll(lambda: "so_far" in fields_of(large, batch), what="some parts are stored")
        client.delete(f"/batches/{batch}").raise_for_status()
        assert fields_of(large, batch) == {}
        assert sizes_of(results(client, batch)) == ["cancelled"] * 12
        (large.folder / "go").touch()
        assert client.post(f"/batches/{batch}/retry").status_code == 202
        assert sizes_of(results(client, batch)) == [4 * MB] * 8 + [0] * 4
    finally:
        (large.folder / "go").unlink(missing_ok=True)


# -- lists ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twenty(large: System) -> list[str]:
    """Twenty jobs with outputs of 3 MB, newest first."""
    with large.client() as client:
        body = {"service": "large", "input": {"size": 3 * MB, "numbers": list(range(9))}, "metadata": {"of": "twenty"}}
        made = [client.post("/jobs", json=body).json()["id"] for _ in range(20)]
        for job_id in made:
            assert finished(client, job_id, 60)["status"] == "succeeded"
    return made[::-1]


def test_lists_hold_no_outputs_and_redis_is_not_asked_for_them(
    large: System, client: httpx.Client, twenty: list[str]
) -> None:
    before = large.redis.client.info("stats")["total_net_output_bytes"]
    answer = client.get("/jobs?service=large&limit=20")
    read = large.redis.client.info("stats")["total_net_output_bytes"] - before
    rows = answer.json()["jobs"]
    assert [row["id"] for row in rows] == twenty and len(answer.content) < 50_000 and read < 200_000
    single = client.get(f"/jobs/{twenty[0]}").json()
    assert len(single["output"]["value"]) == 3 * MB
    del single["output"]
    assert rows[0] == single, "a row is the job but for its output"
    (row,) = client.get("/jobs?service=large&limit=1&include=attempts,input").json()["jobs"]
    assert row["input"]["numbers"] == list(range(9)) and row["attempts"][0]["outcome"] == "succeeded"
    assert "output" not in row


def test_a_page_with_outputs_ends_early_and_the_next_goes_on(client: httpx.Client, twenty: list[str]) -> None:
    found: list[str] = []
    cursor, pages = "", 0
    while len(found) < 20:
        page = client.get(f"/jobs?service=large&include=output,input&limit=20{cursor}").json()
        held = sum(len(row["output"]["value"] or "") for row in page["jobs"] if row["output"])
        assert page["jobs"] and held <= 16 * MB and all("input" in row for row in page["jobs"])
        found += [row["id"] for row in page["jobs"]]
        cursor, pages = f"&cursor={page['next_cursor']}", pages + 1
    assert found[:20] == twenty and pages == 4, "16 MB hold five outputs of 3 MB"
    first = client.get("/jobs?service=large&include=output&limit=3").json()
    assert [row["id"] for row in first["jobs"]] == twenty[:3], "a page within the limit is whole"


def test_a_page_has_one_job_at_least_and_shows_jobs_without_output(client: httpx.Client) -> None:
    job = run(client, size=15 * MB)
    failed = run(client, do="nan")
    page = client.get("/jobs?service=large&include=output&limit=2").json()
    assert [(row["id"], row["output"] is None) for row in page["jobs"]] == [(failed["id"], True), (job["id"], False)]
    refused = client.get("/jobs?include=outputs")
    assert refused.status_code == 422 and "attempts, input, output" in refused.json()["detail"]


def test_the_client_fetches_an_output_of_a_list_at_its_first_use(large: System, twenty: list[str]) -> None:
    with Client(large.url) as client:
        listed = {job.id: job for job in client.jobs(service="large", status="succeeded")}
        job = listed[twenty[0]]
        assert job.metadata == {"of": "twenty"} and len(job.output["value"]) == 3 * MB
        assert job.output is job.output, "once"
        assert len(listed[twenty[1]].result(timeout=5)["value"]) == 3 * MB
        assert next(job for job in client.jobs(service="large", status="failed")).output is None
        assert len(client.get(twenty[2]).output["value"]) == 3 * MB

    async def asynchronously() -> None:
        async with AsyncClient(large.url) as client:
            jobs = [job async for job in client.jobs(service="large", status="succeeded")]
            job, other, *_ = [job for job in jobs if job.id in twenty]
            with pytest.raises(ClientError, match=r"await job.get_output\(\)"):
                _ = job.output
            assert len((await job.get_output())["value"]) == len(job.output["value"]) == 3 * MB
            assert len((await other.result(timeout=5))["value"]) == 3 * MB

    asyncio.run(asynchronously())


# -- Celery's results -------------------------------------------------------------------------------------------------


def ours(system: System, code: str) -> Any:
    """Run code in a process that has ``worker.celery``; gives what it prints, as JSON."""
    script = f"import json, time\nfrom celery.result import GroupResult\nfrom worker.celery import app\n{code}"
    done = subprocess.run([sys.executable, "-c", script], env=system.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def stock(large: System) -> Iterator[Celery]:
    """A program that has nothing but Celery."""
    url = large.redis.url.replace("unix://", "redis+socket://")
    with Celery("stock", broker=url, backend=url, set_as_current=False) as app:
        yield app


def copies(large: System) -> set[str]:
    found: list[Any] = large.redis.client.keys("celery-task-meta-*")
    return {key.decode().removeprefix("celery-task-meta-") for key in found}


def test_celerys_copy_of_a_result_is_written_for_its_own_messages_alone(
    large: System, client: httpx.Client, stock: Celery
) -> None:
    before = copies(large)
    ended = [run(client, size=1)["id"], run(client, do="nan")["id"]]
    waiting = client.post("/jobs", json={"service": "large", "input": {"do": "wait"}}).json()["id"]
    client.delete(f"/jobs/{waiting}")
    assert copies(large) == before
    sent = stock.send_task("large.predict", args=[{"size": 2}], queue="large")
    assert sent.get(timeout=20) == {"value": "xx", "scores": []}
    bad = stock.send_task("large.predict", args=[{"size": "x"}], queue="large")
    with pytest.raises(Exception, match="does not fit the service's Input"):
        bad.get(timeout=20)
    assert copies(large) == before | {sent.id, bad.id}

    # our app reads the records, of jobs of either origin
    code = f"""
def look(i):
    result = app.AsyncResult(i)
    value = result.get(timeout=10, propagate=False)
    return [result.state, result.status, str(value), str(result.info), result.ready()]
print(json.dumps([look(i) for i in {[*ended, waiting, sent.id, bad.id]!r}]))
"""
    told = ours(large, code)
    assert [state for state, *_ in told] == ["SUCCESS", "FAILURE", "REVOKED", "SUCCESS", "FAILURE"]
    assert all(state == status and value == info and ready for state, status, value, info, ready in told)
    assert "scores[3] of the output" in told[1][2] and told[3][2] == str({"value": "xx", "scores": []})


def test_results_are_awaited_by_our_app_without_a_copy_and_without_polling(large: System, client: httpx.Client) -> None:
    job = client.post("/jobs", json={"service": "large", "input": {"do": "wait"}}).json()["id"]
    try:
        code = f"""
import threading
from celery.exceptions import TimeoutError
from pathlib import Path
calls = []
ledger_get = app.backend.ledger.get
app.backend.ledger.get = lambda i: (calls.append(i), ledger_get(i))[1]
result = app.AsyncResult({job!r})
try:
    result.get(timeout=1.5)
except TimeoutError:
    states = [result.state]
before = len(calls)
go = Path({str(large.folder / "go")!r})
threading.Timer(0.5, go.touch).start()
began = time.monotonic()
output = result.get(timeout=20)
took = time.monotonic() - began
others = [app.send_task("large.predict", args=[{{"size": n}}]) for n in range(5)]
group = GroupResult("of-five", others)
sizes = [len(one["value"]) for one in group.get(timeout=20)]
group.save()
again = GroupResult.restore("of-five", app=app)
states += [app.AsyncResult("never").state, again.successful(), len(again.join(timeout=5))]
result.forget()
states.append(app.AsyncResult({job!r}).state)
try:
    app.AsyncResult("never").get(timeout=0.2)
except TimeoutError:
    states.append("timeout")
print(json.dumps([states, output["value"], took, before, sizes]))
"""
        states, value, took, calls, sizes = ours(large, code)
    finally:
        (large.folder / "go").unlink(missing_ok=True)
    assert states == ["STARTED", "PENDING", True, 5, "SUCCESS", "timeout"], "forget() leaves the record to keep_for_s"
    assert value == "" and 0.4 < took < 3 and calls <= 3 and sizes == [0, 1, 2, 3, 4]


def test_a_subscription_that_is_cut_is_made_anew(large: System, client: httpx.Client) -> None:
    job = client.post("/jobs", json={"service": "large", "input": {"do": "wait"}}).json()["id"]
    code = f"""
import threading
from pathlib import Path
def cut():
    app.backend.client.client_kill_filter(_type="pubsub", skipme=False)
    time.sleep(0.3)
    Path({str(large.folder / "go")!r}).touch()
threading.Timer(0.5, cut).start()
print(json.dumps(app.AsyncResult({job!r}).get(timeout=20)))
"""
    try:
        assert ours(large, code)["value"] == ""
    finally:
        (large.folder / "go").unlink(missing_ok=True)


def test_all_results_are_copied_where_that_is_asked_for(large: System, client: httpx.Client, stock: Celery) -> None:
    api = System(large.folder, large.redis, large.folder / "plugins", SERVICES_CELERY_RESULTS="all")
    try:
        api.start_api()
        with api.client() as other:
            ended = [run(other, size=1), run(other, do="nan")]
            body = {"service": "large", "input": {"do": "wait"}}
            cancelled = other.post("/jobs", json=body).json()["id"]
            other.delete(f"/jobs/{cancelled}").raise_for_status()
            late = other.post("/jobs", json={**body, "finish_within_s": 0.2}).json()["id"]
            assert finished(other, late)["error"]["code"] == "timed_out"
    finally:
        api.stop()
    assert stock.AsyncResult(ended[0]["id"]).get(timeout=10) == ended[0]["output"]
    assert str(stock.AsyncResult(ended[1]["id"]).result) == ended[1]["error"]["message"]
    assert [stock.AsyncResult(job).state for job in (cancelled, late)] == ["REVOKED", "FAILURE"]


# -- what is told of a job --------------------------------------------------------------------------------------------


def test_large_partial_outputs_are_heard_in_pieces_and_in_order(client: httpx.Client) -> None:
    job = run(client, do="yield", size=2_600_000)
    told = list(listen_to(client, f"/jobs/{job['id']}/events"))
    assert [data["index"] for name, data, _ in told if name == "output"] == [0, 1, 2]
    assert all(len(data["output"]) == 2_600_000 for name, data, _ in told if name == "output")
    assert told[-1][0] == "status" and told[-1][1]["status"] == "succeeded"


def test_a_webhook_of_a_job_with_a_large_output_is_told_without_it(large: System, client: httpx.Client) -> None:
    body = {"service": "large", "input": {"size": 15 * MB}, "webhook": "http://127.0.0.1:9/hook"}
    job = client.post("/jobs", json=body).raise_for_status().json()
    assert finished(client, job["id"], 60)["status"] == "succeeded"
    entries: Any = large.redis.client.xrange("{large}:outbox")
    record = entries[0][1][b"record"]
    assert len(record) < 10_000 and b'"timings"' in record and b'"output"' not in record
