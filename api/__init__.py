"""The HTTP front: validates, stores and enqueues jobs, and reads them back. It never loads a model.

The map, in the order in which a request passes through it:

* ``app``: the application and its life
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
"""

from api.app import create_app

app = create_app()
