"""Which jobs Flower is told of."""

from __future__ import annotations

from worker.events import Sample


def test_above_the_rate_only_a_sample_is_told_and_each_told_job_to_its_end() -> None:
    # given a clock that stands still
    now = [0.0]
    sample = Sample(10, clock=lambda: now[0])

    told = [job for job in map(str, range(100)) if sample.take(job)]

    assert len(told) == 10
    assert [job for job in map(str, range(100)) if sample.drop(job)] == told
    assert not any(sample.drop(job) for job in told), "an end is told once"


def test_the_rate_comes_back_with_time_and_never_more_than_a_second_of_it() -> None:
    now = [0.0]
    sample = Sample(10, clock=lambda: now[0])
    assert sum(sample.take(f"a{i}") for i in range(20)) == 10

    now[0] = 0.5
    assert sum(sample.take(f"b{i}") for i in range(20)) == 5
    now[0] = 60
    assert sum(sample.take(f"c{i}") for i in range(20)) == 10


def test_a_rate_of_zero_tells_nothing() -> None:
    assert not Sample(0).take("a")
