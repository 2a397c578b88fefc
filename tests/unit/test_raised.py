"""Whatever a plugin raises becomes a text, and verbs that nobody would await are refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from types import new_class
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from worker.errors import say
from worker.inference.items import BatchItems
from worker.inference.stages import run_stages
from worker.service import Service


class Panic(BaseException):
    pass


class NoText(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]


class Exits(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class RefusesWithout(ValueError):
    __str__ = NoText.__str__


DEEP = ExceptionGroup("1", [ExceptionGroup("2", [ExceptionGroup("3", [ExceptionGroup("4", [ValueError("5")])])])])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("bad one"), "ValueError: bad one"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (Panic("index"), "Panic: index"),
        (NoText(), "NoText: (its text cannot be had: __str__ raised TypeError)"),
        (Exits(), "Exits: (its text cannot be had: __str__ raised SystemExit)"),
        (ValueError("\ud800"), "ValueError: \\ud800"),
        (
            ExceptionGroup("many", [ValueError("a"), NoText()]),
            "ExceptionGroup: many (2 sub-exceptions): ValueError: a; "
            "NoText: (its text cannot be had: __str__ raised TypeError)",
        ),
        (BaseExceptionGroup("x", [Panic("p")]), "BaseExceptionGroup: x (1 sub-exception): Panic: p"),
    ],
)
def test_an_exceptions_text(error: BaseException, text: str) -> None:
    assert say(error) == text


def test_the_text_of_a_group_is_bounded() -> None:
    many = say(ExceptionGroup("many", [ValueError("x" * 10_000)] * 1000))
    assert many.endswith("; 995 more") and len(many) < 2000
    assert say(DEEP).endswith("ExceptionGroup: 4 (1 sub-exception): 1 more")


class Input(BaseModel):
    n: int = 0
    do: str = ""

    @field_validator("do")
    @classmethod
    def _check(cls, value: str) -> str:
        if value == "refuse":
            raise RefusesWithout
        if value == "panic":
            raise Panic("in the validator")
        return value


class Output(BaseModel):
    n: int


def outcomes(service: Service[Any, Any], *inputs: dict[str, Any]) -> list[Any]:
    batch_items = BatchItems([json.dumps(one).encode() for one in inputs], [str(i) for i in range(len(inputs))])
    run_stages(service, batch_items)
    return [getattr(one, "message", one) for one in batch_items.outcomes()]


RAISED: list[BaseException] = [
    asyncio.CancelledError("out"),
    KeyboardInterrupt(),
    GeneratorExit(),
    Panic("p"),
    NoText(),
]


@pytest.mark.parametrize("verb", ["preprocess", "bucket", "predict_batch", "postprocess"])
@pytest.mark.parametrize("raised", RAISED, ids=lambda one: type(one).__name__)
def test_whatever_a_verb_raises_fails_its_own_job(verb: str, raised: BaseException) -> None:
    def is_bad(value: Any) -> bool:
        return bool((value[0] if isinstance(value, list) else value).n == 2)

    class Plugin(Service[Input, Output]):
        def preprocess(self, input: Input) -> Any:
            return self.run("preprocess", input)

        def bucket(self, features: Any) -> Any:
            return self.run("bucket", features.n)

        def predict_batch(self, batch: list[Any]) -> list[Any]:
            return [self.run("predict_batch", one) for one in batch]

        def postprocess(self, raw: Any) -> Any:
            return {"n": self.run("postprocess", raw).n}

        def run(self, name: str, value: Any) -> Any:
            if name == verb and (value == 2 if isinstance(value, int) else is_bad(value)):
                raise raised
            return value

    good, bad, other = outcomes(Plugin(), {"n": 1}, {"n": 2}, {"n": 3})
    assert (good, other) == (b'{"n":1}', b'{"n":3}')
    assert bad == f"{say(raised)} (in {verb})"


def test_an_exception_of_a_generator_or_a_validator_fails_its_own_job() -> None:
    class Plugin(Service[Input, Output]):
        def predict(self, features: Input) -> Iterator[Any]:
            yield 1
            raise GeneratorExit if features.n else Panic("half way")

    yielded, exits, refused, panicked = outcomes(Plugin(), {}, {"n": 1}, {"do": "refuse"}, {"do": "panic"})
    assert yielded == "Panic: half way (in predict)"
    assert exits == "GeneratorExit (in predict)"
    assert refused == "TypeError: __str__ returned non-string (type NoneType) (in the Input's validation)", "pydantic's"
    assert panicked == "Panic: in the validator (in the Input's validation)"


async def _answer(self: Any, value: Any = None) -> Any:
    return value


async def _stream(self: Any, value: Any = None) -> Any:
    yield value


class Awaitable:
    async def __call__(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize("verb", ["load", "warmup", "preprocess", "bucket", "predict", "predict_batch", "postprocess"])
@pytest.mark.parametrize("own", [_answer, _stream, staticmethod(_answer), Awaitable()])
def test_an_async_verb_is_refused_when_its_class_is_made(verb: str, own: Callable[..., Any]) -> None:
    verbs = {"predict": lambda self, features: features, verb: own}
    instead = rf"{verb} must not be async.* name it _{verb} and write `def {verb}\(self"
    with pytest.raises(TypeError, match=instead) as caught:
        new_class("Plugin", (Service[Input, Output],), exec_body=lambda body: body.update(verbs))
    assert f"return asyncio.run(self._{verb}(" in str(caught.value)


def test_a_verb_that_returns_an_awaitable_is_refused() -> None:
    class Plugin(Service[Input, Output]):
        def predict(self, features: Input) -> Any:
            return _answer(self, features)

    (failed,) = outcomes(Plugin(), {"n": 1})
    assert failed == (
        "got a coroutine, which nobody awaits; a verb must return its result: write `return asyncio.run(...)` around it"
    )
