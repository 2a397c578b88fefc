"""Files from outside, by HTTP: uploads, downloads, jobs that read and return them, and their end."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.kit.services import write_turning
from tests.kit.system import System, finished, poll, running_system

MAX_BYTES = 40_000_000
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("files")
    write_turning(made / "plugins")
    return made


@pytest.fixture(scope="module")
def turning(folder: Path) -> Iterator[System]:
    settings = {"SERVICES_DATA_DIR": str(folder / "data"), "SERVICES_MAX_FILE_BYTES": str(MAX_BYTES)}
    with running_system(folder, folder / "plugins", **settings) as made:
        made.start_api()
        made.start_worker("turning")
        yield made


@pytest.fixture
def client(turning: System) -> Iterator[httpx.Client]:
    with turning.client() as made:
        yield made


def blobs(folder: Path) -> list[Path]:
    return [path for path in (folder / "data" / "files").glob("*") if path.is_file()]


def upload(client: httpx.Client, content: bytes, kind: str = "", **query: Any) -> Any:
    answer = client.post("/files", content=content, headers={"Content-Type": kind} if kind else {}, params=query)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def run(client: httpx.Client, service: str = "turning", **input: Any) -> Any:
    answer = client.post("/jobs?wait=20", json={"service": service, "input": input})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_file_is_stored_once_described_and_given_back(client: httpx.Client, folder: Path) -> None:
    content = os.urandom(1_200_000)
    digest = hashlib.sha256(content).hexdigest()
    answer = client.post("/files?keep_for_s=100", content=content, headers={"Content-Type": "Audio/X-Mine; a=b"})
    told = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"/files/{digest}")
    assert (told["id"], told["sha256"], told["size"]) == (digest, digest, len(content))
    assert told["content_type"] == "audio/x-mine"
    before = len(blobs(folder))

    # the same content, by a form and with a longer life: one file, which lives longer
    again = client.post("/files?keep_for_s=200", files={"file": ("a.bin", content, "image/png")})
    assert (again.status_code, again.json()["content_type"]) == (200, "audio/x-mine")
    assert again.json()["expires_at"] > told["expires_at"]
    assert len(blobs(folder)) == before
    assert client.get(f"/files/{digest}").json()["id"] == digest

    whole = client.get(told["links"]["content"])
    assert whole.content == content and whole.headers["content-type"] == "audio/x-mine"
    assert whole.headers["x-content-type-options"] == "nosniff"
    for asked, part in {"bytes=0-9": content[:10], "bytes=1199990-": content[-10:], "bytes=-5": content[-5:]}.items():
        answer = client.get(told["links"]["content"], headers={"Range": asked})
        assert (answer.status_code, answer.content) == (206, part)
        assert answer.headers["content-range"].endswith("/1200000")
    beyond = client.get(told["links"]["content"], headers={"Range": "bytes=1200000-"})
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")

    # its link works as long as it says, and only for this file
    link = client.get(f"/files/{digest}").json()["links"]["download"]
    assert client.get(link, headers={"Range": "bytes=0-0"}).status_code == 206
    query = dict(pair.split("=") for pair in urlsplit(link).query.split("&"))
    for forged in ({"expires": "1"}, {"expires": str(int(query["expires"]) + 1)}, {"signature": "0" * 64}):
        answer = client.get(told["links"]["content"], params={**query, **forged})
        assert (answer.status_code, answer.json()["code"]) == (403, "link_invalid")

    assert client.delete(f"/files/{digest}").status_code == 204
    assert client.get(f"/files/{digest}").json()["code"] == "file_not_found"
    assert client.get(told["links"]["content"]).status_code == 404
    poll(lambda: len(blobs(folder)) < before, what="its blob is removed")


@pytest.mark.parametrize(
    ("content", "headers", "query", "status", "code", "place"),
    [
        (b"x" * (MAX_BYTES + 1), {}, {}, 413, "payload_too_large", None),
        (b"", {}, {}, 422, "invalid_input", ["body"]),
        (b"x", {"Content-Type": "no type"}, {}, 422, "invalid_input", ["header", "content-type"]),
        (PNG, {"Content-Type": "audio/wav"}, {}, 415, "unsupported_file_type", None),
        (b"x", {}, {"keep_for_s": "0"}, 422, "invalid_input", ["query", "keep_for_s"]),
        (b"x", {"Content-Type": "multipart/form-data"}, {}, 422, "invalid_input", ["body"]),
        (b"--b\r\n", {"Content-Type": "multipart/form-data; boundary=b"}, {}, 422, "invalid_input", ["body"]),
    ],
)
def test_an_upload_that_cannot_be_stored_is_refused_and_leaves_nothing(
    client: httpx.Client,
    turning: System,
    folder: Path,
    content: bytes,
    headers: dict[str, str],
    query: dict[str, str],
    status: int,
    code: str,
    place: list[str] | None,
) -> None:
    before = blobs(folder)
    answer = client.post("/files", content=content, headers=headers, params=query)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.json().get("errors", [{"loc": None}])[0]["loc"] == place
    assert blobs(folder) == before
    assert not turning.redis.client.zcard("{.files}:blobs")


def test_an_upload_that_breaks_off_leaves_nothing(turning: System, folder: Path) -> None:
    before = len(blobs(folder))
    with socket.create_connection(("127.0.0.1", turning.port)) as raw:
        raw.sendall(b"POST /files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2900000\r\n\r\n" + b"x" * 1_500_000)
        poll(lambda: len(blobs(folder)) > before, what="it is being written")
        assert turning.redis.client.zcard("{.files}:blobs") == 1
    poll(lambda: len(blobs(folder)) == before and not turning.redis.client.zcard("{.files}:blobs"), what="it is gone")
    # of an upload whose API was killed, the entry is left, whose time is over after a while
    (folder / "data" / "files" / "left").write_bytes(b"x")
    turning.redis.client.zadd("{.files}:blobs", {"left": 1})
    poll(lambda: len(blobs(folder)) == before and not turning.redis.client.zcard("{.files}:blobs"), what="it is swept")


def test_a_large_file_is_never_in_the_apis_memory(client: httpx.Client, turning: System) -> None:
    process = Path(f"/proc/{turning.processes[0].pid}")

    def peak_mb() -> float:
        return int((process / "status").read_text().split("VmHWM:")[1].split()[0]) / 1024

    upload(client, b"what has to be imported is imported")
    (process / "clear_refs").write_text("5")  # forget the peak so far
    before = peak_mb()
    piece = os.urandom(1_000_000)
    told = client.post("/files", content=(piece for _ in range(MAX_BYTES // len(piece)))).json()
    assert told["size"] == MAX_BYTES
    with client.stream("GET", told["links"]["content"]) as content:
        assert sum(map(len, content.iter_bytes())) == MAX_BYTES
    assert peak_mb() - before < 20


def test_a_form_holds_one_file_and_nothing_else(client: httpx.Client) -> None:
    told = client.post("/files", files={"any name": ("x.png", PNG)})
    assert (told.status_code, told.json()["content_type"]) == (201, "image/png")
    wrongs: list[dict[str, Any]] = [
        {"data": {"field": "1"}, "files": {"f": ("x", b"1")}},
        {"files": [("a", ("a", b"1")), ("b", ("b", b"2"))]},
    ]
    for wrong in wrongs:
        answer = client.post("/files", **wrong)
        assert answer.status_code == 422 and "one file" in answer.json()["detail"]


def test_a_job_reads_files_and_returns_one(client: httpx.Client, folder: Path) -> None:
    content = os.urandom(300_000)
    document, picture = upload(client, content), upload(client, PNG)
    job = run(client, document={"file": document["id"]}, pictures=[{"file": picture["id"]}], do="same")
    output = job["output"]
    assert output["size"] == 300_000
    made = output["reversed"]
    assert client.get(made["url"]).content == content[::-1]
    assert (made["file"], made["size"]) == (hashlib.sha256(content[::-1]).hexdigest(), 300_000)
    assert output["same"]["file"] == document["id"]
    assert not Path(output["folder"]).exists(), "what was local is removed after the batch"
    about = client.get(f"/files/{made['file']}").json()
    assert about["expires_at"] > job["expires_at"], "it lives as long as the job's output"

    # an output may be the next job's input as it stands; a data: URL is a file too
    assert client.get(run(client, document=made)["output"]["reversed"]["url"]).content == content
    output = run(client, document="data:text/plain;base64,aGVsbG8=", do="bytes")["output"]
    assert client.get(output["reversed"]["url"]).content == b"olleh"
    assert output["reversed"]["content_type"] == "text/plain"
    failed = run(client, document="data:,x", do="lost")
    assert failed["error"]["code"] == "invalid_output"
    assert failed["error"]["errors"][0]["loc"] == ["reversed"]


def test_a_bad_reference_is_refused_with_its_field(client: httpx.Client) -> None:
    text, picture = upload(client, b"plain words"), "data:image/png;base64," + base64.b64encode(PNG).decode()
    unknown = {"file": "0" * 64}
    cases: list[tuple[dict[str, Any], list[str | int], str]] = [
        ({"document": unknown}, ["document"], "no file has this id"),
        ({"document": {"file": "../etc"}}, ["document"], "64 hexadecimal digits"),
        ({"document": 7}, ["document"], "expected"),
        ({"document": "http://127.0.0.1/x"}, ["document"], "SERVICES_FETCH_ALLOWED_NETWORKS"),
        ({"document": "data:text/plain;base64,?"}, ["document"], "data: URL"),
        ({"document": "data:,x", "pictures": [picture, {"file": text["id"]}]}, ["pictures", 1], "image/*"),
        ({"document": "data:,x", "pictures": ["data:image/png," + "x" * 1001]}, ["pictures"], "at most 1000"),
    ]
    for input, place, said in cases:
        answer = client.post("/jobs", json={"service": "turning", "input": input})
        assert answer.status_code == 422, answer.text
        (error,) = answer.json()["errors"]
        assert error["loc"][:2] == ["body", "input"] and error["loc"][2:][: len(place)] == place
        assert said in error["msg"], error


def test_a_file_that_cannot_be_had_fails_its_own_job_alone(client: httpx.Client, turning: System, folder: Path) -> None:
    good, lost = upload(client, b"good"), upload(client, b"lost")
    name = turning.redis.client.hget(f"{{.files}}:file:{lost['id']}", "blob")
    (folder / "data" / "files" / name.decode()).unlink()
    ids = [
        client.post("/jobs", json={"service": "turning", "input": {"document": {"file": file["id"]}}}).json()["id"]
        for file in (good, lost, good)
    ]
    jobs = [finished(client, job_id) for job_id in ids]
    assert [job["status"] for job in jobs] == ["succeeded", "failed", "succeeded"]
    assert jobs[0]["output"]["batch"] == 2, "they ran in one batch"
    assert jobs[1]["error"]["code"] == "invalid_input"
    assert jobs[1]["error"]["errors"][0]["loc"] == ["document"]
    assert client.get(lost["links"]["content"]).status_code == 404
    upload(client, b"lost")
    assert client.get(lost["links"]["content"]).content == b"lost", "sent again, it is whole again"


def test_rows_of_a_batch_have_files_too(client: httpx.Client) -> None:
    inputs = [{"document": "data:,one"}, {"document": {"file": "0" * 64}}, {"document": "data:,two"}]
    batch = client.post("/batches", json={"service": "turning", "inputs": inputs}).json()
    lines = client.get(batch["links"]["results"]).text.splitlines()
    assert ['"output"' in line for line in lines] == [True, False, True]
    assert "invalid_input" in lines[1]


#: Where the server nearby redirects to; {} is its port.
MOVED = {
    "/moved": "/document#part",
    "/twice": "/moved",
    "/thrice": "/twice",
    "/often": "/thrice",
    "/out": "http://127.0.0.2:{}/document",
    "/file": "file:///etc/passwd",
    "/user": "http://user@127.0.0.1:{}/document",
}
#: What these paths begin an answer with; then comes a byte a while, for ever.
DRIPPING = {
    "/slow-header": b"HTTP/1.1 200 OK\r\nX-Slow: ",
    "/slow-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7;",
    "/slow-body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
    "/silent": b"",
}


class Place(BaseHTTPRequestHandler):
    """A server nearby."""

    def do_GET(self) -> None:
        if moved := MOVED.get(self.path):
            self.send_response(302)
            self.send_header("Location", moved.format(self.headers["Host"].rpartition(":")[2]))
            self.end_headers()
            return
        if self.path in DRIPPING:
            self.drip()
            return
        body = b"x" * 3_000_001 if self.path == "/large" else b"fetched"
        self.send_response(404 if self.path == "/none" else 200)
        self.send_header("Content-Type", "text/plain")
        if self.path != "/large":
            self.send_header("Content-Length", str(len(body) + (self.path == "/cut")))
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        self.close_connection = True
        self.connection.settimeout(0.2)
        with suppress(OSError):
            self.wfile.write(DRIPPING[self.path])
            while True:
                with suppress(TimeoutError):
                    if not self.connection.recv(1):
                        return
                if self.path != "/silent":
                    self.wfile.write(b"a")

    def log_message(self, *_: Any) -> None:
        """Not into the tests' output."""


@pytest.fixture
def nearby() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Place)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_is_fetched_by_the_worker_nearby_only_where_that_is_allowed(
    client: httpx.Client, folder: Path, nearby: str
) -> None:
    refused = run(client, document=f"{nearby}/document".replace("http:", "https:"))["error"]
    assert refused["code"] == "invalid_input" and refused["errors"][0]["loc"] == ["document"]
    assert "127.0.0.1 is not a public address" in refused["message"]
    assert "SERVICES_FETCH_ALLOWED_NETWORKS" in refused["message"]
    own = folder / "nearby"
    own.mkdir()
    allowing = {"SERVICES_DATA_DIR": str(own), "SERVICES_FETCH_ALLOWED_NETWORKS": "127.0.0.1/32"}
    allowing["SERVICES_FETCH_TIMEOUT_S"] = "2"
    with running_system(own, folder / "plugins", SERVICES_MAX_FILE_BYTES="3000000", **allowing) as system:
        system.start_api()
        system.start_worker("turning")
        with system.client() as client:
            for path in ("/document", "/document#part", "/thrice"):
                output = run(client, document=nearby + path)["output"]
                assert client.get(output["reversed"]["url"]).content == b"dehctef"
            wrong = {"/none": "404", "/large": "larger than", "/cut": "broke off", "/often": "more than 3 times"}
            wrong |= {"/out": "127.0.0.2 is not a public", "/file": "expected https://", "/user": "without user"}
            wrong |= dict.fromkeys(DRIPPING, "took too long (SERVICES_FETCH_TIMEOUT_S)")
            for path, said in wrong.items():
                error = run(client, document=nearby + path)["error"]
                assert error["code"] == "invalid_input" and said in error["message"], error


def test_files_end_by_their_time_but_not_under_a_job_that_waits(client: httpx.Client, turning: System) -> None:
    short = upload(client, b"short", keep_for_s=0.2)
    poll(lambda: client.get(f"/files/{short['id']}").status_code == 404, what="it is dropped")

    held, go = upload(client, b"held", keep_for_s=0.2), turning.folder / "go"
    first = client.post("/jobs", json={"service": "turning", "input": {"document": "data:,x", "do": "wait"}}).json()
    poll(lambda: client.get(f"/jobs/{first['id']}").json()["status"] == "running")
    input = {"document": {"file": held["id"]}}
    job = client.post("/jobs", json={"service": "turning", "input": input}).json()
    deny = client.delete(f"/files/{held['id']}")
    assert (deny.status_code, deny.json()["code"]) == (409, "file_in_use")
    # by its time it would go now, had not the job been accepted
    key = f"{{.files}}:file:{held['id']}"
    turning.redis.client.hset(key, "expires", 1)
    turning.redis.client.zadd("{.files}:expires", {held["id"]: 1})
    poll(lambda: int(turning.redis.client.hget(key, "expires") or 0) > time.time() * 1e6, what="its life is extended")
    go.touch()
    assert finished(client, job["id"])["status"] == "succeeded"
    go.unlink()
    assert client.delete(f"/files/{held['id']}").status_code == 204


def test_a_storage_that_hangs_is_a_503_and_holds_up_nothing_else(folder: Path, tmp_path: Path) -> None:
    settings = {"SERVICES_DATA_DIR": str(tmp_path / "data"), "SERVICES_STORAGE_TIMEOUT_S": "0.5"}
    with running_system(tmp_path, folder / "plugins", **settings) as system, system.client() as client:
        system.start_api()
        file = upload(client, b"content")
        (blob,) = (tmp_path / "data" / "files").iterdir()
        blob.unlink()
        os.mkfifo(blob)  # whoever opens it to read waits for one who writes
        refused = client.get(file["links"]["content"])
        assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
        assert "SERVICES_STORAGE_TIMEOUT_S" in refused.json()["detail"]
        assert client.get(file["links"]["self"]).status_code == 200
        with blob.open("wb"):
            pass  # the thread that opened it for the refused answer goes on, and may be gone before a byte is written
