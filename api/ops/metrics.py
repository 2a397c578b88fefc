"""``GET /metrics``: the ledger's state of the services, and this process's own counts, for Prometheus.

The ledger's part is the same whichever API process answers, and covers workers, which have no HTTP of their own. Labels
are names of services, states and routes, never ids, so their number is bounded.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.routing import Mount, Route

from api.auth.gate import caller_of
from api.catalog import Entry
from api.jobs.waiter import WaitingRequests
from api.operations import STRING, answer, describe
from api.ops.meter import NO_ROUTE, Meter
from api.requests import check_query
from api.state import state_of
from worker.errors import StoreUnavailable
from worker.ledger.jobs import TERMINAL
from worker.ledger.overview import Overview

router = APIRouter()
Seen = Sequence[tuple[Entry, Overview]]

#: States of a live worker.
STATES = ("loading", "ready")
#: Why a job was queued again after it had been claimed.
REASONS = ("failed", "timed_out", "lost", "memory", "handed_back", "paused")
#: How an input of ``POST /batches`` ends.
INPUT_ENDS = ("succeeded", "failed", "cancelled")

#: CPU, memory, open files and start of this process, under the names that all Prometheus clients use.
_process = ProcessCollector(registry=None)


@router.get(
    "/metrics",
    openapi_extra=describe(
        "Metrics for Prometheus",
        {200: answer(STRING, "Also while Redis is away", media_types=["text/plain", "application/openmetrics-text"])},
        422,
    ),
)
async def read_metrics(request: Request) -> Response:
    """All metrics; while Redis is away, those of this process, and ``services_store_up 0``."""
    check_query(request, set())
    state = state_of(request)
    entries = state.catalog.usable_by(caller_of(request))
    try:
        overviews = await state.ledger.overviews([entry.plugin.name for entry in entries])
    except StoreUnavailable:
        seen = None
    else:
        seen = list(zip(entries, overviews, strict=True))
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    text = encode(Snapshot(seen, state.meter, _routes(request)))
    return Response(text, headers={"Content-Type": content_type})


class Snapshot(Collector):
    """The metrics of one moment, in the form that the encoders of ``prometheus_client`` take."""

    def __init__(self, seen: Seen | None, meter: Meter, routes: Mapping[Any, str]) -> None:
        self._seen = seen
        self._meter = meter
        self._routes = routes

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        up = "Whether Redis answered; 0: what it knows of the services is missing"
        yield GaugeMetricFamily("services_store_up", up, int(self._seen is not None))
        yield from _gauges(self._seen or [])
        yield from _workers(self._seen or [])
        yield from _counters(self._seen or [])
        yield from self._requests()
        yield from _process.collect()

    def _requests(self) -> Iterator[Metric]:
        """By process: of several behind one port, each scrape meets another one."""
        process = str(os.getpid())
        held = GaugeMetricFamily("services_api_requests_held", "Answers held until a job ends", labels=["process"])
        held.add_metric([process], WaitingRequests.count)
        yield held
        names = ["process", "route", "method"]
        answers = CounterMetricFamily("services_api_requests", "Requests answered", labels=[*names, "status"])
        for (handler, method, status), count in list(self._meter.answers.items()):
            answers.add_metric([process, self._route(handler), method, str(status)], count)
        yield answers
        meaning = "Time until an answer began; without those that were held"
        seconds = HistogramMetricFamily("services_api_request_duration_seconds", meaning, labels=names)
        for (handler, method), times in list(self._meter.times.items()):
            seconds.add_metric([process, self._route(handler), method], list(times.cumulated()), times.sum)
        yield seconds

    def _route(self, handler: Any) -> str:
        return handler if isinstance(handler, str) else self._routes.get(handler, NO_ROUTE)


def _routes(request: Request) -> dict[Any, str]:
    """The paths of routes that are not FastAPI's, which names its own: plain handlers, and folders of files."""
    routes = request.app.routes
    plain = {route.endpoint: route.path for route in routes if isinstance(route, Route)}
    return plain | {route.app: route.path for route in routes if isinstance(route, Mount)}


def _gauges(seen: Seen) -> Iterator[Metric]:
    gauges: dict[str, tuple[str, Callable[[Entry, Overview], float]]] = {
        "services_queue_depth": ("Queued jobs", lambda _, seen: seen.depth),
        "services_queue_oldest_age_seconds": (
            "Age of the oldest of the ten jobs that are next",
            lambda _, seen: seen.oldest_age_s,
        ),
        "services_jobs_scheduled": ("Queued jobs whose not_before has not come", lambda _, seen: seen.scheduled),
        "services_queue_bytes": ("Inputs of queued jobs", lambda _, seen: seen.counts.get("waiting_bytes", 0)),
        "services_jobs_running": ("Jobs, and chunks of batches, that workers run", lambda _, seen: seen.running),
        "services_jobs_ended_per_second": ("Jobs ended a second, now", lambda _, seen: round(seen.rate, 4)),
        "services_failed": (
            "Whether no worker can load the plugin, or its schema is broken",
            lambda entry, seen: int(entry.state(seen)[0] == "failed"),
        ),
    }
    for name, (meaning, read) in gauges.items():
        family = GaugeMetricFamily(name, meaning, labels=["service"])
        for entry, overview in seen:
            family.add_metric([entry.plugin.name], read(entry, overview))
        yield family


def _workers(seen: Seen) -> Iterator[Metric]:
    family = GaugeMetricFamily("services_workers", "Live workers", labels=["service", "state"])
    for entry, overview in seen:
        states = Counter(worker.get("state") for worker in overview.workers)
        for state in STATES:
            family.add_metric([entry.plugin.name, state], states[state])
    yield family


def _counters(seen: Seen) -> Iterator[Metric]:
    """Since the service's first job; the ledger keeps them."""
    counters: dict[str, tuple[str, str, str, Iterable[str]]] = {
        "services_jobs_ended": ("ended", "status", "Jobs ended", sorted(TERMINAL)),
        "services_jobs_requeued": ("requeued", "reason", "Runs after which a job was queued again", REASONS),
        "services_batch_inputs_ended": ("inputs", "status", "Inputs of batches ended", INPUT_ENDS),
    }
    for name, (prefix, label, meaning, values) in counters.items():
        family = CounterMetricFamily(name, meaning, labels=["service", label])
        for entry, overview in seen:
            for value in values:
                family.add_metric([entry.plugin.name, value], overview.counts.get(f"{prefix}:{value}", 0))
        yield family
    reused = CounterMetricFamily("services_jobs_reused", "Jobs ended with another's output", labels=["service"])
    for entry, overview in seen:
        reused.add_metric([entry.plugin.name], overview.counts.get("reused", 0))
    yield reused
