"""The gate's part of the OpenAPI document (``api.auth.gate``): how an API key is sent, and the gate's own answers."""

from __future__ import annotations

from api.auth.gate import OPEN
from api.openapi.parts import make_problems
from api.openapi.schemas import Schema, make_ref
from api.problems import TITLES

#: Either bears an API key; neither is needed where none is configured.
SECURITY: Schema = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same, otherwise"},
}
EITHER_OR_NONE: list[Schema] = [{}, {"bearer": []}, {"api_key": []}]


def guarded(paths: Schema) -> Schema:
    """The paths, each with the answers that the gate may give before it."""
    for path, operations in paths.items():
        describe = _plain if path.startswith("/v2") else make_problems
        for method, operation in operations.items():
            if path in OPEN:
                operation["security"] = []
            else:
                late = [408] if method in ("post", "put", "delete") else []
                operation["responses"] |= describe(401, 403, *late, 429, 503)
    return paths


def _plain(*statuses: int) -> Schema:
    """The same for clients of the Open Inference Protocol, to which an error is but a text."""
    content = {"application/json": {"schema": make_ref("InferError")}}
    return {str(status): {"description": TITLES[status], "content": content} for status in statuses}
