"""The application: its parts, its start and its end."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.resources import files as resources
from types import FrameType
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.middleware import Middleware

from api import problems, services, webhooks
from api.auth.gate import NEED_A_KEY, Bodies, Gate, bound_elsewhere
from api.auth.keyring import Keyring
from api.auth.open_requests import OpenRequests
from api.batches import events as batch_events
from api.batches import routes as batches
from api.catalog import Catalog
from api.files import routes as files
from api.jobs import events, routes
from api.jobs.fast_path import Front, NotStarted
from api.jobs.waiter import Waiter
from api.jobs.writer import Writer
from api.openapi.document import build_document
from api.ops import console, metrics
from api.ops.connections import find_server, limit_connections, watch_connections
from api.ops.meter import Meter, Metered
from api.ops.versions import watch_versions
from api.state import State
from api.v2 import model_info
from api.v2 import routes as open_inference
from api.v2.columns import check_columns
from worker.errors import StoreRefused, StoreUnavailable
from worker.filestore.async_store import AsyncFiles
from worker.ledger import commands
from worker.ledger.async_ledger import AsyncLedger
from worker.names import WEBHOOKS
from worker.processes.logs import setup_logging
from worker.settings import Settings, get_settings

log = logging.getLogger("services.api")

#: Methods and headers of requests from other origins, where SERVICES_CORS_ORIGINS allows any.
CORS: dict[str, Any] = {
    "allow_methods": ["GET", "HEAD", "POST", "PUT", "DELETE"],
    "allow_headers": [
        *("Authorization", "X-API-Key", "Content-Type", "Idempotency-Key", "Prefer", "Last-Event-ID", "Range"),
        "Inference-Header-Content-Length",
    ],
    "expose_headers": [
        *("Location", "Preference-Applied", "Retry-After", "WWW-Authenticate", "ETag", "Content-Range"),
        "Inference-Header-Content-Length",
    ],
}

#: The modules with routes.
PARTS = (routes, events, batches, batch_events, files, webhooks, services, model_info, open_inference, metrics)

#: Seconds between two sweeps of all services.
SWEEP_S = 1.0
#: Longest time in seconds that the start waits to read from Redis which release wrote the data.
SCHEMA_WAIT_S = 2.0


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API over the installed services. It starts also without Redis, and with broken plugins."""
    settings = settings or get_settings()
    setup_logging(settings.log_level)
    catalog, meter = Catalog(check_columns), Meter()
    lifespan = partial(_lifespan, settings, catalog, meter)
    app = Front(title="libs-service", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    for part in PARTS:
        _accept_head(part.router)
        app.include_router(part.router)
    console.install(app, settings.flower_port)  # before the rest of /static
    problems.install(app)
    middleware = [Middleware(Gate, settings=settings)]  # the innermost first
    if settings.cors_origins:  # around the gate: a browser sends no key before a preflight request was allowed
        middleware.append(Middleware(CORSMiddleware, allow_origins=settings.cors_origins, **CORS))
    middleware.append(Middleware(Metered, meter=meter))
    for layer in middleware:
        app.add_middleware(layer.cls, *layer.args, **layer.kwargs)
    app.add_fast_path(routes.router, middleware)
    described = [route for part in PARTS for route in part.router.routes]
    _add_docs(app, build_document([*described, *app.routes], catalog))
    _accept_head(app.router)
    return app


def _accept_head(router: APIRouter) -> None:
    """Let each route of GET accept HEAD too (RFC 9110): the server omits the body. FastAPI would answer 405."""
    for route in router.routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")


@asynccontextmanager
async def _lifespan(settings: Settings, catalog: Catalog, meter: Meter, app: FastAPI) -> AsyncIterator[None]:
    async with open_state(settings, catalog, meter) as state:
        await _check_address(state.keyring, settings)
        app.state.api = state
        server = find_server()
        limit_connections(server)
        watching = asyncio.create_task(watch_connections(server, settings))
        _on_stop(state.waiter.stop)
        gc.collect()
        gc.freeze()  # a full collection of all imported objects stopped every request for 0.1 s
        yield
        watching.cancel()


def _on_stop(call: Callable[[], None]) -> None:
    """Call back at SIGTERM and SIGINT, before the server's own handlers, which wait for the open answers to end."""
    loop = asyncio.get_running_loop()
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        server_handler = signal.getsignal(number)
        if callable(server_handler):
            signal.signal(number, partial(_handle_stop, loop, call, server_handler))


def _handle_stop(
    loop: asyncio.AbstractEventLoop,
    call: Callable[[], None],
    server_handler: Callable[[int, FrameType | None], Any],
    number: int,
    frame: FrameType | None,
) -> None:
    loop.call_soon_threadsafe(call)
    server_handler(number, frame)


@asynccontextmanager
async def open_state(settings: Settings, catalog: Catalog, meter: Meter | None = None) -> AsyncIterator[State]:
    """Connect to Redis and run the background tasks of an API process, whichever protocol it serves.

    Raises ``NotStarted`` where a later release wrote the data in Redis.
    """
    ledger = AsyncLedger(settings)
    open_requests = OpenRequests(settings.max_open_requests)
    state = State(
        settings=settings,
        catalog=catalog,
        ledger=ledger,
        writer=Writer(ledger),
        waiter=Waiter(ledger, settings),
        files=AsyncFiles(ledger, settings),
        receivers=webhooks.Receivers(settings),
        keyring=Keyring(ledger, open_requests, settings.require_keys),
        bodies=Bodies(settings.body_timeout_s),
        open_requests=open_requests,
        meter=meter or Meter(),
    )
    await _check_data(ledger)
    loops = [state.waiter.run(), state.keyring.run(), state.bodies.run(), state.files.run()]
    loops += [_sweep(ledger, catalog, settings.lease_s), watch_versions(ledger, catalog)]
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield state
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await state.waiter.close()
        state.files.close()
        await ledger.close()


async def _check_address(keyring: Keyring, settings: Settings) -> None:
    """Refuse to serve other machines without an API key. While Redis is unavailable, the gate checks each request."""
    address = bound_elsewhere(sys.argv)
    if not address or settings.allow_unauthenticated:
        return
    try:
        has_keys = await keyring.are_required()
    except StoreUnavailable:
        log.warning("Redis is unavailable, so requests to %s get 503 until the API keys can be read", address)
    else:
        if not has_keys:
            raise NotStarted(f"not started on {address}: {NEED_A_KEY}")


async def _check_data(ledger: AsyncLedger) -> None:
    """Refuse to start on the data of a later release. While Redis is unavailable, the first call checks it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SCHEMA_WAIT_S):
            try:
                await ledger.ping()
            except StoreRefused as error:
                raise NotStarted(f"not started: {error.message}") from error
            except StoreUnavailable as error:
                log.debug("the schema of the data in Redis is not known yet: %s", error)


async def _sweep(ledger: AsyncLedger, catalog: Catalog, lease_s: float) -> None:
    """Expire overdue jobs and queue the jobs of dead workers, as workers do, for services without a live worker.

    It calls Redis each second, so it is the first to notice an outage: the log has one line when Redis is lost and one
    when it is back.
    """
    services = [*catalog.entries, WEBHOOKS]
    is_away = False
    while True:
        await asyncio.sleep(SWEEP_S)
        try:
            recovered = await ledger.run_each([commands.sweep(name, lease_s) for name in services])
        except StoreUnavailable as error:
            if not is_away:
                log.error("Redis is away, requests are answered 503: %s", error)
            is_away = True
            continue
        if is_away:
            log.warning("Redis answers again")
        is_away = False
        for job_id in itertools.chain(*recovered):
            log.warning("job recovered id=%s: its worker was lost", job_id)


def _add_docs(app: FastAPI, document: dict[str, Any]) -> None:
    """Serve ``/docs`` with its scripts, so that it works without the internet, and below a proxy's path."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="libs-service",
        swagger_js_url="static/swagger-ui-bundle.js",
        swagger_css_url="static/swagger-ui.css",
        swagger_favicon_url="static/favicon.png",
    )
    app.mount("/static", StaticFiles(directory=str(resources("fastapi_offline").joinpath("static"))))

    @app.get("/docs")
    async def docs() -> HTMLResponse:
        return page

    @app.get("/openapi.json")
    async def openapi() -> dict[str, object]:
        return document
