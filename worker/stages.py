"""The stages of a batch that need no ledger: validate → preprocess → predict → postprocess.

Each stage is a function over a list of items. An item that fails keeps its error and is passed over by the stages
that follow, so one bad input, one bad output or one exception costs its own job only.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Generator, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import GeneratorType
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from worker.errors import Cancelled, InvalidInput, InvalidOutput, PredictFailed, ServicesError, field_errors
from worker.files import holds_files
from worker.service import Service, has_own
from worker.telling import MAX_PARTIAL_BYTES, current

log = logging.getLogger("services.worker")

#: Characters of an exception's text that reach the client.
MAX_MESSAGE = 2000

#: What may read as Infinity; a closer look then tells. Two patterns, since one that begins with a letter is looked for
#: seven times as fast as one that begins with either of two (a tenth of the time of a chunk of rows).
LARGE_EXPONENTS = (re.compile(rb"e\+?\d{3}"), re.compile(rb"E\+?\d{3}"))

#: What a plugin may raise: SystemExit too, since a plugin's ``exit()`` must not take its batch along.
PLUGIN_ERRORS = (Exception, SystemExit)


@dataclass(slots=True)
class Item:
    """A job inside a batch: ``value`` goes from stage to stage until ``error`` is set."""

    job_id: str
    value: Any  #: input JSON → Input → features → raw → Output → output JSON
    attempt: int = 1
    error: ServicesError | None = None
    cancelled: Collection[str] = ()  #: ids of the batch's jobs that are no longer wanted; grows as it runs

    @property
    def alive(self) -> bool:
        """Whether the next stage is to run it."""
        if self.error is None and self.job_id in self.cancelled:
            self.error = Cancelled()
        return self.error is None


@dataclass(slots=True)
class Timings:
    """Milliseconds that the batch spent in each stage, and how many items the model saw."""

    preprocess_ms: float = 0
    predict_ms: float = 0
    postprocess_ms: float = 0
    batch_size: int = 0

    def add(self, other: Timings) -> None:
        """The time of a further call of the model."""
        self.preprocess_ms = round(self.preprocess_ms + other.preprocess_ms, 3)
        self.predict_ms = round(self.predict_ms + other.predict_ms, 3)
        self.postprocess_ms = round(self.postprocess_ms + other.postprocess_ms, 3)

    def to_json(self) -> bytes:
        """As the ledger stores them."""
        stages = {"preprocess_ms": self.preprocess_ms, "predict_ms": self.predict_ms}
        return to_json({**stages, "postprocess_ms": self.postprocess_ms})


class Files(Protocol):
    """Where the files of inputs come from and those of outputs go to (``attach.BatchFiles``)."""

    def bring(self, items: Sequence[Item]) -> None:
        """Make the files of the inputs local; an item whose file cannot be had gets an error."""

    def keep(self, items: Sequence[Item]) -> None:
        """Store the files of the outputs."""

    def clear(self) -> None:
        """Remove what is local."""


def run_stages(service: Service[Any, Any], items: list[Item], files: Files | None = None) -> Timings:
    """The four stages that need no ledger, in place; ``value`` of each item without error is its output's JSON."""
    timings = Timings()
    try:
        timings.preprocess_ms = _timed(lambda: _prepare(service, items, files))
        timings.batch_size = len(_alive(items))
        timings.predict_ms = _timed(lambda: predict(service, items))
        timings.postprocess_ms = _timed(lambda: postprocess(service, items, files))
    finally:
        if files:
            files.clear()
    return timings


def _prepare(service: Service[Any, Any], items: list[Item], files: Files | None) -> None:
    validate(service, items)
    if files and holds_files(service.Input):
        files.bring(_alive(items))
    preprocess(service, items)


def may_hold_constants(text: bytes) -> bool:
    """Whether a JSON text needs a closer look for NaN, and for numbers that read as Infinity."""
    return b"NaN" in text or b"Infinity" in text or any(pattern.search(text) for pattern in LARGE_EXPONENTS)


def refuse_constants(items: list[Item]) -> None:
    """Rows come as their client wrote them: NaN, and a number that reads as Infinity, are not JSON."""
    for item in items:
        if may_hold_constants(item.value):
            try:
                from_json(to_json(from_json(item.value), inf_nan_mode="constants"), allow_inf_nan=False)
            except ValueError as error:
                item.error = InvalidInput(f"the input is not JSON: {error}")


def validate(service: Service[Any, Any], items: list[Item]) -> None:
    """Stage 1: the input's JSON becomes the service's ``Input``."""
    # Not ``Input.model_validate_json``, whose look at its arguments takes as long as a small input itself.
    validate_json = service.Input.__pydantic_validator__.validate_json
    for item in _alive(items):
        try:
            item.value = validate_json(item.value)
        except ValidationError as error:
            item.error = InvalidInput(_count(error, "input"), errors=field_errors(error))
        except PLUGIN_ERRORS as error:
            item.error = _failed(error, "the Input's validation")


def preprocess(service: Service[Any, Any], items: list[Item]) -> None:
    """Stage 2: each input becomes what the model takes."""
    if not has_own(type(service), "preprocess"):
        return
    speech = current()
    for item in _alive(items):
        speech.jobs = (item.job_id,)
        try:
            item.value = service.preprocess(item.value)
        except PLUGIN_ERRORS as error:
            item.error = _failed(error, "preprocess")


def predict(service: Service[Any, Any], items: list[Item]) -> None:
    """Stage 3: the model. One call for all, where the author wrote ``predict_batch``."""
    alive = _alive(items)
    if has_own(type(service), "predict_batch"):
        for together in _buckets(service, alive):
            _predict_together(service, _alive(together))
        return
    speech = current()
    for item in alive:
        if not item.alive:
            continue  # cancelled since
        speech.jobs = (item.job_id,)
        try:
            raw = service.predict(item.value)
            item.value = _drain(raw, item) if isinstance(raw, GeneratorType) else raw
        except InvalidOutput as error:
            item.error = error
        except PLUGIN_ERRORS as error:
            item.error = _failed(error, "predict")


def _drain(yielding: Generator[Any, Any, Any], item: Item) -> Any:
    """Tell what a ``predict`` yields as it comes; what it returns or, where that is nothing, the list of all."""
    speech, size = current(), 0
    parts: list[Any] = []
    try:
        while item.alive:
            part = next(yielding)
            size += speech.output(item.job_id, len(parts), part)
            if size > MAX_PARTIAL_BYTES:
                raise InvalidOutput(f"what predict yields is over {MAX_PARTIAL_BYTES} bytes in all: yield less")
            parts.append(part)
    except StopIteration as end:
        return parts if end.value is None else end.value
    finally:
        yielding.close()
    return None  # cancelled since


def _buckets(service: Service[Any, Any], items: list[Item]) -> list[list[Item]]:
    """The items by their buckets, in the order in which the first of each came."""
    if not has_own(type(service), "bucket"):
        return [items] if items else []
    found: dict[Hashable, list[Item]] = {}
    speech = current()
    for item in items:
        speech.jobs = (item.job_id,)
        try:
            found.setdefault(service.bucket(item.value), []).append(item)
        except PLUGIN_ERRORS as error:
            item.error = _failed(error, "bucket")
    return list(found.values())


def postprocess(service: Service[Any, Any], items: list[Item], files: Files | None = None) -> None:
    """Stage 4: each raw result becomes the ``Output``, as JSON, once its files are stored."""
    if not files or not holds_files(service.Output, "serialization"):
        _convert(items, lambda raw: _dump_output(service, service.postprocess(raw)))
        return
    _convert(items, lambda raw: _as_output(service, service.postprocess(raw)))
    files.keep(_alive(items))
    _convert(items, lambda output: _dump_output(service, output))


def _convert(items: list[Item], step: Callable[[Any], Any]) -> None:
    speech = current()
    for item in _alive(items):
        speech.jobs = (item.job_id,)
        try:
            item.value = step(item.value)
        except ValidationError as error:
            item.error = InvalidOutput(_count(error, "output"), errors=field_errors(error))
        except InvalidOutput as error:
            item.error = error
        except PLUGIN_ERRORS as error:
            item.error = _failed(error, "postprocess")
    speech.jobs = ()


def _predict_together(service: Service[Any, Any], items: list[Item], level: int = logging.WARNING) -> None:
    """One call of the model; where it raises, its halves again, down to the culprit. ``level`` is this call's log's."""
    if not items:
        return  # all were cancelled since
    failure: ServicesError
    current().jobs = [item.job_id for item in items]
    try:
        results = _one_each(service.predict_batch([item.value for item in items]), len(items))
    except InvalidOutput as error:
        failure, split = error, False  # a wrong number of results is the author's to mend: no run of less hides it
    except PLUGIN_ERRORS as error:
        failure, split = _failed(error, "predict_batch"), service.split_failed_batches and len(items) > 1
    else:
        for item, raw in zip(items, results, strict=True):
            item.value = raw
        return
    if split:
        half = len(items) // 2
        log.log(level, "%s raised on %d items; running its halves", failure.message, len(items))
        _predict_together(service, items[:half], logging.DEBUG)
        _predict_together(service, items[half:], logging.DEBUG)
        return
    for item in items:
        item.error = failure


def _one_each(raws: Any, expected: int) -> list[Any]:
    """The model's results; raises ``InvalidOutput`` unless there is one for each input."""
    if isinstance(raws, str | bytes | dict | set) or not hasattr(raws, "__len__"):
        got = type(raws).__name__
        raise InvalidOutput(f"predict_batch must return a list of {expected} results, one for each input; got {got}")
    results = list(raws)
    if len(results) != expected:
        must = "predict_batch must return one result for each input, in order"
        raise InvalidOutput(f"{must}; expected {expected}, got {len(results)}")
    return results


def _as_output(service: Service[Any, Any], output: Any) -> Any:
    return output if isinstance(output, service.Output) else service.Output.model_validate(output)


def _dump_output(service: Service[Any, Any], output: Any) -> bytes:
    output = _as_output(service, output)
    text: bytes = to_json(output)
    # pydantic writes NaN as null, which the client's copy of Output would refuse; look twice where there is a null.
    if b"null" in text:
        values = to_json(output.model_dump(mode="json"), inf_nan_mode="constants")
        try:
            from_json(values, allow_inf_nan=False)
            from_json(_with_constants(output.__class__).dump_json([output]), allow_inf_nan=False)
        except ValueError as error:
            raise InvalidOutput("the output holds NaN or Infinity, which JSON has not") from error
    return text


@lru_cache(maxsize=32)
def _with_constants(output: type[BaseModel]) -> TypeAdapter[list[Any]]:
    """Writes NaN as NaN where a field is ``Any``: there the outermost type's setting counts, which a model's is not."""
    return TypeAdapter(list[output], config=ConfigDict(ser_json_inf_nan="constants"))  # type: ignore[valid-type]


def _alive(items: list[Item]) -> list[Item]:
    # Five times a batch. By the property alone it took 0.5 us a row, of some 8 beside the model (measured).
    return [item for item in items if item.error is None and (not item.cancelled or item.alive)]


def _timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return round((time.perf_counter() - started) * 1000, 3)


def _failed(error: BaseException, verb: str) -> PredictFailed:
    """Any exception of the plugin. A MemoryError too: Celery ends a whole worker on one (celery#10462)."""
    failure = PredictFailed(f"{say(error)[:MAX_MESSAGE]} (in {verb})")
    failure.__cause__ = error
    return failure


def say(error: BaseException) -> str:
    """Its type and its text."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _count(error: ValidationError, what: str) -> str:
    first = field_errors(error)[0]
    where = ".".join(map(str, first["loc"])) or "the whole"
    return f"the {what} does not fit the service's {error.title}: {where}: {first['msg']}"[:MAX_MESSAGE]
