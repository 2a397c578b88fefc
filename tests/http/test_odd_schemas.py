"""What an author may put into a schema: it never breaks another service's page, document or client."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.kit.system import System, running_system, write_plugin

HEAD = """
import datetime, decimal, enum, math
from typing import Any
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType
"""

PLAIN = """
class Input(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"n": 1}]})
    n: int = 3

class Output(BaseModel):
    n: int = 3
"""

#: Schemas by the name of their service: what is wrong with each is its own affair.
ODD = {
    "not_a_number": """
class Inner(BaseModel):
    low: float = -math.inf
    sizes: list[float] = [1.0, math.nan]

class Input(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"x": math.nan}, {"x": 1.5}], "x-limit": math.inf})
    x: float = math.nan
    y: float = Field(2.5, le=math.inf, examples=[math.inf, 3.0])
    inner: Inner = Inner()
    inners: list[Inner] = Field(default_factory=list)
    default: float = Field(math.inf, description="a field of this name is no default")

class Output(BaseModel):
    x: float = math.inf
""",
    "objects": """
class Kind(enum.Enum):
    A = "a"

class Thing:
    pass

class Broken:
    def __repr__(self):
        raise RuntimeError("no text")

class Input(BaseModel):
    model_config = ConfigDict(
        arbitrary_types_allowed=True,
        json_schema_extra={
            "examples": [{"when": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), "tags": {"a"}}],
            "x-set": {1}, "x-bytes": bytes([255]), "x-thing": Thing(), "x-broken": Broken(), "x-kind": Kind.A,
            "x-lone": "\\ud800", "x-large": 10**6000, "x-decimal": decimal.Decimal("1.5"),
        },
    )
    when: datetime.datetime = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    tags: set[str] = {"a"}
    raw: bytes = bytes([255, 254])
    thing: Any = Thing()
    lone: str = "\\ud800"

class Output(BaseModel):
    kind: Kind = Kind.A
""",
    "circle": """
circle = {}
circle["again"] = circle

class Input(BaseModel):
    model_config = ConfigDict(json_schema_extra={"x-circle": circle})
    n: int = 0

class Output(BaseModel):
    n: int = 0
""",
    "recursive": """
Lists = TypeAliasType("Lists", "list[Lists]")

class Node(BaseModel):
    children: list["Node"] = []

class Input(BaseModel):
    root: Node
    lists: Lists = []

class Output(Node):
    pass
""",
    "raises": """
class Input(BaseModel):
    n: int = 0

    @classmethod
    def model_json_schema(cls, *args, **kwargs):
        raise SystemExit(3)

class Output(BaseModel):
    n: int = 0
""",
    "no_dict": """
class Input(BaseModel):
    n: int = 0

    @classmethod
    def model_json_schema(cls, *args, **kwargs):
        return "no schema"

class Output(BaseModel):
    n: int = 0
""",
    "no_schema_for_it": """
class Mine:
    pass

class Input(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    mine: Mine | None = None
    n: int = 0

class Output(BaseModel):
    n: int = 0
""",
    "lost_ref": """
class Input(BaseModel):
    n: int = Field(0, json_schema_extra={"$ref": "https://example.org/nowhere.json"})

class Output(BaseModel):
    n: int = 0
""",
    "huge": """
class Input(BaseModel):
    n: int = Field(0, description="x" * 5_000_000)

class Output(BaseModel):
    n: int = 0
""",
}

SERVICE = """
from worker.service import Service
from {name}.schema import Input, Output

class Plugin(Service[Input, Output]):
    def predict(self, input):
        return {{}}
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("odd")
    for name, schema in {"plain": PLAIN, **ODD}.items():
        write_plugin(folder / "plugins", name, HEAD + schema, SERVICE.format(name=name))
    with running_system(folder, folder / "plugins") as made:
        made.start_api()
        yield made


@pytest.fixture
def client(odd: System) -> Iterator[httpx.Client]:
    with odd.client() as client:
        yield client


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_every_page_is_json_and_shows_the_services_that_are_fine(client: httpx.Client) -> None:
    services = {service["name"]: service for service in strict(client.get("/services").text)["services"]}
    assert {"plain", *ODD} <= set(services)
    plain = services["plain"]
    assert plain["input_schema"]["properties"]["n"]["default"] == 3 and plain["example"] == {"n": 1}
    for name in ("plain", *ODD):
        service = services[name]
        single = strict(client.get(f"/services/{name}").text)
        assert single == service
        model = strict(client.get(f"/v2/models/{name}").text)
        assert model.get("name") == name or service["state"] == "failed"
    assert len(client.get("/services").content) < 1_000_000, "a huge schema is nobody's burden"
    document = strict(client.get("/openapi.json").text)
    assert document["components"]["schemas"]["plain.Input"]["properties"]["n"]["description"] == "default: 3"


def test_values_without_a_form_in_json_are_left_out_of_a_schema(client: httpx.Client) -> None:
    service = client.get("/services/not_a_number").json()
    schema = service["input_schema"]
    assert "default" not in schema["properties"]["x"] and schema["properties"]["y"]["default"] == 2.5
    assert schema["properties"]["y"]["examples"] == [3.0] and "maximum" not in schema["properties"]["y"]
    assert "default" not in schema["properties"]["inner"], "a value without one of its parts is another value"
    assert set(schema["properties"]) == {"x", "y", "inner", "inners", "default"}
    assert "default" not in schema["$defs"]["Inner"]["properties"]["low"] and "x-limit" not in schema
    assert schema["examples"] == [{"x": 1.5}] == [service["example"]]
    assert service["state"] == "no_workers"
    assert client.post("/jobs", json={"service": "not_a_number", "input": {}}).status_code == 202

    schema = client.get("/services/objects").json()["input_schema"]
    assert schema["examples"] == [{"when": "2026-01-01T00:00:00Z", "tags": ["a"]}]
    assert (schema["x-set"], schema["x-kind"], schema["x-decimal"]) == ([1], "a", "1.5")
    assert schema["x-lone"] == "\\ud800" and "x-broken" not in schema and "x-large" not in schema


@pytest.mark.parametrize(
    ("name", "state", "is_shown"),
    [
        ("circle", "failed", False),
        ("recursive", "no_workers", True),
        ("no_schema_for_it", "no_workers", False),
        ("lost_ref", "no_workers", True),
        ("huge", "no_workers", False),
        ("raises", "failed", False),
        ("no_dict", "failed", False),
    ],
)
def test_a_service_with_an_odd_schema_harms_itself_at_most(
    client: httpx.Client, name: str, state: str, is_shown: bool
) -> None:
    service = client.get(f"/services/{name}").json()
    assert service["state"] == state, service["reason"]
    assert (service["input_schema"] is not None) == is_shown
    status = client.post(
        "/jobs", json={"service": name, "input": {"root": {}} if name == "recursive" else {}}
    ).status_code
    assert status == (202 if state == "no_workers" else 503)


def test_a_client_is_generated_for_all(odd: System) -> None:
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--url", f"{odd.url}/openapi.json"]
    (odd.folder / "config.yaml").write_text(
        'post_hooks: []\ncontent_type_overrides: {application/x-ndjson: application/octet-stream, "*/*": '
        "application/octet-stream}\n"
    )
    command += ["--meta", "none", "--output-path", "odd_client", "--config", "config.yaml", "--fail-on-warning"]
    done = subprocess.run(command, cwd=odd.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert importlib.util.find_spec("pydantic") and (odd.folder / "odd_client" / "models" / "plain_input.py").exists()
