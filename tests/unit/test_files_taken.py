"""Types and endings by our own table, names, what an author is told, and the taking of a file."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from api.files.dispositions import read_name, read_parameters, write_attachment
from worker.errors import InvalidOutput
from worker.file_types import ALIASES, ENDINGS, canonical
from worker.files import File, FileRules, clean_name, matches, name_in_url
from worker.filestore.copying import copy_content
from worker.filestore.output_files import OutputFiles, take_file
from worker.filestore.storage import find_type
from worker.service import Service
from worker.testing import run_inline

ENDING_OF = {
    "audio/wav": ".wav",
    "audio/x-wav": ".wav",
    "audio/flac": ".flac",
    "audio/ogg": ".ogg",
    "audio/mp4": ".m4a",
    "audio/mpeg": ".mp3",
    "image/webp": ".webp",
    "image/avif": ".avif",
    "image/heic": ".heic",
    "image/jpeg": ".jpg",
    "image/jpg": ".jpg",
    "image/tiff": ".tiff",
    "video/x-matroska": ".mkv",
    "video/mp4": ".mp4",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/gzip": ".gz",
    "application/zip": ".zip",
    "text/csv": ".csv",
    "text/plain": ".txt",
    "application/json": ".json",
    "application/vnd.apache.parquet": ".parquet",
}
#: The first bytes of files, and what they are.
HEADS = {
    b"RIFF\x24\x00\x00\x00WAVEfmt ": "audio/wav",
    b"fLaC\x00\x00\x00\x22": "audio/flac",
    b"OggS\x00\x02": "audio/ogg",
    b"RIFF\x24\x00\x00\x00WEBPVP8 ": "image/webp",
    b"\x1f\x8b\x08\x00": "application/gzip",
    b"PK\x03\x04" + b"\x00" * 30: "application/zip",
    b"\x1aE\xdf\xa3\x93B\x82\x88matroska": "video/x-matroska",
    b"SQLite format 3\x00": "application/vnd.sqlite3",
}


def test_types_and_endings_are_the_same_in_an_image_without_mime_types() -> None:
    code = """
import json, mimetypes, sys
mimetypes.knownfiles.clear()
mimetypes.init(files=[])
from worker.files import File, suffix_of
kinds = json.loads(sys.argv[1])
print(json.dumps([[suffix_of(kind) for kind in kinds], [File.from_path("a" + e).content_type for e in kinds.values()]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(ENDING_OF)], capture_output=True, text=True, check=True
    )
    endings, kinds = json.loads(done.stdout)
    assert dict(zip(ENDING_OF, endings, strict=True)) == ENDING_OF
    assert kinds == [canonical(kind) for kind in ENDING_OF]


def test_the_table_is_sound() -> None:
    endings = [ending for known in ENDINGS.values() for ending in known]
    assert len(endings) == len(set(endings)), "an ending has one type"
    assert not ALIASES.keys() & ENDINGS.keys() and set(ALIASES.values()) <= ENDINGS.keys()
    names = {"a.json.gz": "application/gzip", "A.WAV": "audio/wav", "x": "application/octet-stream"}
    assert {name: File.from_path(name).content_type for name in names} == names


@pytest.mark.parametrize(("head", "kind"), HEADS.items())
def test_a_type_that_is_told_by_the_first_bytes_has_its_one_name(head: bytes, kind: str) -> None:
    assert find_type("", head + b"\x00" * 300) == kind


def test_rules_take_a_type_by_any_of_its_names() -> None:
    assert FileRules(types=["audio/x-wav"]).problem(1, "audio/wav") is None
    assert FileRules(types=["audio/wav"]).problem(1, "audio/vnd.wave") is None
    assert matches("image/jpg", ["image/jpeg"]) and not matches("image/png", ["image/jpeg"])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("photo.jpg", "photo.jpg"),
        ("/etc/../passwd", "passwd"),
        ("dir\\photo.jpg", "photo.jpg"),
        ("..", ""),
        ("dir/", ""),
        (" a\tb\x00\x7f\n.txt ", "ab.txt"),
        ("cod\u202egpj.exe", "codgpj.exe"),
        ("e\u0301t\u00e9.txt", "\u00e9t\u00e9.txt"),
        ("\U0001f468\u200d\U0001f4bb.txt", "\U0001f468\u200d\U0001f4bb.txt"),
        ("lone\ud800.txt", "lone.txt"),
        ("é" * 200 + ".txt", "é" * 125 + ".txt"),
        ("x" * 300, "x" * 255),
        ("x." + "y" * 300, "x." + "y" * 253),
    ],
)
def test_a_file_name_fits_every_disk(text: str, name: str) -> None:
    assert clean_name(text) == name and len(clean_name(text).encode()) <= 255


def test_a_name_comes_back_as_it_was_sent() -> None:
    for name in ("a.txt", 'q"u\\o;te.txt', "100%.txt", "naïve €.txt", "'"):
        assert read_name(read_parameters(write_attachment(clean_name(name)).encode())) == clean_name(name)
    assert name_in_url("https://host/a/b%20c.png?d=e/f#g/h") == "b c.png"
    assert name_in_url("https://host/") == ""


class Output(BaseModel):
    out: File
    pages: list[File] = []


class Picture:
    """As PIL's."""

    def save(self, target: Any) -> None: ...


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Path("out.png"), r"expected a File, got PosixPath: write File\.from_path\(path\)"),
        ("out.png", r"local file writes File\.from_path\(path\)"),
        (b"x", r"got bytes: write File\.from_bytes\(data"),
        (bytearray(b"x"), r"got bytearray: write File\.from_bytes\(data"),
        (io.BytesIO(b"x"), r"got _io\.BytesIO: write File\.from_bytes\(f\.read\(\)"),
        (Picture(), r"Picture: save\(\) it to a path or io\.BytesIO"),
        (7, r"got int; a plugin writes File\.from_path\(path\)"),
    ],
)
def test_a_value_that_is_no_file_gets_an_error_with_the_remedy(value: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Output(out=value)
    with pytest.raises(ValidationError) as caught:
        Output(out=File.from_bytes(b""), pages=[value])
    assert caught.value.errors()[0]["loc"] == ("pages", 0)


def test_a_caller_is_told_nothing_of_plugins() -> None:
    with pytest.raises(ValidationError) as caught:
        Output.model_validate_json('{"out": "out.png"}')
    assert "from_path" not in str(caught.value)
    with pytest.raises(TypeError, match=r"File\.from_bytes expects bytes, got str"):
        File.from_bytes("text")  # type: ignore[arg-type]


class Input(BaseModel):
    text: str


class Fixed(Service[Input, Output]):
    """Writes one path for every input, in another verb each time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "out.txt"

    def predict(self, input: Input) -> Input:
        return input

    def postprocess(self, input: Input) -> Output:
        self.path.write_text(input.text)
        return Output(out=File.from_path(self.path, move=input.text == "moved"))


def test_inline_runs_take_files_as_they_are_returned(tmp_path: Path) -> None:
    texts = ["a", "bb", "ccc", "moved"]
    together = run_inline(Fixed(tmp_path), [{"text": text} for text in texts])
    assert [one["out"]["size"] for one in together] == [1, 2, 3, 5]
    assert len({one["out"]["file"] for one in together}) == 4
    assert not (tmp_path / "out.txt").exists()


def take(path: Path, target: Path, move: bool = False) -> None:
    take_file(path, target, move, lambda _size: None)


def test_a_taken_file_is_no_link_to_the_former_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("before")
    link, twin = tmp_path / "link", tmp_path / "twin"
    link.symlink_to("source")
    os.link(source, twin)
    for number, (path, move) in enumerate([(source, False), (link, False), (twin, True), (link, True)]):
        take(path, tmp_path / f"taken-{number}", move)
    source.write_text("after")
    assert [(tmp_path / f"taken-{i}").read_text() for i in range(4)] == ["before"] * 4
    assert not twin.exists() and not link.is_symlink() and source.exists()
    assert (tmp_path / "taken-2").stat().st_nlink == 1


def test_a_file_of_another_disk_is_copied_and_removed(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one disk alone")
    source = other / f"taken-{os.getpid()}"
    source.write_bytes(os.urandom(3_000_000))
    content = source.read_bytes()
    take(source, tmp_path / "taken", move=True)
    assert (tmp_path / "taken").read_bytes() == content and not source.exists()


def test_a_file_without_a_size_has_a_content(tmp_path: Path) -> None:
    take(Path("/proc/self/status"), tmp_path / "status")
    assert (tmp_path / "status").read_text().startswith("Name:")
    (tmp_path / "empty").touch()
    take(tmp_path / "empty", tmp_path / "taken")
    assert (tmp_path / "taken").read_bytes() == b""


def test_a_file_that_cannot_be_taken_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    cases = {"none": "No such file", ".": "it is a directory", "pipe": "it is no regular file", "a\0b": "null byte"}
    for name, said in cases.items():
        with pytest.raises(InvalidOutput, match=said) as caught:
            take(tmp_path / name, tmp_path / "taken")
        assert str(tmp_path) in caught.value.message
    assert not (tmp_path / "taken").exists()


def test_a_plugin_has_its_objects_back_and_each_result_its_own_content(tmp_path: Path) -> None:
    path, folder = tmp_path / "out.txt", tmp_path / "folder"
    folder.mkdir()
    taker = OutputFiles(lambda: folder, lambda _file, _size: None)
    kept = File.from_path(path)
    outputs = []
    for text in ("one", "two"):
        path.write_text(text)
        outputs.append(taker.take_outputs(Output(out=kept, pages=[kept])))
    path.write_text("later")
    assert [output.out.read_bytes() for output in outputs] == [b"one", b"two"]
    assert [output.pages[0].read_bytes() for output in outputs] == [b"one", b"two"]
    kept.id = "0" * 64
    taker.give_back()
    assert (kept.path, kept.id) == (path, "")
    loop: list[Any] = []
    loop.append({"itself": loop})
    assert taker.take_results(loop) is loop


def test_a_copy_replaces_a_target_that_has_content(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 5)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("w+b") as target:
        copy_content(source, target)
    assert (tmp_path / "target").read_bytes() == b"x" * 5
