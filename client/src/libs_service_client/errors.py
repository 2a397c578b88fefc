"""Errors between a program and the API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """Every error of the client but ``TimeoutError``."""


class InvalidInput(ClientError, ValueError):
    """The input, or another value of the request, cannot be written as JSON. Nothing was sent."""


# -- the server's refusals: problem documents (RFC 9457) --------------------------------------------------------------


class ApiError(ClientError):
    """The server refused a request. ``code`` is stable; ``errors`` name the fields that are wrong."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after_s: float | None = None) -> None:
        self.status = status
        self.code = str(problem.get("code", "http_error"))
        self.detail = str(problem.get("detail", ""))
        self.errors: list[dict[str, Any]] = problem.get("errors") or []  #: each with ``loc``, ``msg`` and ``type``
        self.problem = dict(problem)  #: the whole document
        self.retry_after_s = retry_after_s  #: the server's ``Retry-After``; None where it gave none
        super().__init__(f"{status} {self.code}: {self.detail}")


class Unauthorized(ApiError):
    """401: no API key, or one that is not valid (any more)."""


class Forbidden(ApiError):
    """403: the API key does not allow this."""


class NotFound(ApiError):
    """404: no such job, batch or service."""


class Conflict(ApiError):
    """409: the job has ended, cannot be run again, or its key or id belongs to another body."""


class Gone(ApiError):
    """410: the record was dropped when its ``keep_for_s`` was over."""


class PayloadTooLarge(ApiError):
    """413: more than the server takes."""


class InvalidRequest(ApiError):
    """422: the input or another field does not fit; see ``errors``."""


class TooManyRequests(ApiError):
    """429: the queue is full or a rate limit reached, and still so after all repetitions."""


class Unavailable(ApiError):
    """503: the server lacks its store or the service is broken, and still so after all repetitions."""


CLASSES: dict[int, type[ApiError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: PayloadTooLarge,
    422: InvalidRequest,
    429: TooManyRequests,
    503: Unavailable,
}


def read_problem(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """The error that an answer tells; a proxy's that is no problem document, with its text."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"detail": body[:500].decode(errors="replace")}
    after = headers.get("retry-after", "")
    seconds = float(after) if after.isascii() and after.isdigit() else None
    return CLASSES.get(status, ApiError)(status, problem, seconds)


class ConnectionFailed(ClientError):
    """The server cannot be reached, or broke off, and still so after all repetitions."""

    def __init__(self, message: str, *, sent: bool = True, timed_out: bool = False) -> None:
        self.sent = sent  #: whether the server may have got the request
        self.timed_out = timed_out
        super().__init__(message)


class UnexpectedAnswer(ClientError):
    """The answer is none of this API's: another server, or one that is newer than this client."""


# -- jobs that did not succeed ----------------------------------------------------------------------------------------


class JobNotSucceeded(ClientError):
    """A job ended without an output. ``code`` and ``message`` are its error's."""

    def __init__(self, job_id: str, code: str, message: str, errors: list[dict[str, Any]] | None = None) -> None:
        self.job_id, self.code, self.message = job_id, code, message
        self.errors = errors or []
        super().__init__(f"job {job_id}: {code}: {message}")


class JobFailed(JobNotSucceeded):
    """The job failed."""


class JobCancelled(JobNotSucceeded):
    """The job was cancelled."""


class JobExpired(JobNotSucceeded):
    """The job had not started within its ``start_within_s``."""


class InvalidWebhook(ClientError):
    """A webhook is not the server's, was changed on its way, or is too old."""
