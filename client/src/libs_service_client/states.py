"""The states and priorities of a job. A test of libs-service compares them with the server's."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """The states of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  #: not started within ``start_within_s``


#: The states of a job that has ended.
TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})


class Priority(StrEnum):
    """The urgency of a job."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
