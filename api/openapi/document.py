"""The OpenAPI 3.1 document: the routes' own descriptions, with each installed service's Input, Output and examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from api.auth.gate import OPEN
from api.catalog import Catalog, Entry
from api.openapi.service_schemas import COMPONENTS, describe_service, ref
from api.operations import JSON, Schema, answer, describe_problems, one_of
from api.problems import TITLES
from api.v2.answers import InferError
from worker.ledger.data_schema import own_version

DESCRIPTION = """Jobs for the installed services. `POST /jobs` stores and enqueues one, `GET /jobs/{id}` reads it; with
`Prefer: wait=10` either holds its answer until the job has ended. Errors are problem documents (RFC 9457). Where API
keys are configured, each request bears one. What takes GET takes HEAD too."""

#: Paths that have another heading in ``/docs`` than their own first word.
HEADINGS = {"healthz": "health", "readyz": "health", "metrics": "health", "": "console"}

#: Either bears an API key; neither is needed where none is configured.
SECURITY_SCHEMES: Schema = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same, otherwise"},
}
EITHER_OR_NONE: list[Schema] = [{}, {"bearer": []}, {"api_key": []}]


def build_document(routes: Iterable[BaseRoute], catalog: Catalog) -> Schema:
    """The document for these routes and services."""
    entries = list(catalog.entries.values())
    models: dict[str, type[BaseModel]] = {}
    paths: Schema = {}
    for route in routes:
        if isinstance(route, APIRoute) and route.openapi_extra:
            for method in (route.methods or set()) - {"HEAD"}:
                paths.setdefault(route.path, {})[method.lower()] = _operation(route, method, models)
    schemas = _model_schemas(models.values())
    for entry in entries:
        schemas |= describe_service(entry, schemas["JobRequest"])
    _name_services(paths, schemas, entries)
    return {
        "openapi": "3.1.0",
        "info": {"title": "libs-service", "version": own_version(), "description": DESCRIPTION},
        "paths": paths,
        "security": EITHER_OR_NONE,
        "components": {"schemas": schemas, "securitySchemes": SECURITY_SCHEMES},
    }


def _operation(route: APIRoute, method: str, models: dict[str, type[BaseModel]]) -> Schema:
    """A route's operation under its heading, with the answers that the gate may give before it."""
    word = route.path.split("/")[1]
    described = dict(route.openapi_extra or {})
    operation = {"tags": [HEADINGS.get(word, word)], "operationId": route.name, **described}
    if route.path in OPEN:
        operation["security"] = []
    else:
        late = [408] if method in ("POST", "PUT", "DELETE") else []
        operation["responses"] = described["responses"] | _by_gate((401, 403, *late, 429, 503), word)
    finished: Schema = _with_refs(operation, models)
    return finished


def _by_gate(statuses: Sequence[int], word: str) -> Schema:
    if word == "v2":
        return {str(status): answer(InferError, TITLES[status]) for status in statuses}
    return describe_problems(statuses)


def _with_refs(value: Any, models: dict[str, type[BaseModel]]) -> Any:
    """The value with a reference in the place of each model; they are added to ``models``."""
    if isinstance(value, dict):
        return {name: _with_refs(member, models) for name, member in value.items()}
    if isinstance(value, list):
        return [_with_refs(item, models) for item in value]
    if isinstance(value, type) and issubclass(value, BaseModel):
        models[value.__name__] = value
        return ref(value.__name__)
    return value


def _model_schemas(models: Iterable[type[BaseModel]]) -> dict[str, Schema]:
    """The components of the models and of the models within them. Defaults are not required of answers either."""
    _, schemas = models_json_schema([(m, "validation") for m in models], ref_template=COMPONENTS + "{model}")
    return dict(schemas["$defs"])


def _name_services(paths: Schema, schemas: dict[str, Schema], entries: list[Entry]) -> None:
    """Put the services into the places of the document that depend on them."""
    names = [entry.plugin.name for entry in entries]
    outputs = [ref(f"{name}.Output") for name in names]
    schemas["Job"]["properties"]["output"] = {"anyOf": [*outputs, {"type": "null"}]}
    schemas["JobRow"]["properties"]["output"] |= {"anyOf": [*outputs, {"type": "null"}]}
    del schemas["JobRequest"]
    paths["/jobs"]["post"]["requestBody"] = paths["/jobs/{job_id}"]["put"]["requestBody"] = _job_body(entries)
    if not names:
        return
    versions = sorted({entry.plugin.version for entry in entries})
    schemas["BatchRequest"]["properties"]["service"] = one_of(names)
    values = {"/batches service": names, "/v2/models name": names, "/v2/models version": versions}
    for path, parameter in _parameters(paths):
        start = "/v2/models" if path.startswith("/v2/models") else path
        if choices := values.get(f"{start} {parameter['name']}"):
            parameter["schema"] = one_of(choices)


def _parameters(paths: Schema) -> Iterator[tuple[str, Schema]]:
    for path, operations in paths.items():
        for operation in operations.values():
            for parameter in operation["parameters"]:
                yield path, parameter


def _job_body(entries: list[Entry]) -> Schema:
    """The body of ``POST /jobs``: one of the services' requests."""
    refs = {entry.plugin.name: ref(f"{entry.plugin.name}.JobRequest") for entry in entries}
    media: Schema = {"schema": {"type": "object"}}
    if refs:
        mapping = {name: target["$ref"] for name, target in refs.items()}
        discriminator = {"propertyName": "service", "mapping": mapping}
        media = {"schema": {"oneOf": list(refs.values()), "discriminator": discriminator}}
    if examples := {
        entry.plugin.name: {"value": {"service": entry.plugin.name, "input": entry.example}}
        for entry in entries
        if entry.example is not None
    }:
        media["examples"] = examples
    return {"required": True, "content": {JSON: media}}
