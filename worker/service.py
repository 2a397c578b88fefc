"""THE CONTRACT between a plugin's author and the framework.

A service is a class with the four verbs ``load``, ``preprocess``, ``predict`` and ``postprocess``.
``predict`` alone makes a correct service; ``predict_batch`` makes a fast one::

    class Antifraud(Service[Input, Output]):
        max_batch_size = 64

        def load(self) -> None:
            self.model = Booster(model_file="model.txt")  # heavy imports and weights belong here

        def predict_batch(self, batch: list[Input]) -> list[float]:
            return self.model.predict([[x.amount] for x in batch]).tolist()

        def postprocess(self, raw: float) -> Output:
            return Output(score=raw)

For one batch the worker calls ``preprocess`` on each input, ``predict_batch`` once, and ``postprocess`` on each raw
result. An exception for one input fails that job alone.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Hashable
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

from worker import progress
from worker.files import holds_files

Input = TypeVar("Input")
Output = TypeVar("Output")


class Service(Generic[Input, Output]):
    """Base class of every service. Subclass it as ``Service[Input, Output]`` with two pydantic models.

    One instance is made in each process of the worker's pool. It runs one batch at a time, so plain attributes are
    safe; nothing is shared between processes.
    """

    #: Most jobs that one ``predict_batch`` is given.
    max_batch_size: ClassVar[int] = 32
    #: Milliseconds to hold a batch that is not full, counted from its oldest job. 0: take the waiting jobs at once.
    max_queue_delay_ms: ClassVar[float] = 0
    #: Batch sizes for which the model is fastest, such as those that it was compiled for. Where at least that number
    #: of jobs waits, the
    #: largest of these sizes is taken at once; fewer than the smallest are held back as ``max_queue_delay_ms`` says.
    preferred_batch_sizes: ClassVar[tuple[int, ...]] = ()
    #: Jobs that may wait; more are refused with 429 ``queue_full``. 0: no limit.
    max_queue_size: ClassVar[int] = 0
    #: Seconds that one run of a whole batch may take; then its process is ended.
    time_limit_s: ClassVar[float] = 60
    #: Bytes of input (JSON) that may wait; more are refused in the same way. 0: no limit.
    max_queue_bytes: ClassVar[int] = 1024**3
    #: BatchLoop that a job gets: where its process dies in each, it fails as ``worker_lost``; see also ``retry_on``.
    max_attempts: ClassVar[int] = 3
    #: Exceptions after which a job is run again, such as a model server's ``ConnectionError``. All others fail it.
    retry_on: ClassVar[tuple[type[Exception], ...]] = ()
    #: Whether a run over ``time_limit_s`` is tried again.
    retry_timeouts: ClassVar[bool] = False
    #: Seconds before the second attempt; doubled for each further one, with jitter, up to five minutes.
    retry_backoff_s: ClassVar[float] = 1
    #: Resident megabytes (2**20 bytes) of a pool process: over it, it is ended, and its batch is run again one by one;
    #: over four fifths of it after a batch, it is replaced. 0: no limit.
    memory_limit_mb: ClassVar[float] = 0
    #: Seconds for which an output is given to later jobs with an equal input too; equal jobs in flight run once. For a
    #: model that answers the same each time. 0: each job runs, unless it asks otherwise.
    cache_for_s: ClassVar[float] = 0
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
        """Turn one validated input into a value for ``predict``. Default: the input itself."""
        return input

    def bucket(self, features: Any) -> Hashable:
        """Name the bucket of an item: only items of one bucket go to a ``predict_batch`` together.

        For models that pad: with texts bucketed by their length, none is padded to the longest of the batch. Default:
        one bucket for all.
        """
        return None

    def predict(self, features: Any) -> Any:
        """Run the model on one item. Write this or ``predict_batch``.

        It may ``yield``: each value is a partial output, which clients see at once. Then ``postprocess`` gets its
        return value or, if that is None, the list of the yielded values.
        """
        return self.predict_batch([features])[0]

    def predict_batch(self, batch: list[Any]) -> list[Any]:
        """Run the model on 1 to ``max_batch_size`` items; return one result for each, in the same order."""
        return [self.predict(features) for features in batch]

    def postprocess(self, raw: Any) -> Output:
        """Turn one raw result into the output. Default: ``Output`` validated from it."""
        output: Output = TypeAdapter(self.Output).validate_python(raw)
        return output

    def progress(self, value: float, message: str | None = None) -> None:
        """Report the job's progress, from 0 to 1; in ``predict_batch``, that of all jobs of the call.

        Call it in a verb, as often as you like. ``GET /jobs/<id>`` shows the last value, its events show each.
        """
        progress.current().progress(value, message)

    @classmethod
    def knobs(cls) -> dict[str, Any]:
        """The class's settings by name, as ``GET /services`` shows them."""
        knobs = {name: getattr(cls, name) for name in KNOBS}
        retry_on = [exception.__name__ for exception in cls.retry_on]
        return {**knobs, "preferred_batch_sizes": list(cls.preferred_batch_sizes), "retry_on": retry_on}


#: Every knob but ``retry_on`` and ``preferred_batch_sizes``: its type and its least value.
KNOBS: dict[str, tuple[type, float]] = {
    "max_batch_size": (int, 1),
    "max_queue_delay_ms": (float, 0),
    "max_queue_size": (int, 0),
    "time_limit_s": (float, 0.001),
    "max_queue_bytes": (int, 0),
    "max_attempts": (int, 1),
    "retry_timeouts": (bool, 0),
    "retry_backoff_s": (float, 0.001),
    "memory_limit_mb": (float, 0),
    "cache_for_s": (float, 0),
    "split_failed_batches": (bool, 0),
}


#: Every verb that an author may write, and its arguments.
VERBS: dict[str, tuple[str, ...]] = {
    "load": (),
    "warmup": (),
    "preprocess": ("input",),
    "bucket": ("features",),
    "predict": ("features",),
    "predict_batch": ("batch",),
    "postprocess": ("raw",),
}


def has_own(cls: type[Service[Any, Any]], verb: str) -> bool:
    """Whether the author wrote ``verb``, rather than inheriting the contract's default."""
    return getattr(cls, verb) is not getattr(Service, verb)


def _check_class(cls: type[Service[Any, Any]]) -> None:
    """Refuse mistakes at import that could only fail later, with a text that names the mend."""
    where = f"{cls.__module__}.{cls.__qualname__}"
    if not hasattr(cls, "Input"):
        raise TypeError(f"{where}: name its models, as in `class {cls.__name__}(Service[Input, Output])`")
    for role in ("Input", "Output"):
        model = getattr(cls, role)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise TypeError(f"{where}: {role} must be a pydantic BaseModel, got {model!r}")
    if not has_own(cls, "predict") and not has_own(cls, "predict_batch"):
        raise TypeError(f"{where}: write `predict` (one item) or `predict_batch` (many); it has {_near_miss(cls)}")
    _refuse_async(cls, where)
    for name, (kind, least) in KNOBS.items():
        value = getattr(cls, name)
        fits = isinstance(value, bool) if kind is bool else _is_number(value, kind) and value >= least
        if not fits:
            expected = "True or False" if kind is bool else f"a number of at least {least:g} ({kind.__name__})"
            raise TypeError(f"{where}: {name} must be {expected}, got {value!r}")

    sizes, most = cls.preferred_batch_sizes, cls.max_batch_size
    if not (isinstance(sizes, tuple) and all(_is_number(size, int) and 1 <= size <= most for size in sizes)):
        expected = f"a tuple of whole numbers from 1 to max_batch_size ({most})"
        raise TypeError(f"{where}: preferred_batch_sizes must be {expected}, got {sizes!r}")
    if cls.cache_for_s and holds_files(cls.Output, "serialization"):
        raise TypeError(f"{where}: cache_for_s must be 0: Output holds files, which live no longer than their own job")
    retry_on = cls.retry_on
    if not (isinstance(retry_on, tuple) and all(isinstance(e, type) and issubclass(e, Exception) for e in retry_on)):
        raise TypeError(f"{where}: retry_on must be a tuple of exception classes, got {retry_on!r}")


def _near_miss(cls: type[Service[Any, Any]]) -> str:
    """A method that may have been meant for a verb, else that there is neither verb."""
    own = [name for name in vars(cls) if not name.startswith("__") and name not in VERBS]
    for verb in ("predict", "predict_batch"):
        if close := difflib.get_close_matches(verb, own, n=1, cutoff=0.75):
            return f"`{close[0]}`: did you mean `{verb}`?"
    return "neither"


def _refuse_async(cls: type[Service[Any, Any]], where: str) -> None:
    for verb, arguments in VERBS.items():
        own = getattr(cls, verb)
        if _is_async(own) or _is_async(type(own).__dict__.get("__call__")):
            values, given = ", ".join(["self", *arguments]), ", ".join(arguments)
            instead = f"name it _{verb} and write `def {verb}({values}): return asyncio.run(self._{verb}({given}))`"
            raise TypeError(f"{where}: {verb} must not be async, since nobody awaits a verb; {instead}")


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _is_number(value: Any, kind: type) -> bool:
    kinds = (int,) if kind is int else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
