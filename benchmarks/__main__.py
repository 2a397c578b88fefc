"""``make bench``: measure, and write ``benchmarks/RESULTS.md``."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable

from benchmarks import estimates, in_process, measures, receivers, report
from benchmarks.measures import Figures
from benchmarks.peer_stacks import KINDS, Peers


def main() -> int:
    """Run the sections that are asked for, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6, help="of one measurement, after its warm-up")
    parser.add_argument("--jobs", type=int, default=100_000, help="of the prefilled queue")
    parser.add_argument("--backlog", type=int, default=1_000_000, help="of the long queue")
    parser.add_argument("--only", help="comma-separated: " + ", ".join(SECTIONS))
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated, of the section throughput")
    parser.add_argument("--peers", default="", help="all, or comma-separated: " + ", ".join(KINDS))
    parser.add_argument("--no-report", action="store_true", help="print, but leave RESULTS.md as it is")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else [name for name in SECTIONS if name not in OF_OTHERS]
    unknown = set(names) - set(SECTIONS)
    if unknown:
        parser.error(f"no section is named {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    peers = list(KINDS) if given.peers == "all" else [name for name in given.peers.split(",") if name]
    unknown = set(peers) - set(KINDS)
    if unknown:
        parser.error(f"no peer is named {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    begun = time.monotonic()
    given.peers = Peers.prepare(peers)
    sections = {}
    try:
        for name in names:
            sentence, measure = SECTIONS[name]
            print(f"== {name}", flush=True)
            sections[name.capitalize()] = (sentence, measure(given))
    finally:
        shutil.rmtree(measures.root(), ignore_errors=True)
    for _, figures in sections.values():
        print("\n".join(f"{key}: {values}" for key, values in figures.items()))
    if not given.no_report:
        report.write(sections, _command(sys.argv[1:]), (time.monotonic() - begun) / 60, given.peers)
    return 0


def _command(arguments: list[str]) -> str:
    """As it was typed: ``make bench PEERS=… ARGS='…'``."""
    words = ["make bench"]
    if arguments[:1] == ["--peers"]:
        words.append(f"PEERS={arguments[1]}")
        arguments = arguments[2:]
    return " ".join([*words, f"ARGS='{' '.join(arguments)}'"] if arguments else words)


MODELS = ["tiny", "batchable", "slow", "large"]

#: Sections whose figures others measure too: left out unless asked for.
OF_OTHERS = ("latency",)

SECTIONS: dict[str, tuple[str, Callable[[argparse.Namespace], Figures]]] = {
    "throughput": (
        "64 clients, each with one job at a time: ours waits (`Prefer: wait`), the naive client polls every 5 ms. Then "
        "one client, and ours at half of its own throughput in an open loop.",
        lambda given: measures.throughput(given.rounds, given.seconds, given.models.split(","), given.peers),
    ),
    "latency": (
        "One client, and ours at half of its own throughput in an open loop, without the rest of `throughput`.",
        lambda given: measures.latency(given.rounds, given.seconds, given.models.split(",")),
    ),
    "plugins": (
        "The two real plugins, 64 clients, each with the plugin's own example. Then `embed` in process, texts of 4 to "
        "80 words: one at a time, 64 padded to the longest, and 64 in buckets.",
        lambda given: (
            measures.plugins(given.rounds, given.seconds, ["antifraud", "embed"]) | in_process.buckets(3 * given.rounds)
        ),
    ),
    "ahead": (
        "The gain if one could validate and preprocess the next batch, in a thread, while the model computes: the real "
        "plugins in process, full batches, a core free for the thread.",
        lambda given: in_process.ahead(3 * given.rounds),
    ),
    "queue": (
        "A prefilled queue of jobs without a model, worked off by one worker process; naive gets a tenth of them.",
        lambda given: measures.drain(given.rounds, given.jobs),
    ),
    "backlog": (
        "The same while 1,000 jobs wait, and while the number of jobs in `--backlog` waits.",
        lambda given: measures.backlog(given.rounds, 1000, given.backlog),
    ),
    "batches": (
        "Random forest. From the first byte of a `POST /batches` of JSON lines, each another, to the last byte of its "
        "results; before it, the bare model in process over the same rows, in batches as large. Then by two workers.",
        lambda given: measures.batches(3 * given.rounds, given.jobs),
    ),
    "scale": (
        "Workers of a model that sleeps 100 ms for up to 8 jobs, with 16 clients a worker.",
        lambda given: measures.scale(1, given.seconds, 16),
    ),
    "events": (
        "Celery events up to 100 jobs a second with Flower attached, and none.",
        lambda given: measures.events(given.rounds, given.seconds),
    ),
    "webhooks": (
        "The tiny model and 64 clients, while jobs with a webhook end at 20 a second: to a receiver that answers, "
        "that answers 500, that hangs, that is away, and (none) the same jobs without a webhook. The stacks are up "
        "at once and measured in turn, in six times as many rounds: the difference is smaller than the noise.",
        lambda given: receivers.receivers(6 * given.rounds, given.seconds),
    ),
    "memory": ("Redis's own account.", lambda given: measures.memory(10_000)),
    "idle": (
        "API, one worker and Redis with nothing to do. Memory is PSS, which counts what processes share once.",
        lambda _: measures.idle(10),
    ),
    "services": (
        "An API with few services installed, then with 50; no worker runs and nobody asks.",
        lambda given: measures.services(2 * given.seconds, 50),
    ),
    "estimate": (
        "A queue of 100 runs' work a worker, half of it sent at once, half while that is worked off. Every 30 ms one of"
        " its jobs is asked for, and its `estimated_start_at` compared with its `started_at`; the relative error is "
        "against the wait that was left. Before the first round of a model, nothing of it was measured.",
        lambda given: estimates.estimate(given.rounds, 100),
    ),
    "limits": ("The limits of the parts.", lambda given: measures.limits(given.seconds)),
}


if __name__ == "__main__":
    sys.exit(main())
