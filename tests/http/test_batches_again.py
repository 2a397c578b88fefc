"""What failed of a batch, run again: ``POST /batches/<id>/retry``."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit.batches import read, results
from tests.kit.system import System, poll, running_system, write_plugin
from worker.ledger.api_keys import Key, Keys
from worker.settings import Settings

SCHEMA = """
from pydantic import BaseModel

class Input(BaseModel):
    n: int
    sleep_s: float = 0
    ill: str = ""

class Output(BaseModel):
    n: int
    at: float
"""

#: Rows that are ill fail, or end their process, until the file "healed" is there. "runs" has a line for each begin and
#: end.
HEALING = """
import fcntl, os, time
from pathlib import Path
from worker.service import Service
from healing.schema import Input, Output

FOLDER = Path(os.environ["TEST_FOLDER"])

class Plugin(Service[Input, Output]):
    max_batch_size = 4
    max_attempts = 2

    def predict(self, item):
        with (FOLDER / "runs").open("a") as runs, (FOLDER / f"row-{item.n}").open("w") as row:
            try:
                fcntl.flock(row, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("twice", item.n, file=runs, flush=True)
            print("begin", item.n, file=runs, flush=True)
            time.sleep(item.sleep_s)
            if item.ill and not (FOLDER / "healed").exists():
                if item.ill == "deadly":
                    os._exit(3)
                raise ValueError("ill")
            print("end", item.n, file=runs, flush=True)
        return Output(n=item.n, at=time.time())
"""


@pytest.fixture
def ward(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[System]:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    write_plugin(plugins, "healing", SCHEMA, HEALING)
    with running_system(tmp_path, plugins) as system:
        system.start_api()
        system.start_worker("healing", "-c", getattr(request, "param", "2"))
        with system.client() as client:  # from then on, chunks are of four times its max_batch_size
            poll(lambda: client.get("/services/healing").json()["state"] == "ready", what="its knobs are told")
        yield system


def send(client: httpx.Client, rows: list[Any], **fields: Any) -> dict[str, Any]:
    answer = client.post("/batches", json={"service": "healing", "inputs": rows, **fields})
    assert answer.status_code == 202, answer.text
    batch: dict[str, Any] = answer.json()
    return batch


def ended(client: httpx.Client, batch: dict[str, Any], timeout: float = 40) -> dict[str, Any]:
    def look() -> Any:
        told = read(client, batch)
        return told if told["finished_at"] else None

    told: dict[str, Any] = poll(look, timeout, "the batch ends")
    return told


def retry(client: httpx.Client, batch: dict[str, Any]) -> httpx.Response:
    return client.post(batch["links"]["retry"])


def heal(system: System) -> None:
    (system.folder / "healed").touch()


def runs(system: System) -> Counter[tuple[str, int]]:
    """How often each row began, and ended."""
    lines = (system.folder / "runs").read_text().splitlines()
    return Counter((word, int(number)) for word, number in map(str.split, lines))


def twice_at_once(system: System) -> list[int]:
    """Rows that ran in two processes at a time."""
    return [number for word, number in runs(system) if word == "twice"]


def test_only_the_rows_that_failed_run_again_and_the_others_keep_their_outputs(ward: System) -> None:
    ill = (0, 7, 8, 30, 49)
    rows: list[Any] = [{"n": n, "ill": "yes" if n in ill else ""} for n in range(50)]
    rows[20] = {"n": "no number"}
    with ward.client() as client:
        batch = send(client, rows, metadata={"who": "me"})
        told = ended(client, batch)
        assert told["counts"] == {"queued": 0, "running": 0, "succeeded": 44, "failed": 6, "cancelled": 0}
        before = results(client, batch)
        # still ill: the same once more
        answer = retry(client, batch)
        assert (answer.status_code, answer.headers["location"]) == (202, batch["links"]["self"])
        again = answer.json()
        assert (again["id"], again["metadata"], again["total"]) == (batch["id"], {"who": "me"}, 50)
        assert again["finished_at"] is again["expires_at"] is None
        assert 0.88 <= again["progress"] < 1, "a worker may have run a row meanwhile"
        told = ended(client, batch)
        assert told["status"] == "failed" and told["counts"]["failed"] == 6 and results(client, batch) == before

        heal(ward)
        retry(client, batch).raise_for_status()
        after = results(client, batch)  # open while it runs: complete and in order all the same
        told = ended(client, batch)
        assert told["counts"] == {"queued": 0, "running": 0, "succeeded": 49, "failed": 1, "cancelled": 0}
        assert [line["index"] for line in after] == list(range(50))
        assert [line["output"]["n"] for line in after if "output" in line] == [n for n in range(50) if n != 20]
        assert after[20]["error"]["code"] == "invalid_input"
        for number in set(range(50)) - {*ill, 20}:
            assert after[number] == before[number]
    begun = runs(ward)
    assert all(begun["begin", n] == (3 if n in ill else 1) for n in range(50) if n != 20)


def test_refused_while_it_runs_or_where_nothing_failed(ward: System) -> None:
    with ward.client() as client:
        batch = send(client, [{"n": 0, "sleep_s": 0.3}])
        answer = retry(client, batch)
        assert (answer.status_code, answer.json()["code"]) == (409, "job_not_retryable")
        assert "has not ended" in answer.json()["detail"]
        ended(client, batch)
        answer = retry(client, batch)
        assert (answer.status_code, answer.json()["code"]) == (409, "job_not_retryable")
        assert "every input" in answer.json()["detail"]
        assert client.post("/batches/none/retry").status_code == 404
        assert client.post(batch["links"]["retry"], json={"x": 1}).status_code == 422
        short = send(client, [{"n": 0, "ill": "yes"}], keep_for_s=0.2)
        poll(lambda: client.get(short["links"]["self"]).status_code == 410, what="it was dropped")
        assert retry(client, short).json()["code"] == "job_expired"


def test_a_cancelled_batch_runs_again_and_never_twice_at_once(ward: System) -> None:
    with ward.client() as client:
        batch = send(client, [{"n": n, "sleep_s": 0.05, "ill": "yes" if n == 2 else ""} for n in range(96)])
        poll(lambda: read(client, batch)["counts"]["succeeded"], what="a chunk has ended")
        client.delete(batch["links"]["self"]).raise_for_status()
        before = results(client, batch)
        kept = [line for line in before if "output" in line]
        assert kept and read(client, batch)["status"] == "cancelled"
        heal(ward)
        retry(client, batch).raise_for_status()  # at once: what was stopped may run on for a moment
        told = ended(client, batch)
        after = results(client, batch)
        assert (told["status"], told["counts"]["succeeded"]) == ("succeeded", 96)
        assert [line["output"]["n"] for line in after] == list(range(96))
        assert all(after[line["index"]] == line for line in kept)
    begun = runs(ward)
    assert all(begun["begin", line["index"]] == 1 for line in kept), "what had succeeded did not run again"
    assert not twice_at_once(ward)


def test_cancelling_a_repeated_run_leaves_the_outputs(ward: System) -> None:
    with ward.client() as client:
        rows = [{"n": n, "ill": "yes" if n % 5 == 0 else "", "sleep_s": 0.1} for n in range(20)]
        batch = send(client, rows)
        ended(client, batch)
        before = results(client, batch)
        retry(client, batch).raise_for_status()
        client.delete(batch["links"]["self"]).raise_for_status()
        told = read(client, batch)
        after = results(client, batch)
        assert (told["status"], told["counts"]["cancelled"], told["counts"]["succeeded"]) == ("cancelled", 4, 16)
        assert [line.get("error", {}).get("code") for line in after] == [
            None if n % 5 else "cancelled" for n in range(20)
        ]
        assert all(after[n] == before[n] for n in range(20) if n % 5)
        heal(ward)
        retry(client, batch).raise_for_status()
        assert ended(client, batch)["status"] == "succeeded"
        assert [line["output"]["n"] for line in results(client, batch)] == list(range(20))


def test_killed_workers_and_a_killed_api_lose_no_row_that_is_run_again(ward: System) -> None:
    api, worker = ward.processes[0], ward.processes[1]
    with ward.client() as client:
        rows = [{"n": n, "ill": "yes" if n % 2 else "", "sleep_s": 0.03} for n in range(64)]
        batch = send(client, rows)
        ended(client, batch)
        before = results(client, batch)
        heal(ward)
        retry(client, batch).raise_for_status()
        poll(lambda: read(client, batch)["counts"]["running"], what="it runs")
        api.stop(signal.SIGKILL)
        for pid in worker.children:
            os.kill(pid, signal.SIGKILL)
        worker.stop(signal.SIGKILL)
        ward.start_api()
        ward.start_worker("healing", "-c", "2")
        told = ended(client, batch)
        after = results(client, batch)
        assert told["counts"] == {"queued": 0, "running": 0, "succeeded": 64, "failed": 0, "cancelled": 0}
        assert [line["output"]["n"] for line in after] == list(range(64))
        assert all(after[n] == before[n] for n in range(0, 64, 2))
    assert all(runs(ward)["end", n] == 1 for n in range(0, 64, 2)) and not twice_at_once(ward)


def test_a_row_that_kills_its_process_again_is_charged_its_attempts_and_fails_alone(ward: System) -> None:
    rows = [{"n": n, "ill": "deadly" if n == 5 else "yes" if n in (4, 6) else ""} for n in range(16)]
    with ward.client() as client:
        batch = send(client, rows)
        ended(client, batch, 60)
        assert results(client, batch)[5]["error"]["code"] == "worker_lost"
        deaths = runs(ward)["begin", 5]
        retry(client, batch).raise_for_status()
        told = ended(client, batch, 60)
        codes = {line["index"]: line["error"]["code"] for line in results(client, batch) if "error" in line}
        assert codes == {4: "predict_failed", 5: "worker_lost", 6: "predict_failed"}
        assert told["counts"]["failed"] == 3
        assert runs(ward)["begin", 5] == 2 * deaths, "as many attempts as the first time"
        heal(ward)
        retry(client, batch).raise_for_status()
        assert ended(client, batch)["status"] == "succeeded"
        assert [line["output"]["n"] for line in results(client, batch)] == list(range(16))


def test_the_time_to_live_begins_with_the_last_end_and_nothing_is_left(ward: System) -> None:
    with ward.client() as client:
        batch = send(
            client, [{"n": n, "ill": "yes" if n == 20 else "", "sleep_s": 0.02} for n in range(48)], keep_for_s=2
        )
        first = ended(client, batch)
        heal(ward)
        retry(client, batch).raise_for_status()
        last = ended(client, batch)
        assert last["expires_at"] > first["expires_at"]
        assert [line["output"]["n"] for line in results(client, batch)] == list(range(48))
        poll(lambda: client.get(batch["links"]["self"]).status_code == 410, what="it was dropped")
    left = [key for key in ward.redis.client.scan_iter("{healing}:*") if batch["id"] in key.decode()]
    assert left == [f"{{healing}}:seen:batch:{batch['id']}".encode()]


def test_it_counts_against_its_api_key_once_and_is_its_owners(ward: System) -> None:
    keys = Keys(Settings(redis_url=ward.redis.url))
    try:
        (mine, _), (other, _) = keys.create(Key(id="", name="me", concurrency=4)), keys.create(Key(id="", name="you"))
    finally:
        keys.redis.close()
    with ward.client() as client:
        client.headers["Authorization"] = f"Bearer {mine}"
        batch = poll(lambda: try_to_send(client), what="the key is known") or {}
        told = ended(client, batch)
        assert told["counts"]["failed"] == 3
        held = client.post("/jobs", json={"service": "healing", "input": {"n": 9, "sleep_s": 1.5}}).raise_for_status()
        more = client.post("/jobs", json={"service": "healing", "input": {"n": 9, "sleep_s": 1.5}}).raise_for_status()
        answer = retry(client, batch)
        assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited"), "three rows and two jobs are five"
        client.headers["Authorization"] = f"Bearer {other}"
        assert retry(client, batch).status_code == 404
        assert client.get(batch["links"]["events"]).status_code == 404
        client.headers["Authorization"] = f"Bearer {mine}"
        for job in (held, more):
            client.get(f"/jobs/{job.json()['id']}?wait=10").raise_for_status()
        heal(ward)
        retry(client, batch).raise_for_status()
        assert ended(client, batch)["status"] == "succeeded"
    assert not ward.redis.client.hgetall("{healing}:open")


def try_to_send(client: httpx.Client) -> dict[str, Any] | None:
    rows = [{"n": n, "ill": "yes" if n else ""} for n in range(4)]
    answer = client.post("/batches", json={"service": "healing", "inputs": rows})
    return answer.json() if answer.status_code == 202 else None


@pytest.mark.parametrize("ward", ["1"], indirect=True)
def test_an_urgent_job_runs_between_two_calls_of_a_chunk_that_takes_long(ward: System) -> None:
    def begun() -> list[int]:
        lines = [line.split() for line in (ward.folder / "runs").read_text().splitlines()]
        return [int(number) for word, number in lines if word == "begin"]

    with ward.client() as client:
        ended(client, send(client, [{"n": 1000 + n} for n in range(40)]))  # measured as quick
        batch = send(client, [{"n": n, "sleep_s": 0.2} for n in range(32)])  # so these are chunks of four calls each
        poll(lambda: 0 in begun(), what="a chunk runs")
        job = client.post("/jobs", json={"service": "healing", "input": {"n": 99}, "priority": "high"}).json()
        assert client.get(f"/jobs/{job['id']}?wait=10").json()["status"] == "succeeded"
        assert [line["output"]["n"] for line in results(client, batch)] == list(range(32))
        assert ended(client, batch)["counts"]["succeeded"] == 32
    order = begun()
    assert order.index(99) < order.index(15), "it did not wait for the end of the first chunk"
    assert sorted(n for n in order if n < 32) == list(range(32)), "what a chunk has done is not done again"


def test_a_worker_that_stops_hands_back_chunks_that_run_by_themselves_as_before(ward: System) -> None:
    first = ward.processes[1]
    with ward.client() as client:
        batch = send(client, [{"n": n, "sleep_s": 0.02} for n in range(400)], priority="normal")
        poll(lambda: read(client, batch)["counts"]["running"] > 8, what="more than the two that run")
        first.send_signal(signal.SIGTERM)
        singles = [{"service": "healing", "input": {"n": 1000 + i}} for i in range(8)]
        jobs = [client.post("/jobs", json=single).raise_for_status().json() for single in singles]
        assert first.wait() == 0
        ward.start_worker("healing", "-c", "2")
        assert [line["output"]["n"] for line in results(client, batch)] == list(range(400))
        assert {client.get(f"/jobs/{job['id']}?wait=10").json()["status"] for job in jobs} == {"succeeded"}
