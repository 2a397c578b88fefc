"""The common part of the two clients, beside the protocol: httpx's settings and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

try:
    import httpx
except ImportError as error:  # installed without its dependencies
    raise ImportError(
        "libs_service_client needs httpx, which its wheel asks for: pip install 'httpx>=0.28,<1'"
    ) from error

from libs_service_client.errors import ConnectionFailed
from libs_service_client.steps import Request

DEFAULT_URL = "http://127.0.0.1:8000"
#: Seconds for a connection, and for an answer that nothing holds back.
TIMEOUT_S = 10.0
#: Repetitions of a request that failed for the moment; with their pauses some 8 to 15 seconds.
RETRIES = 6
#: A pool that closes idle connections closes, under the load of many threads, some that are in use.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=None)


def timeout_for(request: Request, timeout_s: float) -> httpx.Timeout:
    """httpx's timeouts for one request."""
    return httpx.Timeout(timeout_s, read=timeout_s + request.waits_s)


@contextmanager
def our_errors(url: str) -> Iterator[None]:
    """httpx's errors of a connection as ``ConnectionFailed``."""
    try:
        yield
    except httpx.RequestError as error:
        raise ConnectionFailed(
            f"{url}: {error or type(error).__name__}",
            sent=not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout),
            timed_out=isinstance(error, httpx.ReadTimeout),
        ) from error
