"""Webhooks: the check of a receiver's URL, and the routes of the log of deliveries."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field

from api.auth.gate import caller_of
from api.operations import Answer, Schema, Time, answer, choice, describe, in_path
from api.requests import check_query, read_job_id, read_nothing
from api.state import state_of
from worker.errors import AddressRefused, InvalidInput
from worker.net.addresses import AddressRules, Lookups, parse_url, resolve
from worker.settings import Settings
from worker.webhooks.events import BATCH_EVENTS, JOB_EVENTS, Kind
from worker.webhooks.log import LoggedDelivery, deliver_again, read_deliveries

log = logging.getLogger("services.api")
router = APIRouter()

#: Most seconds that a request waits for a name server. Without its answer, the URL is checked when the webhook is sent.
RESOLVE_S = 1.0
#: Seconds for which an allowed URL is not checked again here; each delivery checks it again anyway.
GOOD_FOR_S = 60.0
MAX_GOOD = 10_000
#: Names that are looked up at once; a URL that waits longer than ``RESOLVE_S`` is checked when the webhook is sent.
LOOKUPS = 4


class DeliveryAttempt(Answer):
    """One attempt to deliver an event; without a status and a duration where the worker died meanwhile."""

    ended_at: Time | None
    status_code: int | None
    duration_ms: float | None
    error: str | None


class Delivery(Answer):
    """The delivery of one event to a webhook."""

    id: str
    webhook_id: Annotated[str, Field(description="the header `webhook-id`: the same each time it is sent")]
    type: Annotated[str, choice((*JOB_EVENTS, *BATCH_EVENTS))]
    url: str
    status: Annotated[str, choice(("pending", "delivered", "failed", "cancelled"))]
    created_at: Time | None
    next_attempt_at: Time | None
    finished_at: Time | None
    attempts: list[DeliveryAttempt]


class DeliveryList(Answer):
    """The deliveries of a job or a batch, newest first."""

    deliveries: list[Delivery]


def _describe_log(kind: Kind) -> Schema:
    return describe(
        f"The log of a {kind}'s webhook",
        {200: answer(DeliveryList, "Its deliveries, newest first")},
        *(404, 410, 422, 503),
        parameters=[in_path(f"{kind}_id")],
    )


def _describe_retry(kind: Kind) -> Schema:
    return describe(
        "Send an event again",
        {202: answer(Delivery, "The new delivery")},
        *(404, 410, 413, 422, 429, 503),
        parameters=[in_path(f"{kind}_id"), in_path("delivery_id")],
    )


class Receivers:
    """The rules for URLs of webhooks."""

    def __init__(self, settings: Settings) -> None:
        self._rules: AddressRules = settings.webhook_rules
        self._good: dict[str, float] = {}  # by URL: the time until which it counts as allowed; the oldest first
        self._lookups = Lookups(LOOKUPS)

    async def check(self, url: str) -> None:
        """Raise ``InvalidInput`` for a forbidden URL."""
        if self._good.get(url, 0) > time.monotonic():
            return
        try:
            await self._resolve(url)
        except AddressRefused as error:
            field = {"loc": ["body", "webhook"], "msg": error.message, "type": error.code}
            raise InvalidInput(f"webhook: {error.message}", errors=[field]) from error
        self._good.pop(url, None)
        self._good[url] = time.monotonic() + GOOD_FOR_S
        if len(self._good) > MAX_GOOD:
            del self._good[next(iter(self._good))]

    async def _resolve(self, url: str) -> None:
        target = parse_url(url)
        try:
            async with asyncio.timeout(RESOLVE_S):
                addresses = await resolve(target, RESOLVE_S, self._rules.setting, self._lookups)
        except TimeoutError:
            log.warning(
                "the name server gave no address of the webhook %s in time; it is checked when it is sent", target.host
            )
            return
        for address in addresses:
            self._rules.check(target.scheme, address, target.port, target.host)


@router.get("/jobs/{job_id}/deliveries", openapi_extra=_describe_log("job"))
async def list_job_deliveries(request: Request) -> DeliveryList:
    """The webhook deliveries of a job, newest first."""
    check_query(request, set())
    job_id = read_job_id(request)
    await state_of(request).ledger.get(job_id, caller_of(request).sees)
    return await _list(request, "job", job_id)


@router.get("/batches/{batch_id}/deliveries", openapi_extra=_describe_log("batch"))
async def list_batch_deliveries(request: Request, batch_id: str) -> DeliveryList:
    """The webhook deliveries of a batch, newest first."""
    check_query(request, set())
    await state_of(request).ledger.get_batch(batch_id, caller_of(request).sees)
    return await _list(request, "batch", batch_id)


@router.post("/jobs/{job_id}/deliveries/{delivery_id}/retry", openapi_extra=_describe_retry("job"), status_code=202)
async def retry_job_delivery(request: Request, delivery_id: str) -> Delivery:
    """Send an event of a job again."""
    await _check_empty(request)
    job_id = read_job_id(request)
    await state_of(request).ledger.get(job_id, caller_of(request).sees)
    return await _deliver_again(request, "job", job_id, delivery_id)


@router.post(
    "/batches/{batch_id}/deliveries/{delivery_id}/retry", openapi_extra=_describe_retry("batch"), status_code=202
)
async def retry_batch_delivery(request: Request, batch_id: str, delivery_id: str) -> Delivery:
    """Send the event of a batch again."""
    await _check_empty(request)
    await state_of(request).ledger.get_batch(batch_id, caller_of(request).sees)
    return await _deliver_again(request, "batch", batch_id, delivery_id)


async def _check_empty(request: Request) -> None:
    check_query(request, set())
    await read_nothing(request)


async def _list(request: Request, kind: Kind, id: str) -> DeliveryList:
    deliveries = await read_deliveries(state_of(request).ledger, kind, id)
    return DeliveryList(deliveries=[Delivery(**delivery.describe()) for delivery in deliveries])


async def _deliver_again(request: Request, kind: Kind, id: str, delivery_id: str) -> Delivery:
    new: LoggedDelivery = await deliver_again(state_of(request).ledger, kind, id, delivery_id)
    log.info("webhook queued again id=%s of=%s:%s", new.job.id, kind, id)
    return Delivery(**new.describe())
