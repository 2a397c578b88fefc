"""How ``POST /batches`` cuts its rows."""

from __future__ import annotations

import pytest

from worker.bulk import rows_of_chunk


@pytest.mark.parametrize(
    ("max_batch_size", "row_s", "rows"),
    [(64, 0, 256), (64, 0.0001, 256), (64, 0.005, 192), (64, 0.01, 64), (64, 5, 64), (1, 0.3, 3), (1, 60, 1)],
)
def test_a_chunk_is_about_a_second_of_work_in_whole_batches(max_batch_size: int, row_s: float, rows: int) -> None:
    assert rows_of_chunk(max_batch_size, row_s) == rows
