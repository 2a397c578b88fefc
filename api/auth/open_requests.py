"""The requests of each API key that are being answered: a limit to their number, and their end when the key ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from worker.errors import RateLimited, Unauthorized


class OpenRequests:
    """All open requests with an API key of this process.

    Args:
        most: open requests of one key; 0: any number.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._tasks: dict[str, set[asyncio.Task[Any]]] = {}  # by the id of the key
        self._ended: dict[asyncio.Task[Any], str] = {}  # tasks that ``end`` has cancelled, with the reason

    @property
    def keys(self) -> list[str]:
        """The ids of the keys with open requests."""
        return list(self._tasks)

    @contextmanager
    def count(self, key_id: str) -> Iterator[None]:
        """Surrounds a request. Raises ``RateLimited``, and ``Unauthorized`` if the key ends meanwhile."""
        task = asyncio.current_task()
        assert task
        tasks = self._tasks.setdefault(key_id, set())
        if self._most and len(tasks) >= self._most:
            most = f"of at most {self._most} (SERVICES_MAX_OPEN_REQUESTS)"
            raise RateLimited(f"the API key has {len(tasks)} open requests, {most}; try again when one has ended")
        tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if (reason := self._ended.get(task)) is None:
                raise
            task.uncancel()
            raise Unauthorized(reason) from None
        finally:
            self._ended.pop(task, None)
            tasks.discard(task)
            if not tasks:
                self._tasks.pop(key_id, None)

    def end(self, key_id: str, reason: str) -> None:
        """End the open requests of a key: 401 where the answer has not begun, else a cut connection."""
        for task in self._tasks.get(key_id, ()):
            if task not in self._ended:
                self._ended[task] = reason
                task.cancel()
