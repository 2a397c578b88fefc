"""NaN and Infinity, which Python's floats have and JSON has not: whether a text holds one, and where."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from worker.errors import InvalidOutput

#: As pydantic and Python write them. Within a string they are harmless, so a hit is looked at more closely.
CONSTANT = re.compile(rb"NaN|Infinity")

#: Part of the error of ``to_json`` for a value that is nested too deep (254 levels in pydantic-core 2).
TOO_DEEP = "depth exceeded"

Place = list[str | int]


def find_constant(text: bytes) -> tuple[Place, str] | None:
    """The place and the name of the first NaN or Infinity of a text in which they are written so; None for none.

    However deep it is nested: ``from_json`` gives up at 200 levels, where ``to_json`` still writes.
    """
    if not CONSTANT.search(text):
        return None
    left: list[tuple[Place, Any]] = [([], json.loads(text))]
    while left:
        place, value = left.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return place, "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        if isinstance(value, dict):
            left += [([*place, key], value[key]) for key in reversed(value)]
        elif isinstance(value, list):
            left += [([*place, i], value[i]) for i in range(len(value) - 1, -1, -1)]
    return None


def name_place(place: Place) -> str:
    """A place as Python would write it: ``scores[3].low``; "" for the whole."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)[:200].removeprefix(".")


def not_json(place: Place, constant: str, of: str) -> InvalidOutput:
    """The error for a constant at this place.

    Args:
        of: names the whole, such as "the output".
    """
    problem = f"{constant} is not JSON; leave it out, or give None where the field allows it"
    where = f"{name_place(place)} of {of}" if place else of
    return InvalidOutput(f"{where}: {problem}", errors=[{"loc": place, "msg": problem, "type": "finite_number"}])


def dump(value: Any, of: str) -> bytes:
    """A value as JSON. Raises ``InvalidOutput`` for NaN, values that JSON does not have, and too deep nesting."""
    try:
        text = to_json(value, inf_nan_mode="constants")
    except (PydanticSerializationError, ValueError) as error:
        raise unwritten(error, of) from error
    fault = find_constant(text)
    if fault:
        raise not_json(*fault, of)
    return text


def unwritten(error: Exception, of: str) -> InvalidOutput:
    """The error for a value that ``to_json`` cannot write."""
    if TOO_DEEP in str(error):
        return InvalidOutput(
            f"{of} is nested deeper than the 250 levels that can be written as JSON: return it flatter"
        )
    return InvalidOutput(f"{of} cannot be written as JSON: {error}"[:2000])
