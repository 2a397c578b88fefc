"""The client: ``from api.client import Client, AsyncClient``. It imports nothing of the server's.

The map: ``sync`` and ``asynchronous`` are the two clients, thin; ``protocol`` has every operation, and ``steps`` what
they are made of; ``models`` and ``errors`` are what comes back; ``sse`` reads events, ``upload`` writes a batch's
inputs, ``webhooks`` checks webhooks.
"""

from api.client.asynchronous import AsyncBatch, AsyncClient, AsyncJob
from api.client.errors import (
    ApiError,
    ClientError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    Gone,
    InvalidRequest,
    InvalidWebhook,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotSucceeded,
    NotFound,
    PayloadTooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnexpectedAnswer,
)
from api.client.models import ErrorDetail, Event, Priority, Result, ServiceInfo, Status, Timings
from api.client.sync import Batch, Client, Job
from api.client.webhooks import verify_webhook

__all__ = [
    "ApiError",
    "AsyncBatch",
    "AsyncClient",
    "AsyncJob",
    "Batch",
    "Client",
    "ClientError",
    "Conflict",
    "ConnectionFailed",
    "ErrorDetail",
    "Event",
    "Forbidden",
    "Gone",
    "InvalidRequest",
    "InvalidWebhook",
    "Job",
    "JobCancelled",
    "JobExpired",
    "JobFailed",
    "JobNotSucceeded",
    "NotFound",
    "PayloadTooLarge",
    "Priority",
    "Result",
    "ServiceInfo",
    "Status",
    "Timings",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "UnexpectedAnswer",
    "verify_webhook",
]
