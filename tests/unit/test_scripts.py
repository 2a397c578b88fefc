"""``ledger.lua`` cut into its operations."""

from __future__ import annotations

import re

import pytest

from worker.ledger.scripts import read_source, script_of

OPERATIONS = re.findall(r"^function operations\.(\w+)", read_source(), re.M)


def test_an_operation_comes_with_what_it_calls_and_no_more() -> None:
    extend, complete = script_of("extend"), script_of("complete")
    assert "function operations.extend()" in extend and "local function finish_job" not in extend
    assert "local function finish_job" in complete and complete.count("function operations.") == 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nothing_that_an_operation_calls_is_left_out(operation: str) -> None:
    script = script_of(operation)
    functions = re.findall(r"^local function (\w+)", read_source(), re.M)
    called = {name for name in functions if re.search(rf"(?<![.:\w]){name}\(", script)}
    defined = set(re.findall(r"^local function (\w+)", script, re.M))
    assert called <= defined
    assert defined <= called


def test_comments_are_left_out_and_texts_are_not() -> None:
    assert "--" not in "".join(map(script_of, OPERATIONS))
    assert "the process that ran the job died" in script_of("give_up")


def test_an_unknown_operation() -> None:
    with pytest.raises(KeyError):
        script_of("nothing")
