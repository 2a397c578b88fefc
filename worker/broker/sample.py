"""Which jobs Celery's events show, where there are too many to show each."""

from __future__ import annotations

import time
from collections.abc import Callable


class Sample:
    """Which jobs are shown: a token bucket of ``rate`` a second, that holds one second's worth."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._level = rate
        self._filled = clock()

    def take(self) -> bool:
        """Whether the next job is shown."""
        now = self._clock()
        self._level = min(self._rate, self._level + (now - self._filled) * self._rate)
        self._filled = now
        if self._level < 1:
            return False
        self._level -= 1
        return True
