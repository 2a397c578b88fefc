"""The mistakes that a new author makes, and the words that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.plugins import SCHEMA
from tests.kit.system import System, running_system, services, write_plugin

HEAD = "from worker.service import Service\nfrom {name}.schema import Input, Output\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("plugins")
    sources = {
        "misnamed": HEAD + "class Pluggin(Service[Input, Output]):\n    def predict(self, item): ...\n",
        "misspelt": HEAD + "class Plugin(Service[Input, Output]):\n    def predct_batch(self, batch): ...\n",
        "needy": HEAD + "import no_such_library\n",
        "short": HEAD + "class Plugin(Service[Input, Output]):\n    max_batch_size = 8\n"
        "    def predict_batch(self, batch): return [{'n': item.n} for item in batch[:3]]\n",
    }
    for name, source in sources.items():
        write_plugin(folder, name, SCHEMA, source.replace("{name}", name))
    with running_system(tmp_path_factory.mktemp("mistakes"), folder) as made:
        yield made


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("misnamed", ["it has Pluggin", "mend the entry point in its pyproject.toml", "pip install -e"]),
        ("misspelt", ["it has `predct_batch`: did you mean `predict_batch`?", "service.py, line 3"]),
        ("needy", ["service.py, line 3: import no_such_library", "add no_such_library to the dependencies"]),
        (
            "short",
            ["a batch of 8 fails, though example 0 alone does not: invalid_output: predict_batch must return one"],
        ),
    ],
)
def test_a_mistake_gets_an_error_with_the_remedy(installed: System, name: str, words: list[str]) -> None:
    told = services(installed, "check", name)
    assert told.returncode == 1
    for text in words:
        assert text in told.stdout, told.stdout
    assert "importlib" not in told.stderr


def test_a_recursive_input_keeps_its_example(tmp_path: Path) -> None:
    schema = SCHEMA.replace(
        "    n: int\n\nclass Output", "    n: int\n    parts: list['Input'] = []\n\nclass Output", 1
    )
    source = HEAD.format(name="tree") + "class Plugin(Service[Input, Output]):\n"
    write_plugin(tmp_path, "tree", schema, source + "    def predict(self, item): return {'n': item.n}\n")
    with running_system(tmp_path, tmp_path) as system:
        assert '"n": 2' in services(system, "predict", "tree").stdout
