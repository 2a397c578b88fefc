"""``services bench NAME``: how fast a service is at each batch size and number of clients, and which knobs to take.

The flow: a private Redis and an API (``Bench``) → for each batch size a worker of its own → for each number of clients
a closed loop (``worker.cli.load``) in windows, until the last three agree → a table, a plot of throughput over latency,
and the knobs that give the most jobs a second within the budget.
"""

from __future__ import annotations

import csv
import json
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import click

from worker.cli.common import INPUT_HELP, fail, positive, read_input, say_no_example
from worker.cli.load import STABLE_WINDOWS, ClosedLoop, is_stable
from worker.discovery import Plugin, find_plugins
from worker.errors import BenchFailed
from worker.local.up import fetch
from worker.processes.launch import python_command
from worker.processes.lifetime import die_with_parent
from worker.settings import Settings, child_environment, get_settings

#: A larger batch, or a delay, that gains less is not worth its latency.
WORTH = 0.05
#: Delays (ms) that are tried at the best point, where its batches are not full.
DELAYS_MS = (2.0, 5.0, 10.0)
#: Share of the largest batch that there could be, from which on batches are full.
FULL = 0.9
#: A job is read once: kept for longer, those of a long sweep would fill the memory.
KEEP_FOR_S = "10"
#: Seconds to wait for Redis and the API.
START_S = 60
HEADING = (
    "batch size  delay ms  clients  jobs/s    p50 ms    p95 ms    p99 ms    mean batch  windows  client's CPU\n"
    "----------  --------  -------  --------  --------  --------  --------  ----------  -------  ------------"
)


PERCENTILES = ("p50", "p95", "p99")


def whole_numbers(text: str | tuple[int, ...]) -> tuple[int, ...]:
    """The type of an option: whole numbers from 1, comma-separated."""
    if isinstance(text, tuple):
        return text
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise click.BadParameter(f"expected whole numbers from 1, comma-separated, got {text!r}")
    return tuple(numbers)


@click.command()
@click.argument("name")
@click.option("--input", metavar="INPUT", help=f"of every job: {INPUT_HELP} [default: the service's example]")
@click.option("--batch-sizes", type=whole_numbers, default="1,4,16,64", show_default=True, metavar="N,N")
@click.option("--clients", type=whole_numbers, default="1,4,16,64", show_default=True, metavar="N,N")
@click.option("--budget-ms", type=positive, default=100, show_default=True, metavar="MS", help="the longest latency")
@click.option(
    "--percentile",
    type=click.Choice(PERCENTILES),
    default="p99",
    show_default=True,
    help="of the latencies, for which the budget is",
)
@click.option("--window-s", type=positive, default=1, show_default=True, metavar="S", help="length of a window")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="of throughput over latency [default: .services/bench/NAME.svg]; without matplotlib, a .csv",
)
def bench(
    name: str,
    input: str | None,
    batch_sizes: tuple[int, ...],
    clients: tuple[int, ...],
    budget_ms: float,
    percentile: str,
    window_s: float,
    plot: Path | None,
) -> int:
    """Measure a service and propose its knobs.

    It is measured at several batch sizes and numbers of clients, with a Redis, an API and a worker of its own, which
    harm no others and are gone afterwards. Each client sends the input over HTTP, waits for its output and sends again.
    A point is measured in windows until the last three are within 10 % of each other in throughput and mean latency
    (the rule of Triton's perf_analyzer), at most ten; "not stable" marks a point that did not get there.
    max_batch_size is swept by SERVICES_MAX_BATCH_SIZE; the plugin is left as it is. Numbers of clients that cannot fill
    a larger batch than the one before are left out.

    Then max_queue_delay_ms is tried at the best point, where its batches are not full.
    """
    from worker.testing import example_of

    (plugin,) = find_plugins([name])
    value = read_input(input) if input else example_of(plugin)
    if value is None and not input:
        return fail(say_no_example(plugin.name, f"services bench {plugin.name} --input"))
    plan = Plan(batch_sizes, clients, window_s, budget_ms, percentile)
    path = plot or get_settings().data_folder / "bench" / f"{plugin.name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    points = run(plugin, value, plan, get_settings())
    print(f"\n{propose(points, plan)}\n{write_plot(points, plugin.name, path)}")
    return 0


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: at these knobs and so many clients."""

    max_batch_size: int
    max_queue_delay_ms: float
    clients: int
    jobs_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_batch: float
    windows: int
    stable: bool
    client_cpu: float  #: share of a core

    def latency(self, percentile: str) -> float:
        """The latency that the budget is for."""
        return float(getattr(self, f"{percentile}_ms"))


@dataclass(frozen=True, slots=True)
class Plan:
    """The measurements to make."""

    batch_sizes: tuple[int, ...]
    clients: tuple[int, ...]
    window_s: float
    budget_ms: float
    percentile: str


class Bench:
    """A private stack for one service: Redis, one API process, one worker process. Use as a context."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self._folder = Path(tempfile.mkdtemp(prefix="services-bench-"))
        self.port = _free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._spawn("redis", "worker.cli.main", "redis")
            command = ["uvicorn", "libs_service:app", "--port", str(self.port), "--no-access-log"]
            self._spawn("api", *command, "--log-level", "warning", "--timeout-keep-alive", "75")
            self._wait(lambda: fetch(f"{self._url}/readyz")[0] == 200, START_S, "Redis and the API")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_worker()
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def use(self, max_batch_size: int, max_queue_delay_ms: float, timeout_s: float) -> None:
        """Have a worker with these knobs, ready. Raises ``BenchFailed`` with the reason where its plugin fails."""
        self._stop_worker()
        knobs = {"SERVICES_MAX_BATCH_SIZE": max_batch_size, "SERVICES_MAX_QUEUE_DELAY_MS": max_queue_delay_ms}
        command = ["celery", "--quiet", "-A", "libs_service", "worker", "-Q", self._plugin.name, "--loglevel=WARNING"]
        self._worker = self._spawn("worker", *command, **{name: str(value) for name, value in knobs.items()})

        def ready() -> bool:
            service = self._service()
            if service.get("state") == "failed":
                raise BenchFailed(f"service {self._plugin.name} failed: {service['reason']}")
            knobs = service.get("knobs") or {}
            new = (knobs.get("max_batch_size"), knobs.get("max_queue_delay_ms")) == (max_batch_size, max_queue_delay_ms)
            return service.get("state") == "ready" and new

        self._wait(ready, timeout_s, f"a worker of {self._plugin.name}")

    def _service(self) -> dict[str, Any]:
        _, answer = fetch(f"{self._url}/services/{self._plugin.name}")
        return answer if isinstance(answer, dict) else {}

    def _wait(self, look: Callable[[], bool], timeout_s: float, part: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not look():
            for process in self._processes:
                if process.poll() is not None:
                    raise BenchFailed(f"{part}: a process ended while it started: {self._last_words()}")
            if time.monotonic() > deadline:
                raise BenchFailed(f"{part} did not become ready within {timeout_s:g} s: {self._last_words()}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        """The newest lines of the newest log, for an error's text."""
        logs = sorted(self._folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return " / ".join(lines[-3:]) or "its logs are empty"

    def _spawn(self, name: str, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        quiet = ("-W", "ignore:You're running the worker with superuser privileges")
        own = {
            "SERVICES_DATA_DIR": str(self._folder),
            "SERVICES_LOG_LEVEL": "WARNING",
            "SERVICES_KEEP_FOR_S": KEEP_FOR_S,
        }
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                python_command(*arguments, options=quiet),
                env=child_environment(own | env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._processes.append(process)
        return process

    def _stop_worker(self) -> None:
        if self._worker is None:
            return
        self._processes.remove(self._worker)
        self._worker.send_signal(signal.SIGTERM)
        try:
            self._worker.wait(10)
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.wait()
        self._worker = None


def run(plugin: Plugin, input: Any, plan: Plan, settings: Settings) -> list[Point]:
    """Measure every point of the plan, and the delays that may help at the best of them."""
    text = json.dumps(input, ensure_ascii=False).encode()
    points: list[Point] = []
    with Bench(plugin) as bench:

        def measure(max_batch_size: int, delay_ms: float, clients: int) -> None:
            point = _measure(
                ClosedLoop(bench.port, plugin.name, text), max_batch_size, delay_ms, clients, plan.window_s
            )
            points.append(point)
            print(_row(point), flush=True)

        print(HEADING, flush=True)
        done = 0  # the largest batch size so far
        for size in sorted(plan.batch_sizes):
            bench.use(size, 0, settings.load_timeout_s)
            for clients in plan.clients:
                if clients > done:  # fewer clients never fill more than the size before
                    measure(size, 0, clients)
            done = size
        best = choose(points, plan)
        for delay_ms in _delays(best, plan):
            bench.use(best.max_batch_size, delay_ms, settings.load_timeout_s)
            measure(best.max_batch_size, delay_ms, best.clients)
    return points


def choose(points: Sequence[Point], plan: Plan) -> Point:
    """The most jobs a second within the budget; among those that are nearly as fast, the smallest knobs.

    Where none is within it, the point of the least latency.
    """
    fitting = [point for point in points if point.latency(plan.percentile) <= plan.budget_ms]
    if not fitting:
        return min(points, key=lambda point: point.latency(plan.percentile))
    most = max(point.jobs_s for point in fitting)
    near = [point for point in fitting if point.jobs_s >= most * (1 - WORTH)]
    return min(near, key=lambda point: (point.max_queue_delay_ms, point.max_batch_size, point.latency(plan.percentile)))


def propose(points: Sequence[Point], plan: Plan) -> str:
    """The knobs to write into the plugin, and on which measurement they rest."""
    best = choose(points, plan)
    latency = f"{plan.percentile} {_number(best.latency(plan.percentile))} ms"
    measured = f"{_number(best.jobs_s)} jobs/s, {latency} at {best.clients} client(s)"
    unstable = "" if best.stable else ", which did not become stable: measure again on a quieter machine"
    knobs = f"    max_batch_size = {best.max_batch_size}\n    max_queue_delay_ms = {best.max_queue_delay_ms:g}"
    if best.latency(plan.percentile) > plan.budget_ms:
        return (
            f"No measurement is within {plan.percentile} <= {plan.budget_ms:g} ms. The least latency ({measured}"
            f"{unstable}):\n\n{knobs}\n"
        )
    return f"Within {plan.percentile} <= {plan.budget_ms:g} ms ({measured}{unstable}):\n\n{knobs}\n"


def write_plot(points: Sequence[Point], name: str, path: Path) -> str:
    """Throughput over latency, a line a batch size; a CSV without matplotlib. Gives a sentence that names the file."""
    try:
        import matplotlib as mpl
    except ImportError:
        path = path.with_suffix(".csv")
        _write_csv(points, path)
        return f"matplotlib is not installed (pip install 'matplotlib>=3.9,<4'): the figures are in {path}"
    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for size, delay_ms in dict.fromkeys((point.max_batch_size, point.max_queue_delay_ms) for point in points):
        line = [point for point in points if (point.max_batch_size, point.max_queue_delay_ms) == (size, delay_ms)]
        label = f"batches of {size}" + (f", delay {delay_ms:g} ms" if delay_ms else "")
        axes.plot([point.p50_ms for point in line], [point.jobs_s for point in line], marker="o", label=label)
        for point in line:
            axes.annotate(str(point.clients), (point.p50_ms, point.jobs_s), textcoords="offset points", xytext=(4, 4))
    axes.set_xlabel("median latency, ms (the points' numbers: clients)")
    axes.set_ylabel("jobs a second")
    axes.set_title(name)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return f"throughput over latency: {path}"


def _measure(loop: ClosedLoop, size: int, delay_ms: float, clients: int, window_s: float) -> Point:
    """One point: the last stable windows together."""
    import uvloop  # not at the start of every command

    windows, cpu = uvloop.run(loop.run(clients, window_s))
    last = windows[-STABLE_WINDOWS:]
    latencies = [latency for window in last for latency in window.latencies]
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return Point(
        max_batch_size=size,
        max_queue_delay_ms=delay_ms,
        clients=clients,
        jobs_s=len(latencies) / sum(window.seconds for window in last),
        p50_ms=cuts[49],
        p95_ms=cuts[94],
        p99_ms=cuts[98],
        mean_batch=statistics.fmean(size for window in last for size in window.batch_sizes),
        windows=len(windows),
        stable=is_stable(windows),
        client_cpu=cpu,
    )


def _delays(best: Point, plan: Plan) -> list[float]:
    """The delays to try: none where batches are full already, none that the budget has no room for."""
    if best.mean_batch >= FULL * min(best.max_batch_size, best.clients):
        return []
    room = plan.budget_ms - best.latency(plan.percentile)
    return [delay_ms for delay_ms in DELAYS_MS if delay_ms <= room]


def _row(point: Point) -> str:
    cells = [
        f"{point.max_batch_size:>10}",
        f"{point.max_queue_delay_ms:>8g}",
        f"{point.clients:>7}",
        *(f"{_number(value):>8}" for value in (point.jobs_s, point.p50_ms, point.p95_ms, point.p99_ms)),
        f"{point.mean_batch:>10.1f}",
        f"{point.windows:>7}",
        f"{point.client_cpu:>12.0%}",
    ]
    return "  ".join(cells) + ("" if point.stable else "  not stable")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _write_csv(points: Sequence[Point], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(points[0])))
        writer.writeheader()
        writer.writerows(map(asdict, points))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
