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
    """The cache request of a job with this valid input (JSON), as ``NewJob.cache`` has it; "": no cache.

    Args:
        cache_for_s: seconds that the client wishes; None: as its service's knob says.
        knob_may_be_set: whether the knob may be more than 0; True while no worker has reported it.
    """
    if cache_for_s == 0 or (cache_for_s is None and not knob_may_be_set):
        return ""
    if entry.output and holds_files(entry.output, "serialization"):
        return ""
    canonical_input = _canonical_input(entry, text)
    if canonical_input is None:
        return ""
    kind, canonical_text = canonical_input
    return ask(fingerprint(entry.plugin.name, entry.plugin.version, owner, canonical_text, kind), cache_for_s)


def check_cacheable(entry: Entry, cache_for_s: float | None) -> None:
    """Raise ``InvalidInput`` for a job that wishes a cache although its service's outputs contain files."""
    if cache_for_s and entry.output and holds_files(entry.output, "serialization"):
        must = f"expected 0 or none: an output of {entry.plugin.name} holds files, which live no longer than its job"
        error = {"loc": ["body", "cache_for_s"], "msg": must, "type": "not_cacheable"}
        raise InvalidInput(f"cache_for_s: {must}", errors=[error])


def _canonical_input(entry: Entry, text: bytes) -> tuple[str, bytes] | None:
    """The input's kind ("read" or "sent") and canonical text; None where a URL stands for its content.

    "read": the text that its ``Input`` writes, so that an omitted default, or 1 for 1.0, makes no difference. This text
    counts only if parsing it again gives the same value: a field that a serializer writes as asterisks (``SecretStr``),
    rounds or omits would make different inputs equal. "sent": otherwise, the text that the client has sent.
    """
    as_sent = "sent", canonical(from_json(text))
    if entry.input is None:
        return as_sent
    try:
        value = entry.input.model_validate_json(text)
        if holds_files(entry.input):
            files = [file for _, file in find_files(value)]
            return None if any(file.url for file in files) else as_sent
        read = canonical(_in_order(from_json(value.model_dump_json(by_alias=True)), value.model_dump(by_alias=True)))
        return ("read", read) if _is_same(entry.input.model_validate_json(read), value) else as_sent
    except Exception as error:  # a plugin's serializer may raise anything
        log.debug("the input of %s is compared as it was sent: %s", entry.plugin.name, error)
        return as_sent


def _in_order(json: Any, value: Any) -> Any:
    """A value's JSON with the members of its sets sorted: the order of a set differs between processes."""
    if isinstance(json, dict) and isinstance(value, dict) and len(json) == len(value):
        return {key: _in_order(part, of) for (key, part), of in zip(json.items(), value.values(), strict=True)}
    if isinstance(json, list) and isinstance(value, list | tuple | set | frozenset) and len(json) == len(value):
        parts = [_in_order(part, of) for part, of in zip(json, value, strict=True)]
        return sorted(parts, key=canonical) if isinstance(value, set | frozenset) else parts
    return json


def _is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)
