"""The public names for programs and plugins: ``from libs_service import Service, File, Client, AsyncClient``.

These names collide with nothing in a team's own repository; ``worker`` and ``api``, where the code lies, may. Each is
imported when it is first asked for, so ``import libs_service`` costs nothing, and the client brings no server:

* for plugins: ``Service``, ``File``, ``FileRules``; for their tests ``libs_service.testing``
* for programs that send jobs: all of ``libs_service_client``, its errors among it
* ``uvicorn libs_service:app`` and ``celery -A libs_service worker -Q NAME``

Those for plugins and ``app`` have the name ``worker`` mean our package in the process (``libs_service.names``).
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI
    from libs_service_client import *  # noqa: F403

    from worker.files import File as File
    from worker.files import FileRules as FileRules
    from worker.service import Service as Service

    app: FastAPI

_OF_PLUGINS = {"Service": "worker.service", "File": "worker.files", "FileRules": "worker.files"}

#: ``libs_service_client.__all__``, which is not imported to know it; a test holds the two equal.
_OF_THE_CLIENT = frozenset({
    "ApiError", "AsyncBatch", "AsyncClient", "AsyncJob", "Batch", "Client", "ClientError", "Conflict",
    "ConnectionFailed", "ErrorDetail", "Event", "Forbidden", "Gone", "InvalidInput", "InvalidRequest", "InvalidWebhook",
    "Job",
    "JobCancelled", "JobExpired", "JobFailed", "JobNotSucceeded", "NotFound", "PayloadTooLarge", "Priority", "Result",
    "ServiceInfo", "Status", "StoredFile", "Timings", "TooManyRequests", "Unauthorized", "Unavailable",
    "UnexpectedAnswer",
    "verify_webhook",
})  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "app":
        return _app()
    if name in _OF_PLUGINS:
        from libs_service.names import import_ours

        return globals().setdefault(name, getattr(import_ours(_OF_PLUGINS[name]), name))
    if name in _OF_THE_CLIENT:
        return globals().setdefault(name, getattr(_client(), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_OF_PLUGINS, *_OF_THE_CLIENT, "app"})


def _app() -> Any:
    """The ASGI application. Celery's ``-A`` asks for ``app`` too; without it, it finds ``libs_service.celery``."""
    if sys._getframe(2).f_globals.get("__name__") == "celery.app.utils":
        raise AttributeError("the Celery app is libs_service.celery.app")
    from libs_service.names import ours_first

    with ours_first("worker", "api"):
        from api import app

        return app


def _client() -> Any:
    try:
        return import_module("libs_service_client")
    except ModuleNotFoundError as error:
        if error.name != "libs_service_client":
            raise
        must = "install the wheel of libs-service-client, which is built beside libs-service's (docs/client.md)"
        raise ModuleNotFoundError(f"libs_service's client is not installed: {must}", name=error.name) from error
