"""What the client sends: inputs as the service reads them, and clear errors for what JSON cannot hold."""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any

import numpy as np
import pytest
from libs_service_client.encode import dump, rows_of
from libs_service_client.errors import ClientError, InvalidInput
from libs_service_client.sync import body_of
from libs_service_client.upload import Upload
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    SecretStr,
    field_serializer,
)


class Colour(Enum):
    RED = "red"


class Inner(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    user_id: int = Field(validation_alias="userId", serialization_alias="uid")


class Model(BaseModel):
    secret: SecretStr = SecretStr("hunter2")
    inner: Inner = Field(default_factory=lambda: Inner(user_id=7))
    choice: str = Field("a", validation_alias=AliasChoices("first", "second"))
    path: int = Field(3, validation_alias=AliasPath("deep", "value"))
    both: int = Field(4, alias="Both")
    colour: Colour = Colour.RED
    when: datetime = datetime(2026, 12, 1, tzinfo=UTC)
    price: Decimal = Decimal("1.50")
    id: uuid.UUID = uuid.UUID(int=1)
    tags: set[str] = {"x"}
    doubled: int = 2
    halved: Annotated[float, PlainSerializer(lambda value: value / 2)] = 3.0
    missing: float = math.nan
    hidden: int = Field(1, exclude=True)

    @field_serializer("doubled")
    def double(self, value: int) -> int:
        return value * 2


def written(value: Any) -> Any:
    return json.loads(dump(value))


def test_a_model_is_written_as_its_service_reads_it() -> None:
    assert written(Model()) == {
        "secret": "hunter2",
        "inner": {"userId": 7},
        "first": "a",
        "deep": {"value": 3},
        "Both": 4,
        "colour": "red",
        "when": "2026-12-01T00:00:00Z",
        "price": "1.50",
        "id": str(uuid.UUID(int=1)),
        "tags": ["x"],
        "doubled": 4,
        "halved": 1.5,
    }
    assert Model.model_validate_json(dump(Model())).secret.get_secret_value() == "hunter2"
    assert written(RootModel[list[SecretStr]]([SecretStr("a")])) == ["a"]
    assert written({"plain": [SecretStr("b"), Inner(user_id=1)]}) == {"plain": ["b", {"userId": 1}]}


def test_numpy_and_similar_arrays_are_written_as_numbers_and_lists() -> None:
    @dataclasses.dataclass
    class Point:
        x: Any

    value = {"a": np.float32(0.5), "b": np.arange(6).reshape(2, 3), "c": Point(np.int64(3)), "d": (np.bool_(True),)}
    assert written(value) == {"a": 0.5, "b": [[0, 1, 2], [3, 4, 5]], "c": {"x": 3}, "d": [True]}


class Holder(BaseModel):
    x: float | None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Holder(x=math.nan), "x: NaN and Infinity are no JSON numbers"),
        ({"rows": [1.0, math.inf]}, "rows.1: NaN and Infinity"),
        ({"a": np.array([0.5, np.nan])}, "a.1: NaN"),
        ({"a": {"b": object()}}, "a.b: object cannot be written as JSON"),
        ({(1, 2): 3}, "a key must be a str, got tuple"),
        ({"a": "\ud800"}, "a: it has a lone surrogate"),
        ({"a": b"\xff"}, "a: bytes cannot be written as JSON"),
    ],
)
def test_a_value_without_a_form_in_json_is_named_with_its_place(value: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words.replace(".", r"\.")) as caught:
        dump(value)
    assert isinstance(caught.value, ClientError)


def test_a_value_that_contains_itself_is_an_error_of_the_client() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(InvalidInput, match="nested deeper"):
        dump(value)


class Frame:
    """As pandas' DataFrame: iterating over it gives the names of its columns."""

    columns = ("a", "b")

    def __iter__(self) -> Any:
        return iter(self.columns)

    def to_dict(self, orient: str) -> list[dict[str, int]]:
        assert orient == "records"
        return [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


def test_a_table_is_sent_as_its_rows() -> None:
    upload = Upload(Frame())
    body = b"".join(body_of(upload))
    upload.close()
    assert [json.loads(line) for line in body.splitlines()] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


@pytest.mark.parametrize("inputs", ["text", b"bytes", {"a": 1}, 5])
def test_one_input_is_no_batch(inputs: Any) -> None:
    with pytest.raises(InvalidInput, match="expected a list"):
        rows_of(inputs)


def test_a_batch_names_the_input_that_is_wrong() -> None:
    upload = Upload([{"x": 1}, {"x": math.nan}])
    with pytest.raises(InvalidInput, match=r"inputs\.1\.x: NaN"):
        list(body_of(upload))
    upload.close()
