"""The events of a batch from outside: its progress, its states, and where they go on after a cut."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.kit.batches import read, send
from tests.kit.system import System, free_port, listen_to, make_http, poll, status_of

Event = tuple[str, Any, str]


def listen(client: httpx.Client, batch: dict[str, Any], after: str = "") -> Iterator[Event]:
    return listen_to(client, batch["links"]["events"], after)


def statuses(events: list[Event]) -> list[str]:
    return [data["status"] for name, data, _ in events if name == "status"]


def check_progress(events: list[Event], total: int) -> None:
    """It goes up only, and every event's counts are of all the rows."""
    steps = [data for name, data, _ in events if name == "progress"]
    assert [step["progress"] for step in steps] == sorted(step["progress"] for step in steps)
    assert all(step["total"] == sum(step["counts"].values()) == total for step in steps)
    assert len({id for _, _, id in events}) == len(events), "none comes twice"


def slow(n: int, sleep_s: float = 0.002, **more: Any) -> list[Any]:
    return [{"n": i, "sleep_s": sleep_s, **more} for i in range(n)]


def test_a_batch_is_followed_to_its_end(serving: System) -> None:
    with serving.client() as client:
        batch = send(client, [*slow(640), {"n": "no number"}])
        events = list(listen(client, batch))
        assert statuses(events)[-1] == "failed" and statuses(events)[0] in ("queued", "running")
        assert events[-1][1] == read(client, batch), "the last one is the batch as it ended"
        steps = [data["progress"] for name, data, _ in events if name == "progress"]
        assert len(steps) >= 5 and steps[-1] == 1
        check_progress(events, 641)
        last = events[-2][1]["counts"]
        assert last == {"queued": 0, "running": 0, "succeeded": 640, "failed": 1, "cancelled": 0}

        # after its end: the end at once, or nothing to come back for
        late = list(listen(client, batch))
        assert late == events[-1:]
        again = client.get(batch["links"]["events"], headers={"Last-Event-ID": events[-1][2]})
        assert again.status_code == 204
        # cut between the last progress and the end
        assert list(listen(client, batch, events[-2][2])) == events[-1:]
        assert list(listen(client, batch, events[0][2]))[-1] == events[-1]


def test_a_cut_stream_continues_at_another_api_process(serving: System) -> None:
    port = free_port()
    serving.start("uvicorn", "api:app", "--port", str(port), "--log-level", "warning", name="api")
    poll(lambda: status_of(f"http://127.0.0.1:{port}/healthz") == 200, what="another API is up")
    with serving.client() as client, make_http(f"http://127.0.0.1:{port}", 30) as other:
        batch = send(client, slow(1280))
        heard: list[Event] = []
        for cut in range(10):
            for event in listen((client, other)[cut % 2], batch, heard[-1][2] if heard else ""):
                heard.append(event)
                if cut < 9 and len(heard) % 2 == 0:
                    break
        check_progress(heard, 1280)
        assert statuses(heard)[-1] == "succeeded" and "succeeded" not in statuses(heard)[:-1]


def test_progress_comes_as_it_is_made_and_a_cancel_ends_it(serving: System) -> None:
    with serving.client() as client:
        batch = send(client, slow(640, 0.01))
        times: list[tuple[float, str]] = []
        for name, data, _ in listen(client, batch):
            times.append((time.monotonic(), name))
            if name == "progress" and data["counts"]["succeeded"] and read(client, batch)["finished_at"] is None:
                client.delete(batch["links"]["self"]).raise_for_status()
            last = data
        assert last["status"] == "cancelled" and last["counts"]["cancelled"] > 300
        assert [name for _, name in times][-1] == "status"
        assert times[-1][0] - times[0][0] < 3, "six and a half seconds were left"


def test_a_batch_without_listeners_costs_nothing_and_listeners_do_not_poll(serving: System) -> None:
    def reads() -> int:
        return int(serving.redis.client.info("commandstats")["cmdstat_hgetall"]["calls"])

    with serving.client() as client, ExitStack() as streams:
        quiet = send(client, slow(64))
        poll(lambda: read(client, quiet)["finished_at"], what="it ends")
        assert not serving.redis.client.hexists(f"{{echo}}:batch:{quiet['id']}", "watched")

        batch = send(client, slow(64, 0.03))  # one chunk: for two seconds nothing happens to it
        poll(lambda: read(client, batch)["counts"]["running"], what="it runs")
        for _ in range(20):
            events = listen(client, batch)
            streams.callback(events.close)  # type: ignore[attr-defined]
            next(events)
        before = reads()
        time.sleep(1)
        assert reads() - before < 20, "each of twenty clients would read once a second"


@pytest.mark.parametrize("id", ["x", "z1/0.0.0.0", "r1/0.0.0", "7/q0"])
def test_ids_that_are_not(serving: System, id: str) -> None:
    with serving.client() as client:
        assert client.get("/batches/none/events").status_code == 404
        batch = send(client, slow(1))
        answer = client.get(batch["links"]["events"], headers={"Last-Event-ID": id})
        assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["header", "last-event-id"])


def test_a_batch_that_runs_again_is_followed_from_its_last_event(serving: System) -> None:
    with serving.client() as client:
        batch = send(client, [*slow(30), {"n": 99, "do": "raise"}])
        first = list(listen(client, batch))
        assert statuses(first)[-1] == "failed"
        client.post(batch["links"]["retry"]).raise_for_status()
        second = list(listen(client, batch, first[-1][2]))
        assert statuses(second)[-1] == "failed" and second[-1][1]["finished_at"] > first[-1][1]["finished_at"]
        assert second[-1][1] == read(client, batch)
        assert not {id for _, _, id in first} & {id for _, _, id in second}
