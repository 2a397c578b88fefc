"""The state of one service as a whole: its queue, its workers, its counts."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

#: The rate of ended jobs is averaged over this time, as in ``lua/lib/rate.lua``.
RATE_S = 10
#: Fields of the ledger's hash that only grow begin with one of these.
COUNTED = (b"ended:", b"inputs:", b"requeued:", b"reused")


@dataclass(frozen=True, slots=True)
class Overview:
    """One service at one moment."""

    depth: int  #: queued jobs, also those that wait for an equal one
    oldest_age_s: float  #: age of the oldest of the jobs that are next; 0 where none waits
    workers: list[dict[str, Any]]  #: each live worker's host, pid and state
    knobs: dict[str, Any] | None  #: as the last worker reported them; None before any worker ran
    failure: dict[str, Any] | None  #: why the plugin cannot be loaded
    running: int  #: jobs, and chunks of batches, that a live worker has claimed
    rate: float  #: jobs ended a second, averaged over the last seconds
    pace_s: float  #: time that a pool process takes for an input, averaged; 0 before any was measured
    scheduled: int  #: queued jobs whose not_before has not come; not in ``depth``
    counts: dict[str, int]  #: counters of the ledger: waiting_bytes, "ended:<status>", "requeued:<why>", ...

    @classmethod
    def from_reply(cls, reply: Any) -> Overview:
        """Read the reply of ``lua/overview.lua``."""
        depth, oldest, now, infos, about, running, scheduled = reply
        fields = dict(zip(about[0::2], about[1::2], strict=True))
        counted = [name for name in fields if name.startswith(COUNTED) or name == b"waiting_bytes"]
        return cls(
            depth=depth + int(fields.get(b"parked", 0)),
            oldest_age_s=round((int(now) - int(oldest)) / 1e6, 3) if int(oldest) else 0,
            workers=[json.loads(info) for info in infos],
            knobs=json.loads(fields[b"knobs"]) if b"knobs" in fields else None,
            failure=json.loads(fields[b"failure"]) if b"failure" in fields else None,
            running=running,
            rate=_rate_now(fields.get(b"rate"), fields.get(b"rate_at"), int(now)),
            pace_s=float(fields.get(b"pace", 0)) / 1e6,
            scheduled=scheduled,
            counts={name.decode(): int(fields[name]) for name in counted},
        )

    @property
    def worker_versions(self) -> list[dict[str, Any]]:
        """How many workers run which version of the plugin and of libs-service; None: older than 0.2.0."""
        counts = Counter((worker.get("version"), worker.get("libs_service")) for worker in self.workers)
        rows = [{"version": v, "libs_service": release, "workers": n} for (v, release), n in counts.items()]
        return sorted(rows, key=lambda row: (row["libs_service"] or "", row["version"] or ""))


def _rate_now(rate: bytes | None, rate_at_us: bytes | None, now_us: int) -> float:
    """Jobs ended a second as of now: the same as ``lua/lib/rate.lua``."""
    if rate is None or rate_at_us is None:
        return 0
    return float(rate) * math.exp(-max(0, now_us - float(rate_at_us)) / (RATE_S * 1e6))
