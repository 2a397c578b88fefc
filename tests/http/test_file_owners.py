"""Whose a file is, from outside: with API keys, nobody reads, uses or drops another's, or can tell that it is there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.kit.files import send
from tests.kit.guarded import NDJSON, Guarded
from tests.kit.http import assert_problem
from tests.kit.services import write_turning, write_untold
from tests.kit.system import System, finished, poll, running_system, status_of
from worker.errors import InvalidInput
from worker.files import File
from worker.filestore.batch_files import FileStore
from worker.inference.stages import Item
from worker.ledger.api_keys import Scope
from worker.ledger.sync_ledger import Ledger
from worker.settings import Settings

#: Of a content that was there before the first API key.
EARLIER = b"from before the keys"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("owners")
    write_turning(folder / "plugins")
    write_untold(folder / "plugins")
    with running_system(folder, folder / "plugins", SERVICES_DATA_DIR=str(folder / "data")) as system:
        api = system.start_api()
        system.start_worker("turning")
        system.start_worker("untold")
        with system.client() as anyone:
            assert anyone.post("/files", content=EARLIER).status_code == 201
        made = Guarded(system, api)
        made.make("first")
        poll(lambda: status_of(f"{system.url}/jobs") == 401, 3, "the API knows of the first key")
        yield made
        made.close()


@pytest.fixture
def alice(guarded: Guarded) -> httpx.Client:
    return guarded.new("alice")


@pytest.fixture
def bob(guarded: Guarded) -> httpx.Client:
    return guarded.new("bob")


@pytest.fixture
def admin(guarded: Guarded) -> httpx.Client:
    return guarded.new("admin", scopes=(Scope.ADMIN,))


def upload(client: httpx.Client, content: bytes, status: int = 201, **query: Any) -> Any:
    answer = client.post("/files", content=content, params=query)
    assert answer.status_code == status, answer.text
    return answer.json()


def submit(client: httpx.Client, file_id: str, do: str = "", service: str = "turning") -> httpx.Response:
    return client.post("/jobs?wait=20", json={"service": service, "input": {"document": {"file": file_id}, "do": do}})


def blobs(system: System) -> int:
    return len(list((system.folder / "data" / "files").iterdir()))


def test_anothers_file_is_answered_as_an_unknown_one(alice: httpx.Client, bob: httpx.Client) -> None:
    content = os.urandom(64)
    known, unknown = upload(alice, content)["id"], hashlib.sha256(os.urandom(8)).hexdigest()

    def answers(file_id: str) -> list[Any]:
        asked = [("GET", f"/files/{file_id}"), ("GET", f"/files/{file_id}/content"), ("DELETE", f"/files/{file_id}")]
        told = [bob.request(*path) for path in asked]
        told += [submit(bob, file_id)]
        return [(a.status_code, a.text.replace(file_id, "ID"), a.headers.get("content-type")) for a in told]

    assert answers(known) == answers(unknown)
    assert [status for status, _, _ in answers(known)] == [404, 404, 404, 422]
    assert alice.get(f"/files/{known}/content").content == content
    assert submit(alice, known).json()["status"] == "succeeded"


def test_two_keys_with_one_content_have_a_file_each(guarded: Guarded, alice: httpx.Client, bob: httpx.Client) -> None:
    content, before = os.urandom(64), blobs(guarded.system)
    typed = {"Content-Type": "text/plain"}
    one = alice.post("/files?keep_for_s=5000", content=content, headers=typed).json()
    other = bob.post("/files?keep_for_s=100", content=content, headers={"Content-Type": "text/csv"})
    assert other.status_code == 201, "as if it were new"
    file_id, told = one["id"], other.json()
    assert told["id"] == file_id and told["content_type"] == "text/csv", "no trace of alice's"
    assert told["created_at"] > one["created_at"] and told["expires_at"] < one["expires_at"]
    upload(alice, content, 200)
    assert blobs(guarded.system) == before + 2

    assert alice.delete(f"/files/{file_id}").status_code == 204
    assert_problem(alice.get(f"/files/{file_id}"), 404, "file_not_found")
    assert_problem(alice.get(f"/files/{file_id}/content"), 404, "file_not_found")
    assert bob.get(f"/files/{file_id}/content").content == content, "bob's is his"
    assert submit(bob, file_id).json()["status"] == "succeeded" and submit(alice, file_id).status_code == 422
    key = f"{guarded.ids['bob']}/{file_id}"
    guarded.system.redis.client.hset(f"{{.files}}:file:{key}", "expires", 1)
    guarded.system.redis.client.zadd("{.files}:expires", {key: 1})
    poll(lambda: bob.get(f"/files/{file_id}").status_code == 404, what="its time is over")
    assert not guarded.system.redis.client.keys(f"*{file_id}*")


def test_a_job_that_uses_a_file_says_nothing_to_others_of_it(
    guarded: Guarded, alice: httpx.Client, bob: httpx.Client
) -> None:
    content, go = os.urandom(64), guarded.system.folder / "go"
    file_id = upload(alice, content)["id"]
    upload(bob, content)
    input = {"document": {"file": file_id}, "do": "wait"}
    job = alice.post("/jobs", json={"service": "turning", "input": input}).json()
    assert_problem(alice.delete(f"/files/{file_id}"), 409, "file_in_use")
    assert bob.delete(f"/files/{file_id}").status_code == 204, "bob's is not in use"
    go.touch()
    assert finished(alice, job["id"])["status"] == "succeeded", "alice's is there all the same"
    go.unlink()


@pytest.mark.parametrize("service", ["turning", "untold"])
def test_the_worker_looks_too_at_rows_and_where_there_is_no_schema(
    guarded: Guarded, alice: httpx.Client, bob: httpx.Client, service: str
) -> None:
    hers, his = upload(alice, os.urandom(64))["id"], upload(bob, os.urandom(64))["id"]
    unknown = hashlib.sha256(os.urandom(8)).hexdigest()
    rows = [{"document": {"file": file_id}} for file_id in (his, hers, unknown)]
    as_json = bob.post("/batches", json={"service": service, "inputs": rows})
    lines = "\n".join(map(json.dumps, rows)).encode()
    as_lines = bob.post(f"/batches?service={service}", content=lines, headers=NDJSON)
    for answer in (as_json, as_lines):
        told = bob.get(answer.raise_for_status().json()["links"]["results"]).text.splitlines()
        results = [json.loads(line) for line in told]
        assert "output" in results[0]
        assert results[1]["error"]["code"] == "invalid_input"
        assert results[1]["error"] == results[2]["error"]
    if service == "untold":  # the API has no schema that would tell it what a file is
        job = submit(bob, hers, service=service).json()
        assert job["status"] == "failed" and job["error"]["code"] == "invalid_input"
        assert submit(bob, his, service=service).json()["status"] == "succeeded"


def test_jobs_of_two_keys_in_one_batch_have_each_its_own(
    guarded: Guarded, alice: httpx.Client, bob: httpx.Client
) -> None:
    go = guarded.system.folder / "go"
    first = alice.post("/jobs", json={"service": "untold", "input": {"document": "data:,x", "do": "wait"}}).json()
    poll(lambda: alice.get(f"/jobs/{first['id']}").json()["status"] == "running")
    hers = upload(alice, os.urandom(64))["id"]
    input = {"document": {"file": hers}}
    jobs = [
        (client, client.post("/jobs", json={"service": "untold", "input": input}).json()["id"])
        for client in (bob, alice, bob)
    ]
    go.touch()
    ended = [finished(client, job_id) for client, job_id in jobs]
    go.unlink()
    assert [job["status"] for job in ended] == ["failed", "succeeded", "failed"]
    assert {job["batch_size"] for job in ended} == {1}, "they were one batch, of which the model saw one"


def test_an_output_belongs_to_its_jobs_key(alice: httpx.Client, bob: httpx.Client, admin: httpx.Client) -> None:
    content = os.urandom(64)
    output = submit(alice, upload(alice, content)["id"], "same").json()["output"]
    made = output["reversed"]
    assert alice.get(made["url"]).content == content[::-1]
    assert output["same"]["file"] == hashlib.sha256(content).hexdigest()
    assert_problem(bob.get(made["url"]), 404, "file_not_found")
    assert submit(bob, made["file"]).status_code == 422
    assert submit(alice, made["file"]).json()["status"] == "succeeded"
    assert admin.get(made["url"]).content == content[::-1]
    rows = [{"document": {"file": made["file"]}}]
    batch = alice.post("/batches", json={"service": "turning", "inputs": rows}).json()
    (line,) = alice.get(batch["links"]["results"]).text.splitlines()
    again = json.loads(line)["output"]["reversed"]
    assert alice.get(again["url"]).content == content
    assert_problem(bob.get(again["url"]), 404, "file_not_found")


def test_a_link_opens_the_file_that_it_was_made_for(guarded: Guarded, alice: httpx.Client, bob: httpx.Client) -> None:
    content = os.urandom(64)
    hers, his = upload(alice, content)["links"], upload(bob, content)["links"]
    assert guarded.ids["alice"] in hers["download"] and guarded.ids["bob"] in his["download"]
    with guarded.system.client() as stranger:
        assert stranger.get(hers["download"]).content == content
        query = hers["download"].partition("?")[2]
        for forged in (
            query.replace(guarded.ids["alice"], guarded.ids["bob"]),
            query.replace(f"owner={guarded.ids['alice']}&", ""),
            query.replace(f"owner={guarded.ids['alice']}&", "owner=&"),
        ):
            assert_problem(stranger.get(f"{hers['content']}?{forged}"), 403, "link_invalid")
        assert_problem(bob.get(f"{hers['content']}?signature="), 403, "link_invalid")
        assert alice.delete(hers["self"]).status_code == 204
        assert_problem(stranger.get(hers["download"]), 404, "file_not_found")
        assert stranger.get(his["download"]).content == content


def test_admin_reads_and_drops_all_but_its_jobs_use_its_own(
    alice: httpx.Client, bob: httpx.Client, admin: httpx.Client
) -> None:
    content = os.urandom(64)
    file_id = upload(alice, content)["id"]
    assert admin.get(f"/files/{file_id}/content").content == content
    link = admin.get(f"/files/{file_id}").json()["links"]["download"]
    assert bob.get(link).content == content
    assert submit(admin, file_id).status_code == 422
    own = upload(admin, content, keep_for_s=10)
    assert submit(admin, file_id).json()["status"] == "succeeded"
    assert admin.get(f"/files/{file_id}").json()["created_at"] == own["created_at"], "its own, where it has one"
    assert admin.delete(f"/files/{file_id}").status_code == 204
    for client in (admin, alice):
        assert_problem(client.get(f"/files/{file_id}"), 404, "file_not_found")


def test_jobs_without_a_key_are_readable_by_admins_alone(
    guarded: Guarded, alice: httpx.Client, admin: httpx.Client
) -> None:
    earlier = hashlib.sha256(EARLIER).hexdigest()
    assert_problem(alice.get(f"/files/{earlier}"), 404, "file_not_found")
    assert submit(alice, earlier).status_code == 422
    assert admin.get(f"/files/{earlier}/content").content == EARLIER
    link = admin.get(f"/files/{earlier}").json()["links"]["download"]
    assert "owner" not in link and alice.get(link).content == EARLIER

    # another Celery producer, who has Redis itself, names whose file he likes
    hers = upload(alice, os.urandom(64))["id"]
    ids = [send(guarded.system, {"document": {"file": file_id}, "do": "same"}) for file_id in (earlier, hers)]
    for job_id in ids:
        job = finished(admin, job_id)
        assert job["status"] == "succeeded"
        for made in (job["output"]["reversed"], job["output"]["same"]):
            assert admin.get(made["url"]).status_code == 200
        assert_problem(alice.get(job["output"]["reversed"]["url"]), 404, "file_not_found")
    # what its link opened is gone, although a key has the same content
    assert admin.delete(f"/files/{earlier}").status_code == 204
    upload(alice, EARLIER)
    assert_problem(alice.get(link), 404, "file_not_found")


def test_a_job_without_a_record_may_use_nothing(guarded: Guarded, alice: httpx.Client) -> None:
    hers = upload(alice, os.urandom(64))["id"]
    settings = Settings(redis_url=guarded.system.redis.url, data_dir=str(guarded.system.folder / "data"))
    ledger = Ledger(settings)
    files = FileStore(settings, ledger).of_batch("turning", lambda _: None, lambda call: call())
    item = Item("gone", File(id=hers))
    files.fetch_inputs([item])
    files.clear()
    ledger.redis.close()
    assert isinstance(item.error, InvalidInput) and "no file has this id" in item.error.message
