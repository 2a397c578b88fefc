"""Jobs over HTTP: ``POST /jobs``, ``GET /jobs/<id>`` and what belongs to them.

In come requests (``routes``; the two hot ones by ``fast_path``, past FastAPI's layers). Jobs that arrive together are
stored together (``writer``); clients that wait share one subscription (``waiter``); ``events`` streams a job's
progress. Out go answers in JSON and stored jobs. ``fingerprint`` decides which inputs are equal.
"""
