"""Counts of this process's own requests, for ``GET /metrics``: plain ASGI, a few microseconds a request."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import METHODS

#: Upper bounds of the histogram of answer times, in seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: The route of requests that met none: unknown paths, and requests that were refused before.
NO_ROUTE = "none"


class Times:
    """A histogram of answer times."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def cumulated(self) -> Iterator[tuple[str, float]]:
        """The buckets as Prometheus has them: each with its upper bound, and all that is not above it."""
        total = 0
        for bound, count in zip([*map(str, BUCKETS), "+Inf"], self.counts, strict=True):
            total += count
            yield bound, total


class Meter:
    """The requests of one process. Keys hold a route's path, or its handler; no label is a client's."""

    def __init__(self) -> None:
        self.answers: defaultdict[tuple[Any, str, int], int] = defaultdict(int)
        self.times: defaultdict[tuple[Any, str], Times] = defaultdict(Times)

    def note(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one answer. One that was held (``Prefer: wait``) says nothing about the API's speed."""
        route, method = scope.get("route"), scope["method"]
        handler = route.path if route else scope.get("endpoint")
        if method not in METHODS:
            method = "other"
        self.answers[handler, method, status] += 1
        if not scope.get("wait"):
            times = self.times[handler, method]
            times.counts[bisect_left(BUCKETS, seconds)] += 1
            times.sum += seconds


class Metered:
    """The middleware: notes each answer as it begins, so that a stream counts by its first byte."""

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self._app = app
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, answered = time.perf_counter(), False

        async def noting(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                self._meter.note(scope, message["status"], time.perf_counter() - began)
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:  # a bug: it is answered further out
            if not answered:
                self._meter.note(scope, 500, time.perf_counter() - began)
            raise
