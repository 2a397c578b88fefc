"""The routes of services and health."""

from __future__ import annotations

from fastapi import APIRouter, Request

from api.auth.gate import caller_of
from api.catalog import Service
from api.operations import Answer, answer, describe, in_path
from api.requests import check_query
from api.state import state_of
from worker.ledger import commands

router = APIRouter()


class ServiceList(Answer):
    """The installed services that the caller may use."""

    services: list[Service]


class Health(Answer):
    """The state of this process."""

    status: str


@router.get(
    "/services",
    openapi_extra=describe("List the services", {200: answer(ServiceList, "Every installed service")}, 422, 503),
)
async def list_services(request: Request) -> ServiceList:
    """Every installed service and its state."""
    check_query(request, set())
    state = state_of(request)
    entries = state.catalog.usable_by(caller_of(request))
    overviews = await state.ledger.overviews([entry.plugin.name for entry in entries])
    return ServiceList(services=[entry.describe(seen) for entry, seen in zip(entries, overviews, strict=True)])


@router.get(
    "/services/{name}",
    openapi_extra=describe(
        "Read a service", {200: answer(Service, "The service")}, 404, 422, 503, parameters=[in_path("name")]
    ),
)
async def get_service(request: Request, name: str) -> Service:
    """One service and its state."""
    check_query(request, set())
    state = state_of(request)
    entry = state.catalog.find(name, caller_of(request))
    return entry.describe(await state.ledger.run(commands.overview(name)))


@router.get("/healthz", openapi_extra=describe("Liveness", {200: answer(Health, "The process lives")}))
async def health() -> Health:
    """The process is alive."""
    return Health(status="ok")


@router.get("/readyz", openapi_extra=describe("Readiness", {200: answer(Health, "Redis answers")}, 503))
async def ready(request: Request) -> Health:
    """The process can accept jobs: Redis answers."""
    await state_of(request).ledger.ping()
    return Health(status="ready")
