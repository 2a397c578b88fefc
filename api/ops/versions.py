"""The watch for workers of other versions: the log names them, and data of earlier releases is numbered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from api.catalog import Catalog
from worker.errors import StoreUnavailable
from worker.ledger.async_ledger import AsyncLedger
from worker.ledger.data_schema import SCHEMA, own_version
from worker.ledger.overview import Overview

log = logging.getLogger("services.api")

#: Seconds between two looks at the workers' versions.
LOOK_S = 10.0


async def watch_versions(ledger: AsyncLedger, catalog: Catalog) -> None:
    """Look at the workers' versions every few seconds. A difference is logged once, until it changes."""
    logged: dict[str, str] = {}
    while True:
        try:
            seen = await ledger.overviews(list(catalog.entries))
            overviews = dict(zip(catalog.entries, seen, strict=True))
            for name, words in _differing(catalog, overviews).items():
                if words and logged.get(name) != words:
                    log.warning("%s", words)
                logged[name] = words
            if await ledger.raise_schema(worker for overview in seen for worker in overview.workers):
                log.info("the data in Redis, of an earlier release, was taken over: its schema is %d now", SCHEMA)
        except StoreUnavailable as error:  # application._sweep logs it once
            log.debug("the workers' versions are not known: %s", error)
        await asyncio.sleep(LOOK_S)


def _differing(catalog: Catalog, overviews: Mapping[str, Overview]) -> dict[str, str]:
    """The message about each service's workers; "" for none."""
    return {name: _say(name, catalog.get(name).plugin.version, overview) for name, overview in overviews.items()}


def _say(name: str, version: str, overview: Overview) -> str:
    ours = own_version()
    for group in overview.worker_versions:
        release = group["libs_service"]
        if release is None or release.split(".")[:2] != ours.split(".")[:2]:
            other = f"libs-service {release}" if release else "a release of libs-service before 0.2.0"
            return (
                f"{group['workers']} worker(s) of service {name} run {other}, and this API {ours}: only releases of "
                "one minor version are meant to run side by side; see docs/upgrades.md"
            )
        if group["version"] != version:
            return (
                f"{group['workers']} worker(s) of service {name} run version {group['version']} of its plugin, and "
                f"this API checks inputs by version {version}: install one version for both and start them again"
            )
    return ""
