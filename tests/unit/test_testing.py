"""What a plugin's author tests with: a service run inline, and the conformance checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.system import write_plugin
from worker.discovery import Plugin
from worker.errors import InvalidInput, PredictFailed
from worker.testing import agree, check_plugin, examples_of, load, run_inline

SCHEMA = """
from pydantic import BaseModel

class Input(BaseModel):
    model_config = {"json_schema_extra": {"examples": [{"n": 2}, {"n": 3}]}}
    n: int

class Output(BaseModel):
    n: float
"""
SERVICE = """
import json
from worker.service import Service
from NAME.schema import Input, Output

class Plugin(Service[Input, Output]):
    max_batch_size = 8

    def predict_batch(self, batch):
        if any(item.n < 0 for item in batch):
            raise ValueError("no negative numbers")
        return [{"n": item.n} for item in batch]
"""


class Installed:
    """A folder on the path; each plugin has a name of its own, since modules are imported once a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, schema: str = SCHEMA, service: str = SERVICE) -> Plugin:
        write_plugin(self.folder, name, schema, service.replace("NAME", name))
        return Plugin(name, f"{name}.service:Plugin", name, "1.0", "")

    def problems(self, name: str, schema: str = SCHEMA, service: str = SERVICE) -> dict[str, str]:
        checks = list(check_plugin(self.add(name, schema, service)))
        return {check.name: check.problem for check in checks if check.problem}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for the check's own process
    return Installed(tmp_path)


def test_inputs_run_as_one_batch_and_fail_alone(installed: Installed) -> None:
    service = load(installed.add("inline"))
    good, negative, wrong = run_inline(service, [{"n": 1}, {"n": -1}, {"n": "x"}])
    assert good == {"n": 1}
    assert isinstance(negative, PredictFailed)
    assert isinstance(wrong, InvalidInput)


def test_a_good_plugin_passes(installed: Installed) -> None:
    assert installed.problems("good") == {}
    assert examples_of(Plugin("good", "good.service:Plugin", "good", "1.0", "")) == [{"n": 2}, {"n": 3}]


@pytest.mark.parametrize(
    ("name", "old", "new", "check", "said"),
    [
        ("heavy", "from pydantic", "import celery\nfrom pydantic", "its schema is light", "schema.py imports celery"),
        ("bare", '{"json_schema_extra"', '{} and {"json_schema_extra"', "its Input has valid examples", "give Input"),
        ("unfit", '{"n": 3}', '{"n": "x"}', "its Input has valid examples", "example 1 would fail: invalid_input"),
    ],
)
def test_a_bad_schema_is_found(installed: Installed, name: str, old: str, new: str, check: str, said: str) -> None:
    assert said in installed.problems(name, SCHEMA.replace(old, new))[check]


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("sorts", 'sorted([{"n": item.n} for item in batch], key=str)'),
        ("constant", '[{"n": len(batch)} for item in batch]'),
        ("short", '[{"n": item.n} for item in batch][:7]'),
    ],
)
def test_a_batch_that_mixes_its_items_up_is_found(installed: Installed, name: str, new: str) -> None:
    found = installed.problems(name, service=SERVICE.replace('[{"n": item.n} for item in batch]', new))
    assert "a batch of 8" in found["a full batch agrees, in order, with batches of one"]


def test_a_service_with_models_of_its_own_is_found(installed: Installed) -> None:
    own = SERVICE.replace("from NAME.schema import Input, Output", "from pydantic import BaseModel\n") + ""
    own = own.replace("class Plugin", "class Input(BaseModel):\n    n: int\n\nclass Output(Input): ...\n\nclass Plugin")
    found = installed.problems("own", service=own)
    assert "is not the one in Service" in found["the schema's Input and Output are the service's"]


def test_a_plugin_that_cannot_load_says_why(installed: Installed) -> None:
    broken = SERVICE + "\n    def load(self):\n        raise OSError('no weights')\n"
    assert "OSError: no weights" in installed.problems("broken", service=broken)["it can be loaded"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": [1.0, "x"]}, {"a": [1.00001, "x"]}, True),
        ({"a": 1.0}, {"a": 1.1}, False),
        ({"a": 1}, {"b": 1}, False),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        (1.0, True, False),
        (InvalidInput("x"), InvalidInput("y"), True),
        (InvalidInput("x"), PredictFailed("x"), False),
    ],
)
def test_outputs_agree_but_for_their_last_digits(one: object, other: object, same: bool) -> None:
    assert agree(one, other) is same
