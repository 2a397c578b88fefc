"""``RESULTS.md`` and its plot, from the figures of ``measures``."""

from __future__ import annotations

import os
import platform
import statistics
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.measures import Figures
from benchmarks.models import BULK
from benchmarks.peer_stacks import PEER_MODELS, Peers, versions
from benchmarks.receivers import DEAD

HERE = Path(__file__).parent
PACKAGES = ("celery", "redis", "fastapi", "uvicorn", "pydantic", "scikit-learn", "numpy")

#: Each figure's baseline in the same run: (heading of the ratio, figure, baseline, higher is better).
RATIOS = [
    ("tiny, jobs/s against naive", "tiny ours jobs/s", "tiny naive jobs/s", True),
    ("batchable, jobs/s against naive", "batchable ours jobs/s", "batchable naive jobs/s", True),
    ("slow, jobs/s against naive", "slow ours jobs/s", "slow naive jobs/s", True),
    ("large, jobs/s against naive", "large ours jobs/s", "large naive jobs/s", True),
    ("tiny, p50 of one client against naive's", "tiny ours p50 ms, one client", "tiny naive p50 ms, one client", False),
    ("tiny, p99 at half load against its p50", "tiny ours p99 ms, half load", "tiny ours p50 ms, half load", False),
    ("no-op queue, jobs/s against naive", "no-op queue, ours jobs/s", "no-op queue, naive jobs/s", True),
    ("backlog, large against small", "large backlog, jobs/s", "small backlog, jobs/s", True),
    ("events and Flower against none", "tiny ours jobs/s, 100 events/s", "tiny ours jobs/s, 0 events/s", True),
    ("16 workers against one", "16 worker(s), jobs/s", "1 worker(s), jobs/s", True),
]

#: Figures that are such ratios already, each of two that were measured one after the other: their medians are reported.
PAIRED = [
    *(
        f"POST /batches{whose} against the bare model, batches of {kind.max_batch_size}"
        for whose in ("", ", two workers")
        for kind in BULK
    ),
    *(f"webhooks, receiver {kind}: jobs/s against one that answers" for kind in (*DEAD, "none")),
]


def write(sections: dict[str, tuple[str, Figures]], command: str, minutes: float, peers: Peers) -> None:
    """All sections, by their headings, each with a sentence on its measurement."""
    everything = {name: values for _, figures in sections.values() for name, values in figures.items()}
    lines = ["# Results", "", *_about(command, minutes), "", "## Ratios", "", *_ratios(everything)]
    if _plot(everything, HERE / "results.svg", [kind.name for kind in peers.kinds]):
        lines += ["", "![jobs a second, 64 clients](results.svg)"]
    if peers.kinds or peers.failed:
        lines += ["", "## Peers", "", *_peers(everything, peers)]
    for heading, (sentence, figures) in sections.items():
        lines += ["", f"## {heading}", "", sentence, "", *_table(figures)]
    (HERE / "RESULTS.md").write_text("\n".join(lines) + "\n")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # where no model was measured
        return "not installed"


def _about(command: str, minutes: float) -> list[str]:
    with Path("/proc/cpuinfo").open() as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    used = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return [
        f"Made by `{command}` in {minutes:.0f} minutes: {os.cpu_count()} cores ({model}), {platform.system()}, Python "
        f"{platform.python_version()}, {used}.",
        "",
        "The client, the API, the worker and Redis share the cores. A figure is the median of its rounds, with the "
        "lowest and the highest in brackets; rounds alternate between the stacks. Absolute figures are this machine's: "
        "compare the ratios, best against best.",
    ]


def _ratios(found: Figures) -> list[str]:
    rows = ["| what | ratio |", "| --- | --- |"]
    for name, ours, base, higher in RATIOS:
        if ours in found and base in found:
            best = max if higher else min
            rows.append(f"| {name} | {best(found[ours]) / best(found[base]):.2f} |")
    rows += [
        f"| {name} (median of {len(found[name])}) | {statistics.median(found[name]):.2f} |"
        for name in PAIRED
        if name in found
    ]
    return rows


def _peers(found: Figures, peers: Peers) -> list[str]:
    """Ours, naive and the peers, best against best, and which peer has no figures."""
    titles = [f"{model}, jobs/s (ratio)" for model in PEER_MODELS] + [
        f"{model}, p50 ms, one client" for model in PEER_MODELS
    ]
    lines = [
        "64 clients in a closed loop, then one; medians, and in brackets the ratio to naive, best against best. All "
        "use the same model code; a peer has one process for the model, and batches as is said below.",
        "",
        f"| stack | {' | '.join(titles)} |",
        "| --- |" + " --- |" * len(titles),
    ]
    for name in ("naive", "ours", *(kind.name for kind in peers.kinds)):
        cells = [_against_naive(found, model, name) for model in PEER_MODELS]
        latencies = [found.get(f"{model} {name} p50 ms, one client") for model in PEER_MODELS]
        cells += [_number(statistics.median(values)) if values else "" for values in latencies]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *(f"* {kind.name}: {versions(kind.module)}; {kind.about}" for kind in peers.kinds)]
    lines += [f"* {name} has no figures: {reason}" for name, reason in peers.failed.items()]
    return lines


def _against_naive(found: Figures, model: str, name: str) -> str:
    values, naive = found.get(f"{model} {name} jobs/s"), found.get(f"{model} naive jobs/s")
    ratio = f" ({max(values) / max(naive):.3g})" if values and naive else ""
    return f"{_number(statistics.median(values))}{ratio}" if values else ""


def _table(found: Figures) -> list[str]:
    rows = ["| figure | median (lowest to highest) | rounds |", "| --- | --- | --- |"]
    for name, values in found.items():
        span = f" ({_number(min(values))} to {_number(max(values))})" if len(values) > 1 else ""
        rows.append(f"| {name} | {_number(statistics.median(values))}{span} | {len(values)} |")
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plot(found: Figures, path: Path, peers: list[str]) -> bool:
    """Jobs a second by model and stack, on a logarithmic scale."""
    models = [name.removesuffix(" ours jobs/s") for name in found if name.endswith(" ours jobs/s")]
    models = [name for name in models if f"{name} naive jobs/s" in found]
    if not models:
        return False
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "results"
    from matplotlib import pyplot

    stacks = ["naive", "ours", *(name for name in peers if any(f"{model} {name} jobs/s" in found for model in models))]
    width = 0.8 / len(stacks)
    figure, axes = pyplot.subplots(figsize=(7 + len(peers), 3.5))
    for number, stack in enumerate(stacks):
        measured = [
            (i, found[f"{model} {stack} jobs/s"])
            for i, model in enumerate(models)
            if f"{model} {stack} jobs/s" in found
        ]
        places = [i + (number - (len(stacks) - 1) / 2) * width for i, _ in measured]
        heights = [statistics.median(values) for _, values in measured]
        bars = axes.bar(places, heights, width, label=stack)
        axes.bar_label(bars, [_number(height) for height in heights], fontsize=8)
    axes.set_xticks(range(len(models)), models)
    axes.set_yscale("log")
    axes.set_ylabel("jobs a second, 64 clients")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True
