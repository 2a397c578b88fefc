"""The client: ``from libs_service_client import Client, AsyncClient``. It needs no part of the server.

``asynchronous`` and ``sync`` are the two clients; ``sync`` is generated. ``protocol`` contains every operation,
``steps`` their common parts. ``models`` and ``errors`` are the results. ``encode`` writes inputs as JSON, ``upload`` a
batch's inputs and ``files`` a file. ``sse`` reads events, and ``webhooks`` verifies webhooks.
"""

from libs_service_client.asynchronous import AsyncBatch, AsyncClient, AsyncJob
from libs_service_client.errors import (
    ApiError,
    ClientError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    Gone,
    InvalidInput,
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
from libs_service_client.files import StoredFile
from libs_service_client.models import ErrorDetail, Event, Priority, Result, ServiceInfo, Status, Timings
from libs_service_client.sync import Batch, Client, Job
from libs_service_client.webhooks import verify_webhook

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
    "InvalidInput",
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
    "StoredFile",
    "Timings",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "UnexpectedAnswer",
    "verify_webhook",
]
