"""`File` in a plugin's schema, without a storage."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from worker.errors import AddressRefused, InvalidInput
from worker.files import File, FileRules, find_files, holds_files
from worker.filestore.batch_files import Scratch
from worker.filestore.fetch import check_url, find_addresses
from worker.net.addresses import AddressRules, parse_networks, parse_url
from worker.service import Service
from worker.testing import run_inline


def test_worker_files_imports_pydantic_alone() -> None:
    code = "import sys, worker.files; print(sorted({n.partition('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"redis", "fsspec", "celery", "fastapi", "filetype"} & set(eval(done.stdout))


class Inner(BaseModel):
    scan: File = Field(alias="theScan")


@dataclass
class Pair:
    left: File | None = None


class Input(BaseModel):
    image: Annotated[File, FileRules(max_bytes=8, types=["text/*"])]
    cover: Annotated[File, FileRules(types=["image/*"])] | None = None
    pages: list[Inner] = []
    by_name: dict[str, File] = {}
    pair: Pair = Field(default_factory=Pair)


class Output(BaseModel):
    made: File
    size: int


class Copying(Service[Input, Output]):
    def preprocess(self, input: Input) -> bytes:
        return input.image.path.read_bytes() + Path(input.image).suffix.encode()

    def predict(self, features: bytes) -> Output:
        return Output(made=File.from_bytes(features, "text/plain"), size=len(features))


def test_files_are_found_wherever_they_are_with_their_place() -> None:
    url = "https://example.org/a?b=c"
    value = {"image": "data:,x", "pages": [{"theScan": url}], "by_name": {"n": {"file": "0" * 64}}}
    input = Input.model_validate({**value, "pair": {"left": "data:text/plain;base64,eA=="}})
    assert [where for where, _ in find_files(input)] == [
        ("image",),
        ("pages", 0, "theScan"),
        ("by_name", "n"),
        ("pair", "left"),
    ]
    assert holds_files(Input) and holds_files(Output, "serialization")
    assert not holds_files(type("Plain", (BaseModel,), {"__annotations__": {"n": int}}))
    assert input.model_dump(mode="json", by_alias=True)["pages"] == [{"theScan": url}]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("data:,123456789", "9 bytes; expected at most 8"),
        ("data:image/png,x", "the file is image/png; expected text/*"),
        ("data:text/plain", "data:<type>;base64,<data>"),
        ("data:text/plain;base64,***", "cannot be read"),
        ("https://user@host/", "without credentials"),
        ("https://host:0/", "expected a URL"),
        ("https://ho st/", "expected a URL"),
        ("ftp://host/", 'expected {"file": "<id>"}'),
        ({"file": "0" * 63}, "64 hexadecimal digits"),
        ({"file": "0" * 64, "path": "/etc"}, 'expected {"file"'),
        (None, 'expected {"file"'),
    ],
)
def test_a_value_that_is_no_file_gets_a_list_of_the_forms_of_files(image: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Input.model_validate({"image": image})
    (error,) = caught.value.errors()
    assert error["loc"] == ("image",) and said in error["msg"]


def test_a_file_that_may_be_left_out_has_rules_too() -> None:
    assert Input.model_validate({"image": "data:,x", "cover": None}).cover is None
    with pytest.raises(ValidationError, match="the file is text/plain; expected image"):
        Input.model_validate({"image": "data:,x", "cover": "data:text/plain,x"})


def test_a_service_with_files_runs_inline() -> None:
    good, bad = run_inline(Copying(), [{"image": "data:text/plain,abc"}, {"image": {"file": "0" * 64}}])
    assert good["made"]["size"] == len("abc.txt") and len(good["made"]["file"]) == 64
    assert isinstance(bad, InvalidInput) and bad.errors and bad.errors[0]["loc"] == ["image"]
    with pytest.raises(RuntimeError, match="not here"):
        _ = File.from_bytes(b"").path


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://127.0.0.1/", "127.0.0.1 is not a public address"),
        ("https://localhost:8443/", "the host 'localhost'"),
        ("https://2130706433/", "its address is not a public"),
        ("https://[::ffff:10.0.0.1]/", "is not a public address"),
        ("http://93.184.215.14/", "expected https"),
        ("https://93.184.215.14:22/", "port 22"),
    ],
)
def test_files_come_from_public_addresses_by_https_and_from_networks_that_are_allowed(url: str, said: str) -> None:
    with pytest.raises(AddressRefused, match=said) as caught:
        find_addresses(parse_url(url), AddressRules((), "SETTING"))
    assert "SETTING" in caught.value.message
    assert find_addresses(parse_url(url), AddressRules(parse_networks("0.0.0.0/0,::/0"), "SETTING"))
    assert find_addresses(parse_url("https://93.184.215.14/"), AddressRules((), "SETTING")) == ["93.184.215.14"]


def test_the_api_refuses_urls_that_need_no_lookup() -> None:
    none, some = AddressRules((), "SETTING"), AddressRules(parse_networks("10.0.0.0/8"), "SETTING")
    check_url("https://host/signed?" + "x" * 5000 + "#page=2", none)
    check_url("http://host/", some)
    wrong = {"http://host/": "https://.*SETTING", "https://u:p@host/": "user", "https://host\\@other/": "ASCII"}
    for url, said in wrong.items():
        with pytest.raises(AddressRefused, match=said):
            check_url(url, none)


def test_files_of_dead_processes_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from worker.filestore.batch_files import Scratch; "
    code += "s = Scratch(Path(sys.argv[1])); "
    code += "(s.make() / 'f').write_text('x')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert list(tmp_path.glob("*/*/f"))
    living = Scratch(tmp_path)
    assert not list(tmp_path.iterdir())
    kept = living.make()
    Scratch(tmp_path)
    assert kept.is_dir()
