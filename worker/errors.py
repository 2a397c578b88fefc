"""Every error that the system raises on purpose.

An exception's docstring is its default message; ``code`` is stable and reaches the client, and ``retryable`` says
whether the same job may succeed if it is sent again. The mapping to HTTP lives in ``api/problems.py`` alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pydantic import ValidationError

#: Exceptions that a plugin may raise: all kinds. Its ``exit()`` must take neither its batch nor a command along;
#: libraries
#: let ``asyncio.CancelledError`` out, and a panic of an extension in Rust is no ``Exception`` either.
PLUGIN_ERRORS = BaseException

#: Exceptions in an ``ExceptionGroup`` that its text names, how deep, and the most characters of each.
MAX_HELD, MAX_DEPTH, MAX_HELD_TEXT = 5, 3, 300


#: Fields that are named of one input or output, and characters of each part of it and of its message: a list of a
#: million wrong values is reported in a few lines.
MAX_FIELD_ERRORS, MAX_FIELD_TEXT = 100, 2000


class ServicesError(Exception):
    """Something went wrong in libs-service."""

    code: ClassVar[str] = "internal_error"
    retryable: bool = False

    def __init__(self, message: str | None = None, *, errors: list[dict[str, Any]] | None = None) -> None:
        self.message = to_utf8(message or (self.__doc__ or "").strip().splitlines()[0])
        self.errors = errors
        super().__init__(self.message)

    def to_dict(self) -> dict[str, Any]:
        """The ``error`` of a failed job, as ``contract.md`` section 3 has it."""
        error: dict[str, Any] = {"code": self.code, "message": self.message, "retryable": self.retryable}
        if self.errors:
            error["errors"] = self.errors
        return error


def to_utf8(text: str) -> str:
    """The text with lone surrogates spelled out: a plugin's exception may bear them, and no UTF-8 can."""
    return text.encode(errors="backslashreplace").decode()


def say(error: BaseException, depth: int = 0) -> str:
    """An exception's type and text, even if its ``__str__`` fails; of a group, also its members."""
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException as problem:
        text = f"(its text cannot be had: __str__ raised {type(problem).__name__})"
    if isinstance(error, BaseExceptionGroup):
        held = [say(one, depth + 1)[:MAX_HELD_TEXT] for one in error.exceptions[:MAX_HELD]] if depth < MAX_DEPTH else []
        more = len(error.exceptions) - len(held)
        text = f"{text}: {'; '.join([*held, *([f'{more} more'] if more else [])])}"
    return to_utf8(f"{name}: {text}" if text else name)


def field_errors(error: ValidationError, where: Iterable[str | int] = ()) -> list[dict[str, Any]]:
    """Pydantic's errors as ``[{loc, msg, type}]``, without the values, which may be anything.

    Args:
        error: pydantic's exception.
        where: the place of the model that was validated, which goes before each place in it.
    """
    details = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_FIELD_ERRORS]
    return [
        {"loc": [*where, *map(_short, e["loc"])], "msg": _plain(e["msg"])[:MAX_FIELD_TEXT], "type": e["type"]}
        for e in details
    ]


def _short(part: str | int) -> str | int:
    return part[:MAX_FIELD_TEXT] if isinstance(part, str) else part


def _plain(message: str) -> str:
    """A validator's own words, without the name of the exception that bore them."""
    return to_utf8(message.removeprefix("Value error, ").removeprefix("Assertion failed, "))


# -- a job's own errors -----------------------------------------------------------------------------------------------


class InvalidInput(ServicesError):
    """The input does not fit the service's Input."""

    code = "invalid_input"


class PredictFailed(ServicesError):
    """The service raised an exception."""

    code = "predict_failed"


class InvalidOutput(ServicesError):
    """The service's output does not fit its Output."""

    code = "invalid_output"


class WorkerLost(ServicesError):
    """The process that ran the job died each time that it was tried."""

    code = "worker_lost"
    retryable = True


class TimedOut(ServicesError):
    """The run took longer than the service's time_limit_s."""

    code = "timed_out"
    retryable = True


class CallCut(ServicesError):
    """Redis cut the connection each time that the result was sent, although it answers other calls."""

    code = "invalid_output"

    def __init__(self) -> None:
        limits = "it takes no value of this size, see its proto-max-bulk-len and client-query-buffer-limit"
        super().__init__(f"{self.__doc__} Most likely {limits}; return a File for a large result (worker.files)")


class Cancelled(ServicesError):
    """The job was cancelled while it ran; the ledger knows already."""

    code = "cancelled"


# -- deliveries -----------------------------------------------------------------------------------------------------


class AddressRefused(ServicesError):
    """The URL leads where nothing may be sent to."""

    code = "address_refused"


class DeliveryFailed(ServicesError):
    """The webhook's receiver did not take the event."""

    code = "delivery_failed"
    retryable = True


class DeliveryNotFound(ServicesError):
    """The job has no such delivery."""

    code = "delivery_not_found"


# -- plugins ----------------------------------------------------------------------------------------------------------


class UnknownService(ServicesError):
    """No installed plugin has this name."""

    code = "unknown_service"


class ServiceFailed(ServicesError):
    """The plugin cannot be imported or loaded; of a job: its files cannot be had, since their storage is away."""

    code = "service_failed"


#: The errors with which a job fails: ``error.code`` of a failed job is the code of one of them.
JOB_ERRORS = (InvalidInput, PredictFailed, WorkerLost, TimedOut, InvalidOutput, ServiceFailed)


class BenchFailed(ServicesError):
    """The service could not be measured."""

    code = "bench_failed"


# -- the store --------------------------------------------------------------------------------------------------------


class StoreUnavailable(ServicesError):
    """Redis does not answer; try again."""

    code = "store_unavailable"
    retryable = True


class StoreRefused(StoreUnavailable):
    """Redis answers, but its data or its settings must not be used. The message names the remedy."""


class StorageUnavailable(ServicesError):
    """The storage of the files cannot be reached. Try again."""

    code = "storage_unavailable"
    retryable = True


class UploadTooLate(ServicesError):
    """The upload stood still for too long and was given up; send it again."""

    code = "upload_too_late"
    retryable = True


class FileMissing(ServicesError):
    """No file has this id, or its keep_for_s was over."""

    code = "file_not_found"


class FileInUse(ServicesError):
    """The file is named in the input of a job that has not ended."""

    code = "file_in_use"


class JobNotFound(ServicesError):
    """No job has this id."""

    code = "job_not_found"


class JobExpired(ServicesError):
    """The job's record was dropped when its keep_for_s was over."""

    code = "job_expired"


class JobFinished(ServicesError):
    """The job has already ended, so it cannot be cancelled."""

    code = "job_finished"


class JobNotRetryable(ServicesError):
    """Only a job that has failed, was cancelled or expired can be run again."""

    code = "job_not_retryable"


class IdempotencyConflict(ServicesError):
    """The Idempotency-Key, or the id, belongs to a job that was sent with another body."""

    code = "idempotency_conflict"


class QueueFull(ServicesError):
    """The service's queue is full (its max_queue_size or max_queue_bytes); try again later."""

    code = "queue_full"
    retryable = True

    def __init__(self, message: str | None = None, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


# -- permissions ------------------------------------------------------------------------------------------------------


class Unauthorized(ServicesError):
    """An API key is needed: send it as `Authorization: Bearer <key>` or in `X-API-Key`."""

    code = "unauthorized"


class Forbidden(ServicesError):
    """The API key may not do this."""

    code = "forbidden"


class RateLimited(ServicesError):
    """The API key has reached its limit; try again later."""

    code = "rate_limited"
    retryable = True

    def __init__(self, message: str | None = None, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
