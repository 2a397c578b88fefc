"""The worker's processes: which run batches, under which lease, and how they end.

In come the queues of ``-Q`` (``slots.ServicePool``, which Celery starts). Each slot has a pool process (``child``),
which asks for its next batch (``feeder``) and runs it (``worker.inference``). One thread renews the worker's lease
(``lease``). Out go limits, cancels and restarts: a process that dies, hangs or grows is replaced, and its jobs run
again.
"""
