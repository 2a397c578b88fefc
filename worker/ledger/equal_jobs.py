"""What makes two jobs equal, so that one may end with the other's output; ``lua/lib/equal_jobs`` says how."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest_model(version: str, knobs: Mapping[str, Any]) -> str:
    """What stands for a plugin as a worker runs it: its version, and all its knobs but the cache's own."""
    told = {name: value for name, value in knobs.items() if name != "cache_for_s"}
    return hashlib.sha256(json.dumps([version, told], sort_keys=True).encode()).hexdigest()[:32]


def fingerprint(service: str, version: str, owner: str, text: bytes, kind: str) -> str:
    """What equal jobs have in common, as long as the same model runs them: the hash of all that tells them apart.

    Args:
        owner: the API key: what one caller computes is never another's.
        text: the input as ``canonical`` writes it.
        kind: how it was read, so that texts of two kinds are never taken for each other.
    """
    about = json.dumps([service, version, owner, kind])
    return hashlib.sha256(about.encode() + b"\n" + text).hexdigest()


def canonical(value: Any) -> bytes:
    """A JSON value as one text, whatever the order of its members: 1 and 1.0 are two values, as a model may see two."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def ask(fingerprint: str, cache_for_s: float | None) -> str:
    """What a job asks of the cache, as ``lua/create.lua`` takes it; None: for as long as its service says."""
    return f"{fingerprint} {'' if cache_for_s is None else round(cache_for_s * 1e6)}"
