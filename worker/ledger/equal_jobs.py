"""Equality of jobs, by which one may end with the other's output; ``lua/lib/equal_jobs`` says how."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest_model(version: str, knobs: Mapping[str, Any]) -> str:
    """The identity of a plugin as a worker runs it: its version, and all its knobs but ``cache_for_s``."""
    relevant = {name: value for name, value in knobs.items() if name != "cache_for_s"}
    return hashlib.sha256(json.dumps([version, relevant], sort_keys=True).encode()).hexdigest()[:32]


def fingerprint(service: str, version: str, owner: str, text: bytes, kind: str) -> str:
    """The hash of all that distinguishes jobs of the same model; equal jobs have the same.

    Args:
        owner: the API key: no caller gets another's results.
        text: the input as ``canonical`` writes it.
        kind: how it was read, so that texts of two kinds are never taken for each other.
    """
    about = json.dumps([service, version, owner, kind])
    return hashlib.sha256(about.encode() + b"\n" + text).hexdigest()


def canonical(value: Any) -> bytes:
    """A JSON value as one text, in any order of its members. 1 and 1.0 are two values, as a model may see two."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def ask(fingerprint: str, cache_for_s: float | None) -> str:
    """The field ``cache`` of a job, as ``lua/create.lua`` takes it; None: for the service's own ``cache_for_s``."""
    return f"{fingerprint} {'' if cache_for_s is None else round(cache_for_s * 1e6)}"
