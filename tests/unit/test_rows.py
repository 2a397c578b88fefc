"""What a list reads of a job's record, and what the results of a chunk do without Redis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from worker.inference.results import Parts
from worker.ledger.batches import PART_BYTES, merge, read_parts
from worker.ledger.jobs import LARGE_FIELDS, ROW_FIELDS, Job
from worker.strict_json import find_constant, name_place


class Recording(dict[bytes, bytes]):
    """A record that notes what is read of it."""

    def __init__(self) -> None:
        whole = {"service": "s", "status": "queued", "priority": "low", "attempt": "0", "created": "1"}
        super().__init__({name.encode(): value.encode() for name, value in whole.items()})
        self.read: set[str] = set()

    def __getitem__(self, name: bytes) -> bytes:
        self.read.add(name.decode())
        return super().__getitem__(name)

    def __contains__(self, name: Any) -> bool:
        self.read.add(name.decode())
        return super().__contains__(name)

    def get(self, name: bytes, default: Any = None) -> Any:
        self.read.add(name.decode())
        return super().get(name, default)


def test_a_row_of_a_list_reads_every_field_that_a_job_is_made_of_but_the_large_ones() -> None:
    record = Recording()
    Job.from_record("a", record)
    assert record.read - set(LARGE_FIELDS.values()) <= set(ROW_FIELDS)
    assert not set(LARGE_FIELDS.values()) & set(ROW_FIELDS)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1, 1], []),
        ([PART_BYTES, 1], [[PART_BYTES]]),
        ([1, PART_BYTES * 3, 1], [[1], [PART_BYTES * 3]]),
        ([PART_BYTES * 2], []),
        ([PART_BYTES // 2] * 5, [[PART_BYTES // 2] * 2] * 2),
    ],
)
def test_parts_are_whole_lines_and_some_are_left_for_the_end(sizes: list[int], expected: list[list[int]]) -> None:
    stored: list[list[int]] = []

    def put(number: int, lines: Sequence[bytes]) -> bool:
        assert number == len(stored) + 1
        stored.append([len(line) for line in lines])
        return True

    parts = Parts(put)
    assert all(parts.add([b"x" * size]) for size in sizes)
    together = Parts(lambda number, lines: True)
    assert together.add([b"x" * size for size in sizes]) and together.rest == parts.rest
    assert stored == expected and parts.rest and sum(map(len, stored)) + len(parts.rest) == len(sizes)
    assert not Parts(lambda number, lines: False).add([b"x" * PART_BYTES, b"y"]), "it is others' now"


def test_merged_lines_take_the_places_of_their_numbers() -> None:
    def lines(*texts: str) -> Iterator[bytes]:
        yield from (text.encode() for text in texts)

    assert [*merge(lines("a", "b", "c", "d"), 10, [11, 13], lines("B", "D"))] == [b"a", b"B", b"c", b"D"]
    assert [*merge(lines("a", "b"), 10, [], lines())] == [b"a", b"b"]
    assert read_parts(b"3 2") == ("3.1", "3.2") and read_parts(None) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"NaN": "Infinity", "a": [1e308, null]}', None),
        (b'{"a": [0, {"b c": NaN}], "z": Infinity}', ("a[1].b c", "NaN")),
        (b"-Infinity", ("", "-Infinity")),
        (b"[" * 250 + b'"NaN"' + b"]" * 250, None),
    ],
)
def test_a_constant_is_found_by_its_place(text: bytes, expected: tuple[str, str] | None) -> None:
    found = find_constant(text)
    assert (found and (name_place(found[0]), found[1])) == expected
