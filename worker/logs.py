"""Our own log lines: one a job event, on standard error, whatever Celery or uvicorn do with theirs."""

from __future__ import annotations

import logging
import sys


def setup_logging(level: str) -> None:
    """Give the logger ``services`` its one handler; calling it again only changes the level."""
    logger = logging.getLogger("services")
    logger.setLevel(level.upper())
    logging.getLogger("services.audit").setLevel(logging.INFO)  # who did what is kept, however quiet the rest is
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
