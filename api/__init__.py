"""The HTTP front: validates, stores and enqueues jobs, and reads them back. It never loads a model.

The core, in the order in which a request passes through it:

* ``application``: the application, its start and its end; ``state``: all its parts, typed
* ``auth``: the gate that every request passes
* ``jobs``: their routes, and how jobs are submitted, stored and waited for, whichever the protocol
* ``requests``: bodies, queries and ``Prefer`` read strictly; ``catalog``: the installed services and their schemas
* ``problems``: every error as a problem document

Around it: ``batches``, ``files``, ``v2`` (the Open Inference Protocol), ``webhooks``, ``openapi``, ``ops`` (metrics,
the console) and ``client`` (for programs that call the API; it imports none of the above).

``api.app`` is made when it is first asked for (``uvicorn api:app``), so that importing ``api.client`` makes no server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

    app: FastAPI


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from api.application import create_app

    return globals().setdefault("app", create_app())
