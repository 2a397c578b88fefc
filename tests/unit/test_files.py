"""`File` in a plugin's schema, without a storage."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from worker.attach import Scratch
from worker.errors import InvalidInput
from worker.fetch import check_address
from worker.files import File, FileRules, find_files, holds_files
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
def test_what_is_no_file_is_told_what_is(image: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Input.model_validate({"image": image})
    (error,) = caught.value.errors()
    assert error["loc"] == ("image",) and said in error["msg"]


def test_a_service_with_files_runs_inline() -> None:
    good, bad = run_inline(Copying(), [{"image": "data:text/plain,abc"}, {"image": {"file": "0" * 64}}])
    assert good["made"]["size"] == len("abc.txt") and len(good["made"]["file"]) == 64
    assert isinstance(bad, InvalidInput) and bad.errors and bad.errors[0]["loc"] == ["image"]
    with pytest.raises(RuntimeError, match="not here"):
        _ = File.from_bytes(b"").path


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1", "fd00::1",
        "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "224.0.0.1", "100.64.0.1", "2130706433", "0x7f.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(host: str) -> None:
    with pytest.raises(InvalidInput):
        check_address(host, allow_private=False)


def test_public_addresses_are_not() -> None:
    assert check_address("93.184.215.14", allow_private=False) == ["93.184.215.14"]
    assert check_address("127.0.0.1", allow_private=True) == ["127.0.0.1"]


def test_what_a_dead_process_left_is_removed_and_what_the_living_have_is_not(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from worker.attach import Scratch; s = Scratch(Path(sys.argv[1])); "
    code += "(s.make() / 'f').write_text('x')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert list(tmp_path.glob("*/*/f"))
    living = Scratch(tmp_path)
    assert not list(tmp_path.iterdir())
    kept = living.make()
    Scratch(tmp_path)
    assert kept.is_dir()
