"""A service's own part of the OpenAPI document: its Input, its Output and its request."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import JsonSchemaMode

from api.catalog import Entry
from api.operations import Schema, default_in_words
from api.plain_schema import describe_safely, mend_refs

COMPONENTS = "#/components/schemas/"


def ref(name: str) -> Schema:
    """Points at a component."""
    return {"$ref": f"{COMPONENTS}{name}"}


def describe_service(entry: Entry, request: Schema) -> dict[str, Schema]:
    """The components of a service.

    Args:
        request: the schema of a request for any service.
    """
    name = entry.plugin.name
    components = mend_refs(_describe_models(entry), COMPONENTS)
    own = {"service": {"type": "string", "const": name}, "input": ref(f"{name}.Input")}
    asked = {**request, "description": entry.plugin.description, "properties": request["properties"] | own}
    if entry.example is not None:
        asked["examples"] = [{"service": name, "input": entry.example}]
    components[f"{name}.JobRequest"] = asked
    return {component: _name_for_clients(component, schema) for component, schema in components.items()}


def _describe_models(entry: Entry) -> dict[str, Schema]:
    """The Input and the Output; the definitions within them bear the service's name too, so that none clash."""
    name = entry.plugin.name
    modes: dict[str, JsonSchemaMode] = {"Input": "validation", "Output": "serialization"}
    components: dict[str, Schema] = {}
    for role, model in (("Input", entry.input), ("Output", entry.output)):
        schema = describe_safely(model, modes[role], ref_template=f"{COMPONENTS}{name}.{role}.{{model}}")
        definitions = schema.pop("$defs", {})
        for definition, body in definitions.items() if isinstance(definitions, dict) else ():
            components[f"{name}.{role}.{definition}"] = body
        components[f"{name}.{role}"] = schema
    return components


def _name_for_clients(component: str, schema: Any) -> Schema:
    """A schema with a title of its own, by which generators of clients name its class, and without defaults."""
    titled = {**schema, "title": component.replace(".", " ")}
    if isinstance(schema.get("properties"), dict):
        members = schema["properties"].items()
        titled["properties"] = {name: default_in_words(member) for name, member in members}
    return titled
