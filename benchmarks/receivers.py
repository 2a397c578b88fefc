"""The cost of webhooks with a dead receiver for the other jobs."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx

from benchmarks.measures import Figures, folder, say
from benchmarks.stacks import Ours, cpu_s
from tests.kit.receiver import Receiver
from tests.kit.system import free_port

#: Seconds between two jobs with a webhook.
EVERY_S = 0.05
#: The end of a request to the receiver; "none": the jobs have no webhook.
DEAD = ("answers 500", "hangs", "is away")
KINDS = ("none", "answers", *DEAD)


def receivers(rounds: int, seconds: float) -> Figures:
    """Jobs a second of 64 clients while others' jobs end at 20 a second, for whose webhooks nobody is there.

    A stack for each kind of receiver, all there at once and measured in turn, in an order drawn anew for each round:
    the machine's own load, for seconds or minutes, affects each alike.
    """
    found: Figures = defaultdict(list)
    order, drawn = list(KINDS), random.Random(0)
    with ExitStack() as opened:
        stacks = {kind: opened.enter_context(_stack(kind)) for kind in KINDS}
        for _ in range(rounds):
            drawn.shuffle(order)
            speeds = {}
            for kind in order:
                stack, sender, url = stacks[kind]
                with _fed(stack, url):
                    used, begun = cpu_s(sender), time.perf_counter()
                    speeds[kind] = stack.measure(seconds=seconds)["jobs_s"]
                    share = (cpu_s(sender) - used) / (time.perf_counter() - begun)
                found[f"webhooks, receiver {kind}: jobs/s"].append(speeds[kind])
                found[f"webhooks, receiver {kind}: their worker's share of a core"].append(share)
            for kind in KINDS:
                if kind != "answers":
                    ratio = speeds[kind] / speeds["answers"]
                    found[f"webhooks, receiver {kind}: jobs/s against one that answers"].append(ratio)
            say(found)
    return found


@contextmanager
def _stack(kind: str) -> Iterator[tuple[Ours, int, str]]:
    """A stack, the process that sends its webhooks, and where these go."""
    with _receiver(kind) as url, Ours(folder(), "tiny", SERVICES_WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8") as stack:
        sender = stack.spawn("celery", "-A", "worker", "worker", "-Q", "webhooks")
        with _fed(stack, url):
            stack.measure(seconds=1)
        yield stack, sender.pid, url


@contextmanager
def _receiver(kind: str) -> Iterator[str]:
    """Where the webhooks go; "" for none."""
    if kind in ("none", "is away"):
        yield "" if kind == "none" else f"http://127.0.0.1:{free_port()}/"
        return
    receiver = Receiver().start()
    try:
        if kind == "hangs":
            yield receiver.hang("/")
        else:
            yield receiver.on("/", lambda _: (500 if kind == "answers 500" else 200, {}))
    finally:
        receiver.stop()


@contextmanager
def _fed(stack: Ours, url: str) -> Iterator[None]:
    """Meanwhile, jobs with this webhook are sent."""
    body = {"service": stack.model, "input": json.loads(stack.input.read_text()), **({"webhook": url} if url else {})}
    stopped, failed = threading.Event(), []

    def feed() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{stack.port}", trust_env=False, timeout=30) as client:
            for _ in itertools.count():
                answer = client.post("/jobs", json=body)
                if answer.status_code != 202:
                    failed.append(answer.text)
                if stopped.wait(EVERY_S):
                    return

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
    if failed:
        raise RuntimeError(f"{len(failed)} jobs with a webhook were refused: {failed[0]}")
