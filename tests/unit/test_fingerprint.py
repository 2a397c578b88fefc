"""Which jobs are equal: the fingerprints of inputs, and what stands for a model."""

from __future__ import annotations

import itertools
from datetime import datetime
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, SecretStr

from api.catalog import Entry
from api.jobs.fingerprint import ask_cache, check_cacheable
from worker.discovery import Plugin
from worker.errors import InvalidInput
from worker.files import File
from worker.ledger.equal_jobs import digest_model
from worker.service import Service


class Output(BaseModel):
    n: int


class Plain(BaseModel):
    n: float
    text: str = "none"
    at: datetime | None = None
    more: dict[str, Any] = Field(default_factory=dict)


class Lossy(BaseModel):
    """Its JSON does not say all that was read."""

    model_config = ConfigDict(populate_by_name=True)
    secret: SecretStr = SecretStr("")
    hidden: str = Field("", exclude=True)
    rounded: Annotated[float, PlainSerializer(lambda value: round(value))] = 0
    renamed: str = Field("", validation_alias="in", serialization_alias="out")


class Raising(BaseModel):
    n: Annotated[int, PlainSerializer(lambda value: 1 // 0)]


class Pictures(BaseModel):
    picture: File


class OutputFile(BaseModel):
    picture: File


def entry(model: type[BaseModel] | None, output: type[BaseModel] | None = Output, **about: str) -> Entry:
    plugin = Plugin(**{"name": "p", "version": "1", "target": "p:P", "distribution": "p", "description": "", **about})
    return Entry(plugin, model, output, None, None)


def ask(model: type[BaseModel] | None, text: str, owner: str = "", **about: str) -> str:
    return ask_cache(entry(model, Output, **about), text.encode(), owner, None, True)


@pytest.mark.parametrize(
    ("model", "one", "other"),
    [
        (Plain, '{"n":1,"text":"a"}', '{ "text" : "a", "n" : 1 }'),
        (Plain, '{"n":1}', '{"n":1.0,"text":"none","more":{}}'),
        (Plain, '{"n":1e2}', '{"n":100}'),
        (Plain, '{"n":1,"more":{"a":1,"b":2}}', '{"n":1,"more":{"b":2,"a":1}}'),
        (Plain, '{"n":1,"at":"2026-01-01T00:00:00Z"}', '{"n":1,"at":"2026-01-01T00:00:00+00:00"}'),
        (Plain, '{"n":1,"no such field":1}', '{"n":1}'),
        (None, '{"a":[1,{"b":2,"c":"\\u00e9"}],"d":1}', '{"d":1,"a":[1,{"c":"é","b":2}]}'),
        (Lossy, '{"secret":"a","hidden":"b"}', '{"hidden":"b","secret":"a"}'),
        (Raising, '{"n":1}', '{ "n": 1 }'),
    ],
)
def test_equal_inputs(model: type[BaseModel] | None, one: str, other: str) -> None:
    assert ask(model, one) == ask(model, other) != ""


@pytest.mark.parametrize(
    ("model", "texts"),
    [
        (Plain, ['{"n":1}', '{"n":1.5}', '{"n":1,"text":"b"}', '{"n":1,"more":{"a":1}}', '{"n":1,"more":{"a":1.0}}']),
        (Plain, ['{"n":1,"more":{"a":true}}', '{"n":1,"more":{"a":1}}', '{"n":1,"more":{"a":"1"}}']),
        (None, ["1", "1.0", '"1"', "[1]", "null", "true", '{"1":null}', "{}"]),
        (Lossy, ['{"secret":"a"}', '{"secret":"b"}', '{"hidden":"a"}', '{"hidden":"b"}', "{}"]),
        (Lossy, ['{"rounded":1.2}', '{"rounded":1.4}', '{"rounded":1}', '{"in":"a"}', '{"in":"b"}']),
        (Raising, ['{"n":1}', '{"n":2}']),
        (Pictures, ['{"picture":{"file":"%s"}}' % (digit * 64) for digit in "01"] + ['{"picture":"data:,hello"}']),
    ],
)
def test_inputs_that_differ(model: type[BaseModel] | None, texts: list[str]) -> None:
    for one, other in itertools.combinations(texts, 2):
        assert ask(model, one) != ask(model, other), (one, other)


def test_service_version_and_owner_tell_jobs_apart() -> None:
    text = '{"n":1}'
    found = {
        ask(Plain, text),
        ask(Plain, text, name="q"),
        ask(Plain, text, version="2"),
        ask(Plain, text, "alice"),
        ask(Plain, text, "bob"),
        ask(None, text),
    }
    assert len(found) == 6


def test_a_job_says_for_how_long_or_leaves_it_to_its_service() -> None:
    service = entry(Plain)
    print_ = ask_cache(service, b'{"n":1}', "", None, True).split(" ")
    assert print_[1] == "", "the service's own"
    assert ask_cache(service, b'{"n":1}', "", 1.5, False) == f"{print_[0]} 1500000"
    assert ask_cache(service, b'{"n":1}', "", 0, True) == ""
    assert ask_cache(service, b'{"n":1}', "", None, False) == ""


def test_the_content_behind_a_url_may_change() -> None:
    assert ask(Pictures, '{"picture":"https://example.org/p.png"}') == ""


def test_outputs_with_files_are_not_reused() -> None:
    service = entry(Plain, OutputFile)
    assert ask_cache(service, b'{"n":1}', "", 60, True) == ""
    check_cacheable(service, 0)
    check_cacheable(service, None)
    check_cacheable(entry(None, None), 60)
    with pytest.raises(InvalidInput, match="cache_for_s: expected 0 or none: an output of p holds files"):
        check_cacheable(service, 60)
    with pytest.raises(TypeError, match="cache_for_s must be 0: Output holds files"):

        class Cutting(Service[Plain, OutputFile]):
            cache_for_s = 1

            def predict(self, features: Any) -> Any:
                return features


def test_version_and_knobs_make_a_model_but_not_the_caches_own() -> None:
    knobs = Service.knobs()
    assert digest_model("1", knobs) == digest_model("1", {**knobs, "cache_for_s": 5})
    found = {digest_model("1", knobs), digest_model("2", knobs), digest_model("1", {**knobs, "max_batch_size": 5})}
    assert len(found) == 3
