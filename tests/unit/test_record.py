"""The table of the records' fields, compared with the Lua and the Python that write and read them."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.kit.system import ROOT
from worker.ledger import record, scripts
from worker.ledger.jobs import NewJob
from worker.ledger.record import ABOUT_FIELDS, BATCH_FIELDS, JOB_FIELDS, Field

FOLDER = Path(str(scripts.FOLDER))
TABLES = {"job": JOB_FIELDS, "batch": BATCH_FIELDS, "about": ABOUT_FIELDS}
#: The expressions that name the key of a record, in Lua.
KEYS = {"job": r"record\(\w+\)|key", "batch": r"batch_of\(group\)|batch_key", "about": "ABOUT"}
#: The lists of fields that Python reads together, by the names of their readers.
PYTHON = {
    "StoredChunk": record.CHUNK_FIELDS,
    "Rerun": record.RERUN_FIELDS,
    "Delivery": record.DELIVERY_FIELDS,
    "AttachedJob": record.ATTACHED_JOB_FIELDS,
    "Owner": record.OWNER_FIELDS,
    "Holder": record.HOLDER_FIELDS,
}
READS = {"HGET", "HMGET", "HSTRLEN", "HEXISTS"}
WRITES = {"HSET", "HINCRBY"}


def arguments_of(text: str, start: int) -> list[str]:
    """The arguments of a call, from the place after its bracket on."""
    depth, quoted, arguments, begun = 0, False, [], start
    for i in range(start, len(text)):
        char = text[i]
        quoted ^= char == "'"
        depth += 0 if quoted else (char in "({[") - (char in ")}]")
        if depth < 0 or (char == "," and not depth and not quoted):
            arguments.append(text[begun:i].strip())
            begun = i + 1
        if depth < 0:
            break
    return arguments


def find_uses() -> dict[str, dict[str, dict[str, set[str]]]]:
    """Which files of Lua use which field: by kind of record, then "written", "read" or "removed", then field."""
    uses: dict[str, dict[str, dict[str, set[str]]]] = {kind: defaultdict(lambda: defaultdict(set)) for kind in TABLES}
    for path in FOLDER.rglob("*.lua"):
        text = scripts.COMMENT.sub("", path.read_text())
        name = re.sub(r"^(lib|base)/", "", path.relative_to(FOLDER).with_suffix("").as_posix())
        for match in re.finditer(r"redis\.call\('(H\w+)', ", text):
            command, (key, *fields) = match[1], arguments_of(text, match.end())
            how = "read" if command in READS else "written" if command in WRITES else "removed"
            fields = fields[::2] if command == "HSET" else fields[:1] if command == "HINCRBY" else fields
            for kind, pattern in KEYS.items():
                if re.fullmatch(pattern, key):
                    for field in re.findall(r"^'(\w+)'$", "\n".join(fields), re.M):
                        uses[kind][how][field].add(name)
        for kind, call in (("batch", r"count\(group, '(\w+)'"), ("about", r"tally\('(\w+)', ")):
            for field in re.findall(call, text):
                uses[kind]["written"][field].add(name)
        for block in re.findall(r"FIELDS\w* = \{(.*?)\}", text, re.S):
            for field in re.findall(r"'(\w+)'", block):
                uses["job"]["read"][field].add(name)
    return uses


USES = find_uses()


@pytest.mark.parametrize("kind", TABLES)
def test_every_field_that_lua_uses_is_in_the_table_with_its_writers_and_readers(kind: str) -> None:
    table = TABLES[kind]
    for how, fields in USES[kind].items():
        for field, files in fields.items():
            assert field in table, f"{field!r} is {how} by {sorted(files)}: add it to the table in record.py"
            listed = {"written": table[field].written_by, "read": table[field].read_by, "removed": "*"}[how]
            assert "*" in listed or files <= set(listed.split()), f"{field!r} is {how} by {sorted(files)}"


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, table in TABLES.items() for field in table])
def test_every_writer_and_reader_in_the_table_uses_the_field(kind: str, field: str) -> None:
    entry: Field = TABLES[kind][field]
    assert entry.written_by and entry.read_by and entry.meaning
    for name in f"{entry.written_by} {entry.read_by}".replace("*", "").split():
        if name[0].islower():
            (text,) = [p.read_text() for place in ("", "lib", "base") if (p := FOLDER / place / f"{name}.lua").exists()]
            assert re.search(rf"\b{field}\b", text), f"{name} does not use {field!r}"


@pytest.mark.parametrize(("reader", "fields"), PYTHON.items())
def test_the_fields_that_python_reads_together_name_their_reader(reader: str, fields: tuple[str, ...]) -> None:
    assert set(record.fields_of(reader)) == set(fields)


def test_python_reads_no_field_that_is_not_in_the_table() -> None:
    for path in [*(ROOT / "worker").rglob("*.py"), *(ROOT / "api").rglob("*.py")]:
        for call in re.findall(r"\.(?:hget|hmget|hstrlen)\(record_key\(.*", path.read_text()):
            assert set(re.findall(r'"(\w+)"', call)) <= JOB_FIELDS.keys() | {"attempts"}, (path, call)


def test_a_job_and_a_batch_are_made_of_the_fields_that_the_table_says() -> None:
    for name, table in (("Job", JOB_FIELDS), ("StoredBatch", BATCH_FIELDS)):
        module = "jobs" if name == "Job" else "batches"
        (source,) = (ROOT / "worker").rglob(f"{module}.py")
        text = source.read_text()
        fields = set(re.findall(r'(?:record\[|record\.get\(|number\()b"(\w+)"', text))
        fields |= set(re.findall(r'b"(\w+)" in record', text))
        assert fields == {field for field, entry in table.items() if name in entry.read_by.split()}


def test_the_fields_that_are_stored_as_they_stand_are_those_that_the_table_says() -> None:
    job = NewJob(service="echo", input=b"{}", metadata=b'{"a": 1}', webhook=b'{"url": "https://host/"}')
    listed = {field for field, entry in JOB_FIELDS.items() if "NewJob" in entry.written_by.split()}
    assert set(job.plain_fields()) == listed
    assert NewJob(service="echo", input=b"{}").plain_fields() == {}
