"""Jobs over HTTP: ``POST /jobs``, ``GET /jobs/<id>`` and the routes below it.

In come requests (``routes``; the two hot ones by ``fast_path``, past FastAPI's layers). ``submit`` makes a job of plain
values, for any protocol; ``retention`` retains its files, ``fingerprint`` decides which inputs are equal. Jobs that
arrive together are stored together (``writer``); clients that wait share one subscription (``waiter``); ``events``
streams a job's progress. Out go answers in JSON and stored jobs.
"""
