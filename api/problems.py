"""Every error as a problem document (RFC 9457), with a stable ``code``."""

from __future__ import annotations

import logging
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from api.state import state_of
from worker import errors
from worker.ledger.data_schema import SchemaTooNew
from worker.ledger.server_rules import EvictingStore

log = logging.getLogger("services.api")

MEDIA_TYPE = "application/problem+json"

#: The HTTP status of each error.
STATUS: dict[type[errors.ServicesError], int] = {
    errors.InvalidInput: 422,
    errors.UnknownService: 404,
    errors.JobNotFound: 404,
    errors.DeliveryNotFound: 404,
    errors.JobExpired: 410,
    errors.JobFinished: 409,
    errors.JobNotRetryable: 409,
    errors.IdempotencyConflict: 409,
    errors.FileMissing: 404,
    errors.FileInUse: 409,
    errors.UploadTooLate: 408,
    errors.StorageUnavailable: 503,
    errors.QueueFull: 429,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.RateLimited: 429,
    errors.StoreUnavailable: 503,
    SchemaTooNew: 503,
    EvictingStore: 503,
    errors.ServiceFailed: 503,
}

#: HTTP methods that the API and its metrics know; the metrics count every other method as "other".
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

#: Paths whose POST accepts an ``Idempotency-Key``, and the addition to the message of a 503 there.
KEYED = frozenset({"/jobs", "/batches"})
SEND_AGAIN = "It may have been stored all the same: send it again with the same Idempotency-Key, and it runs once."

#: Seconds after which the same request may succeed, unless the error has a ``retry_after_s``.
RETRY_AFTER = {503: "1"}

TITLES = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    409: "Conflict",
    410: "Gone",
    413: "Payload too large",
    415: "Unsupported media type",
    416: "Range not satisfiable",
    422: "Invalid input",
    429: "Too many requests",
    500: "Internal error",
    503: "Unavailable",
}


class PayloadTooLarge(errors.ServicesError):
    """The body is larger than the server takes."""

    code = "payload_too_large"


class UnsupportedFileType(errors.ServicesError):
    """Files of this type are not accepted."""

    code = "unsupported_file_type"


class RangeNotSatisfiable(errors.ServicesError):
    """The file ends before this range begins."""

    code = "range_not_satisfiable"

    def __init__(self, size: int) -> None:
        super().__init__(f"the file has {size} bytes")
        self.size = size


class LinkInvalid(errors.ServicesError):
    """The link has expired or was not made here; GET /files/{id} gives a new one."""

    code = "link_invalid"


class BodyTimedOut(errors.ServicesError):
    """The request's body did not arrive in time."""

    code = "request_timeout"
    retryable = True


STATUS |= {PayloadTooLarge: 413, UnsupportedFileType: 415, RangeNotSatisfiable: 416}
STATUS |= {LinkInvalid: 403, BodyTimedOut: 408}

#: Codes of errors that Starlette raises.
HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


def _list_codes() -> dict[int, list[str]]:
    codes: dict[int, list[str]] = {500: [errors.ServicesError.code]}
    for error, status in STATUS.items():
        codes.setdefault(status, []).append(error.code)
    for status, code in HTTP_CODES.items():
        codes.setdefault(status, []).append(code)
    return {status: list(dict.fromkeys(codes[status])) for status in sorted(codes)}


#: The codes that a problem document of each status may have: the one list of error codes, from which the OpenAPI
#: document follows. ``tests/unit/test_error_codes.py`` holds the docs and the client to it.
CODES = _list_codes()

#: Headers by status. After a 408 the connection closes, since the rest of the body may still arrive.
HEADERS = {401: {"WWW-Authenticate": 'Bearer realm="libs-service"'}, 408: {"Connection": "close"}}


class InferFailed(errors.ServicesError):
    """A request by the Open Inference Protocol failed."""

    code = "infer_failed"

    def __init__(self, message: str, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


#: Differences of the Open Inference Protocol from ``STATUS``: its clients know one status for a bad request.
OPEN_INFERENCE_STATUS: dict[type[errors.ServicesError], int] = {errors.InvalidInput: 400}


def problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None, **more: Any) -> Response:
    """A problem document with ``more`` members, without those that are None."""
    body = {"type": "about:blank", "title": TITLES.get(status, "Error"), "status": status, "detail": detail}
    body |= {"code": code, **{name: value for name, value in more.items() if value is not None}}
    return Response(to_json(body), status, {**_headers(status), **(headers or {})}, MEDIA_TYPE)


def _headers(status: int) -> dict[str, str]:
    return {**({"Retry-After": RETRY_AFTER[status]} if status in RETRY_AFTER else {}), **HEADERS.get(status, {})}


def answer(error: errors.ServicesError, path: str, services: list[str] | None = None) -> Response:
    """The problem document of an error; below ``/v2``, the error object of the Open Inference Protocol."""
    retry_after_s = getattr(error, "retry_after_s", None)
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s else None
    if isinstance(error, RangeNotSatisfiable):
        headers = {"Content-Range": f"bytes */{error.size}"}
    status = STATUS.get(type(error), 500)
    if _is_open_inference(path):
        return _plain_error(OPEN_INFERENCE_STATUS.get(type(error), status), error)
    return problem(status, error.code, error.message, headers, errors=error.errors, services=services)


def install(app: FastAPI) -> None:
    """Make the application answer every exception with a problem document."""
    app.add_exception_handler(errors.ServicesError, _on_services_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)


async def answer_any(request: Request, error: Exception) -> Response:
    """The answer to an exception of a handler that FastAPI does not call."""
    if isinstance(error, ClientDisconnect):
        return await _on_disconnect(request, error)
    return await (_on_services_error if isinstance(error, errors.ServicesError) else _on_bug)(request, error)


async def _on_services_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.ServicesError)
    services = list(state_of(request).catalog.entries) if isinstance(error, errors.UnknownService) else None
    if type(error) is errors.StoreUnavailable and request.method == "POST" and request.url.path in KEYED:
        error = errors.StoreUnavailable(f"{error.message} {SEND_AGAIN}")
    return answer(error, request.url.path, services)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTP_CODES.get(error.status_code, "http_error")
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}"
    headers = {**(error.headers or {}), **({"Allow": _allowed(request)} if error.status_code == 405 else {})}
    if _is_open_inference(request.url.path):
        return _plain_error(error.status_code, InferFailed(detail, error.status_code, headers))
    return problem(error.status_code, code, detail, headers)


def _allowed(request: Request) -> str:
    """The methods that the path accepts. Starlette would name those of its first route alone."""

    def accepts(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return ", ".join(sorted(filter(accepts, METHODS)))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    log.info("client left before its answer %s %s", request.method, quote(request.url.path))
    return Response(status_code=400)  # the client has left


async def _on_bug(request: Request, error: Exception) -> Response:
    log.error("uncaught error in %s %s", request.method, quote(request.url.path), exc_info=error)
    detail = "An error of the server itself; its log has the traceback."
    if _is_open_inference(request.url.path):
        return _plain_error(500, InferFailed(detail, 500))
    return problem(500, errors.ServicesError.code, detail)


def quote(text: str) -> str:
    """The begin of a client's text, escaped for a line of the log."""
    text = text[:200]
    return text if re.fullmatch(r"[\w./:-]+", text, re.ASCII) else repr(text)


def _is_open_inference(path: str) -> bool:
    """Whether the client speaks the Open Inference Protocol, in which an error is a text."""
    return path == "/v2" or path.startswith("/v2/")


def _plain_error(status: int, error: errors.ServicesError) -> Response:
    headers = _headers(status)
    if isinstance(error, errors.QueueFull | errors.RateLimited):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, InferFailed):
        status, headers = error.status, {**headers, **error.headers}
    return Response(to_json({"error": error.message}), status, headers, "application/json")
