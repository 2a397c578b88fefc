"""Jobs over HTTP: send them, wait for their ends."""

from __future__ import annotations

from typing import Any

from tests.kit.system import System, finished


def post(system: System, *inputs: dict[str, Any], service: str = "echo", **fields: Any) -> list[str]:
    """Submit jobs and give their ids."""
    with system.client() as client:
        answers = [client.post("/jobs", json={"service": service, "input": one, **fields}) for one in inputs]
    assert {answer.status_code for answer in answers} == {202}, [answer.text for answer in answers]
    return [answer.json()["id"] for answer in answers]


def results(system: System, ids: list[str], timeout: float = 30) -> list[dict[str, Any]]:
    """The jobs once all have ended."""
    with system.client() as client:
        return [finished(client, job_id, timeout) for job_id in ids]
