"""Everything that a running API has, in one typed object: a reader, and mypy, follow each of its parts by its type.

``api.application.open_state`` makes it. The lowest layer of the API, so it imports its parts for their types alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from api.auth.gate import Bodies
    from api.auth.keyring import Keyring
    from api.auth.open_requests import OpenRequests
    from api.catalog import Catalog
    from api.jobs.waiter import Waiter
    from api.jobs.writer import Writer
    from api.ops.meter import Meter
    from api.webhooks import Receivers
    from worker.filestore.async_store import AsyncFiles
    from worker.ledger.async_ledger import AsyncLedger
    from worker.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One API process: its services, its connections to Redis, and its background tasks."""

    settings: Settings
    catalog: Catalog  #: the installed services
    ledger: AsyncLedger  #: jobs and batches in Redis
    writer: Writer  #: stores new jobs, those of one moment together
    waiter: Waiter  #: learns from Redis when jobs end
    files: AsyncFiles  #: uploads, and which jobs need them
    receivers: Receivers  #: checks the URLs of webhooks
    keyring: Keyring  #: API keys
    open_requests: OpenRequests  #: of each API key
    bodies: Bodies  #: request bodies that are arriving, with their time limits
    meter: Meter  #: counts requests for /metrics


def state_of(request: Mapping[str, Any]) -> State:
    """The state of the process that serves a request, or an ASGI scope (a request is a mapping of its scope)."""
    state: State = request["app"].state.api
    return state
