"""``ledger.lua`` cut into one script an operation, each with no more than it calls.

Redis runs a script from its first line at every call, so each function that stands in it is made anew each time.
Measured: 28 us of Redis a call with the whole file before it; 5 (``extend``) to 20 (``claim``) with what it needs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

#: A definition on the top level: ``local a, b = …``, ``local function a(…)`` or ``function operations.a(…)``.
DEFINITION = re.compile(r"^(?:local function (\w+)|function operations\.(\w+)|local ([\w, ]+?) *(?:=|$))", re.M)
#: Where a part of the file stands that has a file of its own.
PART = re.compile(r"^--@ (\w+\.lua)$", re.M)
#: Where the definitions end, and what every call does begins.
TAIL = "\n-- Every call.\n"
WORD = re.compile(r"(?<![.:])\b[A-Za-z_]\w*")
COMMENT = re.compile(r"(?m)^ *--.*\n|  +-- .*$")


@dataclass(frozen=True, slots=True)
class Definition:
    """One definition of the file: the names that it gives, its text, and the words in it."""

    names: frozenset[str]
    text: str
    words: frozenset[str]


def read_source() -> str:
    """The whole file, with each of its parts (``--@ cache.lua``) in its place."""
    folder = files("worker")
    return PART.sub(lambda found: folder.joinpath(found[1]).read_text(), folder.joinpath("ledger.lua").read_text())


@cache
def script_of(operation: str) -> str:
    """The script of one operation. Raises ``KeyError`` for one that there is not."""
    definitions, tail = _cut()
    used = {"." + operation, *WORD.findall(tail)}
    kept: list[Definition] = []
    for definition in reversed(definitions):  # what a definition uses stands before it
        if used & definition.names:
            kept.append(definition)
            used |= definition.words
    if not any("." + operation in definition.names for definition in kept):
        raise KeyError(operation)
    return "".join(definition.text for definition in reversed(kept)) + tail


@cache
def _cut() -> tuple[list[Definition], str]:
    """The definitions in their order, and what every call does."""
    head, tail = COMMENT.sub("", read_source().replace(TAIL, "\nTAIL\n")).split("TAIL\n")
    found = list(DEFINITION.finditer(head))
    ends = [match.start() for match in found[1:]] + [len(head)]
    definitions = []
    for match, end in zip(found, ends, strict=True):
        local, operation, several = match.groups()
        names = [local] if local else ["." + operation] if operation else several.split(", ")
        text = head[match.start() : end]
        definitions.append(Definition(frozenset(names), text, frozenset(WORD.findall(text))))
    return definitions, tail


class Scripts:
    """The scripts of one client of redis-py, blocking or asyncio: called as one of its own, by the first argument."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._known: dict[str, Any] = {}

    def __call__(self, keys: Sequence[str], args: Sequence[Any], client: Any = None) -> Any:
        """Run an operation; with ``client``, a pipeline, as part of that."""
        return self.get(args[0])(keys=keys, args=args, client=client)

    def get(self, operation: str) -> Any:
        """redis-py's script of one operation."""
        script = self._known.get(operation)
        if script is None:
            script = self._known[operation] = self._client.register_script(script_of(operation))
        return script
