"""The measurements. Each function gives figures by name; a figure is a list with one value a round."""

from __future__ import annotations

import itertools
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

from redis import Redis

from benchmarks.models import BULK, MODELS, bulk_inputs
from benchmarks.peer_stacks import PEER_MODELS, Peer, Peers
from benchmarks.stacks import BATCH, Naive, Ours, Stack, cpu_s, example_of, idle_cpu, own_memory
from tests.kit.system import poll
from worker.discovery import list_plugins

Figures = dict[str, list[float]]
_number = itertools.count()


@lru_cache
def root() -> Path:
    """Where every stack has its folder; made at the first."""
    return Path(tempfile.mkdtemp(prefix="services-benchmarks-"))


def folder() -> Path:
    """A new one."""
    return root() / str(next(_number))


def throughput(rounds: int, seconds: float, models: list[str], peers: Peers) -> Figures:
    """64 clients in a closed loop; then one client; ours, naive and the peers in alternation."""
    found: Figures = defaultdict(list)
    for _, model in itertools.product(range(rounds), models):
        for kind in (Naive, Ours):
            with kind(folder(), model) as stack:
                _throughput(stack, seconds, found)
        for peer in peers.kinds if model in PEER_MODELS else ():
            name = f"{peer.name}, {model}"
            if name in peers.failed:
                continue
            try:
                with Peer(peer, folder(), model) as stack:
                    _throughput(stack, seconds, found)
            except Exception as error:  # any failure of a peer is reported, and costs the others nothing
                peers.fail(name, str(error) or repr(error))
    return found


def _throughput(stack: Stack, seconds: float, found: Figures) -> None:
    many = stack.measure(seconds=seconds)
    about = f"{stack.model} {stack.name}"
    found[f"{about} jobs/s"].append(many["jobs_s"])
    found[f"{about} client's share of a core"].append(many["client_cpu"])
    p50_ms = _latency(stack, seconds, many["jobs_s"] if stack.name == "ours" else 0, found)
    print(f"{time.strftime('%H:%M:%S')} {about}: {many['jobs_s']:.4g} jobs/s, p50 {p50_ms:.3g} ms", flush=True)


def _latency(stack: Stack, seconds: float, most: float, found: Figures) -> float:
    """The p50 of one client (ms); with ``most``, jobs a second, also the figures at half of that."""
    about = f"{stack.model} {stack.name}"
    one = stack.measure(clients=1, seconds=seconds / 2)
    found[f"{about} p50 ms, one client"].append(one["p50_ms"])
    if most:
        half = stack.measure(rate=most / 2, seconds=seconds)
        found[f"{about} p50 ms, half load"].append(half["p50_ms"])
        found[f"{about} p99 ms, half load"].append(half["p99_ms"])
    return one["p50_ms"]


def latency(rounds: int, seconds: float, models: list[str]) -> Figures:
    """One client, and ours at half of the throughput that it has just shown; ours and naive in alternation."""
    found: Figures = defaultdict(list)
    for _, model, kind in itertools.product(range(rounds), models, (Naive, Ours)):
        with kind(folder(), model) as stack:
            most = stack.measure(seconds=seconds / 2)["jobs_s"] if stack.name == "ours" else 0
            _latency(stack, seconds, most, found)
        say(found)
    return found


def plugins(rounds: int, seconds: float, names: list[str]) -> Figures:
    """Our own plugins by their example, beside their bare model in process."""
    found: Figures = defaultdict(list)
    for _, name in itertools.product(range(rounds), names):
        with Ours(folder(), name) as stack:
            found[f"{name} ours jobs/s"].append(stack.measure(seconds=seconds)["jobs_s"])
        say(found)
    return found


def drain(rounds: int, jobs: int) -> Figures:
    """A prefilled queue of no-op jobs, worked off by one worker process; the naive one gets a tenth of the jobs."""
    found: Figures = defaultdict(list)
    for _, kind in itertools.product(range(rounds), (Naive, Ours)):
        many = jobs // 10 if kind is Naive else jobs
        found[f"no-op queue, {kind.name} jobs/s"].append(_drain(kind(folder(), "noop", with_worker=False), many))
        say(found)
    return found


def backlog(rounds: int, small: int, large: int) -> Figures:
    """The speed while a long queue waits against that with a short one: the same number of jobs is timed."""
    found: Figures = defaultdict(list)
    for _, waiting in itertools.product(range(rounds), (small, large)):
        with Ours(folder(), "noop", with_worker=False) as stack:
            stack.fill(waiting - small)
            poll(lambda stack=stack: not _rewrites(stack), 600, "Redis has rewritten its file")  # type: ignore[misc]
            stack.start_worker()
            found[f"{'small' if waiting == small else 'large'} backlog, jobs/s"].append(_speed(stack, small, 10))
        say(found)
    return found


def scale(rounds: int, seconds: float, most: int) -> Figures:
    """More workers, more throughput: a model that sleeps for 100 ms, at enough clients to fill every batch."""
    found: Figures = defaultdict(list)
    for _ in range(rounds):
        with Ours(folder(), "slow8") as stack:
            for workers in (2**i for i in range(most.bit_length())):
                while len(stack.processes) < workers + 1:
                    stack.start_worker()
                told = stack.measure(clients=workers * 16, seconds=seconds)
                found[f"{workers} worker(s), jobs/s"].append(told["jobs_s"])
                say(found)
    return found


def batches(rounds: int, rows: int) -> Figures:
    """``POST /batches`` and the bare model in this process, in alternation, over the same rows in batches as large."""
    found: Figures = defaultdict(list)
    inputs = bulk_inputs(rows)
    for _, kind in itertools.product(range(rounds), BULK):
        model, size = kind(), kind.max_batch_size
        with Ours(folder(), kind.__name__.lower()) as stack:
            for workers, whose in ((1, "POST /batches"), (2, "POST /batches, two workers")):
                if workers == 2:
                    stack.start_worker()
                stack.send_batch(inputs[: 2 * size])  # warm, as the bare model is
                begun = time.perf_counter()
                for i in range(0, rows, size):
                    model.predict_batch(inputs[i : i + size])
                alone = rows / (time.perf_counter() - begun)
                speed = rows / stack.send_batch(inputs)
                found[f"the bare model, batches of {size}, rows/s"].append(alone)
                found[f"{whose}, batches of {size}, rows/s"].append(speed)
                found[f"{whose} against the bare model, batches of {size}"].append(speed / alone)
                say(found)
    return found


def memory(jobs: int) -> Figures:
    """Bytes of Redis that a job takes while it waits and when it has ended (the input is 100 bytes)."""
    with Ours(folder(), "noop", with_worker=False) as stack:
        empty = _used(stack)
        stack.fill(jobs)
        queued = _used(stack)
        stack.start_worker()
        poll(lambda: not stack.waiting(), 300, "the queue is worked off")
        time.sleep(1)
        return {
            "bytes of Redis, a queued job": [(queued - empty) / jobs],
            "bytes of Redis, a finished job": [(_used(stack) - empty) / jobs],
        }


def idle(seconds: float) -> Figures:
    """API, one worker and Redis with nothing to do: processor and memory."""
    with Ours(folder(), "noop") as stack:
        found = {"idle, share of a core": [idle_cpu(stack, seconds)]}
        held = [own_memory(pid) for pid in stack.pids()]
        names = ("the API", "a worker's main process", "Redis", "its pool process, without a model")
        for name, memory in zip(names, held, strict=True):
            found[f"memory of {name}, MiB"] = [memory]
        return found | {"memory of the whole stack, MiB": [sum(held)]}


def services(seconds: float, many: int) -> Figures:
    """The cost of an API with few services installed, and of one with many; no worker runs."""
    found: Figures = defaultdict(list)
    for count in (len(list_plugins()) + 1, many):
        stack = Ours(folder(), "noop", with_worker=False)
        stack.install(count - 1 - len(list_plugins()))
        with stack:
            api, redis = stack.processes[0].pid, stack.redis.client
            time.sleep(2)
            before = (cpu_s(api), cpu_s(stack.redis.pid), _reads(redis))
            time.sleep(seconds)
            after = (cpu_s(api), cpu_s(stack.redis.pid), _reads(redis))
            spent = [(late - early) / seconds for early, late in zip(before, after, strict=True)]
            about = f"{count} services,"
            found[f"{about} idle API, share of a core"].append(spent[0])
            found[f"{about} Redis beside it, share of a core"].append(spent[1])
            found[f"{about} requests to Redis a second"].append(spent[2])
            found[f"{about} memory of the API, MiB"].append(own_memory(api))
            for path in ("/openapi.json", "/services"):
                took, size = stack.time_get(path)
                found[f"{about} GET {path}, ms"].append(took * 1000)
                found[f"{about} GET {path}, bytes"].append(size)
            begun = time.perf_counter()
            stack.spawn("worker.cli.main", "list").wait(60)
            found[f"{about} services list, s"].append(time.perf_counter() - begun)
        say(found)
    return found


def events(rounds: int, seconds: float) -> Figures:
    """With events up to the rate of the setting and Flower attached, and without."""
    found: Figures = defaultdict(list)
    for _, rate in itertools.product(range(rounds), ("0", "100")):
        with Ours(folder(), "tiny", SERVICES_EVENT_RATE=rate) as stack:
            if rate != "0":
                stack.spawn("celery", "-A", "worker", "flower", "--port=0", "--logging=warning")
                time.sleep(5)
            found[f"tiny ours jobs/s, {rate} events/s"].append(stack.measure(seconds=seconds)["jobs_s"])
        say(found)
    return found


def limits(seconds: float) -> Figures:
    """The limits of the parts: the bare models, an empty route, Redis."""
    found: Figures = {}
    for name in ("tiny", "batchable"):
        model = MODELS[name]()
        for size in (1, 8, BATCH, 512):
            rows, done, begun = [example_of(name)] * size, 0, time.perf_counter()
            while time.perf_counter() - begun < seconds / 2:
                model.predict_batch(rows)
                done += size
            found[f"bare {name}, batches of {size}, rows/s"] = [done / (time.perf_counter() - begun)]
    with Naive(folder(), "noop") as stack:
        found["an empty FastAPI route, requests/s"] = [
            stack.measure(style="get", path="/empty", seconds=seconds)["jobs_s"]
        ]
        tool = shutil.which("redis-benchmark")
        if tool:
            command = [tool, "-s", str(stack.redis.socket), "-n", "200000", "-c", "16", "-q", "--csv", "-t", "set"]
            line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
            found["redis-benchmark SET, requests/s"] = [float(line.split(",")[1].strip('"'))]
    return found


def say(found: Figures) -> None:
    """The newest figure, to watch it run."""
    name = list(found)[-1] if found else ""
    latest = {key: values[-1] for key, values in found.items()}
    print(f"{time.strftime('%H:%M:%S')} {name}: {latest.get(name, 0):.4g}", flush=True)


def _drain(stack: Stack, jobs: int) -> float:
    with stack:
        stack.fill(jobs)
        stack.launch_worker()
        poll(lambda: stack.waiting() < jobs, 60, "the first jobs are taken")
        begun, before = time.perf_counter(), stack.waiting()
        poll(lambda: not stack.waiting(), 600, "the queue is worked off")
        return float(before / (time.perf_counter() - begun))


def _speed(stack: Ours, jobs: int, seconds: float) -> float:
    """Put a number of jobs into the queue, again and again: the median speed at which three quarters of them go."""
    rates = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        stack.fill(jobs, at_once=jobs)
        begun, before = time.perf_counter(), stack.waiting()
        goal = before - jobs * 3 // 4
        while (left := stack.waiting()) > max(goal, 0):
            time.sleep(0.002)
        rates.append((before - left) / (time.perf_counter() - begun))
    return statistics.median(rates)


def _rewrites(stack: Stack) -> bool:
    """Whether Redis makes its append-only file anew, which takes a core for a while."""
    told = stack.redis.client.info("persistence")
    return bool(told["aof_rewrite_in_progress"] or told["aof_rewrite_scheduled"])


def _reads(redis: Redis) -> float:
    """Requests that Redis has read from its clients until now; commands within a script do not count."""
    return float(redis.info("stats")["total_reads_processed"])


def _used(stack: Stack) -> int:
    return int(stack.redis.client.info("memory")["used_memory"])
