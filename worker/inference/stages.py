"""The stages of a batch that need no ledger: validate → preprocess → predict → postprocess.

Each is a function over a ``BatchItems``: the inputs that have come so far. One that fails keeps its error and goes no
further, so one bad input, one bad output or one exception costs its own job only.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import repeat
from types import CoroutineType, GeneratorType
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from worker.errors import (
    PLUGIN_ERRORS,
    Cancelled,
    InvalidInput,
    InvalidOutput,
    PredictFailed,
    ServiceFailed,
    ServicesError,
    field_errors,
    say,
)
from worker.files import holds_files
from worker.inference.items import BatchItems
from worker.progress import MAX_PARTIAL_BYTES, MAX_PARTIALS, current
from worker.service import Service, has_own
from worker.strict_json import find_constant, not_json, unwritten

log = logging.getLogger("services.worker")

#: Characters of an exception's text that reach the client.
MAX_MESSAGE = 2000

#: Looks at a verb's result, and gives it or its replacement.
Look = Callable[[Any], Any]

#: Values that are no JSON or may read as Infinity, and a letter that each has: a closer look decides. A single letter
#: is
#: looked for 25 times as fast, and numbers have none: the patterns alone took 2 % of the time of 4,096 rows (measured).
CONSTANTS = (
    (b"N", re.compile(rb"NaN")),
    (b"I", re.compile(rb"Infinity")),
    *((letter, re.compile(letter + rb"\+?\d{3}")) for letter in (b"e", b"E")),
)


@dataclass(slots=True)
class Item:
    """An input or an output, for the files in it."""

    job_id: str  #: "" for a row
    value: Any  #: an ``Input`` or an ``Output``
    error: ServicesError | None = None


@dataclass(slots=True)
class Timings:
    """Milliseconds that the batch spent in each stage, and how many items the model saw."""

    waited_ms: float = 0  #: from the claim of the batch to its run, where it was claimed ahead
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
        waited = {"waited_ms": self.waited_ms} if self.waited_ms else {}
        return to_json({**waited, **stages, "postprocess_ms": self.postprocess_ms})


class Files(Protocol):
    """Where the files of inputs come from and those of outputs go to (``attach.BatchFiles``)."""

    def fetch_inputs(self, items: Sequence[Item]) -> None:
        """Make the files of the inputs local; an item whose file cannot be had gets an error."""

    def take_results(self, raw: Any) -> Any:
        """Take the files in the result of ``predict``, as far as they exist."""

    def take_outputs(self, output: Any) -> Any:
        """Take the files of an output as they are now; raises ``InvalidOutput`` or ``ServiceFailed``."""

    def store_outputs(self, items: Sequence[Item]) -> None:
        """Store the files of the outputs."""

    def clear(self) -> None:
        """Remove the local copies."""


def run_stages(
    service: Service[Any, Any], batch_items: BatchItems, files: Files | None = None, strictly: bool = False
) -> Timings:
    """The four stages; the outcomes of ``batch_items`` are how its inputs ended.

    Args:
        strictly: whether to look for constants that are not JSON, which the API does for a job, but not for a row.
    """
    timings = Timings()
    try:
        timings.preprocess_ms = _timed(lambda: _prepare(service, batch_items, files, strictly))
        timings.batch_size = len(batch_items.values)
        returned = files if files and holds_files(service.Output, "serialization") else None
        timings.predict_ms = _timed(lambda: predict(service, batch_items, returned))
        timings.postprocess_ms = _timed(lambda: postprocess(service, batch_items, returned))
    finally:
        if files:
            files.clear()
    return timings


def _prepare(service: Service[Any, Any], batch_items: BatchItems, files: Files | None, strictly: bool) -> None:
    if strictly:
        batch_items.each(_refuse_constants, _input_failure)
    validate(service, batch_items)
    if files and holds_files(service.Input):
        _look_after_files(batch_items, files.fetch_inputs)
    preprocess(service, batch_items)


def may_hold_constants(text: bytes) -> bool:
    """Whether a JSON text needs a closer look for NaN, and for numbers that read as Infinity."""
    return any(letter in text and pattern.search(text) for letter, pattern in CONSTANTS)


def _refuse_constants(text: bytes) -> bytes:
    """Rows come as their client wrote them: NaN, and a number that reads as Infinity, are not JSON."""
    if may_hold_constants(text):
        try:
            from_json(to_json(from_json(text), inf_nan_mode="constants"), allow_inf_nan=False)
        except ValueError as error:
            raise InvalidInput(f"the input is not JSON: {_why_no_json(text, error)}") from None
    return text


def _why_no_json(text: bytes, error: ValueError) -> str:
    """The parser's words, but for NaN and Infinity, which it calls an unexpected value."""
    try:
        value = from_json(text)
    except ValueError:
        return str(error)
    try:
        from_json(text, allow_inf_nan=False)
    except ValueError:
        return "NaN and Infinity are no JSON numbers; leave the value out, or send null"
    return f"a number of it is too large for JSON's readers: {str(value)[:100]}"


def validate(service: Service[Any, Any], batch_items: BatchItems) -> None:
    """Stage 1: the input's JSON becomes the service's ``Input``."""
    # Not ``Input.model_validate_json``, whose look at its arguments takes as long as a small input itself.
    batch_items.each(service.Input.__pydantic_validator__.validate_json, _input_failure)


def preprocess(service: Service[Any, Any], batch_items: BatchItems) -> None:
    """Stage 2: each input becomes a value for the model."""
    if has_own(type(service), "preprocess"):
        batch_items.each(service.preprocess, partial(_failed, verb="preprocess"))


def predict(service: Service[Any, Any], batch_items: BatchItems, files: Files | None = None) -> None:
    """Stage 3: the model. One call for all, where the author wrote ``predict_batch``. ``files``: of the outputs."""
    look = files.take_results if files else None
    if not has_own(type(service), "predict_batch"):
        verb = partial(_predict_one, service, batch_items)
        batch_items.each(partial(_then, verb, look) if look else verb, _predict_failure)
        return
    if has_own(type(service), "bucket"):
        batch_items.values = _predict_in_buckets(service, batch_items, look)
    else:
        batch_items.drop_cancelled()
        batch_items.values = _predict_together(service, batch_items.values, batch_items.job_ids, look)
    batch_items.drop({i: raw for i, raw in enumerate(batch_items.values) if isinstance(raw, ServicesError)})


def _predict_one(service: Service[Any, Any], batch_items: BatchItems, value: Any) -> Any:
    job_id = current().jobs[0] if batch_items.job_ids else ""  # whose value it is, ``ask_each`` has said there
    if batch_items.is_cancelled(job_id):
        raise Cancelled()
    raw = service.predict(value)
    return _drain(raw, job_id, batch_items) if isinstance(raw, GeneratorType) else raw


def _drain(yielding: Generator[Any, Any, Any], job_id: str, batch_items: BatchItems) -> Any:
    """Report each value that ``predict`` yields; gives its return value or, if that is None, the yielded list."""
    speech, size = current(), 0
    parts: list[Any] = []
    try:
        while not batch_items.is_cancelled(job_id):
            part = next(yielding)
            if len(parts) == MAX_PARTIALS:
                raise InvalidOutput(
                    f"predict yields more than {MAX_PARTIALS} partial outputs: yield fewer, larger ones"
                )
            size += speech.output(job_id, len(parts), part, MAX_PARTIAL_BYTES - size)
            parts.append(part)
    except StopIteration as end:
        return parts if end.value is None else end.value
    finally:
        yielding.close()
    raise Cancelled()


def _then(verb: Callable[[Any], Any], look: Look, value: Any) -> Any:
    return look(verb(value))


def _predict_in_buckets(service: Service[Any, Any], batch_items: BatchItems, look: Look | None) -> list[Any]:
    """As ``_predict_together``, one bucket after the other, in the order in which the first value of each came."""
    buckets: dict[Hashable, list[int]] = {}
    for i, key in enumerate(batch_items.ask_each(partial(_bucket_of, service), partial(_failed, verb="bucket"))):
        buckets.setdefault(key, []).append(i)
    raws: list[Any] = [None] * len(batch_items.values)
    for together in buckets.values():
        part = batch_items.part(together)
        part.drop_cancelled()
        part.values = _predict_together(service, part.values, part.job_ids, look)
        for i, raw in zip(together, part.outcomes(), strict=True):
            raws[i] = raw
    return raws


def _bucket_of(service: Service[Any, Any], value: Any) -> Hashable:
    key = service.bucket(value)
    hash(key)  # or it raises, for this value alone
    return key


def postprocess(service: Service[Any, Any], batch_items: BatchItems, files: Files | None = None) -> None:
    """Stage 4: each raw result becomes the ``Output``, as JSON, once its files (``files``) are stored."""
    if files:
        verb = service.postprocess if has_own(type(service), "postprocess") else None
        batch_items.each(partial(_take, service.Output, files, verb), _output_failure)
    elif has_own(type(service), "postprocess"):
        batch_items.each(service.postprocess, _output_failure)
    if set(map(type, batch_items.values)) != {service.Output}:
        batch_items.each(partial(_as_output, service.Output), _output_failure)
    if files:
        _look_after_files(batch_items, files.store_outputs)
    texts = batch_items.ask_each(to_json, _output_failure)
    if max(map(len, texts), default=0) > batch_items.most_bytes:
        texts = _drop_large(batch_items, texts)
    # pydantic writes NaN as null, which the client's copy of Output would refuse; look twice where there is a null.
    if b"null" in b"".join(texts):
        batch_items.each(_dump_strictly, _output_failure)
    else:
        batch_items.values = texts


def _take(expected: type[BaseModel], files: Files, postprocess: Callable[[Any], Any] | None, raw: Any) -> Any:
    """One ``Output``, whose files are taken before the next is made: it may write to the same paths."""
    return files.take_outputs(_as_output(expected, postprocess(raw) if postprocess else raw))


def _drop_large(batch_items: BatchItems, texts: Sequence[bytes]) -> list[bytes]:
    """The outputs that are within the limit; those over it go no further."""
    most = batch_items.most_bytes
    batch_items.drop({i: _too_large(len(text), most) for i, text in enumerate(texts) if len(text) > most})
    return [text for text in texts if len(text) <= most]


def _too_large(size: int, most: int) -> InvalidOutput:
    limit = f"the limit of {most} bytes (SERVICES_MAX_OUTPUT_BYTES)"
    how = "return a File for a large result (worker.files), or raise the limit"
    return InvalidOutput(f"the output has {size} bytes as JSON, over {limit}: {how}")


def _look_after_files(batch_items: BatchItems, work: Callable[[Sequence[Item]], None]) -> None:
    batch_items.drop_cancelled()
    items = [Item(*item) for item in zip(batch_items.job_ids or repeat(""), batch_items.values, strict=False)]
    work(items)
    batch_items.drop({i: item.error for i, item in enumerate(items) if item.error})


def _predict_together(
    service: Service[Any, Any],
    values: Sequence[Any],
    job_ids: Sequence[str],
    look: Look | None = None,
    level: int = logging.WARNING,
) -> list[Any]:
    """The model's result for each value, in one call; where it raises, each half again, down to the culprit.

    Args:
        level: of the log's line for a call that raises.

    Returns:
        For each value its raw result, or the error that it ends with.
    """
    if not values:
        return []
    failure: ServicesError
    speech = current()
    speech.jobs = job_ids
    try:
        raws = _one_each(service.predict_batch(list(values)), len(values))
        return [look(raw) for raw in raws] if look else raws
    except InvalidOutput as error:
        failure, split = error, False  # a wrong number of results is the author's to mend: no run of less hides it
    except PLUGIN_ERRORS as error:
        failure, split = _failed(error, "predict_batch"), service.split_failed_batches and len(values) > 1
    finally:
        speech.jobs = ()
    if not split:
        return [failure] * len(values)
    log.log(level, "%s raised on %d items; running its halves", failure.message, len(values))
    half = len(values) // 2
    first = _predict_together(service, values[:half], job_ids[:half], look, logging.DEBUG)
    return first + _predict_together(service, values[half:], job_ids[half:], look, logging.DEBUG)


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


def _as_output(expected: type[BaseModel], output: Any) -> BaseModel:
    if isinstance(output, expected):
        return output
    if isinstance(output, Awaitable | AsyncIterable):  # a verb that is not async itself may return one
        if isinstance(output, CoroutineType):
            output.close()  # or Python warns that nobody awaited it
        must = "a verb must return its result: write `return asyncio.run(...)` around it"
        raise InvalidOutput(f"got a {type(output).__name__}, which nobody awaits; {must}")
    return expected.model_validate(output)


def _dump_strictly(output: BaseModel) -> bytes:
    text: bytes = to_json(output)
    if b"null" in text:
        fault = find_constant(to_json(output.model_dump(mode="json"), inf_nan_mode="constants"))
        if not fault:
            inner = find_constant(_with_constants(output.__class__).dump_json([output]))
            fault = inner and (inner[0][1:], inner[1])
        if fault:
            raise not_json(*fault, "the output")
    return text


@lru_cache(maxsize=32)
def _with_constants(output: type[BaseModel]) -> TypeAdapter[list[Any]]:
    """Writes NaN as NaN where a field is ``Any``: there the outermost type's setting counts, which a model's is not."""
    return TypeAdapter(list[output], config=ConfigDict(ser_json_inf_nan="constants"))  # type: ignore[valid-type]


def _timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return round((time.perf_counter() - started) * 1000, 3)


def _input_failure(error: BaseException) -> ServicesError:
    if isinstance(error, ValidationError):
        return InvalidInput(_count(error, "input"), errors=field_errors(error))
    return error if isinstance(error, InvalidInput) else _failed(error, "the Input's validation")


def _predict_failure(error: BaseException) -> ServicesError:
    return error if isinstance(error, InvalidOutput | Cancelled) else _failed(error, "predict")


def _output_failure(error: BaseException) -> ServicesError:
    if isinstance(error, ValidationError):
        return InvalidOutput(_count(error, "output"), errors=field_errors(error))
    if isinstance(error, PydanticSerializationError):
        return unwritten(error, "the output")
    return error if isinstance(error, InvalidOutput | ServiceFailed) else _failed(error, "postprocess")


def _failed(error: BaseException, verb: str) -> PredictFailed:
    """Any exception of the plugin. A MemoryError too: Celery ends a whole worker on one (celery#10462)."""
    failure = PredictFailed(f"{say(error)[:MAX_MESSAGE]} (in {verb})")
    failure.__cause__ = error
    return failure


def _count(error: ValidationError, what: str) -> str:
    first = field_errors(error)[0]
    where = ".".join(map(str, first["loc"])) or "the whole"
    return f"the {what} does not fit the service's {error.title}: {where}: {first['msg']}"[:MAX_MESSAGE]
