"""Large JSON bodies: they are read in threads, a few at a time, and their number of values is limited.

Measured with 8 MB of ``[]``: parsing and validating took 3.2 s, of which Python's garbage collector took 2.8 s, since
it looks at all new objects again and again. None of them is garbage, so no collection runs meanwhile. A thread alone
would not help: pydantic holds the interpreter while it parses.
"""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from api.problems import PayloadTooLarge

T = TypeVar("T")

#: Bodies over this number of bytes are read in a thread, so that other clients do not wait for them.
LARGE = 256 * 1024
#: Bodies up to this number of bytes are too small for a collection to be felt.
SMALL = 16 * 1024
#: Bodies that are read in threads at once.
MOST_AT_ONCE = 2
STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"')

_turns = asyncio.Semaphore(MOST_AT_ONCE)
_reading = 0  # calls without collections that are under way


async def aside(size: int, call: Callable[[], T]) -> T:
    """The result of a call that handles this number of bytes: in a thread where they are many."""
    if size <= LARGE:
        if size <= SMALL:
            return call()
        with no_collection():
            return call()
    async with _turns:
        with no_collection():
            return await asyncio.to_thread(call)


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection runs within."""
    global _reading
    _reading += 1
    gc.disable()
    try:
        yield
    finally:
        _reading -= 1
        if not _reading:
            gc.enable()


def check_values(body: bytes, most: int) -> None:
    """Raise ``PayloadTooLarge`` for JSON with more than ``most`` values; it need not be valid."""
    if _count_marks(body) >= most and _count_marks(STRING.sub(b"", body)) >= most:
        raise PayloadTooLarge(f"the body has more than {most} JSON values (SERVICES_MAX_JSON_VALUES)")


def _count_marks(body: bytes) -> int:
    """A bound of the number of values: each stands alone or after one of these marks."""
    return body.count(b",") + body.count(b"[") + body.count(b"{")
