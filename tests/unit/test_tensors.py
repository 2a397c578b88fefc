"""Tensors on the wire, and the rule by which a plugin's models are tensors."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import Base64Bytes, BaseModel, Field, RootModel

from api.v2.columns import MAX_ROWS, list_columns, to_inputs, to_tensor
from api.v2.tensors import CODES, Tensor, read_infer, to_binary, to_values
from worker.errors import InvalidInput, InvalidOutput


class Part(BaseModel):
    x: int = 0


class Everything(BaseModel):
    text: str
    kind: Literal["a", "b"] = "a"
    count: int = 0
    score: float | None = None
    flag: bool = False
    vector: list[float] = []
    image: Annotated[list[list[int]], Field(json_schema_extra={"datatype": "UINT8"})] = []
    fixed: list[float] = Field([], min_length=2, max_length=2)
    point: tuple[float, float] = (0, 0)
    holes: list[float | None] = []
    maybe: list[float] | None = None
    code: str | None = None
    raw: Base64Bytes = b""
    part: Part | None = None
    either: int | str = 0
    more: dict[str, int] = {}
    named: Annotated[str, Field(alias="as-named")] = ""


def head(datatype: str, shape: list[int], name: str = "x", **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


def read_one(datatype: str, shape: list[int], **more: Any) -> Tensor:
    _, (tensor,) = read_infer(json.dumps({"inputs": [head(datatype, shape, **more)]}).encode(), None)
    return tensor


def read_binary(datatype: str, shape: list[int], data: bytes) -> Tensor:
    text = json.dumps({"inputs": [head(datatype, shape, parameters={"binary_data_size": len(data)})]}).encode()
    _, (tensor,) = read_infer(text + data, len(text))
    return tensor


def test_each_datatype_reads_and_writes_as_numpy_does() -> None:
    for datatype in CODES:
        kind = np.dtype(datatype.lower().replace("fp", "float"))
        array = np.array([[0, 1, 1], [1, 0, 1]]).astype(kind)
        tensor = read_binary(datatype, [2, 3], array.tobytes())
        assert list(tensor.values) == array.ravel().tolist() and tensor.shape == (2, 3)
        assert to_binary(tensor) == array.tobytes()
        assert list(read_one(datatype, [2, 3], data=array.tolist()).values) == array.ravel().tolist()  # nested
        assert list(read_one(datatype, [2, 3], data=array.ravel().tolist()).values) == array.ravel().tolist()  # flat
    words = read_binary("BYTES", [2], b"\x02\0\0\0hi\0\0\0\0")
    assert words.values == [b"hi", b""] and to_binary(words) == b"\x02\0\0\0hi\0\0\0\0"
    assert to_values(Tensor("x", "FP32", (2,), [1.5, float("nan")])) == [1.5, None]
    with pytest.raises(InvalidOutput, match="does not fit INT64"):
        to_binary(Tensor("x", "INT64", (1,), [2**63]))


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (head("FP31", [1], data=[1]), r"inputs\.0\.datatype: Input should be 'BOOL'"),
        (head("FP32", [2], data=[1]), r"shape \[2\] holds 2 elements, but it has 1"),
        (head("FP32", [0], data=[]), r"inputs\.0\.shape\.0: .*greater than or equal to 1"),
        (head("FP32", [1] * 17, data=[1]), r"inputs\.0\.shape: "),
        (head("FP32", [2], data=[1, "a"]), r"element 1 is no FP32: \"a\""),
        (head("FP32", [2], data=[[1], 2]), "nested unevenly"),
        (head("BOOL", [1], data=[1]), "element 0 is no BOOL: 1"),
        (head("INT32", [1], data=[1.5]), r"element 0 is no INT32: 1\.5"),
        (head("UINT8", [2], data=[3, 256]), r"256 is beyond UINT8 \(0 to 255\)"),
        (head("INT8", [1], data=[-129]), r"-129 is beyond INT8"),
        (head("INT8", [1]), "has no data"),
        (head("INT8", [1], parameters={"binary_data_size": 1}), "only 0 bytes are left; is its header"),
        (head("INT8", [1], data=[1], parameters={"binary_data_size": 1}), "both data and binary_data_size"),
        (head("INT8", [1], parameters={"binary_data_size": -1}), "must be a number of bytes"),
        (head("INT8", [1], parameters={"shared_memory_region": "r"}), "shared memory is not supported"),
    ],
)
def test_a_tensor_that_cannot_be(tensor: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidInput, match=expected):
        read_infer(json.dumps({"inputs": [tensor]}).encode(), None)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "expected"),
    [
        ("FP32", [1], b"123", "3 bytes are no whole number of FP32"),
        ("FP32", [2], b"1234", "holds 2 elements, but it has 1"),
        ("BYTES", [1], b"\x05\0\0\0hi", "element 0 ends beyond the tensor's 6 bytes"),
        ("BYTES", [1], b"\x05\0", "element 0 ends beyond"),
    ],
)
def test_binary_data_that_cannot_be(datatype: str, shape: list[int], data: bytes, expected: str) -> None:
    with pytest.raises(InvalidInput, match=expected):
        read_binary(datatype, shape, data)


def test_a_request_that_cannot_be() -> None:
    one = json.dumps({"inputs": [head("INT8", [1], data=[1])]}).encode()
    for body, length, expected in [
        (b"{", None, "not JSON"),
        (b"[]", None, "expected a JSON object"),
        (b"{}", None, "inputs: Field required"),
        (b'{"inputs": []}', None, "inputs: "),
        (b'{"id": 7, "inputs": []}', None, "id: "),
        (one, len(one) + 1, f"Inference-Header-Content-Length is {len(one) + 1}, but"),
        (one + b"more", len(one), "4 bytes follow the JSON"),
        (json.dumps({"inputs": [head("INT8", [1], data=[1])] * 2}).encode(), None, "given twice"),
    ]:
        with pytest.raises(InvalidInput, match=expected):
            read_infer(body, length)


def test_each_field_is_a_column() -> None:
    inputs = {c.name: (c.datatype, c.shape, str(c.kind)) for c in list_columns(Everything, "validation")}
    assert inputs == {
        "text": ("BYTES", (), "plain"),
        "kind": ("BYTES", (), "plain"),
        "count": ("INT64", (), "plain"),
        "score": ("FP64", (), "plain"),
        "flag": ("BOOL", (), "plain"),
        "vector": ("FP64", (-1,), "plain"),
        "image": ("UINT8", (-1, -1), "plain"),
        "fixed": ("FP64", (2,), "plain"),
        "point": ("FP64", (2,), "plain"),
        "holes": ("FP64", (-1,), "plain"),
        "maybe": ("FP64", (-1,), "plain"),
        "code": ("BYTES", (), "plain"),
        "raw": ("BYTES", (), "base64"),
        "part": ("BYTES", (), "json"),
        "either": ("BYTES", (), "json"),
        "more": ("BYTES", (), "json"),
        "as-named": ("BYTES", (), "plain"),
    }
    outputs = {c.name: c for c in list_columns(Everything, "serialization")}
    assert [str(outputs[name].kind) for name in ("score", "holes", "maybe", "code")] == [
        "plain",
        "plain",
        "json",
        "json",
    ]
    for model in (None, RootModel[int]):
        (whole,) = list_columns(model, "validation")
        assert whole.to_metadata().model_dump(exclude_unset=True) == {
            "name": "input",
            "datatype": "BYTES",
            "shape": [-1],
            "parameters": {"content_type": "json"},
        }


def test_a_field_may_not_name_a_datatype_of_another_type() -> None:
    class Wrong(BaseModel):
        x: Annotated[float, Field(json_schema_extra={"datatype": "INT8"})]

    with pytest.raises(TypeError, match="field 'x': its datatype is 'INT8'; expected one of FP16, FP32, FP64"):
        list_columns(Wrong, "validation")


def inputs_of(*tensors: Tensor) -> list[Any]:
    return [json.loads(text) for text in to_inputs("m", tensors, list_columns(Everything, "validation"))]


def test_rows_become_inputs() -> None:
    text = Tensor("text", "BYTES", (2, 1), [b"\xc3\xa4", "b"])
    vector = Tensor("vector", "FP32", (2, 3), [1, 2, 3, 4, 5, 6])
    image = Tensor("image", "UINT8", (2, 1, 2), [1, 2, 3, 4])
    score = Tensor("score", "FP64", (2,), [float("nan"), 0.5])
    raw = Tensor("raw", "BYTES", (2,), [b"\xff", "/w=="])
    part = Tensor("part", "BYTES", (2,), ['{"x": 1}', b"null"])
    assert inputs_of(text, vector, image, score, raw, part) == [
        {"text": "ä", "vector": [1, 2, 3], "image": [[1, 2]], "score": None, "raw": "/w==", "part": {"x": 1}},
        {"text": "b", "vector": [4, 5, 6], "image": [[3, 4]], "score": 0.5, "raw": "/w==", "part": None},
    ]
    # One row needs no dimension that counts it, and `input` holds whole rows.
    assert inputs_of(Tensor("text", "BYTES", (), ["a"]), Tensor("vector", "INT8", (2,), [1, 2])) == [
        {"text": "a", "vector": [1, 2]}
    ]
    assert inputs_of(Tensor("input", "BYTES", (2,), ['{"text": "a"}', b"7"])) == [{"text": "a"}, 7]


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ([Tensor("other", "BYTES", (1,), ["a"])], "unexpected input 'other' for model 'm'; its inputs: 'text', "),
        ([Tensor("count", "INT8", (1,), [1])], r"missing input 'text' for model 'm'; got \['count'\]"),
        ([Tensor("text", "FP32", (1,), [1.0])], "input 'text' of model 'm': expected BYTES, got FP32"),
        ([Tensor("text", "BYTES", (1, 2), ["a", "b"])], r"expected the shape \[-1\], got \[1, 2\]"),
        ([Tensor("text", "BYTES", (1,), [b"\xff"])], "element 0 is not UTF-8"),
        ([Tensor("text", "BYTES", (1,), [None])], "element 0 is null"),
        ([Tensor("text", "BYTES", (MAX_ROWS + 1,), ["a"] * (MAX_ROWS + 1))], "send more to POST /batches"),
        ([Tensor("input", "BYTES", (1,), ["{"])], "element 0 is not JSON"),
        ([Tensor("input", "BYTES", (1,), [b"\xff"])], "element 0 is not JSON"),
        ([Tensor("input", "BYTES", (1,), ["1e999"])], "too large"),
        (
            [Tensor("input", "BYTES", (1,), ["{}"]), Tensor("count", "INT8", (1,), [1])],
            "'input' is the whole row as JSON; expected it alone",
        ),
        (
            [Tensor("text", "BYTES", (2,), ["a", "b"]), Tensor("count", "INT8", (3,), [1, 2, 3])],
            "differ in their number of rows, their first dimension: 'text' has 2, 'count' has 3",
        ),
        (
            [Tensor("text", "BYTES", (1,), ["a"]), Tensor("count", "FP64", (1,), [1.0])],
            "expected INT64 or another integer, got FP64",
        ),
        (
            [Tensor("text", "BYTES", (1,), ["a"]), Tensor("fixed", "FP64", (1, 3), [1.0] * 3)],
            r"expected the shape \[-1, 2\], got \[1, 3\]",
        ),
        (
            [Tensor("text", "BYTES", (1,), ["a"]), Tensor("vector", "FP64", (1, 2), [0, float("inf")])],
            "element 1 is inf, expected a finite number",
        ),
    ],
)
def test_tensors_that_are_no_input(tensors: list[Tensor], expected: str) -> None:
    with pytest.raises(InvalidInput, match=expected):
        inputs_of(*tensors)


def test_outputs_become_tensors() -> None:
    columns = {c.name: c for c in list_columns(Everything, "serialization")}
    rows = [
        {"text": "a", "score": None, "image": [[1], [2]], "part": {"x": 1}, "raw": "/w=="},
        {"text": "ä", "score": 0.5, "image": [[3], [4]], "part": None, "raw": "aGk="},
    ]
    assert to_tensor(rows, columns["image"], True) == Tensor("image", "UINT8", (2, 2, 1), [1, 2, 3, 4])
    assert to_values(to_tensor(rows, columns["score"], False)) == [None, 0.5]
    assert to_values(to_tensor(rows, columns["part"], False)) == ['{"x":1}', "null"]
    assert to_tensor(rows, columns["raw"], True).values == [b"\xff", b"hi"]
    assert to_tensor(rows, columns["raw"], False).values == ["/w==", "aGk="]
    with pytest.raises(InvalidInput, match=r"'vector' has lists of 1 and 2 elements.*ask for 'output'"):
        to_tensor([{"vector": [1]}, {"vector": [1, 2]}], columns["vector"], True)
    for wrong in ({}, {"vector": 1}, {"vector": ["a"]}):
        with pytest.raises(InvalidOutput, match="output 'vector'"):
            to_tensor([wrong], columns["vector"], True)
