"""Writes Python values as the JSON of a request: models by their validation aliases, numpy and pandas as lists."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

from pydantic import AliasChoices, AliasPath, BaseModel, RootModel
from pydantic_core import PydanticSerializationError, from_json, to_json

from libs_service_client.errors import InvalidInput

#: Types that JSON represents directly.
PLAIN = (str, int, float, bool, type(None))


def dump(value: Any) -> bytes:
    """Write a value as JSON. Raises ``InvalidInput`` with the place of a value that JSON cannot represent.

    A pydantic model is written by its validation aliases, by which the service reads it, and a secret in plain text.
    Objects with ``tolist()`` (numpy's scalars and arrays, pandas' Series) are written as lists and numbers.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_to_plain)
        return text.encode()
    except Exception as error:  # a model's own serializer may raise anything
        path, problem = _find_problem(value, []) or ([], str(error))
        place = ".".join(map(str, path)) or "the value"
        raise InvalidInput(f"{place}: {problem}") from error


def rows_of(inputs: Any) -> Any:
    """The rows of a table, each as a mapping of its columns; other inputs unchanged.

    A table has ``columns``, and ``to_dicts()`` (polars) or ``to_dict("records")`` (pandas) returns its rows. Iterating
    over a table of pandas would yield the names of its columns.
    """
    if hasattr(inputs, "columns") and hasattr(inputs, "to_dicts"):
        return inputs.to_dicts()
    if hasattr(inputs, "columns") and hasattr(inputs, "to_dict"):
        return inputs.to_dict("records")
    if isinstance(inputs, str | bytes | Mapping):
        kind = type(inputs).__name__
        raise InvalidInput(f"the inputs of a batch: expected a list (or another iterable) of inputs, got one {kind}")
    if not isinstance(inputs, Iterable):
        raise InvalidInput(f"the inputs of a batch: expected a list (or another iterable), got {_name(inputs)}")
    return inputs


def _to_plain(value: Any) -> Any:
    """Convert an object of a type that ``json`` does not know."""
    if isinstance(value, BaseModel):
        return _plain_model(value)
    if hasattr(value, "get_secret_value"):
        return value.get_secret_value()
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray):
        return list(value)
    try:
        return from_json(to_json(value))
    except PydanticSerializationError as error:
        raise TypeError(f"{_name(value)} cannot be written as JSON") from error


def _plain_model(model: BaseModel) -> Any:
    if isinstance(model, RootModel):
        return model.root
    decorators = type(model).__pydantic_decorators__
    if decorators.model_serializers:
        return model.model_dump(mode="json", by_alias=True)
    own = {name for each in decorators.field_serializers.values() for name in each.info.fields}
    fields: dict[str, Any] = dict(model.model_extra or {})
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if field.exclude or (name not in model.model_fields_set and _is_no_number(value)):
            continue
        is_serialized = name in own or any("Serializer" in type(each).__name__ for each in field.metadata)
        if is_serialized or not (isinstance(value, PLAIN) or _is_nested(value)):
            value = model.model_dump(mode="json", include={name})[name]
        _put(fields, field.validation_alias or field.alias or name, value)
    return fields


def _put(fields: dict[str, Any], alias: str | AliasPath | AliasChoices, value: Any) -> None:
    """Store a field under the first name by which its model reads it."""
    if isinstance(alias, AliasChoices):
        alias = alias.choices[0]
    path = [alias] if isinstance(alias, str) else alias.path
    for part in path[:-1]:
        fields = fields.setdefault(str(part), {})
    fields[str(path[-1])] = value


def _is_nested(value: Any) -> bool:
    """Whether the value may contain a model or another object that needs ``_to_plain``."""
    if isinstance(value, BaseModel | Mapping | list | tuple | set | frozenset) or hasattr(value, "get_secret_value"):
        return True
    return hasattr(value, "tolist") or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _find_problem(value: Any, path: list[str | int]) -> tuple[list[str | int], str] | None:
    """The place of the first value that JSON cannot represent, and the reason."""
    if len(path) > 100:
        return path[:5], "it is nested deeper than 100 levels"
    if _is_no_number(value):
        return path, "NaN and Infinity are no JSON numbers; leave the value out, or send None"
    if isinstance(value, str):
        return None if _is_utf8(value) else (path, "it has a lone surrogate, which UTF-8 cannot encode")
    if isinstance(value, PLAIN):
        return None
    try:
        parts = _parts(value if isinstance(value, dict | list | tuple) else _to_plain(value))
        return next((problem for key, part in parts if (problem := _find_problem(part, [*path, key]))), None)
    except Exception as error:  # a model's own serializer may raise anything
        return path, str(error) or type(error).__name__


def _parts(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, PLAIN):
                raise TypeError(f"a key must be a str, got {_name(key)}")
            yield str(key), part
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    else:
        yield 0, value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
