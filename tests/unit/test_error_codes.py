"""The one list of error codes (``api.problems.CODES``): the errors, the docs and the client agree with it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from libs_service_client import errors as client_errors

from api import problems
from worker import errors

ROOT = Path(__file__).parents[2]

#: Codes of errors that no answer of the API has: of runs, of webhooks' attempts and of commands.
OTHERS = {"cancelled", "address_refused", "delivery_failed", "bench_failed", "infer_failed", "unknown_key", "refused"}


def codes_in_source() -> set[str]:
    """The ``code`` of every error class in the source."""
    found = set()
    for folder in ("worker", "api"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    found |= {
                        line.value.value
                        for line in node.body
                        if isinstance(line, ast.Assign | ast.AnnAssign)
                        and isinstance(line.value, ast.Constant)
                        and ast.unparse(line.targets[0] if isinstance(line, ast.Assign) else line.target) == "code"
                        and isinstance(line.value.value, str)
                    }
    return found


def rows(path: str, heading: str) -> list[list[str]]:
    """The cells of the table below a line of a page."""
    below = (ROOT / "docs" / path).read_text().split(heading, 1)[1].split("\n\n", 1)[0]
    return [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in below.splitlines() if line.startswith("|")]


def test_every_error_class_has_a_status_or_belongs_to_a_job() -> None:
    listed = {code for codes in problems.CODES.values() for code in codes}
    of_jobs = {error.code for error in errors.JOB_ERRORS}
    assert codes_in_source() <= listed | of_jobs | OTHERS
    assert not OTHERS & (listed | of_jobs)


def test_the_docs_name_every_code_with_its_status() -> None:
    documented = {(int(status), code) for status, code, _ in rows("http.md", "| status | `code` | advice |\n")[1:]}
    assert documented == {(status, code) for status, codes in problems.CODES.items() for code in codes}


def test_the_docs_name_every_code_of_a_job() -> None:
    documented = {code for code, _ in rows("plugins.md", "| the job's error | when |\n")[1:]}
    assert documented == {error.code for error in errors.JOB_ERRORS}


def test_the_ledger_gives_no_other_code_to_a_job() -> None:
    source = "".join(path.read_text() for path in (ROOT / "worker" / "ledger" / "lua").rglob("*.lua"))
    given = set(re.findall(r"'([a-z]+_[a-z]+)'", source)) & codes_in_source()
    assert {"timed_out", "worker_lost"} <= given
    assert given <= {error.code for error in errors.JOB_ERRORS} | {"job_expired"}


def test_every_status_of_the_clients_errors_has_a_code() -> None:
    assert set(client_errors.CLASSES) <= set(problems.CODES)
    assert all(problems.TITLES[status] for status in problems.CODES)
