"""The application and its life."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files as resources
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.middleware import Middleware
from starlette.routing import Route

from api import problems, webhooks
from api.auth.gate import NEED_A_KEY, Bodies, Gate, bound_elsewhere
from api.auth.keyring import Keyring
from api.batches import events as batch_events
from api.batches import routes as batches
from api.catalog import Catalog
from api.files import routes as files
from api.jobs import events, routes
from api.jobs.fast_path import Front, NotStarted, Plain
from api.jobs.waiter import Waiter
from api.jobs.writer import Writer
from api.openapi.document import build_document
from api.ops import console, metrics
from api.ops.meter import Meter, Metered
from api.ops.versions import watch_versions
from api.v2 import model_info
from api.v2 import routes as open_inference
from api.v2.columns import check_columns
from worker.errors import StoreUnavailable
from worker.filestore.async_store import AsyncFiles
from worker.ledger import commands
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.data_schema import SchemaTooNew
from worker.names import WEBHOOKS
from worker.processes.logs import setup_logging
from worker.settings import Settings, get_settings

log = logging.getLogger("services.api")

#: What scripts of other origins may send and read, where any may at all.
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

#: Seconds between two sweeps of all services.
SWEEP_S = 1.0
#: How long the API's start waits to hear which release wrote the data.
SCHEMA_WAIT_S = 2.0


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API over the installed services. It starts whatever state Redis and the plugins are in."""
    settings = settings or get_settings()
    setup_logging(settings.log_level)
    app = Front(title="libs-service", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    app.state.settings = settings
    app.state.catalog = Catalog(check_columns)
    app.state.receivers = webhooks.Receivers(settings)
    app.state.meter = Meter()
    create, read = Plain(routes.create_job), Plain(routes.get_job)
    app.router.routes += [
        Route("/jobs", create, methods=["POST"]),
        Route("/jobs/{job_id}", read, methods=["GET"]),
    ]
    for part in (routes, events, batches, batch_events, files, webhooks, model_info, open_inference, metrics):
        _take_heads(part.router)
        app.include_router(part.router)
    console.install(app, settings.flower_port)  # before the rest of /static
    problems.install(app)
    around = [Middleware(Gate, settings=settings)]
    if settings.cors_origins:  # around the gate: a browser sends no key before it knows that it may
        around.append(Middleware(CORSMiddleware, allow_origins=settings.cors_origins, **CORS))
    around.append(Middleware(Metered, meter=app.state.meter))
    for layer in around:
        app.add_middleware(layer.cls, *layer.args, **layer.kwargs)
    app.take_short_way(create, read, around)
    _add_docs(app)
    _take_heads(app.router)
    return app


def _take_heads(router: APIRouter) -> None:
    """What takes GET takes HEAD too (RFC 9110): the server leaves the body out. FastAPI would answer 405."""
    for route in router.routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state = app.state
    state.ledger = AsyncLedger(state.settings)
    state.writer = Writer(state.ledger)
    state.waiter = Waiter(state.ledger, state.settings)
    state.files = AsyncFiles(state.ledger, state.settings)
    state.keyring = Keyring(state.ledger)
    await _check_data(state.ledger)
    await _check_address(state.keyring, state.settings)
    state.bodies = Bodies(state.settings.body_timeout_s)
    running = (state.waiter.run(), state.keyring.run(), state.bodies.run(), state.files.run())
    looking = (_sweep(state.ledger, state.catalog, state.settings.lease_s), watch_versions(state.ledger, state.catalog))
    tasks = [asyncio.create_task(each) for each in (*running, *looking)]
    gc.collect()
    gc.freeze()  # a full collection looked at all that the imports made, and held every request up for 0.1 s
    yield
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await state.waiter.close()
    state.files.close()
    await state.ledger.close()


async def _check_address(keyring: Keyring, settings: Settings) -> None:
    """Refuse to start for other machines without an API key. Where that is not known yet, each request is looked at."""
    address = bound_elsewhere(sys.argv)
    if not address or settings.allow_unauthenticated:
        return
    try:
        has_keys = await keyring.are_there_any()
    except StoreUnavailable:
        log.warning("Redis does not say whether there are API keys: until it does, requests to %s get 503", address)
    else:
        if not has_keys:
            raise NotStarted(f"not started on {address}: {NEED_A_KEY}")


async def _check_data(ledger: AsyncLedger) -> None:
    """Refuse to start on the data of a later release. Where Redis is away, that is looked at before the first call."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SCHEMA_WAIT_S):
            try:
                await ledger.ping()
            except SchemaTooNew as error:
                raise NotStarted(f"not started: {error.message}") from error
            except StoreUnavailable as error:
                log.debug("the schema of the data in Redis is not known yet: %s", error)


async def _sweep(ledger: AsyncLedger, catalog: Catalog, lease_s: float) -> None:
    """Sweep as the workers do, so that deadlines hold, and dead workers' jobs are queued, where no worker lives.

    What calls Redis each second also knows first when it goes and comes: the log says each once.
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


def _add_docs(app: FastAPI) -> None:
    """``/docs`` with its scripts served from here, so that it works without the internet, and below a proxy's path."""
    document = build_document(app.state.catalog)
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
