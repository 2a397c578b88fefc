"""Loaded by schemathesis (``SCHEMATHESIS_HOOKS``): how to write a body of JSON lines, and what a server error is."""

from __future__ import annotations

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def write_lines(ctx: Any, value: Any) -> bytes:
    """Texts as they are, whatever else as one line."""
    return (value if isinstance(value, str) else json.dumps(value)).encode(errors="replace")


@schemathesis.check
def no_server_error(ctx: Any, response: Any, case: Any) -> None:
    """As schemathesis has it, but for models without a worker: they are not ready, or too late, as documented."""
    waits_in_vain = case.path.startswith("/v2/models/") and response.status_code in (503, 504)
    assert response.status_code < 500 or waits_in_vain, f"{response.status_code}: {response.content[:500]!r}"
