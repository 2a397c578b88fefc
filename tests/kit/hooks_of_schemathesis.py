"""Loaded by schemathesis (``SCHEMATHESIS_HOOKS``): bodies of JSON lines, what a server error is, ids that exist."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import schemathesis

#: By a stream's path: what to ask it for in turn, as ``id``, ``headers`` and ``query``; what is left out is generated.
STREAMS: dict[str, list[dict[str, Any]]] = json.loads(os.environ.get("SCHEMATHESIS_STREAMS", "{}"))
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_chosen: dict[str, dict[str, int]] = {path: {} for path in STREAMS}


@schemathesis.serializer("application/x-ndjson")
def write_lines(ctx: Any, value: Any) -> bytes:
    """Texts as they are, whatever else as one line."""
    return (value if isinstance(value, str) else json.dumps(value)).encode(errors="replace")


@schemathesis.check
def no_server_error(ctx: Any, response: Any, case: Any) -> None:
    """As schemathesis has it, but for models without a worker: they are not ready, or too late, as documented."""
    waits_in_vain = case.path.startswith("/v2/models/") and response.status_code in (503, 504)
    assert response.status_code < 500 or waits_in_vain, f"{response.status_code}: {response.content[:500]!r}"


@schemathesis.hook
def before_call(ctx: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Calls of a stream ask for what ended, or never was: without a worker, no other stream ends.

    Schemathesis also takes ids from answers to other calls, whose jobs wait for ever: such a call asks for the first.
    Equal calls are changed equally, so that a failure is found again.
    """
    if case.path not in STREAMS or case.method.upper() != "GET":
        return
    chosen, asks = _chosen[case.path], STREAMS[case.path]
    number = chosen.setdefault(repr((case.path_parameters, case.headers, case.query)), len(chosen))
    ask = asks[number % len(asks)]
    if not ask and UUID.fullmatch(str(next(iter(case.path_parameters.values()), ""))):
        ask = asks[0]
    if "id" in ask:
        case.path_parameters = dict.fromkeys(case.path_parameters, ask["id"])
    case.headers.update(ask.get("headers", {}))
    case.query.update(ask.get("query", {}))
