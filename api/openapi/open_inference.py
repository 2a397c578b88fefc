"""The part of the OpenAPI document that describes ``/v2``."""

from __future__ import annotations

from typing import Any, get_args

from api.catalog import Entry
from api.openapi.schemas import Schema, make_object, make_ref
from api.v2.requests import JSON_LENGTH, WAIT_S
from api.v2.tensors import MAX_DIMENSIONS, MAX_ID, Datatype

OCTETS = "application/octet-stream"

DATATYPE: Schema = {"enum": list(get_args(Datatype))}
PARAMETERS: Schema = {"type": ["object", "null"], "description": "by name: a text, a number or a truth value"}
DATA: Schema = {"type": "array", "items": {}, "description": "in row-major order, flat or nested"}
SHAPE: Schema = {"type": "array", "items": {"type": "integer"}}

TENSOR = make_object(
    {
        "name": {"type": "string"},
        "shape": {**SHAPE, "items": {"type": "integer", "minimum": 1}, "maxItems": MAX_DIMENSIONS},
        "datatype": DATATYPE,
        "parameters": {**PARAMETERS, "description": "`binary_data_size`: bytes of it behind the JSON"},
        "data": DATA,
    },
    ["name", "shape", "datatype"],
)
REQUESTED = make_object(
    {"name": {"type": "string"}, "parameters": {**PARAMETERS, "description": "`binary_data`: whether in binary"}},
    ["name"],
)
ASKED = (
    "`priority` (1 high, 2 normal, 3 and more low), `timeout` (microseconds; then the jobs end as `timed_out`; "
    f"without it the answer is awaited for {WAIT_S:g} s), `binary_data_output`; others are left alone"
)

TENSOR_CONFIG = make_object(
    {"name": {"type": "string"}, "data_type": {"type": "string"}, "dims": SHAPE, "optional": {"type": "boolean"}},
    ["name", "data_type", "dims"],
)
CONFIG = make_object(
    {
        "name": {"type": "string"},
        "platform": {"type": "string"},
        "backend": {"type": "string"},
        "version_policy": {"type": "object"},
        "max_batch_size": {"type": "integer", "description": "always 0: the rows are the first of a tensor's dims"},
        "input": {"type": "array", "items": TENSOR_CONFIG},
        "output": {"type": "array", "items": TENSOR_CONFIG},
        "parameters": {"type": "object", "description": "the service's knobs, once a worker has told them"},
    }
)
MODEL_STATS = make_object(
    {
        "model_stats": {
            "type": "array",
            "items": make_object(
                {
                    "name": {"type": "string"},
                    "version": {"type": "string"},
                    "last_inference": {"type": "integer"},
                    "inference_count": {"type": "integer"},
                    "execution_count": {"type": "integer"},
                    "inference_stats": {"type": "object", "description": "counts; every `ns` is 0"},
                    "batch_stats": {"type": "array", "items": {}},
                    "memory_usage": {"type": "array", "items": {}},
                    "response_stats": {"type": "object"},
                }
            ),
        }
    }
)

#: Components by their names.
SCHEMAS: dict[str, Schema] = {
    "InferRequest": make_object(
        {
            "id": {"type": ["string", "null"], "maxLength": MAX_ID, "description": "given back"},
            "parameters": {**PARAMETERS, "description": ASKED},
            "inputs": {"type": "array", "items": TENSOR, "minItems": 1},
            "outputs": {"type": ["array", "null"], "items": REQUESTED, "description": "left out: all"},
        },
        ["inputs"],
    ),
    "InferResponse": make_object(
        {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": make_object({"job_id": {"type": "string"}}),
            "outputs": {
                "type": "array",
                "items": make_object(
                    {
                        "name": {"type": "string"},
                        "datatype": DATATYPE,
                        "shape": SHAPE,
                        "parameters": make_object({"binary_data_size": {"type": "integer"}}),
                        "data": DATA,
                    },
                    ["name", "datatype", "shape"],
                ),
            },
        },
        ["model_name", "model_version", "outputs"],
    ),
    "InferError": make_object({"error": {"type": "string"}}),
}

MEANINGS = {
    400: "The request does not fit the model, or the model's worker refused a row",
    404: "No such model or version",
    413: "The body is too large",
    415: "The body's Content-Encoding is neither gzip nor deflate",
    429: "The queue is full; none of the rows is run",
    500: "A row failed: its error, as its job has it",
    503: "Redis is away, the model's schema is broken, or the model is not ready",
    504: "The rows have not ended within the wait or the timeout; `Location` is the first one's job",
}


def open_inference_paths(entries: list[Entry]) -> Schema:
    """The paths below ``/v2``, each with and without a version."""
    server = make_object({"name": _text(), "version": _text(), "extensions": _list(_text())})
    live, ready = make_object({"live": _truth()}), make_object({"ready": _truth(), "live": _truth()})
    row = make_object({"name": _text(), "version": _text(), "state": _text(), "reason": _text()})
    only = {"schema": make_object({"ready": {**_truth(), "description": "only what is ready"}}, [])}
    asked: Schema = {"required": False, "content": {"application/json": only}}
    paths: Schema = {
        "/v2": {"get": _operation("v2_server", "The server's metadata", _json(server))},
        "/v2/health/live": {"get": _operation("v2_live", "Liveness", _json(live))},
        "/v2/health/ready": {"get": _operation("v2_ready", "Readiness: Redis answers", _json(ready), 503)},
        "/v2/repository/index": {
            "post": _operation("v2_index", "The models' states", _json(_list(row)), 400, 413, 503, requestBody=asked)
        },
    }
    stats = {"get": _operation("v2_all_stats", "The statistics of all models", _json(MODEL_STATS), 503)}
    paths["/v2/models/stats"] = stats
    for versioned in (False, True):
        path, end = ("/v2/models/{name}/versions/{version}", "_version") if versioned else ("/v2/models/{name}", "")
        paths |= _model_paths(path, end, _path_parameters(entries, versioned))
    return paths


def _model_paths(path: str, end: str, parameters: list[Schema]) -> Schema:
    column = make_object({"name": _text(), "datatype": DATATYPE, "shape": SHAPE}, ["name", "datatype", "shape"])
    model = make_object(
        {
            "name": _text(),
            "versions": _list(_text()),
            "platform": _text(),
            "inputs": _list(column),
            "outputs": _list(column),
        }
    )
    ready = make_object({"name": _text(), "ready": _truth()})
    length = {"name": JSON_LENGTH, "in": "header", "schema": {"type": "string", "pattern": "^[0-9]{1,11}$"}}
    length["description"] = "bytes of JSON before the binary tensors; left out where all is JSON"
    told = {**_json(make_ref("InferResponse")), "headers": {JSON_LENGTH: {"schema": {"type": "string"}}}}
    told["content"][OCTETS] = {"schema": {"type": "string", "contentMediaType": OCTETS}}
    # Where no type is given, as by tritonclient, it makes no difference.
    body: Schema = {"required": True, "content": {"application/json": {"schema": make_ref("InferRequest")}}}
    statuses = (400, 404, 413, 415, 429, 500, 503, 504)
    return {
        path: {"get": _operation(f"v2_model{end}", "A model's inputs and outputs", _json(model), 404, at=parameters)},
        f"{path}/ready": {
            "get": _operation(f"v2_model_ready{end}", "A model's readiness", _json(ready), 404, 503, at=parameters)
        },
        f"{path}/config": {
            "get": _operation(
                f"v2_model_config{end}", "A model's configuration", _json(CONFIG), 404, 503, at=parameters
            )
        },
        f"{path}/stats": {
            "get": _operation(
                f"v2_model_stats{end}", "A model's statistics", _json(MODEL_STATS), 404, 503, at=parameters
            )
        },
        f"{path}/infer": {
            "post": _operation(
                f"v2_infer{end}",
                "Run a model: each row of the tensors is a job",
                told,
                *statuses,
                at=[*parameters, length],
                requestBody=body,
            )
        },
    }


def _path_parameters(entries: list[Entry], versioned: bool) -> list[Schema]:
    names: Schema = {"enum": [entry.plugin.name for entry in entries]} if entries else _text()
    versions: Schema = {"enum": sorted({entry.plugin.version for entry in entries})} if entries else _text()
    name: Schema = {"name": "name", "in": "path", "required": True, "schema": names}
    version: Schema = {"name": "version", "in": "path", "required": True, "schema": versions}
    return [name, version] if versioned else [name]


def _operation(
    name: str, summary: str, answer: Schema, *errors: int, at: list[Schema] | None = None, **more: Any
) -> Schema:
    failed = {str(status): {**_json(make_ref("InferError")), "description": MEANINGS[status]} for status in errors}
    answers = {"200": {"description": "The answer", **answer}, **failed}
    return {"operationId": name, "summary": summary, "parameters": at or [], **more, "responses": answers}


def _json(schema: Schema) -> Schema:
    return {"content": {"application/json": {"schema": schema}}}


def _text() -> Schema:
    return {"type": "string"}


def _truth() -> Schema:
    return {"type": "boolean"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}
