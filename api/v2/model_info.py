"""``/v2/models/<name>/config`` and ``/stats``: Triton's model configuration and statistics extensions.

Sources: Triton's ``extension_model_configuration.md`` and ``extension_statistics.md``. Clients such as perf_analyzer
read them before they send anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request

from api.auth.gate import caller_of
from api.catalog import Entry
from api.state import state_of
from api.v2.answers import ModelConfig, ModelStats, StatsList, TensorConfig
from api.v2.columns import Column, list_columns
from api.v2.operations import describe_v2, model_route
from api.v2.requests import find_entry
from worker.ledger import commands
from worker.ledger.overview import Overview

router = APIRouter()

PLATFORM = "libs-service_plugin"

#: The durations of Triton's statistics, each as a count and nanoseconds.
DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


@router.get(
    "/v2/models/stats",
    openapi_extra=describe_v2("v2_all_stats", "The statistics of all models", StatsList, 503),
)
async def all_stats(request: Request) -> StatsList:
    """The statistics of every model that the caller may use."""
    state = state_of(request)
    entries = state.catalog.usable_by(caller_of(request))
    overviews = await asyncio.gather(*(state.ledger.run(commands.overview(entry.plugin.name)) for entry in entries))
    return _stats(entries, overviews)


@model_route(router, "GET", "/stats", "v2_model_stats", "A model's statistics", StatsList, 404, 503)
async def get_stats(request: Request, name: str, version: str = "") -> StatsList:
    """A model's statistics."""
    entry = find_entry(request, name, version)
    return _stats([entry], [await state_of(request).ledger.run(commands.overview(name))])


@model_route(router, "GET", "/config", "v2_model_config", "A model's configuration", ModelConfig, 404, 503)
async def get_config(request: Request, name: str, version: str = "") -> ModelConfig:
    """A model's configuration.

    ``max_batch_size`` is 0, by which Triton means that a tensor's first dimension, the rows, is among its ``dims``:
    rows of many requests are batched, regardless of their requests.
    """
    entry = find_entry(request, name, version)
    overview = await state_of(request).ledger.run(commands.overview(name))
    knobs = {key: {"string_value": str(value)} for key, value in (overview.knobs or {}).items()}
    return ModelConfig(
        name=name,
        platform=PLATFORM,
        backend="",
        version_policy={"latest": {"num_versions": 1}},
        max_batch_size=0,
        input=[_configure(column) for column in list_columns(entry.input, "validation")],
        output=[_configure(column) for column in list_columns(entry.output, "serialization")],
        parameters=knobs,
    )


def _configure(column: Column) -> TensorConfig:
    kind = "STRING" if column.datatype == "BYTES" else column.datatype
    optional = {} if column.required else {"optional": True}
    return TensorConfig(name=column.name, data_type=f"TYPE_{kind}", dims=[-1, *column.shape], **optional)


def _stats(entries: Sequence[Entry], overviews: Sequence[Overview]) -> StatsList:
    rows = [_model_stats(entry, overview) for entry, overview in zip(entries, overviews, strict=True)]
    return StatsList(model_stats=rows)


def _model_stats(entry: Entry, overview: Overview) -> ModelStats:
    """Inferences since ever, of jobs and of batches' inputs. No time is summed up: every ``ns`` is 0."""
    done = {status: _count(overview, status) for status in ("succeeded", "failed")}
    counts = {**dict.fromkeys(DURATIONS, done["succeeded"]), "success": done["succeeded"], "fail": done["failed"]}
    counts |= {"cache_hit": overview.counts.get("reused", 0), "cache_miss": 0}
    return ModelStats(
        name=entry.plugin.name,
        version=entry.plugin.version,
        last_inference=0,
        inference_count=done["succeeded"],
        execution_count=done["succeeded"],
        inference_stats={name: {"count": count, "ns": 0} for name, count in counts.items()},
        batch_stats=[],
        memory_usage=[],
        response_stats={},
    )


def _count(overview: Overview, status: str) -> int:
    return overview.counts.get(f"ended:{status}", 0) + overview.counts.get(f"inputs:{status}", 0)
