"""The stages of a batch: each kind of failure costs its own job only."""

from __future__ import annotations

import json
import logging
import random
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_serializer
from pydantic_core import to_json

from worker.errors import ServicesError, field_errors
from worker.inference.items import BatchItems, Outcome
from worker.inference.runner import MAX_BACKOFF_S, backoff_s
from worker.inference.stages import run_stages
from worker.service import Service


class Input(BaseModel):
    n: int
    do: str = ""


class Output(BaseModel):
    n: int = Field(lt=1000)
    score: float | None = None


class Double(Service[Input, Output]):
    """Doubles; ``do`` tells it to misbehave in one of its verbs."""

    calls: ClassVar[list[int]] = []

    def preprocess(self, input: Input) -> Input:
        if input.do == "preprocess":
            raise RuntimeError("not in the mood")
        return input

    def predict_batch(self, batch: list[Input]) -> list[dict[str, Any]]:
        self.calls.append(len(batch))
        for item in batch:
            if item.do == "predict":
                raise ValueError("bad one")
            if item.do == "memory":
                raise MemoryError("too much")
            if item.do == "exit":
                raise SystemExit(3)
        return [{"n": 2 * item.n, "score": float("nan") if item.do == "nan" else None} for item in batch]


@pytest.fixture(autouse=True)
def no_calls() -> None:
    Double.calls.clear()


def run(service: Service[Any, Any], inputs: list[Any]) -> list[Outcome]:
    batch_items = BatchItems([value if isinstance(value, bytes) else json.dumps(value).encode() for value in inputs])
    run_stages(service, batch_items)
    return batch_items.outcomes()


def ending(outcome: Outcome) -> Any:
    return outcome.code if isinstance(outcome, ServicesError) else json.loads(outcome)["n"]


def test_every_output_answers_its_own_input() -> None:
    # given inputs in a random order, so that a swap cannot hide
    numbers = random.Random(7).sample(range(400), 64)

    ended = run(Double(), [{"n": n} for n in numbers])

    assert [ending(one) for one in ended] == [2 * n for n in numbers]
    assert Double.calls == [64]


@pytest.mark.parametrize(
    ("bad", "code", "words"),
    [
        ({"n": "x"}, "invalid_input", "n: Input should be a valid integer"),
        (b"{nonsense", "invalid_input", "JSON"),
        ({"n": 1, "do": "preprocess"}, "predict_failed", "RuntimeError: not in the mood (in preprocess)"),
        ({"n": 1, "do": "predict"}, "predict_failed", "ValueError: bad one (in predict_batch)"),
        ({"n": 1, "do": "memory"}, "predict_failed", "MemoryError: too much"),
        ({"n": 1, "do": "exit"}, "predict_failed", "SystemExit: 3"),
        ({"n": 900}, "invalid_output", "n: Input should be less than 1000"),
        ({"n": 1, "do": "nan"}, "invalid_output", "NaN"),
    ],
)
def test_one_bad_item_costs_its_own_job_only(bad: Any, code: str, words: str) -> None:
    ended = run(Double(), [{"n": 1}, {"n": 2}, bad, {"n": 3}, {"n": 4}])

    assert [ending(one) for one in ended] == [2, 4, code, 6, 8]
    error = ended[2]
    assert isinstance(error, ServicesError) and words in error.message


def test_characters_that_utf8_cannot_write_are_spelled_out_in_an_exceptions_text() -> None:
    class Blunt(Double):
        def preprocess(self, input: Input) -> Input:
            raise ValueError("no such file: caf\udce9")  # as of a file's name that is no UTF-8

    (error,) = run(Blunt(), [{"n": 1}])
    assert isinstance(error, ServicesError)
    message = json.loads(to_json(error.to_dict()))["message"]
    assert message == "ValueError: no such file: caf\\udce9 (in preprocess)"


@pytest.mark.parametrize("value", [float("nan"), [1, float("inf")], {"deep": {"er": (float("nan"),)}}])
def test_nan_is_refused_where_the_output_may_be_anything(value: Any) -> None:
    class Anything(BaseModel):
        n: int = 0
        any: Any = None
        kept: float | None = None

        @field_serializer("kept", when_used="json")
        def as_null(self, kept: float | None) -> float | None:
            return None if kept != kept else kept

    class Free(Service[Input, Anything]):
        def predict(self, features: Input) -> Anything:
            return Anything(any=value) if features.do else Anything(kept=float("nan"))

    # an author's own null for NaN is left alone
    assert [ending(item) for item in run(Free(), [{"n": 1, "do": "x"}, {"n": 1}])] == ["invalid_output", 0]


def test_field_errors_name_the_field() -> None:
    (error,) = run(Double(), [{"n": "x"}])
    assert isinstance(error, ServicesError)
    assert error.errors == [
        {
            "loc": ["n"],
            "msg": "Input should be a valid integer, unable to parse string as an integer",
            "type": "int_parsing",
        }
    ]


def test_a_batch_that_fails_as_a_whole_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("services"), "propagate", True)  # another test may have set its handler up

    class Broken(Double):
        def predict_batch(self, batch: list[Any]) -> list[Any]:
            raise ZeroDivisionError

    ended = run(Broken(), [{"n": n} for n in range(32)])
    assert {ending(one) for one in ended} == {"predict_failed"}
    assert {record.message for record in caplog.records if record.levelno >= logging.WARNING} == {
        "ZeroDivisionError (in predict_batch) raised on 32 items; running its halves"
    }


def test_a_validators_own_words_are_told_without_the_exceptions_name() -> None:
    def refuse(value: int) -> int:
        raise ValueError("expected an even number")

    class Even(BaseModel):
        n: Annotated[int, AfterValidator(refuse)]

    with pytest.raises(ValidationError) as raised:
        Even(n=1)
    assert field_errors(raised.value, ["body"]) == [
        {"loc": ["body", "n"], "msg": "expected an even number", "type": "value_error"}
    ]


def test_a_failing_batch_is_halved_only_where_the_author_lets_it() -> None:
    class Impure(Double):
        split_failed_batches = False

    ended = run(Impure(), [{"n": 1}, {"n": 1, "do": "predict"}])

    assert [ending(one) for one in ended] == ["predict_failed", "predict_failed"]
    assert Double.calls == [2]


def test_a_failed_or_dropped_input_moves_no_other() -> None:
    seen: list[int] = []

    class Moody(Service[Input, Output]):
        def preprocess(self, input: Input) -> int:
            seen.append(input.n)
            if input.n % 3 == 0:
                raise StopIteration  # which would end a loop over all of them
            return input.n

        def predict_batch(self, batch: list[int]) -> list[int]:
            batch.reverse()  # the list is the author's own
            return [n + 100 for n in reversed(batch)]

        def postprocess(self, raw: int) -> Output:
            if raw % 5 == 0:
                raise ValueError("bad one")
            return Output(n=raw)

    ended = run(Moody(), [{"n": n} if n % 7 else {} for n in range(60)])

    assert seen == [n for n in range(60) if n % 7], "each once, in order"
    assert [ending(one) for one in ended] == [
        "invalid_input" if n % 7 == 0 else "predict_failed" if n % 3 == 0 or n % 5 == 0 else n + 100 for n in range(60)
    ]


def test_predict_is_called_one_by_one_and_never_twice() -> None:
    seen: list[int] = []

    class Single(Service[Input, Output]):
        def predict(self, features: Input) -> dict[str, int]:
            seen.append(features.n)
            if features.do:
                raise ValueError("bad one")
            return {"n": features.n}

    ended = run(Single(), [{"n": 1}, {"n": 2, "do": "x"}, {"n": 3}])

    assert [ending(one) for one in ended] == [1, "predict_failed", 3]
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([1, 2], "expected 3, got 2"),
        ([1, 2, 3, 4], "expected 3, got 4"),
        ([], "expected 3, got 0"),
        ({"a": 1}, "a list of 3 results, one for each input; got dict"),
        (None, "got NoneType"),
        ("abc", "got str"),
        (iter([1, 2, 3]), "got list_iterator"),
    ],
)
def test_a_wrong_number_of_outputs_names_expected_and_got(answer: Any, words: str) -> None:
    class Wrong(Service[Input, Output]):
        def predict_batch(self, batch: list[Input]) -> Any:
            return answer

    for error in run(Wrong(), [{"n": n} for n in range(3)]):
        assert isinstance(error, ServicesError)
        assert error.code == "invalid_output" and words in error.message


def test_a_batch_with_no_valid_input_never_reaches_the_model() -> None:
    run(Double(), [{"n": "x"}, {}])
    assert Double.calls == []


def test_timings_and_the_batch_size_that_the_model_saw() -> None:
    timings = run_stages(Double(), BatchItems([b'{"n": 1}', b"{}", b'{"n": 1}']))
    assert timings.batch_size == 2
    told = json.loads(timings.to_json())
    assert set(told) == {"preprocess_ms", "predict_ms", "postprocess_ms"} and all(ms >= 0 for ms in told.values())


class Bucketed(Service[Input, Output]):
    """Pads, so that numbers of like length go together."""

    def load(self) -> None:
        self.calls: list[list[int]] = []

    def bucket(self, features: Input) -> int:
        if features.do == "bucket":
            raise ValueError("no such length")
        return len(str(features.n))

    def predict_batch(self, batch: list[Input]) -> list[dict[str, Any]]:
        self.calls.append([item.n for item in batch])
        return [{"n": item.n} for item in batch]


def test_only_items_of_one_bucket_go_to_a_predict_batch_and_none_is_swapped() -> None:
    service = Bucketed()
    service.load()
    ended = run(service, [{"n": 7}, {"n": 70}, {"n": 8}, {"n": 5, "do": "bucket"}, {"n": 700}, {"n": 71}])
    assert service.calls == [[7, 8], [70, 71], [700]]
    error = ended.pop(3)
    assert [ending(one) for one in ended] == [7, 70, 8, 700, 71]
    assert isinstance(error, ServicesError) and "no such length (in bucket)" in error.message


def test_the_pause_before_a_retry_doubles_with_jitter_and_has_a_limit() -> None:
    for attempt, middle in ((1, 2), (2, 4), (3, 8), (5, 32)):
        pauses = [backoff_s(2, attempt) for _ in range(200)]
        assert all(middle / 2 <= pause <= middle * 1.5 for pause in pauses)
        assert max(pauses) > middle > min(pauses), "retries do not meet"
    assert 0 < backoff_s(2, 1000) <= MAX_BACKOFF_S
