"""Requests that many tests send, and answers that many tests check."""

from __future__ import annotations

import json
from typing import Any

import httpx


def body(**changes: Any) -> bytes:
    return json.dumps({"service": "echo", "input": {"n": 1}} | changes).encode()


def assert_problem(answer: httpx.Response, status: int, code: str, loc: list[Any] | None = None) -> Any:
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == code and problem["status"] == status and problem["title"] and problem["detail"]
    if loc is not None:
        assert loc in [error["loc"] for error in problem["errors"]], problem
        assert all(set(error) == {"loc", "msg", "type"} for error in problem["errors"])
    return problem
