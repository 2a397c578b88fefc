"""The job ledger: the truth about every job and batch, in Redis.

In come calls of the API (``async_ledger``) and of workers (``sync_ledger``); each is one Lua script, so it happens
whole or not at all, and may be repeated. Out go records, claimed batches and published ends. ``jobs`` and ``batches``
define the data, ``lua/`` the operations; ``messages`` builds the Celery message of a job. Nothing here knows Celery's
worker, HTTP or a plugin.
"""
