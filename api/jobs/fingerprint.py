"""Whether a job may use the cache, and its input's fingerprint."""

from __future__ import annotations

import logging
from typing import Any

from pydantic_core import from_json

from api.catalog import Entry
from worker.errors import InvalidInput
from worker.files import find_files, holds_files
from worker.ledger.equal_jobs import ask, canonical, fingerprint

log = logging.getLogger("services.api")


def ask_cache(entry: Entry, text: bytes, owner: str, cache_for_s: float | None, knob_may_be_set: bool) -> str:
    """What a job with this valid input (JSON) asks of the cache; "": nothing.

    Args:
        cache_for_s: the job's own; None: its service's.
        knob_may_be_set: whether that may be more than 0, as far as is known.
    """
    if cache_for_s == 0 or (cache_for_s is None and not knob_may_be_set):
        return ""
    if entry.output and holds_files(entry.output, "serialization"):
        return ""
    found = _canonical_input(entry, text)
    if found is None:
        return ""
    kind, told = found
    return ask(fingerprint(entry.plugin.name, entry.plugin.version, owner, told, kind), cache_for_s)


def check_cacheable(entry: Entry, cache_for_s: float | None) -> None:
    """Raise ``InvalidInput`` for a job that asks for what its service cannot do."""
    if cache_for_s and entry.output and holds_files(entry.output, "serialization"):
        must = f"expected 0 or none: an output of {entry.plugin.name} holds files, which live no longer than its job"
        error = {"loc": ["body", "cache_for_s"], "msg": must, "type": "not_cacheable"}
        raise InvalidInput(f"cache_for_s: {must}", errors=[error])


def _canonical_input(entry: Entry, text: bytes) -> tuple[str, bytes] | None:
    """How the input was read, and its canonical text; None where its content is not in it (a URL's file).

    As its ``Input`` has read it, so that a default that was left out, or 1 for 1.0, makes no difference. But only where
    the text says all that was read: where reading it again gives the same. A field that is written as asterisks
    (``SecretStr``), rounded or left out by a serializer would make two inputs equal that are not.
    """
    as_sent = "sent", canonical(from_json(text))
    if entry.input is None:
        return as_sent
    try:
        value = entry.input.model_validate_json(text)
        if holds_files(entry.input):
            files = [file for _, file in find_files(value)]
            return None if any(file.url for file in files) else as_sent
        told = canonical(_in_order(from_json(value.model_dump_json(by_alias=True)), value.model_dump(by_alias=True)))
        return ("read", told) if _is_same(entry.input.model_validate_json(told), value) else as_sent
    except Exception as error:  # a plugin's serializer may raise anything
        log.debug("the input of %s is compared as it was sent: %s", entry.plugin.name, error)
        return as_sent


def _in_order(told: Any, value: Any) -> Any:
    """The JSON of a value in which the members of a set stand in an order of their texts: its own is its process's."""
    if isinstance(told, dict) and isinstance(value, dict) and len(told) == len(value):
        return {key: _in_order(part, of) for (key, part), of in zip(told.items(), value.values(), strict=True)}
    if isinstance(told, list) and isinstance(value, list | tuple | set | frozenset) and len(told) == len(value):
        parts = [_in_order(part, of) for part, of in zip(told, value, strict=True)]
        return sorted(parts, key=canonical) if isinstance(value, set | frozenset) else parts
    return told


def _is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)
