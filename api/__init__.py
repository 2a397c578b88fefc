"""The HTTP front: validates, stores and enqueues jobs, and reads them back. It never loads a model.

The map, in the order in which a request passes through it:

* ``application``: the application and its life
* ``front``: the short way of ``POST /jobs`` and ``GET /jobs/<id>``, past FastAPI's layers
* ``access``: who may send a request (API keys of ``keyring``), its headers, its time, the audit log
* ``routes``: one thin handler a route
* ``requests``: bodies, queries and ``Prefer`` read strictly
* ``catalog``: the installed services and their schemas
* ``writer``: jobs that arrive together, stored together
* ``waiter``: clients that wait for a job's end, on one subscription
* ``open_inference``: ``/v2``; ``infer_requests`` reads its requests, ``tensors`` knows their form on the wire, and
  ``columns`` maps them to a plugin's models
* ``problems``: every error as a problem document
* ``openapi``: the OpenAPI document, of ``openapi_paths``, ``openapi_parts`` and ``schemas``
* ``meter``, ``metrics``: requests counted; ``GET /metrics``
* ``console``: the web page at ``/``, whose files are in ``static/``
* ``client``: for programs that call the API; it imports none of the above

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
