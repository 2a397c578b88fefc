"""``make chaos``: faults for minutes on end, then a report; exit code 1 where a guarantee was broken."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from tests.chaos.campaign import run
from tests.chaos.faults import FAULTS, kill_rabbit
from tests.chaos.pillars import PILLARS, is_missed
from tests.chaos.stack import Kind, naive, ours

#: Jobs a second. A naive stack, which runs each job by itself, gets what its three workers can do.
RATE, NAIVE_RATE = 130.0, 40.0


def main() -> int:
    """Run one campaign on one stack."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1, help="of the schedule and of the load")
    rates = f"jobs a second that are submitted; default: {RATE:g}, for a naive stack {NAIVE_RATE:g}"
    parser.add_argument("--rate", type=float, help=rates)
    parser.add_argument("--stack", choices=["ours", "naive", "naive-best"], default="ours")
    parser.add_argument("--appendfsync", choices=["everysec", "always"], default="everysec")
    parser.add_argument("--rabbit", action="store_true", help="RabbitMQ is the broker; it is killed too")
    parser.add_argument("--pillars", action="store_true", help="then without each pillar: the audit must fail")
    parser.add_argument("--report", type=Path, help="a file for the report as JSON")
    given = parser.parse_args()
    # A script's background job ignores SIGINT, and so would the processes that it starts until they set a handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kinds: dict[str, Kind] = {"ours": ours(), "naive": naive(best=False), "naive-best": naive(best=True)}
    folder = Path(tempfile.mkdtemp(prefix="services-chaos-"))
    print(f"seed {given.seed}, logs and traces in {folder}", flush=True)
    options = {"appendfsync": given.appendfsync, "rabbit": given.rabbit}
    rate = given.rate or (RATE if given.stack == "ours" else NAIVE_RATE)
    faults = FAULTS | ({kill_rabbit: 3} if given.rabbit else {})
    report = run(kinds[given.stack], folder, given.minutes * 60, given.seed, rate, faults, **options)
    text = json.dumps(report.to_dict(), indent=2)
    print(text)
    if given.report:
        given.report.write_text(text + "\n")
    missed = [is_missed(pillar, folder / pillar) for pillar in PILLARS if given.pillars]
    return 1 if report.broken or not all(missed) else 0


if __name__ == "__main__":
    sys.exit(main())
