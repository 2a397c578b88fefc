"""The installed services: each plugin's metadata and ``schema.py``, and its state from the ledger."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_json

from api.auth.keyring import Caller
from api.operations import Answer, Count, choice
from api.plain_schema import describe
from api.requests import invalid_fields
from worker.discovery import Plugin, examples_in, list_plugins, load_models, say_known
from worker.errors import PLUGIN_ERRORS, InvalidInput, ServiceFailed, ServicesError, UnknownService, say, to_utf8
from worker.files import File, Where, find_files, holds_files
from worker.ledger.overview import Overview

log = logging.getLogger("services.api")

STATES = ("ready", "loading", "failed", "no_workers")

#: Checks a service's ``Input`` and ``Output``; it may raise any exception.
SchemaCheck = Callable[[type[BaseModel] | None, type[BaseModel] | None], None]


class WorkerVersion(Answer):
    """How many live workers run one version of the plugin and of libs-service."""

    version: Annotated[str | None, Field(description="of the plugin")]
    libs_service: Annotated[str | None, Field(description="null: a release before 0.2.0, which tells none")]
    workers: Annotated[int, Field(ge=1)]


class Service(Answer):
    """An installed service and its state."""

    name: str
    version: str
    description: str
    input_schema: dict[str, Any] | None
    output_schema: dict[str, Any] | None
    example: Annotated[Any, Field(description="a valid input; null where the schema has none")]
    knobs: Annotated[dict[str, Any] | None, Field(description="null before a worker has run")]
    state: Annotated[str, choice(STATES)]
    reason: Annotated[str | None, Field(description="why it is `failed`")]
    workers: Count
    queue_depth: Count
    oldest_age_s: Annotated[float, Field(ge=0)]
    scheduled: Annotated[int, Field(ge=0, description="queued jobs whose `not_before` has not come")]
    worker_versions: Annotated[list[WorkerVersion], Field(description="of live workers")]


@dataclass(frozen=True, slots=True)
class Entry:
    """One installed service as the API sees it."""

    plugin: Plugin
    input: type[BaseModel] | None  #: None where the plugin ships no schema.py, or a broken one
    output: type[BaseModel] | None
    failure: str | None  #: the reason why its schema.py cannot be imported
    example: Any  #: the first valid example of its Input
    input_schema: dict[str, Any] | None = None  #: written once: pydantic needs milliseconds for a large schema
    output_schema: dict[str, Any] | None = None

    def validate(self, text: bytes) -> list[tuple[Where, File]]:
        """Check an input (JSON); return the files that it names, each with its place.

        Raises ``InvalidInput``, also where a validator raises an unexpected exception, and ``ServiceFailed`` where the
        schema itself cannot be imported.
        """
        if self.failure:
            raise ServiceFailed(self.failure)
        if self.input is None:
            return []
        try:
            value = self.input.model_validate_json(text)
            return list(find_files(value)) if holds_files(self.input) else []
        except ValidationError as error:
            raise invalid_fields(error, ["body", "input"]) from error
        except PLUGIN_ERRORS as error:  # a plugin's validator may raise any exception
            log.exception("the schema of %s raised", self.plugin.name)
            must = f"the schema of {self.plugin.name} raised {say(error)}"
            detail = {"loc": ["body", "input"], "msg": must, "type": "validator_error"}
            raise InvalidInput(f"body.input: {must}", errors=[detail]) from error

    @property
    def takes_files(self) -> bool:
        """Whether an input may name files; True without a schema."""
        return self.input is None or holds_files(self.input)

    def find_stored(self, text: bytes) -> list[tuple[Where, File]]:
        """The files that a stored input (JSON) names, each with its place; none where the schema refuses it."""
        try:
            return self.validate(text) if self.takes_files else []
        except ServicesError:
            return []  # the worker will report the error

    def describe(self, overview: Overview) -> Service:
        """The service as ``GET /services`` shows it."""
        state, reason = self.state(overview)
        return Service(
            name=self.plugin.name,
            version=self.plugin.version,
            description=to_utf8(self.plugin.description),
            input_schema=self.input_schema,
            output_schema=self.output_schema,
            example=self.example,
            knobs=overview.knobs,
            state=state,
            reason=reason,
            workers=len(overview.workers),
            queue_depth=overview.depth,
            oldest_age_s=overview.oldest_age_s,
            scheduled=overview.scheduled,
            worker_versions=[WorkerVersion(**row) for row in overview.worker_versions],
        )

    def state(self, overview: Overview) -> tuple[str, str | None]:
        """``ready``, ``loading``, ``failed`` with the reason, or ``no_workers``."""
        states = {worker.get("state") for worker in overview.workers}
        if self.failure:
            return "failed", self.failure
        for state in ("ready", "loading"):
            if state in states:
                return state, None
        if overview.failure:
            return "failed", str(overview.failure.get("reason"))
        return "no_workers", None


class Catalog:
    """The services that were installed when the process started. A broken service harms no other.

    Args:
        check: raises an exception where a protocol of the API cannot carry the ``Input`` or ``Output``; the service
            then counts as failed.
    """

    def __init__(self, check: SchemaCheck = lambda model, output: None) -> None:
        plugins = list(list_plugins().values())
        schemas = Counter(plugin.schema_module for plugin in plugins if plugin.schema_module)
        self.entries = {
            plugin.name: _load(plugin, schemas[plugin.schema_module or ""] > 1, check) for plugin in plugins
        }
        self._newcomers = LatePlugins()

    def get(self, name: str) -> Entry:
        """One service. Raises ``UnknownService`` with the names of all services."""
        entry = self.entries.get(name)
        if entry is None:
            late = ""
            if self._newcomers.has(name):
                again = f"start the API again, and a worker of it (`services run {name}`)"
                late = f": its plugin was installed after this API had started: {again}"
            raise UnknownService(f"no service is named {name[:100]!r}{late}; {say_known(self.entries)}")
        return entry

    def find(self, name: str, caller: Caller) -> Entry:
        """A service for a caller. Raises ``Forbidden`` for one that it may not use, ``UnknownService``."""
        caller.check_service(name)
        return self.get(name)

    def usable_by(self, caller: Caller) -> list[Entry]:
        """The services that a caller may use."""
        return [entry for name, entry in self.entries.items() if caller.may_use(name)]


class LatePlugins:
    """The plugins that were installed after the API had started. The API must be restarted to serve them."""

    def __init__(self) -> None:
        self._changed = self._read_times()
        self._names: frozenset[str] = frozenset()

    def has(self, name: str) -> bool:
        """Whether one of them has this name. Reads the metadata only if the folders of packages have changed."""
        changed = self._read_times()
        if changed != self._changed:
            self._changed, self._names = changed, frozenset(list_plugins())
        return name in self._names

    def _read_times(self) -> list[int]:
        """The time of the last change of each folder on ``sys.path``; a few microseconds for each."""
        return [path.stat().st_mtime_ns for path in map(Path, sys.path) if path.is_dir()]


def _load(plugin: Plugin, is_shared: bool, check: SchemaCheck) -> Entry:
    try:
        models = load_models(plugin, is_shared)
        model, output = models.input, models.output
        if models.problem:
            log.warning("service %s: %s", plugin.name, models.problem)
        check(model, output)
        input_schema, output_schema = describe(model, "validation"), describe(output, "serialization")
        example = _example(model, input_schema) if model and input_schema else None
        return Entry(plugin, model, output, None, example, input_schema, output_schema)
    except PLUGIN_ERRORS as error:  # ServiceFailed, or a model without a JSON Schema
        reason = error.message if isinstance(error, ServiceFailed) else f"{plugin.name}: {say(error)}"
        log.error("the schema of service %s is broken, so its jobs are refused: %s", plugin.name, reason)
        return Entry(plugin, None, None, reason, None)


def _example(model: type[BaseModel], schema: dict[str, Any]) -> Any:
    """The first example in the model's JSON Schema that the model accepts."""
    for example in examples_in(schema):
        try:
            model.model_validate_json(to_json(example))
        except PLUGIN_ERRORS as error:  # a plugin's validator may raise any exception
            log.warning("an example of %s does not fit it: %s", model.__module__, error)
        else:
            return example
    return None
