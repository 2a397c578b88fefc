"""Every fault once, under load; and the same with each of the guarantees' pillars taken out, to see the audit fail."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

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
    stop_worker,
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


#: The guarantees whose statements are marked in the code, and the list of the audit that shows that they are gone.
PILLARS = {"sweep": "lost", "fencing": "changed", "lease": "overlaps"}


#: The load that shows it: the faults, jobs a second, how long they sleep, and how long to go on after the last fault.
SHOWN_BY: dict[str, tuple[list[Fault], float, list[tuple[float, float]], float]] = {
    "sweep": ([kill_worker], 20, [(1.5, 1)], 3),
    "fencing": ([stop_worker, stop_worker, stop_worker], 20, [(0.4, 1)], 3),
    # Some are done soon, so that a worker is free while another's run outlives its lease.
    "lease": ([], 2, [(0.2, 3), (7, 1)], 15),
}


@pytest.mark.parametrize("pillar", PILLARS)
def test_without_the_sweep_the_fencing_or_the_lease_the_audit_fails(tmp_path: Path, pillar: str) -> None:
    faults, rate, sleeps, still_s = SHOWN_BY[pillar]
    options: dict[str, Any] = {"patience_s": 8, "still_s": still_s, "sleeps": sleeps}
    report = run(ours(pillar), tmp_path, 0, seed=2, rate=rate, faults=faults, **options)
    assert getattr(report, PILLARS[pillar]), report.to_dict()
