"""The parts of both clients that depend on httpx or on the way of waiting: settings, timeouts, errors."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Iterator
from contextlib import contextmanager

try:
    import httpx
except ImportError as error:  # installed without its dependencies
    raise ImportError(
        "libs_service_client needs httpx, which its wheel requires: pip install 'httpx>=0.28,<1'"
    ) from error

from libs_service_client.errors import ConnectionFailed
from libs_service_client.steps import Request

DEFAULT_URL = "http://127.0.0.1:8000"
#: Seconds to connect, and to wait for an answer beyond the wait that the request asks for.
TIMEOUT_S = 10.0
#: Repetitions of a request that failed temporarily; they and their pauses take 8 to 15 seconds.
RETRIES = 6
#: Idle connections are never closed: under the load of many threads, httpx would close some that are in use.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=None)
#: A blocking call: ``AsyncClient`` makes it in a thread, ``Client`` makes it directly.
to_thread, direct = asyncio.to_thread, operator.call


def timeout_for(request: Request, timeout_s: float) -> httpx.Timeout:
    """httpx's timeouts for one request."""
    return httpx.Timeout(timeout_s, read=timeout_s + request.waits_s)


@contextmanager
def our_errors(url: str) -> Iterator[None]:
    """Raise httpx's errors of a connection as ``ConnectionFailed``."""
    try:
        yield
    except httpx.RequestError as error:
        raise ConnectionFailed(
            f"{url}: {error or type(error).__name__}",
            sent=not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout),
            timed_out=isinstance(error, httpx.ReadTimeout),
        ) from error
