"""How ``POST /batches`` cuts its rows."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from worker.ledger.batches import Chunk, at_once, cut, rows_of_chunk


@pytest.mark.parametrize(
    ("max_batch_size", "row_s", "rows"),
    [
        *((64, 0, 64), (64, 0.0001, 256), (64, 0.005, 192), (64, 0.01, 64), (64, 5, 64), (1, 0.3, 3), (1, 60, 1)),
        *((1024, 0, 1024), (1024, 0.00001, 4096), (1500, 0.00001, 3000), (4096, 0.00001, 4096), (8192, 0, 8192)),
    ],
)
def test_a_chunk_is_about_a_second_of_work_in_whole_batches(max_batch_size: int, row_s: float, rows: int) -> None:
    assert rows_of_chunk(max_batch_size, row_s) == rows


def test_a_million_rows_of_a_model_that_takes_one_at_a_time_are_no_more_chunks_than_redis_can_queue_at_once() -> None:
    async def chunks() -> list[Chunk]:
        return [chunk async for chunk in cut(at_once([b"1"] * 1_000_000), "g", 1)]

    found = asyncio.run(chunks())
    assert len(found) < 33_000 and max(len(chunk.rows) for chunk in found) == 128
    assert all(len(chunk.rows) == 1 for chunk in found[:4096]), "a batch of usual length is cut as finely as any"
    assert all(after.first == before.first + len(before.rows) for before, after in pairwise(found))
    assert found[-1].first + len(found[-1].rows) == 1_000_000
