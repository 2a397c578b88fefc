"""The worker: everything between a stored job and its stored result.

The core, in the order in which a job passes through it:

* ``ledger``: the truth about every job, in Redis; each of its changes is one Lua call
* ``broker``: Celery's side: messages of other producers, events, control commands, ``AsyncResult``
* ``pool``: the worker's processes, its lease, and the next batch for a free process
* ``inference``: a batch through the model, from validation to the stored results
* ``service``: the contract that a plugin's author writes; ``files``, ``errors`` and ``testing`` are the author's too

Around it: ``celery`` and ``consumer`` (Celery's two entries), ``filestore``, ``webhooks``, ``net``, ``local`` (the
private Redis, ``services up``), ``cli`` (the command ``services``) and ``processes``.

This module imports nothing, so that a plugin's ``schema.py`` and the API never pay for the worker.
"""
