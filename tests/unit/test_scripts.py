"""The ledger's scripts, put together from their files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from worker.ledger import scripts
from worker.ledger.scripts import read_script, script_of

FOLDER = Path(str(scripts.FOLDER))
OPERATIONS = sorted(path.stem for path in FOLDER.glob("*.lua"))
#: A full Redis refuses to run these: they store new jobs, or only read.
REFUSED_WHEN_FULL = {"create", "list", "overview", "forecast"}


def test_an_operation_comes_with_the_files_that_it_includes_and_no_more() -> None:
    assert list(read_script("extend")) == [
        "base/keys",
        "lib/allow_when_full",
        "base/keys_of_workers",
        "base/now",
        "extend",
    ]
    assert "local function finish_job" not in script_of("extend")
    assert script_of("complete").count("local function finish_job") == 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_file_comes_once_and_after_the_files_that_it_includes(operation: str) -> None:
    texts = read_script(operation)
    names = list(texts)
    for name, text in texts.items():
        included = re.findall(r'"(.+?)"', " ".join(scripts.INCLUDE.findall(text)))
        assert all(names.index(other) < names.index(name) for other in included)
    assert names[-1] == operation
    assert all(name.startswith("base/") for file in names if file.startswith("base/") for name in read_script(file))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_full_redis_refuses_new_jobs_alone(operation: str) -> None:
    assert ("lib/allow_when_full" in read_script(operation)) is (operation not in REFUSED_WHEN_FULL)


def test_every_file_is_part_of_an_operation() -> None:
    used = {name for operation in OPERATIONS for name in read_script(operation)}
    assert {str(path.relative_to(FOLDER))[: -len(".lua")] for path in FOLDER.rglob("*.lua")} == used


def test_comments_are_left_out_and_texts_are_not() -> None:
    assert "--" not in "".join(map(script_of, OPERATIONS))
    assert "the process that ran the job died" in script_of("give_up")


def test_a_missing_file_is_an_error_with_the_chain_of_includes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LookupError, match="'nothing' is missing: nothing"):
        script_of("nothing")
    (tmp_path / "one.lua").write_text('--@ include "two"\n')
    (tmp_path / "two.lua").write_text('--@ include "lib/three"\n')
    monkeypatch.setattr(scripts, "FOLDER", tmp_path)
    with pytest.raises(LookupError, match=re.escape("'lib/three' is missing: one -> two -> lib/three")):
        read_script("one")
    (tmp_path / "two.lua").write_text('--@ include "one"\n')
    with pytest.raises(LookupError, match=re.escape("'one' includes itself: one -> two -> one")):
        read_script("one")
