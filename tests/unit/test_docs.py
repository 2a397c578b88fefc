"""The documents hold what the code has."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from api.problems import STATUS
from tests.kit.system import ROOT
from worker.ledger.jobs import Status
from worker.service import KNOBS, Service
from worker.settings import Settings


def text(name: str) -> str:
    return (ROOT / name).read_text()


def test_every_setting_is_documented_with_its_default_and_meaning() -> None:
    page = text("docs/settings.md")
    for name, field in Settings.model_fields.items():
        variable = (
            name.upper()
            if name in ("redis_url", "broker_url", "services", "flower_port")
            else f"SERVICES_{name.upper()}"
        )
        default = f"`{field.default}`" if field.default not in ("", ()) else "none"
        assert f"| `{variable}` | {default} | {field.description} |" in page


def test_every_error_code_status_and_knob_is_documented() -> None:
    http, plugins = text("docs/http.md"), text("docs/plugins.md")
    for error, status in STATUS.items():
        assert f"| {status} | `{error.code}` |" in http
    assert all(f"`{status}`" in http for status in Status)
    assert all(f"| `{name}` | " in plugins for name in KNOBS)
    verbs = [name for name, value in vars(Service).items() if callable(value) and not name.startswith("_")]
    assert all(f"`{verb}(self" in plugins for verb in verbs)


def test_the_environment_is_read_in_one_place() -> None:
    # A child's environment is built from os.environ elsewhere; nothing else looks a variable up.
    for path in [*(ROOT / "worker").glob("*.py"), *(ROOT / "api").glob("*.py")]:
        if path.name not in ("settings.py", "up.py"):
            found = re.findall(r"os\.(?:getenv|environ(?!\.setdefault\(\"FLOWER)).*", path.read_text())
            assert not found, (path.name, found)


def test_the_changelog_knows_the_version_and_links_lead_somewhere() -> None:
    assert tomllib.loads(text("pyproject.toml"))["project"]["version"]
    assert "## [Unreleased]" in text("CHANGELOG.md")
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in [*pages, *(ROOT / "plugins").glob("*/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), (page.name, target)


def test_every_module_that_the_architecture_names_exists_and_every_room_is_in_the_overview() -> None:
    for page in (ROOT / "docs" / "architecture").glob("*.md"):
        for name in re.findall(r"`((?:worker|api)(?:\.\w+)+)`", page.read_text()):
            module = ROOT.joinpath(*name.split("."))
            assert module.is_dir() or module.with_suffix(".py").exists(), (page.name, name)
    overview = text("docs/architecture/overview.md")
    for room in [*(ROOT / "worker").glob("*/__init__.py"), *(ROOT / "api").glob("*/__init__.py")]:
        name = f"{room.parent.parent.name}/{room.parent.name}"
        assert f"`{name}`" in overview or name in ("worker/testing",), name


def test_no_test_module_is_imported_by_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) tests\.\w+\.(test_|conftest)", path.read_text(), re.M), path


def test_no_function_is_long_and_no_file_large() -> None:
    for path in [
        *(ROOT / "worker").rglob("*.py"),
        *(ROOT / "api").rglob("*.py"),
        *(ROOT / "libs_service").rglob("*.py"),
        *(ROOT / "client" / "src").rglob("*.py"),
        *(ROOT / "plugins").glob("*/src/*/*.py"),
    ]:
        source = path.read_text()
        assert source.count("\n") <= 700, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, (path.name, node.name)


#: What opens or closes a block in Lua; "for" and "while" open theirs by "do", comments and texts are passed over.
LUA_TOKEN = re.compile(r"--.*|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|\b(?:function|if|do|repeat|end|until)\b")


def functions_of(lua: str) -> Iterator[tuple[int, int]]:
    """The first and the last line of each function."""
    opened: list[tuple[str, int]] = []
    for number, line in enumerate(lua.splitlines(), 1):
        for token in LUA_TOKEN.findall(line):
            if token in ("end", "until"):
                word, begun = opened.pop()
                if word == "function":
                    yield begun, number
            elif token[0] not in "-'\"":
                opened.append((token, number))
    assert not opened


def test_no_function_of_lua_is_long() -> None:
    for path in (ROOT / "worker").rglob("*.lua"):
        source = path.read_text()
        functions = [*functions_of(source)]
        assert all(last - first < 60 for first, last in functions), path
        lines = {number for first, last in functions for number in range(first, last + 1)}
        own = [
            n for n, line in enumerate(source.splitlines(), 1) if n not in lines and line.strip() and line[:2] != "--"
        ]
        assert len(own) <= 60, f"{path}: the code outside functions"


def test_the_readmes_python_and_toml_blocks_are_a_plugin_that_works(tmp_path: Path) -> None:
    from tests.kit.system import write_plugin
    from worker.testing import run_inline

    blocks = re.findall(r"```python\n# plugins/sentiment/src/sentiment/(\w+)\.py\n(.*?)```", text("README.md"), re.S)
    sources = dict(blocks)
    (toml,) = re.findall(r"```toml\n# plugins/sentiment/pyproject\.toml\n(.*?)```", text("README.md"), re.S)
    assert tomllib.loads(toml)["project"]["entry-points"]["libs_service.services"] == {
        "sentiment": "sentiment.service:Sentiment"
    }
    write_plugin(tmp_path, "sentiment", sources["schema"], sources["service"])
    import sys

    sys.path.insert(0, str(tmp_path))
    try:
        from importlib import import_module

        service = import_module("sentiment.service").Sentiment()
        service.load()
        assert run_inline(service, [{"text": "a lovely day"}, {"text": "awful"}]) == [{"score": 1.0}, {"score": -1.0}]
    finally:
        sys.path.remove(str(tmp_path))
