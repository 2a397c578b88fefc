"""Other producers' messages: each becomes a job, or a failed job that says why."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from worker.broker.messages import read_message
from worker.settings import Settings


def message(args: Any = None, kwargs: Any = None, content_type: str = "application/json", **headers: Any) -> bytes:
    body = json.dumps([[{"n": 1}] if args is None else args, kwargs or {}, {"callbacks": None}])
    return json.dumps(
        {
            "body": base64.b64encode(body.encode()).decode(),
            "content-type": content_type,
            "headers": {"id": "a-b", "task": "echo.predict", **headers},
            "properties": {"body_encoding": "base64"},
        }
    ).encode()


def read(raw: bytes) -> Any:
    adopted = read_message("echo", raw, Settings(keep_for_s=60))
    return adopted.job, adopted.error


def test_the_one_argument_is_the_input() -> None:
    for raw in (message(), message(args=[], kwargs={"input": {"n": 1}})):
        job, error = read(raw)
        assert (job.id, job.service, json.loads(job.input), job.keep_for_s, error) == (
            "a-b",
            "echo",
            {"n": 1},
            60,
            None,
        )


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (message(args=[]), "0 args"),
        (message(args=[1, 2]), "2 args"),
        (message(args=[1], kwargs={"x": 1}), r"kwargs \['x'\]"),
        (message(task="echo.train"), "'echo.predict', not 'echo.train'"),
        (message(content_type="application/x-python-serialize"), "x-python-serialize is refused"),
        (message(eta="2099-01-01T00:00:00"), "more than 30 days ahead"),
        (message(args=[float("nan")]), "NaN is not JSON"),
        (message(expires="soon"), "expires must be an ISO 8601 time"),
    ],
)
def test_a_message_that_cannot_run_is_a_job_that_fails_with_the_reason(raw: bytes, words: str) -> None:
    job, error = read(raw)
    assert job.id == "a-b"
    with pytest.raises(type(error), match=words):
        raise error


def test_expires_becomes_start_within() -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=30)).isoformat()
    assert 29 < read(message(expires=soon))[0].start_within_s <= 30
    past = (datetime.now(UTC) - timedelta(seconds=30)).isoformat()
    assert 0 < read(message(expires=past))[0].start_within_s < 0.001


@pytest.mark.parametrize(
    "raw", [b"junk", b"[]", b"{}", b'{"headers": {}}', b'{"headers": {"id": 7}}', b"null", b"\xff"]
)
def test_bytes_that_are_no_message_are_refused(raw: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        read(raw)


def adopt_one(raw: bytes, broker: Any = "redis") -> Any:
    return read_message("echo", raw, Settings(keep_for_s=60), broker)


def test_an_eta_is_a_time_before_which_it_does_not_run_and_expires_counts_from_there() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=30)
    job, error = read(message(eta=soon.isoformat(), expires=(soon + timedelta(seconds=10)).isoformat()))
    assert error is None and abs(job.not_before_us - soon.timestamp() * 1e6) < 2
    assert job.start_within_s == pytest.approx(10, abs=0.001)
    assert read(message(eta=soon.isoformat(), expires=5))[0].start_within_s == pytest.approx(1e-6)
    for past in (datetime.now(UTC) - timedelta(days=1), datetime(1, 1, 1)):
        assert read(message(eta=past.isoformat()))[0].not_before_us == 0
    naive = soon.replace(tzinfo=None).isoformat()
    assert abs(read(message(eta=naive))[0].not_before_us - soon.timestamp() * 1e6) < 2, "Celery's time zone is UTC"


@pytest.mark.parametrize("expires", ["9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59", 1e300, 10**30])
def test_whatever_is_far_ahead_is_kept_by_the_ledger(expires: Any) -> None:
    job, error = read(message(expires=expires))
    assert error is None and 1e8 < job.start_within_s < 1e10


@pytest.mark.parametrize("wrong", [True, [], {}, "never", float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["eta", "expires"])
def test_a_text_that_is_no_time_is_named(name: str, wrong: Any) -> None:
    assert read(message(**{name: wrong}))[1].message.startswith(f"{name} must be an ISO 8601 time")


def with_priority(priority: Any) -> bytes:
    raw = json.loads(message())
    raw["properties"]["priority"] = priority
    return json.dumps(raw).encode()


def test_a_priority_has_the_meaning_of_its_broker() -> None:
    redis = [adopt_one(with_priority(p)).job for p in (None, 0, 3, 9, 99, "high", -1)]
    assert [round(job.priority_steps, 2) for job in redis] == [0, 0, 0.33, 1, 1, 0, 0]
    assert [job.priority for job in redis[:4]] == ["normal", "normal", "normal", "low"]
    rabbit = [adopt_one(with_priority(p), "rabbitmq").job for p in (None, 0, 3, 9, 10, 255)]
    assert [round(job.priority_steps, 2) + 0 for job in rabbit] == [0, 0, -0.3, -0.9, -1, -1]
    assert [job.priority for job in rabbit] == ["normal", "normal", "normal", "high", "high", "high"]


def test_the_ids_of_following_tasks_are_found() -> None:
    def step(job_id: str, **more: Any) -> dict[str, Any]:
        return {
            "task": "echo.predict",
            "args": [{"options": {"task_id": "an input"}}],
            "options": {"task_id": job_id, **more},
        }

    grouped = {
        "task": "celery.group",
        "kwargs": {"tasks": [step("c"), step("d"), step("\ud800"), step("")]},
        "options": {"task_id": "g"},
    }
    raw = json.loads(message())
    embed = {"chain": [step("a"), grouped], "callbacks": [step("b", link=[step("e")])]}
    raw["body"] = base64.b64encode(json.dumps([[{"n": 1}], {}, embed]).encode()).decode()
    adopted = adopt_one(json.dumps(raw).encode())
    assert sorted(adopted.followers) == ["a", "b", "c", "d", "e", "g"]
    assert "the option chain is not supported" in adopted.error.message
    assert json.loads(adopted.job.input) == {"n": 1}, "its input stays, so that a retry can run it"


def test_a_body_of_protocol_1_has_all_and_one_that_cannot_be_read_fails_by_its_correlation_id() -> None:
    body = {
        "task": "echo.predict",
        "id": "one",
        "args": [{"n": 1}],
        "kwargs": {},
        "timelimit": [None, None],
        "utc": True,
    }
    raw = {"body": json.dumps(body), "content-type": "application/json", "headers": {}, "properties": {}}
    assert read(json.dumps(raw).encode())[0].id == "one"
    limited = {**raw, "body": json.dumps({**body, "timelimit": [3, None]})}
    assert "time_limit" in read(json.dumps(limited).encode())[1].message
    pickled = {**raw, "content-type": "application/x-python-serialize", "properties": {"correlation_id": "two"}}
    job, error = read(json.dumps(pickled).encode())
    assert job.id == "two" and "is refused" in error.message


def test_an_input_over_the_limit_is_refused_by_its_size() -> None:
    error = read_message("echo", message(args=["x" * 3000]), Settings(max_body_bytes=2000)).error
    assert error and "SERVICES_MAX_BODY_BYTES" in error.message and "files" in error.message
