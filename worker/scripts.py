"""The scripts of the ledger: each operation is a file of ``ledger/lua``, with the files that it includes before it.

Redis runs a script from its first line at every call and makes each function in it anew. So a file includes no more than
it uses. Measured: 28 us of Redis a call with every function of the ledger; 5 (``extend``) to 20 (``claim``) like this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

FOLDER = files("worker").joinpath("ledger", "lua")
INCLUDE = re.compile(r'^--@ include "([\w/]+)"$', re.M)
COMMENT = re.compile(r"^ *--.*\n|  +-- .*$", re.M)


def read_script(name: str, texts: dict[str, str] | None = None, chain: tuple[str, ...] = ()) -> dict[str, str]:
    """The texts of a file and of all that it includes, by their names: each once, and after those that it includes.

    Raises ``LookupError`` for a missing file and for one that includes itself, with the chain of includes.
    """
    texts = {} if texts is None else texts
    path = FOLDER.joinpath(f"{name}.lua")
    if name in chain or not path.is_file():
        reason = "includes itself" if name in chain else "is missing"
        raise LookupError(f"the Lua file {name!r} {reason}: {' -> '.join((*chain, name))}")
    text = path.read_text()
    for other in INCLUDE.findall(text):
        if other not in texts:
            read_script(other, texts, (*chain, name))
    texts[name] = text
    return texts


@cache
def script_of(operation: str) -> str:
    """The script of one operation, without comments."""
    return COMMENT.sub("", "".join(read_script(operation).values()))


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
