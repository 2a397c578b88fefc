"""How a plugin's models become tensors (``docs/open-inference.md``).

Each field of ``Input`` or ``Output`` is a column: one tensor of the field's name, whose first dimension counts the
rows. Each row is a job. Texts, numbers, truth values and (nested) lists of them are tensors of their own datatype;
every other field is a BYTES tensor with a JSON text for each row. A single BYTES tensor ``input`` (or ``output``) with
the whole of each row as JSON works for every service.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import chain
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import from_json, to_json

from api.requests import dump_strictly
from api.v2.answers import TensorMetadata
from api.v2.tensors import FLOATS, INTEGERS, MAX_DIMENSIONS, Tensor
from worker.errors import InvalidInput, InvalidOutput

#: Most rows of one request, each of which is a job; for more there is ``POST /batches``.
MAX_ROWS = 4096

Mode = Literal["validation", "serialization"]
Schema = dict[str, Any]


class Kind(StrEnum):
    """The form that a value has as an element of a tensor."""

    PLAIN = "plain"  #: the value itself
    JSON = "json"  #: a JSON text
    ROW = "row"  #: a JSON text of the whole row, all fields together
    BASE64 = "base64"  #: bytes, written in base64 in the job's JSON
    BASE64_URL = "base64url"


#: The datatype of each type of JSON Schema.
DATATYPES = {"string": "BYTES", "integer": "INT64", "number": "FP64", "boolean": "BOOL"}
#: Datatypes of tensors that a column of a datatype accepts: all from which its values can be read.
ACCEPTED: dict[str, frozenset[str]] = {
    **dict.fromkeys(INTEGERS, INTEGERS),
    **dict.fromkeys(FLOATS, FLOATS | INTEGERS),
    "BOOL": frozenset({"BOOL"}),
    "BYTES": frozenset({"BYTES"}),
}
#: Datatypes that a field may choose (``datatype`` in ``json_schema_extra``) instead of the default for its type.
CHOICES = {"INT64": INTEGERS, "FP64": FLOATS}


@dataclass(frozen=True, slots=True)
class Column:
    """One field of a model as a tensor."""

    name: str
    datatype: str
    shape: tuple[int, ...] = ()  #: of one row; -1: any length
    kind: Kind = Kind.PLAIN
    nullable: bool = False  #: whether an element may be null
    required: bool = True

    def to_metadata(self) -> TensorMetadata:
        """The column as model metadata shows it."""
        form = {"content_type": "json"} if self.kind in (Kind.JSON, Kind.ROW) else {}
        parameters = form if self.required else {**form, "optional": True}
        further = {"parameters": parameters} if parameters else {}
        return TensorMetadata(name=self.name, datatype=self.datatype, shape=[-1, *self.shape], **further)


#: The tensors of whole rows.
WHOLE = {
    "validation": Column("input", "BYTES", kind=Kind.ROW),
    "serialization": Column("output", "BYTES", kind=Kind.ROW),
}


@lru_cache(maxsize=1024)
def list_columns(model: type[BaseModel] | None, mode: Mode) -> tuple[Column, ...]:
    """A model's columns; the whole row alone where there is no model, or none with fields."""
    try:
        schema = model.model_json_schema(mode=mode) if model else {}
    except PydanticInvalidForJsonSchema:  # for some types that pydantic validates it has no JSON Schema
        schema = {}
    definitions = schema.get("$defs", {})
    schema = _resolve(schema, definitions)
    required = schema.get("required", ()) if mode == "validation" else schema.get("properties", ())
    fields = schema.get("properties", {}).items()
    columns = tuple(_make_column(name, field, name in required, definitions, mode) for name, field in fields)
    return columns or (WHOLE[mode],)


def check_columns(model: type[BaseModel] | None, output: type[BaseModel] | None) -> None:
    """List the columns of a service's models. Raises for a datatype that the protocol does not have."""
    list_columns(model, "validation")
    list_columns(output, "serialization")


def find_columns(columns: Sequence[Column], mode: Mode) -> dict[str, Column]:
    """The columns that a request may name: a model's own, and the whole row, unless a field has its name."""
    return {WHOLE[mode].name: WHOLE[mode], **{column.name: column for column in columns}}


def _make_column(name: str, field: Schema, required: bool, definitions: Schema, mode: Mode) -> Column:
    schema, nullable = _without_null(field, definitions)
    shape: list[int] = []
    lists_nullable = False
    # A type may hold lists of itself, without end: a field of that many dimensions is JSON.
    while len(shape) < MAX_DIMENSIONS and schema.get("type") == "array" and (items := _items_of(schema)) is not None:
        lists_nullable = lists_nullable or nullable
        least, most = schema.get("minItems"), schema.get("maxItems")
        shape.append(most if most and least == most else -1)
        schema, nullable = _without_null(items, definitions)
    datatype = DATATYPES.get(schema.get("type", ""), "")
    if mode == "serialization":
        # In an answer, only a float can be missing: as NaN.
        has_tensor = not lists_nullable and (not nullable or datatype == "FP64")
    else:
        has_tensor = len(shape) < 2 or not lists_nullable
    if not datatype or not has_tensor:
        return Column(name, "BYTES", kind=Kind.JSON, required=required)
    chosen = field.get("datatype", datatype)
    if chosen != datatype and chosen not in CHOICES.get(datatype, ()):
        must = f"expected one of {', '.join(sorted(CHOICES[datatype]))}" if datatype in CHOICES else "it can have none"
        raise TypeError(f"field {name!r}: its datatype is {chosen!r}; {must}")
    coded = datatype == "BYTES" and schema.get("format") in (Kind.BASE64, Kind.BASE64_URL)
    return Column(name, chosen, tuple(shape), Kind(schema["format"]) if coded else Kind.PLAIN, nullable, required)


def _resolve(schema: Schema, definitions: Schema) -> Schema:
    for _ in definitions:
        if "$ref" not in schema:
            break
        schema = definitions.get(schema["$ref"].rpartition("/")[2], {})
    return schema if "$ref" not in schema else {}  # a reference without a target


def _without_null(schema: Schema, definitions: Schema) -> tuple[Schema, bool]:
    """A schema without its "or null", and whether it allowed null."""
    schema = _resolve(schema, definitions)
    choices = schema.get("anyOf", ())
    others = [choice for choice in choices if choice.get("type") != "null"]
    if len(choices) == 2 and len(others) == 1:
        return _resolve(others[0], definitions), True
    return schema, False


def _items_of(schema: Schema) -> Schema | None:
    """The schema of a list's elements; None where they differ, as in most tuples."""
    if "prefixItems" not in schema:
        items = schema.get("items")
        return items if isinstance(items, dict) else None
    first, *others = schema["prefixItems"]
    alike = all(other.get("type") == first.get("type") for other in others) and "type" in first
    return first if alike and first["type"] != "array" else None


# -- tensors to inputs ------------------------------------------------------------------------------------------------


def to_inputs(model: str, tensors: Sequence[Tensor], columns: Sequence[Column]) -> list[bytes]:
    """The jobs' inputs (JSON), one for each row. Raises ``InvalidInput``."""
    known = find_columns(columns, "validation")
    _check_names(model, tensors, known, columns)
    cells = {tensor.name: _to_cells(model, tensor, known[tensor.name]) for tensor in tensors}
    counts = {name: len(values) for name, values in cells.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
        raise InvalidInput(f"the inputs differ in their number of rows, their first dimension: {listed}")
    if known[tensors[0].name].kind is Kind.ROW:
        return [dump_strictly(row, "inputs") for row in cells[tensors[0].name]]
    return [dump_strictly(dict(zip(cells, row, strict=True)), "inputs") for row in zip(*cells.values(), strict=True)]


def _check_names(model: str, tensors: Sequence[Tensor], known: dict[str, Column], columns: Sequence[Column]) -> None:
    given = [tensor.name for tensor in tensors]
    names = ", ".join(repr(column.name) for column in columns)
    for name in given:
        if name not in known:
            raise InvalidInput(f"unexpected input {name[:100]!r} for model {model!r}; its inputs: {names}")
        if known[name].kind is Kind.ROW and len(given) > 1:
            raise InvalidInput(f"input {name!r} is the whole row as JSON; expected it alone, got {given}")
    if known[given[0]].kind is Kind.ROW:
        return
    missing = [column.name for column in columns if column.required and column.name not in given]
    if missing:
        raise InvalidInput(f"missing input {missing[0]!r} for model {model!r}; got {given}; its inputs: {names}")


def _to_cells(model: str, tensor: Tensor, column: Column) -> list[Any]:
    """A tensor's values, one for each row."""
    where = f"input {tensor.name!r} of model {model!r}"
    if tensor.datatype not in ACCEPTED[column.datatype]:
        also = "" if column.datatype in ("BYTES", "BOOL") else " or another number"
        also = " or another integer" if column.datatype in INTEGERS else also
        raise InvalidInput(f"{where}: expected {column.datatype}{also}, got {tensor.datatype}")
    shape = _to_rows(tensor.shape, column.shape)
    if shape is None:
        raise InvalidInput(f"{where}: expected the shape {[-1, *column.shape]}, got {list(tensor.shape)}")
    if shape[0] > MAX_ROWS:
        raise InvalidInput(
            f"{where}: {shape[0]} rows; at most {MAX_ROWS} go in one request; send more to POST /batches"
        )
    if not column.nullable and None in tensor.values:
        raise InvalidInput(f"{where}: element {list(tensor.values).index(None)} is null")
    return _nest(_decode(where, tensor, column), shape)


def _to_rows(shape: tuple[int, ...], row: tuple[int, ...]) -> tuple[int, ...] | None:
    """A tensor's shape, the number of rows first; None where it does not fit the column."""
    if len(shape) == len(row) and math.prod(shape[:1]) >= 1:
        shape = (1, *shape)  # a single row, without the dimension of the rows
    if not row and len(shape) == 2 and shape[1] == 1:
        shape = shape[:1]  # Triton's models have scalars as [n, 1]
    fits = len(shape) == len(row) + 1 and all(w in (-1, got) for w, got in zip(row, shape[1:], strict=True))
    return shape if fits else None


def _nest(values: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Elements in row-major order as lists of lists."""
    for size in reversed(shape[1:]):
        values = [values[i : i + size] for i in range(0, len(values), size)]
    return values


def _decode(where: str, tensor: Tensor, column: Column) -> list[Any]:
    """The elements in JSON's types."""
    values = tensor.values
    if tensor.datatype in FLOATS:
        return _finite(where, list(values), column.nullable)
    if column.datatype != "BYTES":
        return list(values)
    if column.kind in (Kind.BASE64, Kind.BASE64_URL):
        encode = base64.b64encode if column.kind is Kind.BASE64 else base64.urlsafe_b64encode
        return [encode(value).decode() if isinstance(value, bytes) else value for value in values]
    return [_read_text(where, i, value, column.kind) for i, value in enumerate(values)]


def _finite(where: str, values: list[Any], nullable: bool) -> list[Any]:
    """Numbers that JSON can write; NaN is null in a column that allows null."""
    if nullable:
        values = [None if value != value else value for value in values]
    present = values if None not in values else [value for value in values if value is not None]
    if not all(map(math.isfinite, present)):
        i, value = next((i, v) for i, v in enumerate(values) if v is not None and not math.isfinite(v))
        raise InvalidInput(f"{where}: element {i} is {value}, expected a finite number")
    return values


def _read_text(where: str, index: int, value: bytes | str | None, kind: Kind) -> Any:
    if value is None:
        return None
    try:
        if kind is Kind.PLAIN:
            return value.decode() if isinstance(value, bytes) else value
        return from_json(value, allow_inf_nan=False)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{where}: element {index} is not UTF-8: {error}") from error
    except ValueError as error:
        raise InvalidInput(f"{where}: element {index} is not JSON, which this input takes: {error}") from error


# -- outputs to tensors -----------------------------------------------------------------------------------------------


def to_tensor(outputs: Sequence[Any], column: Column, binary: bool) -> Tensor:
    """One column of the jobs' outputs. Raises ``InvalidOutput``; ``InvalidInput`` where rows are of several lengths."""
    if column.kind is Kind.ROW:
        return Tensor(column.name, "BYTES", (len(outputs),), [to_json(row) for row in outputs])
    cells = [row.get(column.name) for row in outputs]
    if column.kind is Kind.JSON:
        return Tensor(column.name, "BYTES", (len(cells),), [to_json(cell) for cell in cells])
    shape, values = [len(cells)], cells
    for _ in column.shape:
        if not all(isinstance(value, list) for value in values):
            raise InvalidOutput(f"output {column.name!r} is not a list in every row")
        lengths = set(map(len, values))
        if len(lengths) > 1:
            sizes = " and ".join(map(str, sorted(lengths)[:2]))
            raise InvalidInput(
                f"output {column.name!r} has lists of {sizes} elements, which are no tensor; "
                "send these rows one by one, or ask for 'output', the whole of each row as JSON"
            )
        shape += lengths
        values = list(chain.from_iterable(values))
    return Tensor(column.name, column.datatype, tuple(shape), _encode(column, values, binary))


def _encode(column: Column, values: list[Any], binary: bool) -> list[Any]:
    """Elements of a job's JSON in the types of a tensor."""
    try:
        if column.datatype in FLOATS:
            return [math.nan if value is None else float(value) for value in values]
        if None in values:
            raise ValueError("it is null")
        if column.kind in (Kind.BASE64, Kind.BASE64_URL) and binary:
            decode = base64.b64decode if column.kind is Kind.BASE64 else base64.urlsafe_b64decode
            return [decode(value) for value in values]
    except (ValueError, TypeError, binascii.Error) as error:
        raise InvalidOutput(f"output {column.name!r} holds what is no {column.datatype}: {error}") from error
    return values
