"""The contract: what is refused when a plugin's class is made, and with which words."""

from __future__ import annotations

import re
import types
from typing import Any, Generic, TypeVar

import pytest
from pydantic import BaseModel

from worker.service import Service, has_own


def new_class(base: Any, verbs: dict[str, Any], name: str = "Made") -> Any:
    return types.new_class(name, (base,), exec_body=lambda namespace: namespace.update(verbs))


class Input(BaseModel):
    n: int


class Output(BaseModel):
    n: int


def test_a_service_with_predict_gets_predict_batch() -> None:
    class Double(Service[Input, Output]):
        def predict(self, features: Input) -> dict[str, int]:
            return {"n": 2 * features.n}

    service = Double()
    raws = service.predict_batch([service.preprocess(Input(n=n)) for n in (1, 2, 3)])
    assert [service.postprocess(raw) for raw in raws] == [Output(n=2), Output(n=4), Output(n=6)]


def test_a_service_with_predict_batch_gets_predict() -> None:
    class Double(Service[Input, Output]):
        def predict_batch(self, batch: list[Input]) -> list[dict[str, int]]:
            return [{"n": 2 * features.n} for features in batch]

    assert Double().predict(Input(n=4)) == {"n": 8}
    assert has_own(Double, "predict_batch") and not has_own(Double, "predict")


def test_models_come_from_the_generic_parameters_of_a_base_too() -> None:
    In = TypeVar("In")
    Out = TypeVar("Out")

    class Base(Service[In, Out], Generic[In, Out]):
        def predict(self, features: Any) -> Any:
            return {"n": features.n}

    class Concrete(Base[Input, Output]):
        pass

    assert Concrete.Input is Input and Concrete.Output is Output


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_batch_size", 0, "at least 1"),
        ("max_batch_size", True, "at least 1"),
        ("max_batch_size", 2.5, "at least 1"),
        ("max_queue_delay_ms", -1, "at least 0"),
        ("preferred_batch_sizes", (8, 64), "max_batch_size"),
        ("preferred_batch_sizes", [8], "a tuple"),
        ("max_queue_size", "many", "at least 0"),
        ("time_limit_s", 0, "at least 0.001"),
        ("time_limit_s", float("nan"), "at least 0.001"),
        ("max_attempts", 0, "at least 1"),
        ("split_failed_batches", 1, "True or False"),
    ],
)
def test_a_knob_that_cannot_be_names_itself(name: str, value: object, words: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be .*{words}.*, got {re.escape(repr(value))}"):
        new_class(Service[Input, Output], {name: value, "predict": lambda self, x: x})


def test_a_class_without_models_is_told_how_to_name_them() -> None:
    with pytest.raises(TypeError, match=r"class Bare\(Service\[Input, Output\]\)"):
        new_class(Service, {"predict": lambda self, x: x}, name="Bare")


def test_a_class_without_predict_gets_an_error_with_the_remedy() -> None:
    with pytest.raises(TypeError, match="write `predict`"):
        new_class(Service[Input, Output], {})


def test_a_model_must_be_pydantic() -> None:
    with pytest.raises(TypeError, match=r"Output must be a pydantic BaseModel, got dict\[str, int\]"):
        new_class(Service[Input, dict[str, int]], {"predict": lambda self, x: x})
