"""The worker: everything between a stored job and its stored result.

The map, in the order in which a job passes through it:

* ``service``: the contract that a plugin's author writes
* ``discovery``: finds the plugins by entry point; imports one only when it is asked for
* ``jobs``: what a job is, its states and the one table of their transitions
* ``ledger`` and ``ledger.lua`` with its parts: the truth about every job, in Redis; ``ledger_async``: the API's side of
  it, on ``ledger_client`` and ``ledger_batches``
* ``store``: clients for that Redis (TLS, Sentinel)
* ``dispatch``: a job's record and its Celery message, written together
* ``celery``: the Celery app (``celery -A worker``)
* ``consumer``: Celery's side of the worker: ``-Q``, the pool, events, remote control
* ``feeder``: claims batches for free pool slots
* ``broker``: other Celery producers' messages become jobs
* ``files``: files in inputs and outputs; ``attach``, ``fetch``, ``storage``: where they come from and go to
* ``runner``: the five stages of a batch, in a pool child; ``stages`` and ``passage``: those that need no ledger
* ``keeper``: the worker's lease, and the sweep for what a lost worker left behind
* ``backend``: Celery's ``AsyncResult`` over the ledger

This module imports nothing, so that a plugin's ``schema.py`` and the API never pay for the worker.
"""
