"""The errors that the client raises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """The base of every error of the client except ``TimeoutError``."""


class InvalidInput(ClientError, ValueError):
    """The input, or another value of the request, cannot be written as JSON. Nothing was sent."""


# -- errors in the server's answers: problem documents (RFC 9457) -----------------------------------------------------


class ApiError(ClientError):
    """The server refused a request. ``code`` is stable; ``errors`` lists the invalid fields."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after_s: float | None = None) -> None:
        self.status = status
        self.code = str(problem.get("code", "http_error"))
        self.detail = str(problem.get("detail", ""))
        self.errors: list[dict[str, Any]] = problem.get("errors") or []  #: each with ``loc``, ``msg`` and ``type``
        self.problem = dict(problem)  #: the whole document
        self.retry_after_s = retry_after_s  #: the server's ``Retry-After`` in seconds; None without the header
        super().__init__(f"{status} {self.code}: {self.detail}")


class Unauthorized(ApiError):
    """401: the API key is missing or not valid."""


class Forbidden(ApiError):
    """403: the API key does not allow the request."""


class NotFound(ApiError):
    """404: the job, batch or service does not exist."""


class Conflict(ApiError):
    """409: the job has ended or cannot be run again, or its key or id belongs to another body."""


class Gone(ApiError):
    """410: the record has expired (``keep_for_s``)."""


class PayloadTooLarge(ApiError):
    """413: the request is larger than the server allows."""


class InvalidRequest(ApiError):
    """422: the input or another field is invalid; see ``errors``."""


class TooManyRequests(ApiError):
    """429: the queue was full or a rate limit reached, also at the last repetition."""


class Unavailable(ApiError):
    """503: the server had no Redis or the service was broken, also at the last repetition."""


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
    """The error in an answer. An answer that is no problem document, such as a proxy's, becomes the ``detail``."""
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
    """The connection failed or was interrupted, also at the last repetition."""

    def __init__(self, message: str, *, sent: bool = True, timed_out: bool = False) -> None:
        self.sent = sent  #: whether the server may have received the request
        self.timed_out = timed_out
        super().__init__(message)


class UnexpectedAnswer(ClientError):
    """The answer has an unknown form: it comes from another server, or from a newer one than this client knows."""


# -- jobs that have not succeeded -------------------------------------------------------------------------------------


class JobNotSucceeded(ClientError):
    """A job ended without an output. ``code`` and ``message`` are those of its error."""

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
    """A webhook does not come from the server, was changed on its way, or is too old."""
