"""Webhooks: the check of a receiver's URL, and the routes of the log of deliveries."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic_core import to_json

from api.auth.gate import caller_of
from api.requests import check_query, read_job_id, read_nothing
from api.state import state_of
from worker.errors import AddressRefused, InvalidInput
from worker.net.addresses import AddressRules, parse_url, resolve
from worker.settings import Settings
from worker.webhooks.events import Kind
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


class Receivers:
    """The rules for URLs of webhooks."""

    def __init__(self, settings: Settings) -> None:
        self._rules: AddressRules = settings.webhook_rules
        self._good: dict[str, float] = {}  # by URL: the time until which it counts as allowed; the oldest first
        self._turns = asyncio.Semaphore(LOOKUPS)

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
            async with asyncio.timeout(RESOLVE_S), self._turns:
                addresses = await resolve(target, RESOLVE_S)
        except TimeoutError:
            log.warning(
                "the name server gave no address of the webhook %s in time; it is checked when it is sent", target.host
            )
            return
        for address in addresses:
            self._rules.check(target.scheme, address, target.port)


@router.get("/jobs/{job_id}/deliveries")
async def list_job_deliveries(request: Request) -> Response:
    """The webhook deliveries of a job, newest first."""
    check_query(request, set())
    job_id = read_job_id(request)
    await state_of(request).ledger.get(job_id, caller_of(request).sees)
    return await _list(request, "job", job_id)


@router.get("/batches/{batch_id}/deliveries")
async def list_batch_deliveries(request: Request, batch_id: str) -> Response:
    """The webhook deliveries of a batch, newest first."""
    check_query(request, set())
    await state_of(request).ledger.get_batch(batch_id, caller_of(request).sees)
    return await _list(request, "batch", batch_id)


@router.post("/jobs/{job_id}/deliveries/{delivery_id}/retry")
async def retry_job_delivery(request: Request, delivery_id: str) -> Response:
    """Send an event of a job again."""
    await _check_empty(request)
    job_id = read_job_id(request)
    await state_of(request).ledger.get(job_id, caller_of(request).sees)
    return await _deliver_again(request, "job", job_id, delivery_id)


@router.post("/batches/{batch_id}/deliveries/{delivery_id}/retry")
async def retry_batch_delivery(request: Request, batch_id: str, delivery_id: str) -> Response:
    """Send the event of a batch again."""
    await _check_empty(request)
    await state_of(request).ledger.get_batch(batch_id, caller_of(request).sees)
    return await _deliver_again(request, "batch", batch_id, delivery_id)


async def _check_empty(request: Request) -> None:
    check_query(request, set())
    await read_nothing(request)


async def _list(request: Request, kind: Kind, id: str) -> Response:
    deliveries = await read_deliveries(state_of(request).ledger, kind, id)
    return _json({"deliveries": [delivery.describe() for delivery in deliveries]})


async def _deliver_again(request: Request, kind: Kind, id: str, delivery_id: str) -> Response:
    new: LoggedDelivery = await deliver_again(state_of(request).ledger, kind, id, delivery_id)
    log.info("webhook queued again id=%s of=%s:%s", new.job.id, kind, id)
    return _json(new.describe(), 202)


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")
