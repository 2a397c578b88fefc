"""The Celery app, for ``celery -A libs_service`` and producers: ``from libs_service.celery import app``."""

from __future__ import annotations

from libs_service.names import ours_first

with ours_first("worker"):
    from worker.celery import app

__all__ = ["app"]
