"""A request by the Open Inference Protocol, read strictly: its jobs, the columns of its answer, its wait."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, get_args

from fastapi import Request
from pydantic_core import from_json

from api.auth.gate import caller_of
from api.auth.keyring import Caller
from api.catalog import Entry
from api.jobs.fingerprint import check_cacheable
from api.jobs.retention import NamedFiles
from api.jobs.submit import make_job
from api.large_bodies import aside, check_values
from api.problems import InferFailed, PayloadTooLarge
from api.requests import MAX_CACHE_FOR_S, MAX_DEADLINE_S, JobRequest, Urgency, read_body
from api.state import State, state_of
from api.v2.columns import Column, find_columns, list_columns, to_inputs
from api.v2.tensors import InferRequest, RequestedOutput, read_infer
from worker.errors import InvalidInput
from worker.ledger.jobs import NewJob

JSON_LENGTH = "Inference-Header-Content-Length"

#: Seconds that a request without a timeout waits: tritonclient and KServe's client give up after 60.
WAIT_S = 50.0

#: Triton's priorities: 1 is the highest, 0 the default; 3 and more are low.
PRIORITIES: dict[int, Urgency] = {0: "normal", 1: "high", 2: "normal"}
URGENCIES: tuple[Urgency, ...] = get_args(Urgency)
#: Parameters for missing features. To ignore one would give another answer than the request expects.
REFUSED = ("sequence_id", "sequence_start", "sequence_end")
REFUSED_OF_OUTPUTS = ("classification", "shared_memory_region")


class Plan:
    """A request as it will be answered: its jobs, the columns of its answer, and the time that it waits."""

    def __init__(self, state: State, entry: Entry, caller: Caller, body: bytes, length: int | None) -> None:
        self.entry = entry
        check_values(body if length is None else body[:length], state.settings.max_json_values)
        self.asked, tensors = read_infer(body, length)
        parameters = self.asked.parameters or {}
        _refuse(parameters, REFUSED, "the request")
        self.timeout_s = _read_timeout(parameters)
        self.wait_s = min(self.timeout_s or WAIT_S, state.settings.max_wait_s)
        self.outputs = _read_outputs(entry, self.asked)
        inputs = to_inputs(entry.plugin.name, tensors, list_columns(entry.input, "validation"))
        options = JobRequest.model_construct(
            service=entry.plugin.name,
            input=None,
            priority=_read_priority(parameters),
            finish_within_s=self.timeout_s,
            cache_for_s=_read_cache_for(entry, parameters),
        )
        self.jobs: list[NewJob] = []
        self.files: list[NamedFiles] = []  # of each job
        for row, text in enumerate(inputs):
            if len(text) > (limit := state.settings.max_body_bytes):
                where = _name(row, len(inputs))
                must = f"as JSON, its input is larger than {limit} bytes (SERVICES_MAX_BODY_BYTES)"
                raise PayloadTooLarge(f"{where}{must}")
            metadata = {"infer": {"id": self.asked.id, "row": row, "rows": len(inputs)}}
            try:
                job, files = make_job(state, entry, caller, options, text, metadata=metadata)
            except InvalidInput as error:
                raise name_row(error, row, len(inputs)) from error
            self.jobs.append(job)
            self.files.append(files)


def find_entry(request: Request, name: str, version: str) -> Entry:
    """The service that is the model. Raises ``UnknownService``, or ``InferFailed`` for another version than its own."""
    entry = state_of(request).catalog.find(name, caller_of(request))
    if version and version != entry.plugin.version:
        raise InferFailed(f"model {name!r} has no version {version[:100]!r}; it has {entry.plugin.version!r}", 404)
    return entry


async def read_encoded(request: Request, limit: int) -> bytes:
    """The body, decompressed according to its ``Content-Encoding``."""
    body = await read_body(request, limit)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding == "identity":
        return body
    if coding not in ("gzip", "deflate"):
        raise InferFailed(f"Content-Encoding {coding[:100]!r} is not supported; expected gzip or deflate", 415)
    return await aside(len(body), lambda: _decompress(body, coding, limit))


def _decompress(body: bytes, coding: str, limit: int) -> bytes:
    reader = zlib.decompressobj(zlib.MAX_WBITS | (16 if coding == "gzip" else 0))
    try:
        text = reader.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInput(f"the body is not {coding}, as its Content-Encoding says: {error}") from error
    if len(text) > limit:
        raise PayloadTooLarge(f"the decompressed body is larger than {limit} bytes (SERVICES_MAX_BODY_BYTES)")
    if not reader.eof or reader.unused_data:
        raise InvalidInput(f"the body is not {coding}, as its Content-Encoding says: it does not end where it should")
    return text


def read_length(request: Request) -> int | None:
    """The bytes of JSON at the body's start; None where all of it is JSON."""
    text = request.headers.get(JSON_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise InvalidInput(f"{JSON_LENGTH}: expected a number of bytes, got {text[:100]!r}")
    return int(text)


#: Bytes of the body of ``/v2/repository/index``.
MAX_INDEX_BYTES = 1024


async def read_index(request: Request) -> bool:
    """Whether the request asks for ready models only."""
    body = await read_body(request, MAX_INDEX_BYTES, 'all that this route takes is {"ready": true}')
    try:
        asked = from_json(body) if body.strip() else {}
    except ValueError as error:
        raise InvalidInput(f"the request is not JSON: {error}") from error
    if not isinstance(asked, dict) or not isinstance(asked.get("ready", False), bool):
        raise InvalidInput('expected a JSON object, such as {"ready": true}')
    return bool(asked.get("ready"))


def _refuse(parameters: dict[str, Any], names: Sequence[str], where: str) -> None:
    for name in names:
        if parameters.get(name):
            raise InvalidInput(f"{where}: the parameter {name!r} is not supported")


def _read_timeout(parameters: dict[str, Any]) -> float:
    """Seconds; 0 for none."""
    value = parameters.get("timeout", 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_DEADLINE_S * 1_000_000:
        most = MAX_DEADLINE_S * 1_000_000
        raise InvalidInput(f"parameters.timeout: expected microseconds, a whole number from 0 to {most}")
    return value / 1e6


def _read_cache_for(entry: Entry, parameters: dict[str, Any]) -> float | None:
    """Seconds; None for the default of the service."""
    value = parameters.get("cache_for_s")
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_CACHE_FOR_S:
        raise InvalidInput(f"parameters.cache_for_s: expected seconds, a number from 0 to {MAX_CACHE_FOR_S}")
    check_cacheable(entry, value)
    return value


def _read_priority(parameters: dict[str, Any]) -> Urgency:
    value = parameters.get("priority", 0)
    for urgency in URGENCIES:
        if value == urgency:
            return urgency
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidInput(
            "parameters.priority: expected 1 (high), 2 (normal), 3 or more (low), 0 (the default, normal), "
            f"or one of {', '.join(URGENCIES)}"
        )
    return PRIORITIES.get(value, "low")


def _read_outputs(entry: Entry, asked: InferRequest) -> list[tuple[Column, bool]]:
    """The columns to answer with, and whether each is sent in binary."""
    columns = list_columns(entry.output, "serialization")
    binary = bool((asked.parameters or {}).get("binary_data_output"))
    if not asked.outputs:
        return [(column, binary) for column in columns]
    known = find_columns(columns, "serialization")
    return [(_known_output(entry, output, known), _is_binary(output, binary)) for output in asked.outputs]


def _known_output(entry: Entry, output: RequestedOutput, known: dict[str, Column]) -> Column:
    if output.name not in known:
        names = ", ".join(map(repr, known))
        raise InvalidInput(
            f"unexpected output {output.name[:100]!r} for model {entry.plugin.name!r}; its outputs: {names}"
        )
    _refuse(output.parameters or {}, REFUSED_OF_OUTPUTS, f"output {output.name!r}")
    return known[output.name]


def _is_binary(output: RequestedOutput, default: bool) -> bool:
    return bool((output.parameters or {}).get("binary_data", default))


def name_row(error: InvalidInput, row: int, rows: int) -> InvalidInput:
    """The error of a row's input, with the number of its row where there are several."""
    return InvalidInput(f"{_name(row, rows)}{error.message.replace('body.input', 'input', 1)}")


def _name(row: int, rows: int) -> str:
    return f"row {row}: " if rows > 1 else ""
