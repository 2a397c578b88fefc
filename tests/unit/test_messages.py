"""Other producers' messages: each becomes a job, or a failed job that says why."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from worker.broker.adopt import read_message


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
    return read_message("echo", raw, keep_for_s=60)


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
        (message(eta="2099-01-01T00:00:00"), "eta and countdown are not supported"),
        (message(args=[float("nan")]), "NaN is not JSON"),
        (message(expires="soon"), "the message's body"),
    ],
)
def test_what_cannot_run_is_a_job_that_fails_with_the_reason(raw: bytes, words: str) -> None:
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
def test_what_is_no_message_at_all_is_refused(raw: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        read(raw)
