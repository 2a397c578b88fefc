"""Tensors on the wire, as the Open Inference Protocol and Triton's binary extension write them.

A tensor has a name, a datatype, a shape, and elements in row-major order. In JSON the elements are in ``data``, flat or
nested. In the binary form they follow the JSON, little-endian and without gaps, each BYTES element after its length in
4 bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json, to_json

from api.operations import tidy
from api.requests import invalid_fields
from worker.errors import InvalidInput, InvalidOutput

#: The code of ``struct`` for each datatype of a fixed size.
CODES = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
INTEGERS = frozenset(name for name in CODES if "INT" in name)
FLOATS = frozenset({"FP16", "FP32", "FP64"})

#: Types of the elements of ``data`` for each datatype; an integer is a float too.
_JSON_TYPES: dict[str, frozenset[type]] = {
    **dict.fromkeys(INTEGERS, frozenset({int})),
    **dict.fromkeys(FLOATS, frozenset({int, float})),
    "BOOL": frozenset({bool}),
    "BYTES": frozenset({str}),
}

MAX_DIMENSIONS = 16
MAX_ID = 1024
PARAMETERS = (
    "`priority` (1 high, 2 normal, 3 and more low), `timeout` (microseconds; then the jobs end as `timed_out`; without "
    "it the answer is awaited for 50 s), `binary_data_output`, `cache_for_s`; others are left alone"
)

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor. Elements of BYTES are ``bytes`` if they were sent in binary, texts if in JSON; null is None."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[Any]


class _Part(BaseModel):
    # Unknown members are ignored: KServe's client sends `model_name`, MLServer's others.
    model_config = ConfigDict(strict=True, extra="ignore", json_schema_extra=tidy)


class TensorHead(_Part):
    """One of a request's ``inputs``."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=1, lt=2**63)]], Field(max_length=MAX_DIMENSIONS)]
    datatype: Datatype
    data: Annotated[list[Any] | None, Field(description="in row-major order, flat or nested")] = None
    parameters: Annotated[
        dict[str, Any] | None, Field(description="`binary_data_size`: bytes of it behind the JSON")
    ] = None


class RequestedOutput(_Part):
    """One of a request's ``outputs``."""

    name: str
    parameters: Annotated[dict[str, Any] | None, Field(description="`binary_data`: whether in binary")] = None


class InferRequest(_Part):
    """The JSON of an inference request."""

    id: Annotated[Annotated[str, Field(max_length=MAX_ID)] | None, Field(description="given back")] = None
    inputs: Annotated[list[TensorHead], Field(min_length=1)]
    outputs: Annotated[list[RequestedOutput] | None, Field(description="left out: all")] = None
    parameters: Annotated[dict[str, Any] | None, Field(description=PARAMETERS)] = None


def read_infer(body: bytes, json_length: int | None) -> tuple[InferRequest, list[Tensor]]:
    """A request's head and its tensors. Raises ``InvalidInput``.

    Args:
        json_length: bytes of JSON at the start of the body; None: all of it is JSON.
    """
    if json_length is not None and json_length > len(body):
        raise InvalidInput(f"Inference-Header-Content-Length is {json_length}, but the body has only {len(body)} bytes")
    asked = _parse(body if json_length is None else body[:json_length])
    binary = memoryview(body)[len(body) if json_length is None else json_length :]
    tensors: list[Tensor] = []
    at = 0
    for head in asked.inputs:
        if any(tensor.name == head.name for tensor in tensors):
            raise InvalidInput(f"input {head.name!r} is given twice")
        size = _binary_size(head, len(binary) - at)
        tensors.append(_from_json(head) if size is None else _from_binary(head, binary[at : at + size]))
        at += size or 0
    if at != len(binary):
        raise InvalidInput(f"{len(binary)} bytes follow the JSON, but the inputs' binary_data_size are {at} together")
    return asked, tensors


def to_values(tensor: Tensor) -> list[Any]:
    """A tensor's elements for the ``data`` of an answer; NaN, which JSON does not have, is null."""
    if tensor.datatype in FLOATS:
        return [None if value != value else value for value in tensor.values]
    return [value.decode() if isinstance(value, bytes) else value for value in tensor.values]


def to_binary(tensor: Tensor) -> bytes:
    """A tensor's elements in the binary form. Raises ``InvalidOutput`` for a value outside the datatype."""
    if tensor.datatype == "BYTES":
        texts = [value if isinstance(value, bytes) else value.encode() for value in tensor.values]
        return b"".join(chain.from_iterable((struct.pack("<I", len(text)), text) for text in texts))
    try:
        return struct.pack(f"<{len(tensor.values)}{CODES[tensor.datatype]}", *tensor.values)
    except (struct.error, OverflowError) as error:
        raise InvalidOutput(f"output {tensor.name!r} does not fit {tensor.datatype}: {error}") from error


def _parse(text: bytes) -> InferRequest:
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidInput(f"the request is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput("the request: expected a JSON object")
    try:
        return InferRequest.model_validate(value)
    except ValidationError as error:
        raise invalid_fields(error, []) from error


def _binary_size(head: TensorHead, left: int) -> int | None:
    """Bytes of an input after the JSON; None where its elements are in ``data``."""
    parameters = head.parameters or {}
    if "shared_memory_region" in parameters:
        raise InvalidInput(f"input {head.name!r}: shared memory is not supported; send the tensor in the request")
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if head.data is not None:
        raise InvalidInput(f"input {head.name!r} has both data and binary_data_size; expected one of them")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidInput(f"input {head.name!r}: binary_data_size must be a number of bytes, got {str(size)[:100]}")
    if size > left:
        must = "is its header Inference-Header-Content-Length missing or wrong?"
        raise InvalidInput(f"input {head.name!r}: binary_data_size is {size}, but only {left} bytes are left; {must}")
    return size


def _from_json(head: TensorHead) -> Tensor:
    if head.data is None:
        raise InvalidInput(f"input {head.name!r} has no data: expected data, or binary_data_size in its parameters")
    values = _flatten(head.name, head.data)
    _check_count(head, len(values))
    types = set(map(type, values))
    present = types - {type(None)}
    if not present <= _JSON_TYPES[head.datatype]:
        wrong = next(
            i for i, value in enumerate(values) if type(value) not in (*_JSON_TYPES[head.datatype], type(None))
        )
        got = to_json(values[wrong]).decode()[:100]
        raise InvalidInput(f"input {head.name!r}: element {wrong} is no {head.datatype}: {got}")
    if head.datatype in INTEGERS and present:
        _check_range(head, values if len(types) == 1 else [value for value in values if value is not None])
    return Tensor(head.name, head.datatype, tuple(head.shape), values)


def _flatten(name: str, data: list[Any]) -> list[Any]:
    while data and isinstance(data[0], list):
        if set(map(type, data)) != {list}:
            raise InvalidInput(f"input {name!r}: its data is nested unevenly")
        data = list(chain.from_iterable(data))
    return data


def _check_range(head: TensorHead, values: Sequence[int]) -> None:
    bits = 8 * struct.calcsize(f"<{CODES[head.datatype]}")
    least, most = (0, 2**bits - 1) if head.datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for value in (min(values), max(values)):
        if not least <= value <= most:
            raise InvalidInput(f"input {head.name!r}: {str(value)[:30]} is beyond {head.datatype} ({least} to {most})")


def _check_count(head: TensorHead, count: int) -> None:
    expected = math.prod(head.shape)
    if count != expected:
        raise InvalidInput(f"input {head.name!r}: its shape {head.shape} holds {expected} elements, but it has {count}")


def _from_binary(head: TensorHead, data: memoryview) -> Tensor:
    values: Sequence[Any]
    if head.datatype == "BYTES":
        values = _split_bytes(head.name, bytes(data))
        _check_count(head, len(values))
    else:
        code = CODES[head.datatype]
        count, rest = divmod(len(data), struct.calcsize(f"<{code}"))
        if rest:
            raise InvalidInput(f"input {head.name!r}: {len(data)} bytes are no whole number of {head.datatype}")
        _check_count(head, count)
        values = struct.unpack(f"<{count}{code}", data)
    return Tensor(head.name, head.datatype, tuple(head.shape), values)


def _split_bytes(name: str, data: bytes) -> list[bytes]:
    """The elements of a BYTES tensor."""
    values: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        start = at + 4
        at = start + int.from_bytes(data[at:start], "little")
        if start > end or at > end:
            raise InvalidInput(f"input {name!r}: element {len(values)} ends beyond the tensor's {end} bytes")
        values.append(data[start:at])
    return values
