"""The campaign with a pillar of the guarantees taken out of the code, in which the audit must fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.chaos.campaign import run
from tests.chaos.faults import Fault, kill_worker, stop_worker
from tests.chaos.stack import ours

#: The guarantees whose statements are marked in the code, and the list of the audit that shows that they are gone.
PILLARS = {"sweep": "lost", "fencing": "changed", "lease": "overlaps"}

#: The load that shows it: the faults, jobs a second, how long they sleep, and seconds after the last fault.
SHOWN_BY: dict[str, tuple[list[Fault], float, list[tuple[float, float]], float]] = {
    "sweep": ([kill_worker], 20, [(1.5, 1)], 3),
    "fencing": ([stop_worker, stop_worker, stop_worker], 20, [(0.4, 1)], 3),
    # Some are done soon, so that a worker is free while another's run outlives its lease.
    "lease": ([], 2, [(0.2, 3), (7, 1)], 15),
}


def is_missed(pillar: str, folder: Path) -> bool:
    """Whether the audit fails without this pillar; prints its report where it does not."""
    faults, rate, sleeps, still_s = SHOWN_BY[pillar]
    folder.mkdir(parents=True)
    options: dict[str, Any] = {"patience_s": 8, "still_s": still_s, "sleeps": sleeps}
    report = run(ours(pillar), folder, 0, seed=2, rate=rate, faults=faults, **options)
    if not getattr(report, PILLARS[pillar]):
        print(f"without its {pillar} the audit finds nothing: {report.to_dict()}")
        return False
    return True
