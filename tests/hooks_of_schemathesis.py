"""Loaded by schemathesis (``SCHEMATHESIS_HOOKS``): how to write a body of JSON lines."""

from __future__ import annotations

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def write_lines(ctx: Any, value: Any) -> bytes:
    """Texts as they are, whatever else as one line."""
    return (value if isinstance(value, str) else json.dumps(value)).encode(errors="replace")
