"""The API's answers as typed objects. Unknown members, of a newer server, are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self, TypeVar

from pydantic import TypeAdapter

from libs_service_client.errors import ClientError, JobCancelled, JobExpired, JobFailed, UnexpectedAnswer
from libs_service_client.states import TERMINAL, Priority, Status

__all__ = ["BatchFields", "ErrorDetail", "Event", "JobFields", "Priority", "Result", "ServiceInfo", "Status", "Timings"]

T = TypeVar("T")
Raw = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """The error of a job or of one row of a batch."""

    code: str
    message: str
    retryable: bool = False
    errors: list[dict[str, Any]] = field(default_factory=list)  #: each with ``loc``, ``msg`` and ``type``


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations of a job's stages in milliseconds; None for a stage that has not run."""

    queued_ms: float | None = None
    preprocess_ms: float | None = None
    predict_ms: float | None = None
    postprocess_ms: float | None = None
    total_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event of a job, or of a batch."""

    type: str  #: ``status``, ``progress``, ``log`` or ``output``; of a batch, ``status`` or ``progress``
    data: Any  #: read from JSON
    id: str  #: ``events(last_event_id=…)`` continues after it

    @property
    def ends_job(self) -> bool:
        """Whether the event reports a terminal status."""
        return self.type == "status" and isinstance(self.data, dict) and self.data.get("status") in TERMINAL


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one input of a batch: its output, or its error."""

    index: int  #: the input's place in the batch, from 0
    output: Any = None
    error: ErrorDetail | None = None


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """One installed service and its state."""

    name: str
    version: str
    description: str
    state: str  #: ``ready``, ``loading``, ``failed`` or ``no_workers``
    reason: str | None
    workers: int
    queue_depth: int
    oldest_age_s: float
    input_schema: dict[str, Any] | None
    output_schema: dict[str, Any] | None
    example: Any  #: a valid input
    knobs: dict[str, Any] | None
    scheduled: int = 0  #: queued jobs whose ``not_before`` is in the future; not in ``queue_depth``
    worker_versions: list[dict[str, Any]] = field(default_factory=list)  #: "version", "libs_service", "workers"


class JobFields:
    """The fields of a job, by the last answer of the server."""

    id: str
    service: str
    version: str
    status: Status
    error: ErrorDetail | None
    attempt: int
    progress: Any
    position: int | None  #: number of the service's jobs that run before it; None unless it is queued
    estimated_start_at: datetime | None  #: approximate start of a queued job; None if unknown
    not_before: datetime | None  #: earliest start; None for no limit
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    timings: Timings
    batch_size: int | None
    priority: Priority
    metadata: dict[str, Any]
    links: dict[str, str]
    cached_from: str | None  #: id of the job whose output this is; None for the job's own
    raw: dict[str, Any]  #: the server's whole answer, with fields that are newer than this client

    _output: Any
    _has_output: bool  #: False for a succeeded job from a list: lists contain no outputs

    def __init__(self, raw: Raw) -> None:
        self._read(raw)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.service} {self.status}>"

    @property
    def ended(self) -> bool:
        """Whether the status is terminal."""
        return self.status in TERMINAL

    def _read(self, raw: Raw) -> None:
        """Read the fields from an answer of the server. Raises ``UnexpectedAnswer``."""
        try:
            self.id, self.service, self.version = raw["id"], raw["service"], raw["version"]
            self.status, self.priority = Status(raw["status"]), Priority(raw["priority"])
            self.created_at = datetime.fromisoformat(raw["created_at"])
        except (KeyError, TypeError, ValueError) as error:
            raise UnexpectedAnswer(f"expected a job ({error!r}): {str(raw)[:300]}") from error
        self.raw = raw
        self._output, self.error = raw.get("output"), read_error(raw.get("error"))
        self._has_output = "output" in raw or self.status != Status.SUCCEEDED
        self.attempt, self.batch_size = raw.get("attempt", 0), raw.get("batch_size")
        self.progress, self.position = raw.get("progress"), raw.get("position")
        self.started_at, self.finished_at = read_time(raw.get("started_at")), read_time(raw.get("finished_at"))
        self.expires_at = read_time(raw.get("expires_at"))
        self.estimated_start_at = read_time(raw.get("estimated_start_at"))
        self.not_before = read_time(raw.get("not_before"))
        self.timings = Timings(**_known(Timings, raw.get("timings") or {}))
        self.metadata, self.links = raw.get("metadata") or {}, raw.get("links") or {}
        self.cached_from = raw.get("cached_from")

    def _outcome(self, output_type: type[T] | None) -> Any:
        """The output of a job that has succeeded. Raises the error of any other job that has ended."""
        if self.status == Status.SUCCEEDED:
            return self._output if output_type is None else TypeAdapter(output_type).validate_python(self._output)
        if self.status == Status.CANCELLED:
            raise JobCancelled(self.id, "cancelled", "the job was cancelled")
        if self.status == Status.EXPIRED:
            raise JobExpired(self.id, "expired", "the job had not started within its start_within_s")
        error = self.error or ErrorDetail("unknown", "the server gave no reason")
        raise JobFailed(self.id, error.code, error.message, error.errors)


class SyncJobFields(JobFields):
    """A job whose output ``Job`` fetches when needed."""

    def refresh(self) -> Self:
        raise NotImplementedError

    @property
    def output(self) -> Any:
        """The output; None before the end and for a job that did not succeed.

        Lists of jobs contain no outputs. For a job from a list, the first use fetches the output.
        """
        if not self._has_output:
            self.refresh()
        return self._output


class AsyncJobFields(JobFields):
    """A job whose output ``AsyncJob`` fetches only if the caller awaits it."""

    async def refresh(self) -> Self:
        raise NotImplementedError

    @property
    def output(self) -> Any:
        """The output; None before the end and for a job that did not succeed.

        Raises ``ClientError`` for a job from a list, since lists contain no outputs: await ``get_output()``.
        """
        if not self._has_output:
            advice = "await job.get_output(), job.result() or job.refresh() first"
            raise ClientError(f"job {self.id} came in a list, which carries no outputs: {advice}")
        return self._output

    async def get_output(self) -> Any:
        """The same for any job. For a job from a list, the first use fetches the output."""
        if not self._has_output:
            await self.refresh()
        return self._output


class BatchFields:
    """The fields of a batch, by the last answer of the server."""

    id: str
    service: str
    version: str
    status: str  #: ``queued``, ``running``, then ``succeeded``, ``failed`` (if any row has) or ``cancelled``
    total: int
    counts: dict[str, int]  #: number of rows by state
    progress: float  #: from 0 to 1
    created_at: datetime
    finished_at: datetime | None
    expires_at: datetime | None
    metadata: dict[str, Any]
    links: dict[str, str]

    def __init__(self, raw: Raw) -> None:
        self._read(raw)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.service} {self.status} {self.progress:.0%} of {self.total}>"

    @property
    def ended(self) -> bool:
        """Whether every row has ended."""
        return self.finished_at is not None

    def _read(self, raw: Raw) -> None:
        """Read the fields from an answer of the server. Raises ``UnexpectedAnswer``."""
        try:
            self.id, self.service, self.version = raw["id"], raw["service"], raw["version"]
            self.status, self.total, self.counts = raw["status"], raw["total"], raw["counts"]
            self.progress, self.created_at = raw["progress"], datetime.fromisoformat(raw["created_at"])
        except (KeyError, TypeError, ValueError) as error:
            raise UnexpectedAnswer(f"expected a batch ({error!r}): {str(raw)[:300]}") from error
        self.finished_at, self.expires_at = read_time(raw.get("finished_at")), read_time(raw.get("expires_at"))
        self.metadata, self.links = raw.get("metadata") or {}, raw.get("links") or {}


def read_service(raw: Raw) -> ServiceInfo:
    """Read one service of ``GET /services``. Raises ``UnexpectedAnswer``."""
    try:
        return ServiceInfo(**_known(ServiceInfo, raw))
    except TypeError as error:
        raise UnexpectedAnswer(f"expected a service ({error}): {str(raw)[:300]}") from error


def read_result(raw: Raw) -> Result:
    """Read one line of ``GET /batches/<id>/results``."""
    return Result(raw["index"], raw.get("output"), read_error(raw.get("error")))


def read_error(raw: Raw | None) -> ErrorDetail | None:
    """Read the ``error`` of a job."""
    return ErrorDetail(**_known(ErrorDetail, raw)) if raw else None


def read_time(text: str | None) -> datetime | None:
    """Read an RFC 3339 time with its zone."""
    return datetime.fromisoformat(text) if text else None


def _known(model: type[Any], raw: Mapping[str, Any]) -> Raw:
    """The items whose names are fields of a dataclass."""
    return {name: raw[name] for name in model.__dataclass_fields__ if name in raw}
