"""THE CONTRACT: what the author of a plugin writes.

A service is a class with the four verbs ``load``, ``preprocess``, ``predict`` and ``postprocess``. Who writes
``predict`` gets a correct service; who writes ``predict_batch`` gets a fast one::

    class Antifraud(Service[Input, Output]):
        max_batch_size = 64

        def load(self) -> None:
            self.model = Booster(model_file="model.txt")  # heavy imports and weights belong here

        def predict_batch(self, batch: list[Input]) -> list[float]:
            return self.model.predict([[x.amount] for x in batch]).tolist()

        def postprocess(self, raw: float) -> Output:
            return Output(score=raw)

For one batch the worker calls ``preprocess`` on each input, ``predict_batch`` once, and ``postprocess`` on each raw
result. What any of them raises for one input fails that job alone.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

Input = TypeVar("Input")
Output = TypeVar("Output")


class Service(Generic[Input, Output]):
    """Base class of every service. Subclass it as ``Service[Input, Output]`` with two pydantic models.

    One instance is made in each process of the worker's pool. It runs one batch at a time, so plain attributes are
    safe; nothing is shared between processes.
    """

    #: Most jobs that one ``predict_batch`` is given.
    max_batch_size: ClassVar[int] = 32
    #: Milliseconds to hold a batch that is not full, counted from its oldest job. 0: take what waits, hold nothing.
    max_queue_delay_ms: ClassVar[float] = 0
    #: Jobs that may wait; more are refused with 429 ``queue_full``. 0: no limit.
    max_queue_size: ClassVar[int] = 0
    #: Seconds that one run of a whole batch may take; then its process is ended.
    time_limit_s: ClassVar[float] = 60
    #: Runs that a job may cost its worker its life before it fails as ``worker_lost``.
    max_attempts: ClassVar[int] = 3
    #: When ``predict_batch`` raises, run its halves again, down to the culprit. Turn off for a model with side effects.
    split_failed_batches: ClassVar[bool] = True

    #: The two models, from ``Service[Input, Output]``.
    Input: ClassVar[Any]
    Output: ClassVar[Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in getattr(cls, "__orig_bases__", ()):
            origin, args = get_origin(base), get_args(base)
            named = len(args) == 2 and not any(isinstance(arg, TypeVar) for arg in args)
            if named and isinstance(origin, type) and issubclass(origin, Service):
                cls.Input, cls.Output = args
        if not getattr(cls, "__parameters__", ()):  # a base class that is still generic is not a service yet
            _check_class(cls)

    def load(self) -> None:
        """Load weights and heavy libraries into ``self``. Called once in each process, before any job."""

    def warmup(self) -> None:
        """Run once after ``load``, for instance a first prediction that compiles or fills caches."""

    def preprocess(self, input: Input) -> Any:
        """Turn one validated input into what ``predict`` takes. Default: the input itself."""
        return input

    def predict(self, features: Any) -> Any:
        """Run the model on one item. Write this or ``predict_batch``."""
        return self.predict_batch([features])[0]

    def predict_batch(self, batch: list[Any]) -> list[Any]:
        """Run the model on 1 to ``max_batch_size`` items; return one result for each, in the same order."""
        return [self.predict(features) for features in batch]

    def postprocess(self, raw: Any) -> Output:
        """Turn one raw result into the output. Default: ``Output`` validated from it."""
        output: Output = TypeAdapter(self.Output).validate_python(raw)
        return output

    @classmethod
    def knobs(cls) -> dict[str, Any]:
        """The class's settings by name, as ``GET /services`` shows them."""
        return {name: getattr(cls, name) for name in KNOBS}


#: Every knob: its type and its least value. ``time_limit_s`` is above 0, the others may be equal to theirs.
KNOBS: dict[str, tuple[type, float]] = {
    "max_batch_size": (int, 1),
    "max_queue_delay_ms": (float, 0),
    "max_queue_size": (int, 0),
    "time_limit_s": (float, 0.001),
    "max_attempts": (int, 1),
    "split_failed_batches": (bool, 0),
}


def has_own(cls: type[Service[Any, Any]], verb: str) -> bool:
    """Whether the author wrote ``verb``, rather than inheriting the contract's default."""
    return getattr(cls, verb) is not getattr(Service, verb)


def _check_class(cls: type[Service[Any, Any]]) -> None:
    """Refuse at import what could only fail later, with a text that says what to write instead."""
    where = f"{cls.__module__}.{cls.__qualname__}"
    if not hasattr(cls, "Input"):
        raise TypeError(f"{where}: name its models, as in `class {cls.__name__}(Service[Input, Output])`")
    for role in ("Input", "Output"):
        model = getattr(cls, role)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise TypeError(f"{where}: {role} must be a pydantic BaseModel, got {model!r}")
    if not has_own(cls, "predict") and not has_own(cls, "predict_batch"):
        raise TypeError(f"{where}: write `predict` (one item) or `predict_batch` (many); it has neither")
    for name, (kind, least) in KNOBS.items():
        value = getattr(cls, name)
        fits = isinstance(value, bool) if kind is bool else _is_number(value, kind) and value >= least
        if not fits:
            expected = "True or False" if kind is bool else f"a number of at least {least:g} ({kind.__name__})"
            raise TypeError(f"{where}: {name} must be {expected}, got {value!r}")


def _is_number(value: Any, kind: type) -> bool:
    kinds = (int,) if kind is int else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
