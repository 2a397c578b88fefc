"""A plugin's JSON Schema as plain JSON: no value in it can break the documents that show all services."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import JsonSchemaMode
from pydantic_core import to_json, to_jsonable_python

from worker.errors import PLUGIN_ERRORS, to_utf8

log = logging.getLogger("services.api")

#: Most bytes of a schema as JSON; larger schemas are not shown.
MAX_SCHEMA_BYTES = 2 * 2**20
#: Most levels of nesting; deeper values, and values that contain themselves, are left out.
MAX_DEPTH = 100
#: The least number that rounds to Infinity in a double, which most JSON parsers use.
MAX_NUMBER = 2**1024 - 2**970
#: Members of a schema that contain values of the model, and those of them that are lists of values.
VALUES = frozenset({"default", "examples", "example", "const", "enum"})
LISTS = frozenset({"examples", "enum"})
#: Members of a schema that map names given by the author.
NAMED = frozenset({"properties", "$defs", "definitions", "patternProperties", "dependentSchemas"})


class _NotJson(Exception):
    """The value has no form in JSON."""


def describe(model: type[BaseModel] | None, mode: JsonSchemaMode, **options: Any) -> dict[str, Any] | None:
    """A model's JSON Schema; None without a model, for a type without a JSON Schema, and for a schema above the limit.

    Other exceptions of pydantic and of the plugin pass through. Values without a form in JSON are left out, such as a
    default of NaN; others are converted, such as a date in an example.
    """
    if model is None:
        return None
    try:
        schema = model.model_json_schema(mode=mode, **options)
    except PydanticInvalidForJsonSchema as error:  # pydantic validates some types without a JSON Schema
        why = str(error).partition("\n")[0]
        log.warning("%s.%s has no JSON Schema, so none is shown: %s", model.__module__, model.__name__, why)
        return None
    if not isinstance(schema, dict):
        raise TypeError(f"model_json_schema() of {model.__name__} must give a dict, got {type(schema).__name__}")
    plain: dict[str, Any] = make_plain(schema)
    size = len(to_json(plain))
    if size > MAX_SCHEMA_BYTES:
        log.warning("the schema of %s.%s has %d bytes: it is not shown", model.__module__, model.__name__, size)
        return None
    return plain


def describe_safely(model: type[BaseModel] | None, mode: JsonSchemaMode, **options: Any) -> dict[str, Any]:
    """The same for a document of many services: {} without a schema, also after an exception."""
    try:
        return describe(model, mode, **options) or {}
    except PLUGIN_ERRORS as error:
        log.warning("a schema is left out of the document: %s: %s", type(error).__name__, error)
        return {}


def make_plain(value: Any) -> Any:
    """A schema in JSON's own types. Members and items without a form in JSON are left out; at the top, None."""
    try:
        return _plain(value, (), strictly=False)
    except _NotJson:
        return None


def mend_refs(components: dict[str, Any], prefix: str) -> dict[str, Any]:
    """A service's components, without each ``$ref`` that makes generators of clients refuse the whole document.

    Such a ``$ref`` has no target, or makes a list of lists of itself.
    """
    known = {prefix + name for name in components}
    return {
        name: _mend(_open_items(schema, prefix + name) if isinstance(schema, dict) else schema, known)
        for name, schema in components.items()
    }


def _open_items(schema: dict[str, Any], own: str) -> dict[str, Any]:
    return {**schema, "items": {}} if schema.get("items") == {"$ref": own} else schema


def _mend(schema: Any, known: Container[str]) -> Any:
    if isinstance(schema, list):
        return [_mend(item, known) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: value if name in VALUES else _mend(value, known)
        for name, value in schema.items()
        if not (name == "$ref" and isinstance(value, str) and value not in known)
    }


def _plain(value: Any, within: tuple[int, ...], strictly: bool, has_names: bool = False) -> Any:
    """The value in JSON's own types. Raises ``_NotJson``.

    Args:
        within: the ids of the objects that contain it.
        strictly: raise also where only a part of it has no form in JSON.
        has_names: whether the author, not JSON Schema, has named the members of a mapping.
    """
    if id(value) in within or len(within) > MAX_DEPTH:
        raise _NotJson
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return to_utf8(str(value))
    if isinstance(value, int | float):
        if not abs(value) < MAX_NUMBER:
            raise _NotJson
        return int(value) if isinstance(value, int) else float(value)
    inner = (*within, id(value))
    if isinstance(value, Mapping):
        return dict(_members(value, inner, strictly, has_names))
    if isinstance(value, list | tuple | set | frozenset):
        return list(_items(value, inner, strictly))
    try:
        jsonable = to_jsonable_python(value, fallback=repr, bytes_mode="base64")
    except Exception as error:  # the object's own code may raise any exception
        raise _NotJson from error
    return _plain(jsonable, inner, strictly)


def _members(
    mapping: Mapping[Any, Any], within: tuple[int, ...], strictly: bool, has_names: bool
) -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        name = to_utf8(str(key))
        is_word = not (strictly or has_names)
        try:
            if is_word and name in VALUES and isinstance(value, list | tuple) and name in LISTS:
                yield name, [*_wholes(value, within)]
            else:
                whole = strictly or (is_word and name in VALUES)
                yield name, _plain(value, within, whole, is_word and name in NAMED)
        except _NotJson:
            if strictly:
                raise


def _items(values: Iterable[Any], within: tuple[int, ...], strictly: bool) -> Iterator[Any]:
    for value in values:
        try:
            yield _plain(value, within, strictly)
        except _NotJson:
            if strictly:
                raise


def _wholes(values: Iterable[Any], within: tuple[int, ...]) -> Iterator[Any]:
    """The model's own values that have a form in JSON as a whole: without a part, each would be a different value."""
    for value in values:
        with suppress(_NotJson):
            yield _plain(value, within, strictly=True)
