"""Our own log lines: one a job event, on standard error, independent of Celery's and uvicorn's logging."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def setup_logging(level: str) -> None:
    """Give the logger ``services`` its one handler; calling it again only changes the level."""
    logger = logging.getLogger("services")
    logger.setLevel(level.upper())
    logging.getLogger("services.audit").setLevel(logging.INFO)  # the audit log is kept, however quiet the rest is
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(FORMAT))
        logger.addHandler(handler)
        logger.propagate = False


class OwnLogger(logging.Logger):
    """A logger of ours in a pool process, where a plugin may set up ``logging`` as it likes.

    ``dictConfig`` switches off the loggers that there are, ``logging.disable`` all of them; others clear handlers or
    set levels. None of that is looked at here.
    """

    threshold = logging.INFO
    handler: logging.Handler

    def isEnabledFor(self, level: int) -> bool:
        """Whether lines of this level are logged."""
        return level >= self.threshold

    def handle(self, record: logging.LogRecord) -> None:
        """Log a line."""
        self.handler.handle(record)


class OwnHandler(logging.StreamHandler[TextIO]):
    """Writes to standard error as it was at first, even if ``sys.stderr`` and its descriptor are closed or replaced."""

    def __init__(self) -> None:
        super().__init__(open(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115, PTH123
        self.setFormatter(logging.Formatter(FORMAT))

    def handleError(self, record: logging.LogRecord) -> None:
        """A line that cannot be written (a full disk) is lost, and fails nothing."""


def keep_logging(level: str) -> OwnHandler:
    """Give the loggers below ``services`` a handler that no plugin can take from them; for a pool process."""
    OwnLogger.threshold, OwnLogger.handler = getattr(logging, level.upper()), (handler := OwnHandler())
    for name in [*logging.root.manager.loggerDict]:
        if name.partition(".")[0] == "services":
            logging.getLogger(name).__class__ = OwnLogger
    return handler
