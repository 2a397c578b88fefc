"""What a request by the Open Inference Protocol asks for, read strictly: its jobs, its answer's columns, its wait."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import Request
from pydantic_core import from_json, to_json

from api.auth.gate import caller_of
from api.auth.keyring import Caller
from api.catalog import Entry
from api.jobs.fingerprint import ask_cache, check_cacheable
from api.problems import InferFailed, PayloadTooLarge
from api.requests import MAX_CACHE_FOR_S, MAX_DEADLINE_S, read_body
from api.v2.columns import Column, find_columns, list_columns, to_inputs
from api.v2.tensors import InferRequest, RequestedOutput, read_infer
from worker.errors import InvalidInput
from worker.files import File, Where
from worker.ledger.jobs import NewJob, Priority

JSON_LENGTH = "Inference-Header-Content-Length"

#: Seconds that a request without a timeout waits: tritonclient and KServe's client give up after 60.
WAIT_S = 50.0
#: Bodies over this many bytes are read in a thread, so that no other client waits for all of that.
LARGE = 256 * 1024

#: Triton's priorities: 1 is the highest, 0 the default; those below have one place here.
PRIORITIES = {0: Priority.NORMAL, 1: Priority.HIGH, 2: Priority.NORMAL}
#: Parameters that ask for what is not there. To ignore one would give another answer than was asked for.
REFUSED = ("sequence_id", "sequence_start", "sequence_end")
REFUSED_OF_OUTPUTS = ("classification", "shared_memory_region")

Made = TypeVar("Made")


class Plan:
    """What a request asks for: its jobs, the columns of its answer, and how long it waits."""

    def __init__(
        self, entry: Entry, body: bytes, length: int | None, settings: Any, caller: Caller, may_cache: bool
    ) -> None:
        self.entry = entry
        self.asked, tensors = read_infer(body, length)
        parameters = self.asked.parameters or {}
        _refuse(parameters, REFUSED, "the request")
        self.timeout_s = _read_timeout(parameters)
        self.wait_s = min(self.timeout_s or WAIT_S, settings.max_wait_s)
        self.outputs = _read_outputs(entry, self.asked)
        inputs = to_inputs(entry.plugin.name, tensors, list_columns(entry.input, "validation"))
        self.files: dict[str, list[tuple[Where, File]]] = {}  # by the ids of the jobs that name them
        self._caller = caller
        self._may_cache = may_cache
        self.jobs = self._make_jobs(inputs, parameters, settings)

    def _make_jobs(self, inputs: Sequence[bytes], parameters: dict[str, Any], settings: Any) -> list[NewJob]:
        rows = len(inputs)
        priority, cache_for_s = _read_priority(parameters), _read_cache_for(self.entry, parameters)
        jobs = []
        for i, text in enumerate(inputs):
            files = _validate(self.entry, text, i, rows, settings.max_body_bytes)
            about = {"id": self.asked.id, "row": i, "rows": rows}
            jobs.append(
                NewJob(
                    service=self.entry.plugin.name,
                    input=text,
                    version=self.entry.plugin.version,
                    priority=priority,
                    finish_within_s=self.timeout_s,
                    keep_for_s=settings.keep_for_s,
                    metadata=to_json({"infer": about}),
                    owner=self._caller.owner,
                    most_open=self._caller.most_open,
                    cache=ask_cache(self.entry, text, self._caller.owner, cache_for_s, self._may_cache),
                )
            )
            if files:
                self.files[jobs[-1].id] = files
        return jobs


def find_entry(request: Request, name: str, version: str) -> Entry:
    """The service that is the model. Raises ``UnknownService``, or ``InferFailed`` for another version than its own."""
    caller_of(request).check_service(name)
    entry: Entry = request.app.state.catalog.get(name)
    if version and version != entry.plugin.version:
        raise InferFailed(f"model {name!r} has no version {version[:100]!r}; it has {entry.plugin.version!r}", 404)
    return entry


async def read_encoded(request: Request, limit: int) -> bytes:
    """The body, decompressed where its ``Content-Encoding`` says so."""
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
    """Whether only ready models are asked for."""
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
    """Seconds; None for as long as the service says."""
    value = parameters.get("cache_for_s")
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_CACHE_FOR_S:
        raise InvalidInput(f"parameters.cache_for_s: expected seconds, a number from 0 to {MAX_CACHE_FOR_S}")
    check_cacheable(entry, value)
    return value


def _read_priority(parameters: dict[str, Any]) -> Priority:
    value = parameters.get("priority", 0)
    if isinstance(value, str) and value in set(Priority):
        return Priority(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidInput(
            "parameters.priority: expected 1 (high), 2 (normal), 3 or more (low), 0 (the default, normal), "
            f"or one of {', '.join(Priority)}"
        )
    return PRIORITIES.get(value, Priority.LOW)


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


def _validate(entry: Entry, text: bytes, row: int, rows: int, limit: int) -> list[tuple[Where, File]]:
    """Check a row's input; the files that it names."""
    where = f"row {row}: " if rows > 1 else ""
    if len(text) > limit:
        raise PayloadTooLarge(f"{where}as JSON, its input is larger than {limit} bytes (SERVICES_MAX_BODY_BYTES)")
    try:
        return entry.validate(text)
    except InvalidInput as error:
        raise name_row(error, row, rows) from error


def name_row(error: InvalidInput, row: int, rows: int) -> InvalidInput:
    """What is wrong with a row's input, with its row where there are several."""
    where = f"row {row}: " if rows > 1 else ""
    return InvalidInput(f"{where}{error.message.replace('body.input', 'input', 1)}")


async def aside(size: int, make: Callable[[], Made]) -> Made:
    """What ``make`` gives; in a thread where it is much work."""
    return await asyncio.to_thread(make) if size > LARGE else make()
