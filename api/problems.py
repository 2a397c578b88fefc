"""Every error as a problem document (RFC 9457), with a stable ``code``."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from worker import errors

log = logging.getLogger("services.api")

MEDIA_TYPE = "application/problem+json"

#: The one table of HTTP statuses.
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
    errors.StoreUnavailable: 503,
    errors.ServiceFailed: 503,
}

#: Seconds after which the same request may succeed. ``QueueFull`` tells its own, by the measured rate.
RETRY_AFTER = {503: "1"}

TITLES = {
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
    """Files of this type are not taken."""

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


STATUS |= {PayloadTooLarge: 413, UnsupportedFileType: 415, RangeNotSatisfiable: 416, LinkInvalid: 403}


class InferFailed(errors.ServicesError):
    """A request by the Open Inference Protocol did not get its answer."""

    code = "infer_failed"

    def __init__(self, message: str, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


#: Where the Open Inference Protocol, whose clients know but one status for a bad request, differs from ``STATUS``.
OPEN_INFERENCE_STATUS: dict[type[errors.ServicesError], int] = {errors.InvalidInput: 400}


def problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None, **more: Any) -> Response:
    """A problem document; ``more`` are further members of it."""
    body = {"type": "about:blank", "title": TITLES.get(status, "Error"), "status": status, "detail": detail}
    body |= {"code": code, **{name: value for name, value in more.items() if value is not None}}
    told = {**({"Retry-After": RETRY_AFTER[status]} if status in RETRY_AFTER else {}), **(headers or {})}
    return Response(to_json(body), status, told, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every exception with a problem document."""
    app.add_exception_handler(errors.ServicesError, _on_services_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_bug)


async def _on_services_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.ServicesError)
    status = STATUS.get(type(error), 500)
    if _is_open_inference(request):
        return _plain_error(OPEN_INFERENCE_STATUS.get(type(error), status), error)
    known = list(request.app.state.catalog.entries) if isinstance(error, errors.UnknownService) else None
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, errors.QueueFull) else None
    if isinstance(error, RangeNotSatisfiable):
        headers = {"Content-Range": f"bytes */{error.size}"}
    return problem(status, error.code, error.message, headers, errors=error.errors, services=known)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}"
    if _is_open_inference(request):
        return _plain_error(error.status_code, InferFailed(detail, error.status_code, dict(error.headers or {})))
    return problem(error.status_code, code, detail, dict(error.headers or {}))


async def _on_bug(request: Request, error: Exception) -> Response:
    log.error("uncaught error in %s %s", request.method, request.url.path, exc_info=error)
    detail = "An error of the server's own; its log has the traceback."
    if _is_open_inference(request):
        return _plain_error(500, InferFailed(detail, 500))
    return problem(500, "internal_error", detail)


def _is_open_inference(request: Request) -> bool:
    """Whether the answer goes to a client of the Open Inference Protocol, to which an error is but a text."""
    return request.url.path == "/v2" or request.url.path.startswith("/v2/")


def _plain_error(status: int, error: errors.ServicesError) -> Response:
    headers = {"Retry-After": RETRY_AFTER[status]} if status in RETRY_AFTER else {}
    if isinstance(error, errors.QueueFull):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, InferFailed):
        status, headers = error.status, {**headers, **error.headers}
    return Response(to_json({"error": error.message}), status, headers, "application/json")
