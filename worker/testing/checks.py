"""For authors of plugins: run a service without Redis, and check that it keeps the contract."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.discovery import Plugin, examples_in, list_plugins, load_models, load_schema, load_service
from worker.errors import PLUGIN_ERRORS, InvalidInput, InvalidOutput, ServiceFailed, ServicesError, say
from worker.files import find_files, suffix_of
from worker.filestore.output_files import OutputFiles, field_error
from worker.filestore.storage import HEAD_BYTES, find_type
from worker.inference.items import BatchItems, Outcome
from worker.inference.stages import Item, run_stages
from worker.service import Service
from worker.testing.opened import OpenedFiles
from worker.testing.wheel import CheckSkipped, check_wheel, find_source

#: Top-level modules that a schema must not bring into the API's process.
HEAVY = (
    "numpy", "scipy", "pandas", "sklearn", "torch", "tensorflow", "jax", "lightgbm", "xgboost", "catboost",
    "onnxruntime", "transformers", "tokenizers", "cv2", "PIL", "celery",
)  # fmt: skip

#: Most inputs of the batch that is compared with batches of one.
MAX_COMPARED = 1024

#: A model computes a batch in another order than a single item, so its last digits may differ.
REL_TOL, ABS_TOL = 1e-3, 1e-5

#: One of these fits no Input that means anything.
UNFIT: tuple[Any, ...] = ("no object", 17, None, [], {"no such field": "\0"})

_LOOK = """
import json, sys
from libs_service.names import pin
pin("worker")
from worker.discovery import find_plugins, load_schema
before = set(sys.modules)
load_schema(find_plugins([sys.argv[1]])[0])
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One rule for a plugin: ``problem`` names the error and its mend; None: the plugin keeps the rule."""

    name: str
    problem: str | None
    cause: BaseException | None = None  #: the plugin's exception, for its traceback
    left_out: str | None = None  #: why it could not be looked at


class Problem(Exception):
    """An error of a plugin; its cause is the plugin's exception."""


def run_inline(service: Service[Any, Any], inputs: Sequence[Any]) -> list[Any]:
    """Run inputs through a loaded service as one batch, as a worker would.

    Args:
        service: an instance on which ``load()`` was called.
        inputs: JSON-like values, such as dicts.

    Returns:
        For each input, in order, its output as a JSON-like value, or the ``ServicesError`` that its job fails with.
    """
    texts = [json.dumps(value).encode() for value in inputs]
    batch_items = BatchItems(texts, [str(i) for i in range(len(texts))])
    run_stages(service, batch_items, InlineFiles())
    outcomes: list[Outcome] = batch_items.outcomes()
    for one in outcomes:
        if isinstance(one, ServicesError) and isinstance(one.__cause__, KeyboardInterrupt):
            raise one.__cause__  # Ctrl-C: a worker has it in no pool process, but a test and the command line do
    return [one if isinstance(one, ServicesError) else json.loads(one) for one in outcomes]


class InlineFiles:
    """The files of a batch without a storage: inputs as ``data:`` URLs; outputs get their id, and are kept nowhere."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._outputs = OutputFiles(self._make_folder, lambda _file, _size: None)

    def fetch_inputs(self, items: Sequence[Item]) -> None:
        """Write the ``data:`` of the inputs into files."""
        folder = self._make_folder()
        for item in items:
            for number, (where, file) in enumerate(find_files(item.value)):
                if file.data is None:
                    must = "there is no storage here: give a data: URL"
                    error = {"loc": list(where), "msg": must, "type": "file"}
                    item.error = InvalidInput(f"{'.'.join(map(str, where))}: {must}", errors=[error])
                    continue
                name = f"{item.job_id}-{number}{suffix_of(file.content_type)}"
                file.put(folder / name)
                file.path.write_bytes(file.data)

    def take_results(self, raw: Any) -> Any:
        """The result of ``predict``, its files taken as they are."""
        return self._outputs.take_results(raw)

    def take_outputs(self, output: Any) -> Any:
        """The result of ``postprocess``, its files taken as they are; raises where one cannot be."""
        return self._outputs.take_outputs(output)

    def store_outputs(self, items: Sequence[Item]) -> None:
        """Name the files of the outputs, as a worker that stores them would."""
        for item in items:
            for where, file in find_files(item.value):
                try:
                    content = file.read_bytes()
                except (OSError, RuntimeError) as error:
                    item.error = field_error(InvalidOutput, where, f"the file cannot be read: {error}", "file")
                    break
                kind = find_type(file.content_type, content[:HEAD_BYTES])
                if file.rules and (problem := file.rules.problem(len(content), kind)):
                    item.error = field_error(InvalidOutput, where, problem, "file_rules")
                    break
                file.id, file.size, file.content_type = hashlib.sha256(content).hexdigest(), len(content), kind

    def clear(self) -> None:
        """Remove the written files."""
        self._outputs.give_back()
        if self._folder:
            self._folder.cleanup()
            self._folder = None

    def _make_folder(self) -> Path:
        self._folder = self._folder or tempfile.TemporaryDirectory()
        return Path(self._folder.name)


def load(plugin: Plugin) -> Service[Any, Any]:
    """Import and load a plugin's service. Raises ``ServiceFailed``."""
    cls = load_service(plugin)
    try:
        service = cls()
        service.load()
        service.warmup()
    except PLUGIN_ERRORS as error:
        raise ServiceFailed(f"{plugin.name}: load() raised {say(error)}") from error
    return service


def example_of(plugin: Plugin, service: Service[Any, Any] | None = None) -> Any:
    """The first example of a plugin's ``Input``; None where it has none."""
    return next(iter(examples_of(plugin, service)), None)


def examples_of(plugin: Plugin, service: Service[Any, Any] | None = None) -> list[Any]:
    """All examples of a plugin's ``Input`` (JSON Schema's ``examples``). Raises ``ServiceFailed``."""
    model = service.Input if service else load_models(plugin, _is_shared(plugin)).input
    return examples_in(model.model_json_schema()) if model else []


def check_plugin(plugin: Plugin) -> Iterator[Check]:
    """The conformance checks, one after the other; the rest is left out where no example can be run."""
    yield _check("its schema is light", lambda: _check_light(plugin))
    opened: set[Path] = set()
    try:
        service = _load_watched(plugin, opened)
        examples = examples_of(plugin, service)
    except ServicesError as error:
        yield Check("it can be loaded", error.message, error.__cause__)
        return
    yield Check("it can be loaded", None)
    yield _check("the schema's Input and Output are the service's", lambda: _check_models(plugin, service))
    yield (valid := _check("its Input has valid examples", lambda: _check_examples(service, examples)))
    if not valid.problem:
        yield _check("a full batch agrees, in order, with batches of one", lambda: _check_batches(service, examples))
        yield _check("a bad input fails alone", lambda: _check_bad_input(service, examples[0]))
    yield _check("its wheel holds what load() opens", lambda: _check_wheel(plugin, opened))


def _check(name: str, look: Callable[[], str | None]) -> Check:
    try:
        return Check(name, look())
    except CheckSkipped as reason:
        return Check(name, None, left_out=str(reason))
    except Problem as problem:
        return Check(name, str(problem), problem.__cause__)
    except Exception as error:  # any exception of the plugin is reported in words
        return Check(name, say(error), error)


def _load_watched(plugin: Plugin, opened: set[Path]) -> Service[Any, Any]:
    """``load``, and the files of the plugin's source folder that it opens."""
    try:
        source = find_source(plugin)
    except CheckSkipped:
        source = None
    if source is None:
        return load(plugin)
    with OpenedFiles(source) as watch:
        service = load(plugin)
    opened |= watch.files
    return service


def _check_wheel(plugin: Plugin, opened: set[Path]) -> str | None:
    source = find_source(plugin)
    return check_wheel(plugin, source, opened) if source else None  # it is installed from a wheel, and could be loaded


def _check_light(plugin: Plugin) -> str | None:
    done = subprocess.run([sys.executable, "-c", _LOOK, plugin.name], capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it cannot be imported"])[-1]
    heavy = [name for name in json.loads(done.stdout) if name in HEAVY]
    return f"schema.py imports {', '.join(heavy)}: keep it to pydantic, the API imports it" if heavy else None


def _check_models(plugin: Plugin, service: Service[Any, Any]) -> str | None:
    models, module = load_models(plugin, _is_shared(plugin)), load_schema(plugin)
    if models.problem:
        return models.problem
    if module is None:
        must = f"put its Input and Output into a schema.py beside {plugin.target.partition(':')[0]}"
        return f"it ships no schema.py, so the API would accept its jobs unvalidated: {must}"
    for role, model in (("Input", models.input), ("Output", models.output)):
        if model is not getattr(service, role):
            return f"{module.__name__}.{role} is not the one in Service[Input, Output]: import it from there"
    return None


def _is_shared(plugin: Plugin) -> bool:
    """Whether another installed service has the same ``schema.py``."""
    return sum(other.schema_module == plugin.schema_module for other in list_plugins().values()) > 1


def _check_examples(service: Service[Any, Any], examples: list[Any]) -> str | None:
    if not examples:
        return 'give Input one: model_config = {"json_schema_extra": {"examples": [{...}]}}'
    for i, result in enumerate(run_inline(service, [example])[0] for example in examples):
        if isinstance(result, ServicesError):
            raise Problem(f"the job of example {i} would fail: {result.code}: {result.message}") from result.__cause__
    return None


def _check_batches(service: Service[Any, Any], examples: list[Any]) -> str | None:
    """A full batch of the examples in turn, forwards and backwards, against each alone."""
    size = min(service.max_batch_size, MAX_COMPARED)
    alone = [run_inline(service, [example])[0] for example in examples]
    forwards = [i % len(examples) for i in range(size)]
    for order in (forwards, forwards[::-1]):
        together = run_inline(service, [examples[i] for i in order])
        for place, (i, result) in enumerate(zip(order, together, strict=True)):
            if isinstance(result, ServicesError) and not isinstance(alone[i], ServicesError):
                return f"a batch of {size} fails, though example {i} alone does not: {result.code}: {result.message}"
            if not agree(result, alone[i]):
                return f"example {i} alone gives {alone[i]}, but {result} as item {place} of a batch of {size}"
    return None


def _check_bad_input(service: Service[Any, Any], example: Any) -> str | None:
    unfit = next((value for value in UNFIT if isinstance(run_inline(service, [value])[0], ServicesError)), None)
    results = run_inline(service, [example, unfit, example])
    failed = [isinstance(result, ServicesError) for result in results]
    if failed == [False, True, False]:
        return None
    if failed[1]:
        return "in a batch of a good, a bad and a good input, a good one failed too; only the bad one may"
    return "in a batch of a good, a bad and a good input, the bad one did not fail"


def agree(one: Any, other: Any) -> bool:
    """Whether two outputs are the same but for the last digits of their numbers."""
    if isinstance(one, ServicesError) and isinstance(other, ServicesError):
        return one.code == other.code
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(agree(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(agree, one, other))
    if isinstance(one, float) or isinstance(other, float):
        return _is_number(one) and _is_number(other) and math.isclose(one, other, rel_tol=REL_TOL, abs_tol=ABS_TOL)
    return bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
