"""Bodies, queries and headers, read strictly: each error names the field and its place."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json, to_json
from starlette.datastructures import QueryParams

from api.large_bodies import check_values
from api.operations import tidy
from api.problems import PayloadTooLarge
from worker.errors import InvalidInput, field_errors
from worker.net.addresses import MAX_URL
from worker.settings import Settings, get_settings

#: Most bytes of a refused body that are still read: many clients read the answer only when all is sent.
DRAIN_BYTES = 64 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024
MAX_DEADLINE_S = 30 * 86_400
MAX_CACHE_FOR_S = 30 * 86_400
#: Most seconds from now to ``not_before``.
MAX_AHEAD_S = 30 * 86_400

#: ``wait=<s>`` as one of the preferences of a ``Prefer`` header (RFC 7240).
WAIT = re.compile(r"""(?:^|,)\s*wait\s*=\s*("[^"]*"|[^\s,;"]*)""", re.IGNORECASE)
#: An ``Idempotency-Key`` (draft-ietf-httpapi-idempotency-key-header): 1 to 255 visible characters, with blanks inside.
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")
#: A client's own id of a job.
OWN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: The error for a byte order mark, with which JSON must not begin (RFC 8259, section 8.1).
BOM_REFUSED = "it begins with a byte order mark (BOM); send UTF-8 without one"
#: A date-time of RFC 3339, which always has an offset.
MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)

Deadline = Annotated[float, Field(gt=0, le=MAX_DEADLINE_S)]


def _check_metadata(value: dict[str, Any]) -> dict[str, Any]:
    if len(to_json(value)) > MAX_METADATA_BYTES:
        raise ValueError(f"expected at most {MAX_METADATA_BYTES} bytes as JSON")
    return value


def _null_as(default: Any) -> BeforeValidator:
    """Reads null as the default of a field: typed clients send null for an omitted field."""
    return BeforeValidator(lambda value: default if value is None else value)


def _read_moment(value: Any) -> int | None:
    """An RFC 3339 time as microseconds since the epoch; None for null. Raises ``ValueError``."""
    if value is None:
        return None
    must, got = "expected an RFC 3339 time with its offset, such as 2026-12-01T09:30:00Z", repr(value)[:100]
    if not isinstance(value, str) or not MOMENT.fullmatch(value):
        raise ValueError(f"{must}; got {got}")
    try:
        moment = (datetime.fromisoformat(value.upper()) - EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{must}; got {got}: {error}") from error
    if moment > (time.time() + MAX_AHEAD_S) * 1e6:
        raise ValueError(f"expected a time at most {MAX_AHEAD_S // 86_400} days ahead; got {got}")
    return max(1, moment)  # 0 means none


CacheFor = Annotated[float, Field(ge=0, le=MAX_CACHE_FOR_S)]
CACHE_FOR = "seconds for which equal jobs share one result; 0: not this one; default: the service's"
NOT_BEFORE = "it is not run earlier: a time with its offset, at most 30 days ahead; past: now"
METADATA = Field(description="the caller's own; given back as it is (16 kB)")
Metadata = Annotated[dict[str, Any], AfterValidator(_check_metadata), _null_as({}), METADATA]
URL: dict[str, Any] = {"type": "string", "format": "uri", "maxLength": MAX_URL}
Url = Annotated[str, Field(json_schema_extra=URL)]
Urgency = Literal["high", "normal", "low"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=tidy)


class JobWebhook(_Body):
    """The receiver of the webhook for a job's end, and the ends that it gets; None: all."""

    url: Url
    events: (
        Annotated[list[Literal["job.succeeded", "job.failed", "job.cancelled", "job.expired"]], Field(min_length=1)]
        | None
    ) = None


class BatchWebhook(_Body):
    """The receiver of the webhook for a batch's end."""

    url: Url
    events: Annotated[list[Literal["batch.finished"]], Field(min_length=1)] | None = None


def _as_webhook(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


def describe_keep_for(null: bool = True) -> dict[str, Any]:
    """The JSON Schema of ``keep_for_s``, up to this API's own limit."""
    limits = {"exclusiveMinimum": 0, "maximum": get_settings().max_keep_for_s}
    return {"type": ["number", "null"] if null else "number", **limits}


def _describe_keep_for(schema: dict[str, Any]) -> None:
    schema.pop("anyOf")
    schema |= describe_keep_for()


def _describe_webhook(schema: dict[str, Any]) -> None:
    schema["anyOf"].insert(0, URL)


def _describe_moment(schema: dict[str, Any]) -> None:
    schema["anyOf"][0] = {"type": "string", "format": "date-time"}


KeepFor = Annotated[
    Annotated[float, Field(gt=0)] | None,
    Field(description="seconds for which it is kept after its end", json_schema_extra=_describe_keep_for),
]
WEBHOOK = Field(description="is told of the end; without `events`, of any end", json_schema_extra=_describe_webhook)


class JobRequest(_Body):
    """A client's wishes about a job: the body of ``POST /jobs``."""

    service: str
    input: Any
    priority: Annotated[Urgency, _null_as("normal")] = "normal"
    start_within_s: Annotated[
        Deadline | None, Field(description="seconds until it must have started, else `expired`")
    ] = None
    finish_within_s: Annotated[
        Deadline | None, Field(description="seconds until it must have ended, else `timed_out`")
    ] = None
    keep_for_s: KeepFor = None
    metadata: Metadata = Field(default_factory=dict)
    webhook: Annotated[JobWebhook | None, BeforeValidator(_as_webhook), WEBHOOK] = None
    cache_for_s: Annotated[CacheFor | None, Field(description=CACHE_FOR)] = None
    #: microseconds since the epoch
    not_before: Annotated[
        int | None,
        BeforeValidator(_read_moment),
        Field(description=NOT_BEFORE, json_schema_extra=_describe_moment),
    ] = None


class BatchRequest(_Body):
    """A client's wishes about a batch: the body of ``POST /batches``, or its query beside JSON lines."""

    service: str
    inputs: Annotated[
        list[Any],
        Field(description="each is checked by the worker, and fails alone", json_schema_extra={"minItems": 1}),
    ]
    priority: Annotated[Urgency, _null_as("low")] = "low"
    keep_for_s: KeepFor = None
    metadata: Metadata = Field(default_factory=dict)
    webhook: Annotated[BatchWebhook | None, BeforeValidator(_as_webhook), WEBHOOK] = None


Asked = TypeVar("Asked", JobRequest, BatchRequest)


async def read_body(request: Request, limit: int, named: str = "SERVICES_MAX_BODY_BYTES") -> bytes:
    """The whole body. Raises ``PayloadTooLarge`` above ``limit`` bytes, also without a declared length.

    Args:
        named: name of the limit in the error.
    """
    declared = request.headers.get("content-length", "0")
    chunks: list[bytes] = []
    size, refused = 0, declared.isdigit() and int(declared) > limit
    async for chunk in request.stream():
        size += len(chunk)
        refused = refused or size > limit
        if not refused:
            chunks.append(chunk)
        elif size > DRAIN_BYTES:
            break
    if refused:
        raise PayloadTooLarge(f"the body is larger than {limit} bytes ({named})")
    return b"".join(chunks)


def refuse_encoded(request: Request) -> None:
    """Raises ``InvalidInput`` for a compressed body. Only ``/v2`` decompresses bodies."""
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        must = f"expected none, got {coding[:100]!r}; send the body uncompressed"
        raise _invalid(f"Content-Encoding: {must}", ["header", "content-encoding"], must, "content_encoding")


async def read_nothing(request: Request) -> None:
    """Raises ``InvalidInput`` for a body on a route without one, where it would have no effect; ``{}`` is allowed."""
    body = await read_body(request, MAX_METADATA_BYTES, "this route takes no body")
    if body.strip() not in (b"", b"{}"):
        must = "this route takes no body"
        raise _invalid(must, ["body"], must, "extra_forbidden")


def unless_head(request: Request, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The stream; an empty one for HEAD, whose answer would take as long otherwise."""
    return _nothing() if request.method == "HEAD" else stream


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def parse_job(body: bytes, settings: Settings) -> JobRequest:
    """The body of ``POST /jobs``; its input is not validated. Raises ``InvalidInput`` and ``PayloadTooLarge``."""
    return _parse(JobRequest, body, settings)


def parse_batch(body: bytes, settings: Settings) -> BatchRequest:
    """The body of ``POST /batches``; its inputs are not validated. Raises ``InvalidInput`` and ``PayloadTooLarge``."""
    return _parse(BatchRequest, body, settings)


def read_batch_query(query: Mapping[str, str], max_keep_for_s: float) -> BatchRequest:
    """The query of ``POST /batches`` beside a body of JSON lines. Raises ``InvalidInput``."""
    _refuse_cache(query, "query")
    try:
        asked = BatchRequest.model_validate({**query, "inputs": []}, strict=False)
    except ValidationError as error:
        raise invalid_fields(error, ["query"]) from error
    _check_keep_for(asked, max_keep_for_s, "query")
    return asked


def _parse(model: type[Asked], body: bytes, settings: Settings) -> Asked:
    check_values(body, settings.max_json_values)
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        why = _why_no_json(body, error)
        raise _invalid(f"the body is not JSON: {why}", ["body"], why, "json_invalid") from error
    if not isinstance(value, dict):
        must = "expected a JSON object"
        raise _invalid(f"the body: {must}", ["body"], must, "model_type")
    if model is BatchRequest:
        _refuse_cache(value, "body")
    try:
        asked = model.model_validate(value)
    except ValidationError as error:
        raise invalid_fields(error, ["body"]) from error
    _check_keep_for(asked, settings.max_keep_for_s, "body")
    return asked


def _refuse_cache(asked: Mapping[str, Any], where: str) -> None:
    if "cache_for_s" in asked:
        must = "a batch uses no cache: leave it out, or send its inputs as jobs of their own"
        raise _invalid(f"cache_for_s: {must}", [where, "cache_for_s"], must, "extra_forbidden")


def _why_no_json(body: bytes, error: ValueError) -> str:
    """The reason why a body is no JSON: a clear text for frequent mistakes, else the parser's."""
    if not body.strip():
        return "it is empty; expected a JSON object"
    if body.startswith(BOM_UTF8):
        return BOM_REFUSED
    try:
        body.decode()
    except UnicodeDecodeError as wrong:
        return f"expected UTF-8, got the byte 0x{body[wrong.start]:02x} at offset {wrong.start}"
    with suppress(ValueError):
        from_json(body)
        return "NaN and Infinity are no JSON numbers; leave the value out, or send null"
    return str(error)


def _check_keep_for(asked: JobRequest | BatchRequest, most_s: float, where: str) -> None:
    if asked.keep_for_s is not None and asked.keep_for_s > most_s:
        must = f"Input should be at most {most_s:.15g} (SERVICES_MAX_KEEP_FOR_S)"
        raise _invalid(f"keep_for_s: {must}", [where, "keep_for_s"], must, "less_than_equal")


def read_job_id(request: Request) -> str:
    """The job's id in the path; see ``fast_path`` for ids with a slash."""
    job_id: str = request.scope.get("job_id") or request.path_params["job_id"]
    return job_id


def read_idempotency_key(request: Request) -> str:
    """The ``Idempotency-Key`` header; "" where there is none. Raises ``InvalidInput`` for an invalid key."""
    given = request.headers.getlist("idempotency-key")
    if not given:
        return ""
    if len(given) > 1 or not IDEMPOTENCY_KEY.fullmatch(given[0]):
        must = "expected once, 1 to 255 visible ASCII characters"
        raise _invalid(f"Idempotency-Key: {must}", ["header", "idempotency-key"], must, "string_pattern_mismatch")
    return given[0]


def read_own_id(request: Request, text: str) -> str:
    """The id of ``PUT /jobs/<id>``. Raises ``InvalidInput`` unless it is a UUID, without an idempotency key."""
    if not OWN_ID.fullmatch(text):
        must = "expected a UUID in lower case, such as 0b9f6d4e-2c1a-4b7e-9a51-3d8c7f60e2a4"
        raise _invalid(f"job_id: {must}", ["path", "job_id"], must, "uuid_parsing")
    if "idempotency-key" in request.headers:
        must = "expected none: the id of a PUT is its key"
        raise _invalid(f"Idempotency-Key: {must}", ["header", "idempotency-key"], must, "extra_forbidden")
    return text


def hash_body(body: JobRequest) -> str:
    """A hash that is equal for bodies with the same wishes: blanks and the order of members do not count."""
    return hashlib.sha256(json.dumps(body.model_dump(exclude_defaults=True), sort_keys=True).encode()).hexdigest()


def dump_strictly(value: Any, name: str) -> bytes:
    """A part of the body, written as JSON. Raises ``InvalidInput`` for a number such as 1e400, read as Infinity."""
    text = to_json(value)
    if b"Infinity" in text:
        try:
            from_json(text, allow_inf_nan=False)
        except ValueError as error:
            must = "a number is too large for JSON's readers"
            raise _invalid(f"{name}: {must}", ["body", name], must, "finite_number") from error
    return text


def invalid_fields(error: ValidationError, where: list[str | int]) -> InvalidInput:
    """Pydantic's errors as one ``InvalidInput``, each with its place."""
    fields = field_errors(error, where)
    first = ".".join(map(str, fields[0]["loc"]))
    more = f" (and {error.error_count() - 1} more)" if len(fields) > 1 else ""
    return InvalidInput(f"{first}: {fields[0]['msg']}{more}", errors=fields)


def check_query(request: Request, allowed: set[str] | frozenset[str]) -> Mapping[str, str]:
    """The query's parameters. Raises ``InvalidInput`` for unknown or repeated parameters."""
    text = request.scope["query_string"]
    return _read_query(text, frozenset(allowed)) if text else {}


@lru_cache(maxsize=64)  # nearly all queries are one of a few, such as "wait=60"
def _read_query(text: bytes, allowed: frozenset[str]) -> Mapping[str, str]:
    given = QueryParams(text).multi_items()
    names = [name for name, _ in given]
    for name in names:
        if name not in allowed:
            known = f"expected {', '.join(sorted(allowed))}" if allowed else "this route takes none"
            raise _invalid(f"unknown parameter {name[:100]!r}; {known}", ["query", name], known, "extra_forbidden")
        if names.count(name) > 1:
            raise _invalid(f"{name} is given twice", ["query", name], "expected once", "repeated")
    return MappingProxyType(dict(given))


def read_wait(request: Request, query: Mapping[str, str], max_wait_s: float) -> float:
    """Seconds to wait for a job's end, from ``?wait=``, else from ``Prefer: wait=``; at most ``max_wait_s``; 0: none.

    The scope gets a wait too, for ``meter``.
    """
    if "wait" in query:
        seconds = read_seconds("wait", query["wait"], ["query", "wait"])
    elif match := WAIT.search(",".join(request.headers.getlist("prefer"))):
        seconds = read_seconds("wait", match.group(1).strip('"'), ["header", "prefer"])
    else:
        return 0
    request.scope["wait"] = min(seconds, max_wait_s)
    return min(seconds, max_wait_s)


def read_int(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    """A whole number from 1 to ``most``."""
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        must = f"expected a whole number from 1 to {most}"
        raise _invalid(f"{name}: {must}", ["query", name], must, "int_parsing")
    return int(text)


def invalid_query(name: str, must: str, kind: str) -> InvalidInput:
    """The error for a query parameter."""
    return _invalid(f"{name}: {must}", ["query", name], must, kind)


def read_seconds(name: str, text: str, where: list[str | int]) -> float:
    """A number of seconds, 0 or more."""
    if not NUMBER.fullmatch(text) or math.isnan(float(text)):
        must = "expected a number of seconds, 0 or more"
        raise _invalid(f"{name}: {must}", where, must, "float_parsing")
    return float(text)


def _invalid(detail: str, where: list[str | int], message: str, kind: str) -> InvalidInput:
    return InvalidInput(detail, errors=[{"loc": where, "msg": message, "type": kind}])
