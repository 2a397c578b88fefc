"""The API's ``submit`` serves any protocol: here it is called without HTTP, on a real Redis."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from api.application import open_state
from api.auth.keyring import ANYONE, Caller
from api.catalog import Catalog
from api.jobs.submit import submit
from api.requests import JobRequest
from worker.errors import Forbidden, IdempotencyConflict, InvalidInput, UnknownService
from worker.ledger.api_keys import Key
from worker.ledger.jobs import Status
from worker.settings import Settings


def test_a_front_of_another_protocol_submits_a_job_and_reads_it(
    redis_server: Any, plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(plugins), *sys.path])
    asked = JobRequest(service="echo", input={"n": 3}, priority="high", metadata={"from": "elsewhere"})

    async def use() -> None:
        async with open_state(Settings(redis_url=redis_server.url), Catalog()) as state:
            job, is_new = await submit(state, ANYONE, asked, key="k")
            assert (job.status, job.priority, is_new) == (Status.QUEUED, "high", True)
            again, is_new = await submit(state, ANYONE, asked, key="k")
            assert (again.id, is_new) == (job.id, False)
            read = await state.ledger.get(job.id)
            assert (read.input, read.metadata) == (b'{"n":3}', b'{"from":"elsewhere"}')
            with pytest.raises(IdempotencyConflict):
                await submit(state, ANYONE, JobRequest(service="echo", input={"n": 4}), key="k")
            with pytest.raises(InvalidInput):
                await submit(state, ANYONE, JobRequest(service="echo", input={"n": "x"}))
            with pytest.raises(UnknownService):
                await submit(state, ANYONE, JobRequest(service="none", input={}))
            with pytest.raises(Forbidden):
                await submit(state, Caller(Key("id", "name", services=("other",))), asked)

    asyncio.run(use())
