"""The real plugins without a queue: the gain of batches and buckets, and of preprocessing ahead."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.measures import Figures, say
from benchmarks.stacks import example_of
from worker.discovery import find_plugins, load_service
from worker.errors import ServicesError
from worker.inference.items import BatchItems
from worker.inference.stages import postprocess, predict, preprocess, validate
from worker.service import Service

#: Full batches of each plugin that take about the same time.
BATCHES = {"antifraud": 100, "embed": 5}
#: Words of a text: a search query up to a paragraph.
LENGTHS = (4, 8, 12, 20, 40, 80)
WORDS = ("a", "the", "of", "and", "for", "sentence", "embedding", "queue", "worker", "batch", "request", "durable")


def ahead(rounds: int) -> Figures:
    """The same batches in turn, as the worker does, and with the next prepared in a thread while the model computes.

    A core is free for the thread, so this is the best case.
    """
    found: Figures = defaultdict(list)
    for name, count in BATCHES.items():
        service = _load(name)
        batches = [_inputs(name, service.max_batch_size) for _ in range(count)]
        _in_turn(service, batches[:1])
        for _ in range(rounds):
            whole_s, before_s = _timed(_in_turn, service, batches)
            ahead_s, _ = _timed(_prepared_ahead, service, batches)
            found[f"{name}, share of a batch's time before the model"].append(before_s / whole_s)
            found[f"{name}, preprocessed ahead in a thread against in turn, times as fast"].append(whole_s / ahead_s)
            say(found)
    return found


def buckets(rounds: int) -> Figures:
    """``embed``: the same texts one at a time, in batches padded to their longest text, and in buckets."""
    found: Figures = defaultdict(list)
    service = _load("embed")

    class Padded(type(service)):  # type: ignore[misc]
        bucket = Service.bucket  # all in one

    padded = Padded()
    padded.__dict__.update(service.__dict__)
    texts = _inputs("embed", 2 * service.max_batch_size)
    ways = {
        "one at a time": (service, 1),
        f"{service.max_batch_size} padded together": (padded, service.max_batch_size),
        f"{service.max_batch_size} in buckets": (service, service.max_batch_size),
    }
    for _ in range(rounds):
        for way, (runs, size) in ways.items():
            seconds, _ = _timed(_in_turn, runs, [texts[i : i + size] for i in range(0, len(texts), size)])
            found[f"embed in process, {way}, texts/s"].append(len(texts) / seconds)
        say(found)
    return found


def _load(name: str) -> Service[Any, Any]:
    service = load_service(find_plugins([name])[0])()
    service.load()
    service.warmup()
    return service


def _inputs(name: str, count: int) -> list[bytes]:
    """Texts of several lengths for ``embed``; the plugin's own example for the other."""
    if name != "embed":
        return [json.dumps(example_of(name)).encode()] * count
    chance = random.Random(count)
    lengths = [chance.choice(LENGTHS) for _ in range(count)]
    return [json.dumps({"text": " ".join(chance.choices(WORDS, k=length))}).encode() for length in lengths]


def _prepare(service: Service[Any, Any], batch: list[bytes]) -> BatchItems:
    batch_items = BatchItems(batch)
    validate(service, batch_items)
    preprocess(service, batch_items)
    return batch_items


def _finish(service: Service[Any, Any], batch_items: BatchItems) -> None:
    predict(service, batch_items)
    postprocess(service, batch_items)
    for outcome in batch_items.outcomes():
        if isinstance(outcome, ServicesError):
            raise outcome


def _in_turn(service: Service[Any, Any], batches: list[list[bytes]]) -> float:
    """Gives the seconds before the model."""
    before_s = 0.0
    for batch in batches:
        seconds, batch_items = _timed(_prepare, service, batch)
        before_s += seconds
        _finish(service, batch_items)
    return before_s


def _prepared_ahead(service: Service[Any, Any], batches: list[list[bytes]]) -> None:
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(_prepare, service, batches[0])
        for following in [*batches[1:], None]:
            batch_items = coming.result()
            if following:
                coming = thread.submit(_prepare, service, following)
            _finish(service, batch_items)


def _timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - started, result
