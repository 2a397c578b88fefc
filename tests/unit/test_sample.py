"""Which jobs Flower is shown."""

from __future__ import annotations

from worker.broker.sample import Sample


def test_above_the_rate_only_a_sample_is_shown() -> None:
    # given a clock that stands still
    sample = Sample(10, clock=lambda: 0.0)
    assert sum(sample.take() for _ in range(100)) == 10


def test_the_rate_comes_back_with_time_and_never_more_than_a_second_of_it() -> None:
    now = [0.0]
    sample = Sample(10, clock=lambda: now[0])
    assert sum(sample.take() for _ in range(20)) == 10

    now[0] = 0.5
    assert sum(sample.take() for _ in range(20)) == 5
    now[0] = 60
    assert sum(sample.take() for _ in range(20)) == 10


def test_a_rate_of_zero_shows_nothing() -> None:
    assert not Sample(0).take()
