"""A file is taken in the moment in which a verb returns it, and an input's file is the plugin's own copy."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from api.client import AsyncClient, Client, InvalidRequest
from tests.kit.guarded import Guarded
from tests.kit.system import System, finished, poll, running_system, services, status_of, write_plugin

SCHEMA = """
from pydantic import BaseModel, ConfigDict
from typing import Any
from worker.files import File

class Input(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text": "a"}, {"text": "b"}]})
    text: str = ""
    do: str = ""
    source: File | None = None

class Output(BaseModel):
    out: File
    more: list[File] = []
    by_name: dict[str, File] = {}
    batch: int = 0
    told: Any = None
"""

#: Each job's result goes to one and the same path, as a library does that knows but one.
TAKEN = """
import os, time
from pathlib import Path
import redis
from worker.files import File
from worker.service import Service
from {name}.schema import Input, Output

FOLDER = Path(os.environ.get("TEST_FOLDER", "."))
FIXED = FOLDER / "{name}-fixed.txt"

def fail_once():
    def fail(self, *_):
        del redis.Redis.zrem
        raise redis.ConnectionError("Redis is gone at this very moment")
    redis.Redis.zrem = fail

class Plugin(Service[Input, Output]):
    max_queue_delay_ms = 200
    time_limit_s = 20

    def load(self):
        FIXED.touch()
        self.kept = File.from_path(FIXED)
        self.logo = File.from_bytes(b"logo", "image/png", name="logo.png")
{verbs}
"""

POSTPROCESS = """
    def predict_batch(self, batch):
        self.size = len(batch)
        return batch

    def postprocess(self, input):
        FIXED.write_text(input.text)
        made = {"batch": self.size}
        if input.do == "nested":
            one = File.from_path(FIXED)
            return Output(out=one, more=[one, File.from_path(FIXED)], by_name={"a": File.from_path(str(FIXED))}, **made)
        if input.do == "move":
            own = FOLDER / f"{input.text}.wav"
            own.write_text(f"sound of {input.text}")
            twice = [File.from_path(own)]
            return Output(out=File.from_path(own, move=True), more=twice, **made)
        if input.do == "kept":
            return Output(out=self.kept, more=[self.logo], **made)
        if input.do == "cached":
            self.cached = getattr(self, "cached", None) or Output(out=self.kept)
            return self.cached
        if input.do == "edit":
            path = input.source.path
            before = path.read_text()
            os.chmod(path, 0o666)
            with open(path, "r+") as file:
                file.truncate(0)
                file.write(f"{before} edited by {input.text}")
            return Output(out=File.from_path(path), more=[input.source], told=[before, input.source.name], **made)
        if input.do == "remove":
            before = input.source.read_bytes().decode()
            os.remove(input.source)
            return Output(out=input.source, told=before, **made)
        if input.do == "same":
            return Output(out=input.source, **made)
        if input.do == "append":
            with open(input.source, "a") as file:
                file.write("+")
            return Output(out=input.source, told=input.source.read_bytes().decode(), **made)
        if input.do == "discard":
            fail_once()
            return Output(out=File.from_bytes(b"known"), told=os.getpid(), **made)
        wrong = {"missing": FOLDER / "no" / "such", "folder": FOLDER, "pipe": FOLDER / "pipe"}
        if input.do == "pipe" and not wrong["pipe"].exists():
            os.mkfifo(wrong["pipe"])
        if input.do in wrong:
            return {"out": self.logo, "more": [File.from_bytes(b"x"), File.from_path(wrong[input.do])]}
        values = {"path": Path("out.png"), "str": "out.png", "bytes": b"x", "open": open(FIXED, "rb"), "none": None}
        values |= {"url": "https://example.org/a.png", "id": {"file": "0" * 64}}
        if input.do in values:
            return {"out": values[input.do], **made}
        return Output(out=File.from_path(FIXED, "text/plain"), **made)
"""

#: The verb that returns the file is ``predict``, and what comes after it writes to the path again.
PREDICT = """
    def predict(self, input):
        FIXED.write_text(input.text)
        return {"out": File.from_path(FIXED), "told": input.do}
"""
#: As before, with a ``postprocess`` that hands it through, and one object of a file for all.
HANDED = """
    def predict(self, input):
        FIXED.write_text(input.text)
        return self.kept if input.do == "kept" else File.from_path(FIXED)

    def postprocess(self, raw):
        FIXED.write_text("later")
        return Output(out=raw)
"""
#: Two calls of the model, of which the second writes to the first one's paths.
BUCKETS = """
    def bucket(self, input):
        return len(input.text)

    def predict_batch(self, batch):
        raws = []
        for i, input in enumerate(batch):
            path = FOLDER / f"bucket-{i}.txt"
            path.write_text(input.text)
            raws.append({"out": File.from_path(path), "batch": len(batch)})
        return raws
"""
VERBS = {"taken": POSTPROCESS, "predicted": PREDICT, "handed": HANDED, "buckets": BUCKETS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("taken")
    for name, verbs in VERBS.items():
        write_plugin(made / "plugins", name, SCHEMA, TAKEN.format(name=name, verbs=verbs))
    return made


@pytest.fixture(scope="module")
def taking(folder: Path) -> Iterator[System]:
    settings = {"SERVICES_DATA_DIR": str(folder / "data"), "SERVICES_MAX_FILE_BYTES": "1000000"}
    with running_system(folder, folder / "plugins", **settings) as made:
        made.start_api()
        made.start_worker(",".join(sorted(VERBS)))
        yield made


@pytest.fixture
def client(taking: System) -> Iterator[httpx.Client]:
    with taking.client() as made:
        yield made


def upload(client: httpx.Client, content: bytes, **headers: str) -> Any:
    answer = client.post("/files", content=content, headers=headers)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def run_all(client: httpx.Client, service: str, inputs: list[dict[str, Any]]) -> list[Any]:
    """These jobs, which come so soon after each other that they make one batch."""
    ids = [client.post("/jobs", json={"service": service, "input": one}).json()["id"] for one in inputs]
    return [finished(client, job_id) for job_id in ids]


def read(client: httpx.Client, file: Any) -> str:
    return client.get(file["url"]).raise_for_status().text


TEXTS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"]


@pytest.mark.parametrize("service", VERBS)
def test_one_path_for_all_jobs_of_a_batch_gives_each_its_own_content(client: httpx.Client, service: str) -> None:
    jobs = run_all(client, service, [{"text": text} for text in TEXTS])
    assert [read(client, job["output"]["out"]) for job in jobs] == TEXTS
    if service == "taken":
        assert max(job["output"]["batch"] for job in jobs) > 1, "they ran together"
    assert jobs[0]["output"]["out"]["name"].endswith(".txt")


@pytest.mark.parametrize("service", ["taken", "predicted"])
def test_rows_of_a_batch_have_each_their_own_content(client: httpx.Client, service: str) -> None:
    inputs = [{"text": f"row {i}"} for i in range(20)]
    batch = client.post("/batches", json={"service": service, "inputs": inputs}).json()
    lines = client.get(batch["links"]["results"], timeout=30).text.splitlines()
    outputs = [json.loads(line)["output"] for line in lines]
    assert [read(client, output["out"]) for output in outputs] == [one["text"] for one in inputs]


def test_files_in_lists_and_dicts_and_one_object_for_many_jobs(client: httpx.Client) -> None:
    for job, text in zip(run_all(client, "taken", [{"text": t, "do": "nested"} for t in TEXTS]), TEXTS, strict=True):
        output = job["output"]
        files = [output["out"], *output["more"], output["by_name"]["a"]]
        assert [read(client, file) for file in files] == [text] * 4
    for service in ("taken", "handed"):  # an object made in load, whose path each job writes anew; twice over
        for texts in (TEXTS[:4], TEXTS[4:]):
            jobs = run_all(client, service, [{"text": f"kept {t}", "do": "kept"} for t in texts])
            assert [read(client, job["output"]["out"]) for job in jobs] == [f"kept {t}" for t in texts]
    assert read(client, client.get(f"/jobs/{_last(client, 'taken')}").json()["output"]["more"][0]) == "logo"
    jobs = run_all(client, "taken", [{"text": f"cached {t}", "do": "cached"} for t in TEXTS])
    assert [read(client, job["output"]["out"]) for job in jobs] == [f"cached {t}" for t in TEXTS]


def _last(client: httpx.Client, service: str) -> str:
    return str(client.get("/jobs", params={"service": service, "limit": 1}).json()["jobs"][0]["id"])


def test_a_file_is_moved_where_that_is_allowed(client: httpx.Client, folder: Path) -> None:
    for job, text in zip(run_all(client, "taken", [{"text": t, "do": "move"} for t in TEXTS]), TEXTS, strict=True):
        out = job["output"]["out"]
        assert (read(client, out), out["content_type"], out["name"]) == (f"sound of {text}", "audio/wav", f"{text}.wav")
        assert read(client, job["output"]["more"][0]) == f"sound of {text}"
    assert not list(folder.glob("*.wav"))
    poll(lambda: not list((folder / "data" / "scratch").glob("*/*")), what="nothing is left in the scratch folder")


@pytest.mark.parametrize(
    ("do", "place", "said"),
    [
        ("missing", ["more", 1], "more.1: the file {}/no/such cannot be read: No such file"),
        ("folder", ["more", 1], "more.1: the file {} cannot be read: it is a directory"),
        ("pipe", ["more", 1], "more.1: the file {}/pipe cannot be read: it is no regular file"),
        ("path", ["out"], "expected a File, got PosixPath: write File.from_path(path)"),
        ("str", ["out"], "a plugin that returns the path of a local file writes File.from_path(path)"),
        ("bytes", ["out"], "expected a File, got bytes: write File.from_bytes(data"),
        ("open", ["out"], "BufferedReader: write File.from_bytes(f.read()"),
        ("url", ["out"], "out: a URL is no file yet: fetch it, then write File.from_bytes"),
        ("id", ["out"], "out: no file that the job may use has the id 0000"),
        ("none", ["out"], "got NoneType; a plugin writes File.from_path(path)"),
    ],
)
def test_a_file_that_cannot_be_taken_fails_its_job_alone_with_field_path_and_remedy(
    client: httpx.Client, folder: Path, do: str, place: list[Any], said: str
) -> None:
    good, bad, other = run_all(client, "taken", [{"text": "good"}, {"do": do}, {"text": "other"}])
    assert [read(client, job["output"]["out"]) for job in (good, other)] == ["good", "other"]
    error = bad["error"]
    assert (bad["status"], error["code"], error["errors"][0]["loc"]) == ("failed", "invalid_output", place)
    assert said.format(folder) in error["message"]


def test_a_plugin_that_changes_its_input_changes_its_own_copy(client: httpx.Client, folder: Path) -> None:
    content = b"as it was sent"
    file = upload(client, content, **{"Content-Disposition": 'attachment; filename="sent.txt"'})
    source = {"file": file["id"]}
    jobs = run_all(client, "taken", [{"text": t, "do": "edit", "source": source} for t in TEXTS[:3]])
    for job, text in zip(jobs, TEXTS, strict=False):
        told = job["output"]
        assert told["told"] == [content.decode(), "sent.txt"], "each job has the file as it was sent"
        assert read(client, told["out"]) == f"{content.decode()} edited by {text}"
        assert told["more"][0]["file"] == told["out"]["file"], "what is handed through is what it is now"
    answer = client.get(file["links"]["content"])
    assert answer.content == content and answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    modes = {path.stat().st_mode & 0o777 for path in (folder / "data" / "files").iterdir()}
    links = {path.stat().st_nlink for path in (folder / "data" / "files").iterdir()}
    assert (modes, links) == ({0o444}, {1})

    # a small change that keeps the size, and the input removed: the one is a new file, the other is what it was
    (changed,) = run_all(client, "taken", [{"do": "append", "source": "data:text/plain,here"}])
    assert (read(client, changed["output"]["out"]), changed["output"]["told"]) == ("here+", "here+")
    (removed,) = run_all(client, "taken", [{"do": "remove", "source": source}])
    assert removed["output"]["out"]["file"] == file["id"] and removed["output"]["told"] == content.decode()


def test_an_input_that_is_handed_through_is_not_stored_again(client: httpx.Client, folder: Path) -> None:
    content = os.urandom(1000)
    file = upload(client, content)
    blobs = {path.name for path in (folder / "data" / "files").iterdir()}
    (job,) = run_all(client, "taken", [{"do": "same", "source": {"file": file["id"]}}])
    assert job["output"]["out"]["file"] == file["id"]
    assert {path.name for path in (folder / "data" / "files").iterdir()} == blobs


def test_predict_and_check_take_files_as_a_worker_does(taking: System, folder: Path) -> None:
    for service in ("predicted", "handed"):
        done = services(taking, "check", service)
        assert done.returncode == 0, done.stdout + done.stderr
    done = services(taking, "predict", "taken", '{"text": "x"}')
    assert hashlib.sha256(b"x").hexdigest() in done.stdout


def test_a_large_output_is_refused_before_it_is_copied(client: httpx.Client, folder: Path) -> None:
    (job,) = run_all(client, "taken", [{"text": "x" * 1_000_001}])
    assert "more than 1000000 bytes (SERVICES_MAX_FILE_BYTES)" in job["error"]["message"]
    assert job["error"]["errors"][0]["loc"] == ["out"]


def test_redis_that_fails_as_a_blob_is_discarded_costs_no_process(client: httpx.Client, taking: System) -> None:
    for _ in range(2):  # the first stores the content, the second finds it known and discards its own
        jobs = run_all(client, "taken", [{"do": "discard"}])
        assert jobs[0]["status"] == "succeeded", jobs[0]["error"]
        assert jobs[0]["attempt"] == 1
    assert "is left for the sweep: ConnectionError: Redis is gone" in taking.processes[-1].output
    (after,) = run_all(client, "taken", [{"do": "discard"}])
    assert after["output"]["told"] == jobs[0]["output"]["told"], "the process is the same"


def send(client: httpx.Client, content: bytes, disposition: str | bytes) -> Any:
    raw = disposition if isinstance(disposition, bytes) else disposition.encode()
    answer = client.post("/files", content=content, headers=[(b"Content-Disposition", raw)])
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('attachment; filename="photo.jpg"', "photo.jpg"),
        ("attachment; filename=photo.jpg", "photo.jpg"),
        ("attachment; filename=\"x.txt\"; filename*=UTF-8''%e2%82%ac%20rates.txt", "€ rates.txt"),
        ("attachment; filename*=iso-8859-1'en'%A3%20rates", "£ rates"),
        ("attachment; filename=kept.txt; filename*=utf-16''x", "kept.txt"),
        ('attachment; filename="überblick.pdf"', "überblick.pdf"),
        (b'attachment; filename="\xfcber.pdf"', "über.pdf"),
        ('attachment; filename="a \\"quoted\\"; name.txt"', 'a "quoted"; name.txt'),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="C:\\Users\\me\\photo.jpg"', "photo.jpg"),
        ("attachment; filename*=UTF-8''a%0D%0AX-Evil%3A%20b%00%1b%e2%80%ae.txt", "aX-Evil: b.txt"),
        ('attachment; filename=".."', None),
        ('attachment; filename=""', None),
        ("attachment", None),
        ("inline; filename*=broken", None),
        (f'attachment; filename="{"x" * 300}.tar"', "x" * 251 + ".tar"),
    ],
)
def test_the_name_of_an_upload_is_kept_and_given_back(
    client: httpx.Client, disposition: str | bytes, name: str | None
) -> None:
    told = send(client, os.urandom(16), disposition)
    assert told["name"] == name
    assert client.get(told["links"]["self"]).json()["name"] == name
    for link in ("content", "download"):
        header = client.get(told["links"][link]).headers["content-disposition"]
        assert header.startswith("attachment; filename=") and header.isascii() and header.isprintable()
        assert unquote(header.partition("filename*=UTF-8''")[2] or header.partition("=")[2].strip('"')) == (
            name or told["id"][:16]
        )


def test_a_form_names_its_file_too(client: httpx.Client) -> None:
    for name in ("photo.jpg", "überblick €.pdf", 'a "b".txt', "日本語.txt"):
        told = client.post("/files", files={"file": (name, os.urandom(16))}).json()
        assert told["name"] == name
    body = b"--b\r\nContent-Disposition: form-data; name=f; filename*=UTF-8''%e2%82%ac.txt\r\n\r\nhere\r\n--b--\r\n"
    told = client.post("/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}).json()
    assert told["name"] == "€.txt"


def test_the_last_name_counts_and_no_name_changes_nothing(client: httpx.Client, taking: System) -> None:
    content = os.urandom(16)
    told = upload(client, content)
    key = f"{{.files}}:file:{told['id']}"
    assert told["name"] is None and taking.redis.client.hget(key, "filename") is None, "as the records of 0.1.0 are"
    assert send(client, content, "attachment; filename=one.bin")["name"] == "one.bin"
    assert send(client, content, "attachment; filename=two.bin")["name"] == "two.bin"
    assert upload(client, content)["name"] == "two.bin"
    (job,) = run_all(client, "taken", [{"do": "same", "source": {"file": told["id"]}}])
    assert job["output"]["out"]["name"] == "two.bin", "the worker knows it, and an output names it"
    again = run_all(client, "taken", [{"do": "same", "source": job["output"]["out"]}])
    assert again[0]["status"] == "succeeded", "an output's file is the next input as it stands"


def test_an_output_is_downloaded_by_the_name_of_its_path(client: httpx.Client) -> None:
    (job,) = run_all(client, "taken", [{"text": "a name of its own"}])
    out = job["output"]["out"]
    assert out["name"] == "taken-fixed.txt"
    assert client.get(out["url"]).headers["content-disposition"] == 'attachment; filename="taken-fixed.txt"'
    (job,) = run_all(client, "taken", [{"do": "kept", "text": "x"}])
    assert job["output"]["more"][0]["name"] == "logo.png"


def test_the_client_sends_a_file_with_its_name(taking: System, tmp_path: Path) -> None:
    path = tmp_path / "bücher und maße.csv"
    path.write_bytes(os.urandom(600_000))
    with Client(taking.url) as client:
        file = client.upload(path, keep_for_s=100)
        assert (file.name, file.size, file.content_type) == (path.name, 600_000, "text/csv")
        assert file.id == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (file.expires_at - file.created_at).total_seconds() == 100
        output = client.submit("taken", {"do": "same", "source": file.reference}).result(timeout=30)
        assert output["out"]["name"] == path.name
        assert client.upload(b"of bytes").name is None
        with path.open("rb") as opened:
            opened.seek(100)
            assert client.upload(opened).size == 599_900
        with path.open() as text, pytest.raises(TypeError, match="binary mode"):
            client.upload(text)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="empty"):
            client.upload(b"")

    async def send_two() -> list[str | None]:
        async with AsyncClient(taking.url) as client:
            return [(await client.upload(source, name="of my own.txt")).name for source in (path, b"other bytes")]

    assert asyncio.run(send_two()) == ["of my own.txt"] * 2


def test_a_name_is_its_owners_alone(tmp_path: Path, folder: Path) -> None:
    with running_system(tmp_path, folder / "plugins", SERVICES_DATA_DIR=str(tmp_path / "data")) as system:
        guarded = Guarded(system, system.start_api())
        guarded.make("first")
        poll(lambda: status_of(f"{system.url}/jobs") == 401, 3, "the API knows of the first key")
        alice, bob = guarded.new("alice"), guarded.new("bob")
        content = os.urandom(64)
        mine = send(alice, content, "attachment; filename=alices-secret.txt")
        theirs = upload(bob, content)
        assert (mine["name"], theirs["name"], mine["id"] == theirs["id"]) == ("alices-secret.txt", None, True)
        assert send(bob, content, "attachment; filename=bobs.txt")["name"] == "bobs.txt"
        assert alice.get(f"/files/{mine['id']}").json()["name"] == "alices-secret.txt"
        for owned, name in ((mine, "alices-secret.txt"), (theirs, "bobs.txt")):
            header = httpx.get(system.url + owned["links"]["download"], trust_env=False).headers["content-disposition"]
            assert header == f'attachment; filename="{name}"'
        guarded.close()
