"""Python values as the JSON of a request: models by the names that they are read by, numpy and pandas as lists."""

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

#: Types that are JSON as they stand.
PLAIN = (str, int, float, bool, type(None))


def dump(value: Any) -> bytes:
    """A value as JSON. Raises ``InvalidInput`` with the place of a value that JSON cannot hold.

    A pydantic model is written by its validation aliases, which is how the service reads it, and a secret as it is.
    Objects with ``tolist()`` (numpy's scalars and arrays, pandas' Series) are written as lists and numbers.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_to_plain)
        return text.encode()
    except Exception as error:  # a model's own serializer may raise anything
        where, problem = _find_problem(value, []) or ([], str(error))
        place = ".".join(map(str, where)) or "the value"
        raise InvalidInput(f"{place}: {problem}") from error


def rows_of(inputs: Any) -> Any:
    """The rows of a table, each as a mapping of its columns; other inputs as they are.

    A table has ``columns`` and gives its rows by ``to_dicts()`` (polars) or ``to_dict("records")`` (pandas); iterating
    over pandas' would give the columns' names.
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
    """The function that ``json`` calls for each object of an unknown type."""
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
    found: dict[str, Any] = dict(model.model_extra or {})
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if field.exclude or (name not in model.model_fields_set and _is_no_number(value)):
            continue
        is_serialized = name in own or any("Serializer" in type(each).__name__ for each in field.metadata)
        if is_serialized or not (isinstance(value, PLAIN) or _is_nested(value)):
            value = model.model_dump(mode="json", include={name})[name]
        _put(found, field.validation_alias or field.alias or name, value)
    return found


def _put(found: dict[str, Any], alias: str | AliasPath | AliasChoices, value: Any) -> None:
    """Write a field under the first name by which its model reads it."""
    if isinstance(alias, AliasChoices):
        alias = alias.choices[0]
    path = [alias] if isinstance(alias, str) else alias.path
    for part in path[:-1]:
        found = found.setdefault(str(part), {})
    found[str(path[-1])] = value


def _is_nested(value: Any) -> bool:
    """Whether there may be something in it that pydantic would write otherwise than the service reads it."""
    if isinstance(value, BaseModel | Mapping | list | tuple | set | frozenset) or hasattr(value, "get_secret_value"):
        return True
    return hasattr(value, "tolist") or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _find_problem(value: Any, where: list[str | int]) -> tuple[list[str | int], str] | None:
    """The place of the first value that JSON cannot hold, and the reason."""
    if len(where) > 100:
        return where[:5], "it is nested deeper than 100 levels"
    if _is_no_number(value):
        return where, "NaN and Infinity are no JSON numbers; leave the value out, or send None"
    if isinstance(value, str):
        return None if _is_utf8(value) else (where, "it has a lone surrogate, which UTF-8 cannot hold")
    if isinstance(value, PLAIN):
        return None
    try:
        parts = _parts(value if isinstance(value, dict | list | tuple) else _to_plain(value))
        return next((found for key, part in parts if (found := _find_problem(part, [*where, key]))), None)
    except Exception as error:  # a model's own serializer may raise anything
        return where, str(error) or type(error).__name__


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
