"""What a plugin says belongs to the job whose verb runs, and to no other."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import pytest
from pydantic import BaseModel

from worker.errors import ServicesError
from worker.inference.items import BatchItems, Outcome
from worker.inference.reporting import LogCapture, StdoutCapture
from worker.inference.stages import run_stages
from worker.progress import JobLog, active
from worker.service import Service


class Input(BaseModel):
    n: int


class Output(BaseModel):
    n: int


@contextmanager
def listening(most: int = 100) -> Iterator[JobLog]:
    speech = JobLog("s", "t", most, lambda: None)
    before, handler, logger = active.set(speech), LogCapture(), logging.getLogger("plugin")
    logger.addHandler(handler)
    try:
        with redirect_stdout(StdoutCapture(io.StringIO())):
            yield speech
    finally:
        logger.removeHandler(handler)
        active.reset(before)


def run(service: Service[Any, Any], *numbers: int, cancelled: Collection[str] = ()) -> list[Outcome]:
    batch_items = BatchItems([b'{"n": %d}' % n for n in numbers], [f"job-{n}" for n in numbers], cancelled)
    run_stages(service, batch_items)
    return batch_items.outcomes()


def texts(speech: JobLog) -> dict[str, list[Any]]:
    speech.end_line()
    found = {}
    for job_id, said in speech.next_group().items():
        assert [one.number for one in said] == sorted(one.number for one in said)
        data = [json.loads(one.data) for one in said]
        found[job_id] = [one.get("message") or one.get("output") for one in data]
    return found


class Talking(Service[Input, Output]):
    def preprocess(self, input: Input) -> Input:
        print("read", input.n, end="")
        return input

    def bucket(self, features: Input) -> int:
        logging.getLogger("plugin").warning("bucket of %d", features.n)
        return features.n // 10

    def predict_batch(self, batch: list[Input]) -> list[dict[str, int]]:
        self.progress(0.5, f"{len(batch)} items")
        return [{"n": item.n} for item in batch]

    def postprocess(self, raw: Any) -> Output:
        print(f"a\nb{raw['n']}")
        return Output(**raw)


def test_each_verb_speaks_for_its_own_job_and_predict_batch_for_all_of_its_call() -> None:
    with listening() as speech:
        run(Talking(), 1, 2, 10)
        told = texts(speech)
    assert told == {
        "job-1": ["read 1", "bucket of 1", "2 items", "a", "b1"],
        "job-2": ["read 2", "bucket of 2", "2 items", "a", "b2"],
        "job-10": ["read 10", "bucket of 10", "1 items", "a", "b10"],
    }
    assert speech.jobs == ()


def test_sent_events_are_dropped_and_the_oldest_lines_go_first() -> None:
    with listening(most=3) as speech:
        speech.jobs = ["a"]
        for n in range(5):
            speech.line("INFO", str(n))
        speech.output("a", 0, "part")
        assert texts(speech) == {"a": ["2", "3", "4", "part"]}
        group = speech.next_group()
        speech.line("INFO", "later")
        speech.sent(group)
        assert texts(speech) == {"a": ["later"]}


def test_a_line_has_an_end_however_long_it_is() -> None:
    with listening() as speech:
        speech.jobs = ["a"]
        logging.getLogger("plugin").warning("x" * 5000)
        for _ in range(5):
            print("y" * 1500, end="")
        speech.progress(0.5, "z" * 5000)
        assert [(text[0], len(text)) for text in texts(speech)["a"]] == [
            ("x", 2000), ("y", 2000), ("y", 2000), ("y", 1500), ("z", 2000),
        ]  # fmt: skip


class Yielding(Service[Input, Output]):
    closed = 0

    def predict(self, features: Input) -> Generator[Any, None, Any]:
        try:
            for n in range(features.n):
                yield {"part": n}
            if features.n == 3:
                return {"n": 33}
            return None
        finally:
            self.closed += 1

    def postprocess(self, raw: Any) -> Output:
        return Output(n=len(raw)) if isinstance(raw, list) else Output(**raw)


def test_a_generator_gives_its_return_value_or_else_the_list() -> None:
    with listening() as speech:
        outputs = run(Yielding(), 2, 3, 0)
        assert [json.loads(one)["n"] for one in outputs if isinstance(one, bytes)] == [2, 33, 0]
        assert texts(speech) == {"job-2": [{"part": 0}, {"part": 1}], "job-3": [{"part": n} for n in range(3)]}


class Flooding(Service[Input, Output]):
    told = 0

    def predict(self, features: Input) -> Generator[Any, None, Any]:
        for self.told in range(features.n):
            yield "x" * 2**20


def test_a_predict_that_yields_without_end_fails_at_8_mb() -> None:
    service = Flooding()
    with listening():
        (error,) = run(service, 1000)
    assert isinstance(error, ServicesError) and error.code == "invalid_output" and "yield less" in error.message
    assert service.told < 9


def test_a_cancelled_job_is_stopped_at_its_next_yield(monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled: set[str] = set()
    service = Yielding()

    def output(self: JobLog, job_id: str, index: int, value: Any, room: int) -> int:
        cancelled.add(job_id) if index == 4 else None
        return 0

    monkeypatch.setattr(JobLog, "output", output)
    (error,) = run(service, 1000000, cancelled=cancelled)
    assert isinstance(error, ServicesError) and error.code == "cancelled" and service.closed == 1
