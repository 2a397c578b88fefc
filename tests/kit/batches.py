"""Batches over HTTP: send their rows, read their results."""

from __future__ import annotations

import json
from typing import Any

import httpx


def send(client: httpx.Client, rows: list[Any], **fields: Any) -> dict[str, Any]:
    answer = client.post("/batches", json={"service": "echo", "inputs": rows, **fields})
    assert answer.status_code == 202, answer.text
    batch: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == f"/batches/{batch['id']}"
    return batch


def results(client: httpx.Client, batch: dict[str, Any]) -> list[dict[str, Any]]:
    """All lines; the request ends with the batch."""
    answer = client.get(batch["links"]["results"])
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


def read(client: httpx.Client, batch: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = client.get(batch["links"]["self"]).raise_for_status().json()
    return told
