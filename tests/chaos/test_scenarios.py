"""Every fault once, under load. ``make chaos`` also takes each pillar out, to see the audit fail (``pillars.py``)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.campaign import run
from tests.chaos.faults import (
    FAULTS,
    Fault,
    kill_all_workers,
    kill_child,
    kill_rabbit,
    kill_redis,
    kill_worker,
    terminate_worker,
)
from tests.chaos.stack import ours

pytestmark = [pytest.mark.timeout(300), pytest.mark.needs("cc")]


def test_nothing_is_lost_changed_or_run_twice_at_once_whatever_is_killed(tmp_path: Path) -> None:
    faults = list(FAULTS)
    random.Random(1).shuffle(faults)
    report = run(ours(), tmp_path, 0, seed=1, rate=60, faults=faults)
    told = report.to_dict()
    print(told)
    assert not report.broken, report.broken
    assert sum(report.faults.values()) == len(FAULTS)
    assert report.accepted > 1000
    assert all(seconds <= 10 for seconds in report.recovery_s), told
    assert report.slowest_answer_s < 5, "503 at the latest"


@pytest.mark.needs("rabbitmq")
def test_the_same_holds_with_rabbitmq_as_the_broker(tmp_path: Path) -> None:
    faults: list[Fault] = [kill_rabbit, kill_worker, kill_redis, kill_child]
    faults += [kill_rabbit, terminate_worker, kill_all_workers]
    report = run(ours(), tmp_path, 0, seed=1, rate=60, faults=faults, rabbit=True, appendfsync="always")
    assert not report.broken, report.broken
    assert report.accepted > 300, report.to_dict()
